"""The transformers classes against the encoder that they wrap."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import spear
from spear.encoders.config_json import released_fields
from spear.encoders.encoder import SpearEncoder
from spear.errors import AudioError, CheckpointError, ConfigError
from spear.zipformer.schedule import scheduled_floats
from tests.hub.models import export_tiny, tiny_encoder

transformers = pytest.importorskip("transformers")
from spear.hub.hf import (  # noqa: E402
    SpearConfig,
    SpearFeatureExtractor,
    SpearForAudioClassification,
    SpearForCTC,
    SpearModel,
)

VOCABULARY = ["<blk>", "<unk>", "▁", "A", "B"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return export_tiny(tmp_path / "model")


def noise(*lengths: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A padded batch, its lengths and its mask."""
    lens = torch.tensor(lengths)
    audio = 0.1 * torch.randn(len(lengths), max(lengths))
    return audio, lens, (torch.arange(max(lengths)) < lens[:, None]).long()


@torch.no_grad()
def test_every_way_of_giving_audio_gives_the_encoders_numbers(folder: Path) -> None:
    ours = spear.from_pretrained(str(folder))
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    audio, lens, mask = noise(8000, 5000)
    expected = ours(audio, lens)
    for found in (
        theirs(audio, attention_mask=mask),
        theirs(audio, mask.bool()),
        theirs(audio=audio, audio_lens=lens),
        theirs(audio, lens),  # as users of the published checkpoints call them
    ):
        assert torch.equal(found.last_hidden_state, expected["encoder_out"])
        assert torch.equal(found.encoder_out, expected["encoder_out"])
        assert torch.equal(found["encoder_out_lens"], expected["encoder_out_lens"])
        assert torch.equal(found.attention_mask, expected["attention_mask"])
        layers = (expected["embeddings"], *expected["hidden_states"])
        assert len(found.hidden_states) == theirs.config.num_hidden_layers + 1 == 3
        assert all(map(torch.equal, found.hidden_states, layers))
    assert theirs(audio, mask, output_hidden_states=False).hidden_states is None
    as_tuple = theirs(audio, mask, return_dict=False)
    assert torch.equal(as_tuple[0], expected["encoder_out"])


def test_the_configuration_tells_what_users_hard_code_elsewhere(folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    assert (config.hidden_size, config.num_hidden_layers, config.frame_rate_hz) == (48, 2, 50)
    assert (config.sampling_rate, config.inputs_to_logits_ratio) == (16000, 320)
    slow = SpearConfig(output_downsampling_factor=2)
    assert (slow.frame_rate_hz, slow.inputs_to_logits_ratio) == (25, 640)
    assert SpearConfig().student.frontend_pad
    assert SpearConfig.from_dict(config.to_dict()).student == config.student


@pytest.mark.parametrize(
    "changes", [{}, {"frontend_pad": False}, {"output_downsampling_factor": 2}]
)
@torch.no_grad()
def test_output_lengths_are_public(changes: dict[str, object], tmp_path: Path) -> None:
    model = SpearModel.from_pretrained(export_tiny(tmp_path / "m", **changes)).eval()
    lengths = [80, 799, 800, 1600, 5000, 16000, 16161]
    audio, lens, mask = noise(*lengths)
    found = model(audio, mask).encoder_out_lens
    assert torch.equal(model.get_output_lengths(lens), found)
    assert [model.get_output_lengths(length) for length in lengths] == found.tolist()
    assert torch.equal(model._get_feat_extract_output_lengths(lens), found)


def test_padding_changes_nothing_through_the_feature_extractor(folder: Path) -> None:
    model = SpearModel.from_pretrained(folder).eval()
    prepare = SpearFeatureExtractor.from_pretrained(folder)
    recordings = [torch.randn(n) * 0.1 for n in (9000, 800, 16000, 3210)]
    batch = prepare([r.numpy() for r in recordings], sampling_rate=16000, return_tensors="pt")
    assert batch["attention_mask"].sum(1).tolist() == [9000, 800, 16000, 3210]
    with torch.no_grad():
        together = model(**batch)
        for row, recording in enumerate(recordings):
            alone = model(**prepare(recording, sampling_rate=16000, return_tensors="pt"))
            num_frames = int(together.encoder_out_lens[row])
            assert num_frames == alone.last_hidden_state.shape[1]
            difference = together.last_hidden_state[row, :num_frames] - alone.last_hidden_state[0]
            assert difference.abs().max() < 1e-4


def test_saved_by_transformers_loads_here_and_there(folder: Path, tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(folder).eval()
    model.save_pretrained(tmp_path / "again")
    assert not list((tmp_path / "again").glob("*.bin"))
    audio, lens, _ = noise(4000)
    with torch.no_grad():
        expected = model(audio, lens).last_hidden_state
        again = transformers.AutoModel.from_pretrained(tmp_path / "again").eval()
        assert torch.equal(again(audio, lens).last_hidden_state, expected)
        ours = spear.from_pretrained(str(tmp_path / "again"))
        assert torch.equal(ours(audio, lens)["encoder_out"], expected)
    assert (tmp_path / "again" / "modeling_spear.py").is_file()


def test_regularisers_are_as_at_the_end_of_training(folder: Path) -> None:
    model = SpearModel.from_pretrained(folder)
    floats = list(scheduled_floats(model))
    assert floats
    assert all(f.value == f.points[-1][1] for f in floats)


def test_a_step_of_fine_tuning_reaches_every_weight_but_the_mask(folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=3)
    model = SpearForAudioClassification.from_pretrained(folder, config=config).train()
    model.gradient_checkpointing_enable()
    assert model.encoder.model.encoder.encoders[0].checkpointing
    audio, _, mask = noise(16000, 12000)
    output = model(audio, mask, labels=torch.tensor([0, 2]))
    output.loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == ["spear.model.model.mask_emb"]
    model.gradient_checkpointing_disable()
    assert not model.encoder.model.encoder.encoders[0].checkpointing
    model.freeze_base_model()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "head.weight",
        "head.bias",
    ]


def test_a_head_on_a_pre_trained_encoder_is_new_and_the_encoder_is_not(folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder, vocabulary=VOCABULARY)
    torch.manual_seed(5)
    model = SpearForCTC.from_pretrained(folder, config=config).eval()
    assert model.head.weight.shape == (5, 48)
    assert 0.01 < float(model.head.weight.detach().std()) < 0.04
    assert torch.equal(model.head.bias, torch.zeros(5))
    ours = spear.from_pretrained(str(folder)).state_dict()
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, ours[name])


def test_ctc_loss_is_torchs_and_leaves_out_what_cannot_be(folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder, vocabulary=VOCABULARY)
    model = SpearForCTC.from_pretrained(folder, config=config).eval()
    audio, _, mask = noise(16000, 1600)
    labels = torch.tensor([[3, 4, 3, -100, -100, -100], [3, 3, 3, 3, 3, 3]])
    output = model(audio, mask, labels=labels)  # six equal labels need 11 frames of 5
    first = (output.logits[:1].transpose(0, 1), labels[:1, :3], output.logits_lens[:1])
    expected = torch.nn.functional.ctc_loss(*first, torch.tensor([3]), reduction="sum")
    torch.testing.assert_close(output.loss, expected)
    assert torch.allclose(output.logits.exp().sum(-1), torch.ones(output.logits.shape[:2]))
    assert output.attention_mask.sum(1).tolist() == output.logits_lens.tolist() == [50, 5]
    model.config.ctc_loss_reduction = "sum"
    torch.testing.assert_close(model(audio, mask, labels=labels).loss, expected)
    for bad in (0, 5):
        with pytest.raises(ConfigError, match="labels must be 1 to 4"):
            model(audio, mask, labels=torch.full((2, 1), bad))


def test_text_of_tokens(folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder, vocabulary=VOCABULARY)
    model = SpearForCTC.from_pretrained(folder, config=config).eval()
    assert model._text([2, 3, 4, 2, 4]) == "AB B"
    audio, _, mask = noise(16000, 1600)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0]))
    assert model.transcribe(audio, mask) == ["A", "A"]
    model.config.vocabulary = None
    with pytest.raises(ConfigError, match="vocabulary is not there"):
        model.transcribe(audio, mask)
    with pytest.raises(ConfigError, match=r"needs config\.vocabulary"):
        SpearForCTC(SpearConfig())


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        (None, torch.tensor([1, 0])),
        ("multi_label_classification", torch.tensor([[1, 0, 1], [0, 0, 1]])),
    ],
)
def test_classification_saves_and_loads_its_head(
    problem: str | None, labels: torch.Tensor, folder: Path, tmp_path: Path
) -> None:
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=3, problem_type=problem)
    model = SpearForAudioClassification.from_pretrained(folder, config=config).eval()
    audio, _, mask = noise(9000, 5000)
    with torch.no_grad():
        expected = model(audio, mask, labels=labels)
        frames = model.spear(audio, mask)
        mean = frames.last_hidden_state[1, : int(frames.encoder_out_lens[1])].mean(0)
        torch.testing.assert_close(expected.logits[1], model.head(mean))
        loss = (
            torch.nn.functional.cross_entropy(expected.logits, labels)
            if problem is None
            else torch.nn.functional.binary_cross_entropy_with_logits(
                expected.logits, labels.float()
            )
        )
        torch.testing.assert_close(expected.loss, loss)
        model.save_pretrained(tmp_path / "saved")
        again = transformers.AutoModelForAudioClassification.from_pretrained(tmp_path / "saved")
        assert torch.equal(again.eval()(audio, mask).logits, expected.logits)
        encoder = spear.from_pretrained(str(tmp_path / "saved"))
        torch.testing.assert_close(
            encoder(audio, mask.sum(1))["encoder_out"], frames.last_hidden_state
        )


def test_what_cannot_be_audio_is_refused(folder: Path) -> None:
    model = SpearModel.from_pretrained(folder).eval()
    audio, _, mask = noise(8000, 4000)
    with pytest.raises(AudioError, match="44100 Hz"):
        model(audio, mask, sampling_rate=44100)
    with pytest.raises(AudioError, match="give the audio once"):
        model()
    with pytest.raises(AudioError, match="give the audio once"):
        model(audio, audio=audio)
    with pytest.raises(AudioError, match="one entry per sample"):
        model(audio, mask[:, :100])
    with pytest.raises(AudioError, match="a 1 behind a 0"):
        model(audio, mask.flip(1))
    with pytest.raises(AudioError, match=r"recordings \[1\] of the batch end in zeros"):
        model(audio * mask)
    assert model(audio * mask, audio_lens=torch.tensor([8000, 8000])).last_hidden_state is not None
    assert model(torch.zeros(2, 8000)).last_hidden_state is not None


@pytest.mark.parametrize(
    ("speech", "message"),
    [
        (np.zeros((2, 2, 800)), "average the channels"),
        (np.zeros(0), "is empty"),
        ([], "is empty"),
        (np.zeros(800, dtype=np.int16), "divide by 32768"),
        (np.full(800, 3e4), "divide 16-bit samples"),
        ([0.1, float("nan")], "finite"),
    ],
    ids=["stereo", "empty", "empty list", "int16", "int16 as float", "NaN"],
)
def test_what_the_feature_extractor_refuses(speech: object, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        SpearFeatureExtractor()(speech, sampling_rate=16000)


def test_the_feature_extractor_takes_arrays_tensors_and_lists() -> None:
    prepare = SpearFeatureExtractor()
    for speech in (np.ones(800), torch.ones(800), [1.0] * 800, [np.ones(800, dtype=np.float64)]):
        batch = prepare(speech, sampling_rate=16000, return_tensors="pt")
        assert batch["input_values"].dtype == torch.float32
        assert torch.equal(batch["input_values"], torch.ones(1, 800))
    with pytest.raises(AudioError, match="8000 Hz"):
        prepare(np.ones(800), sampling_rate=8000)
    cut = prepare(
        [np.ones(800), np.ones(90)], sampling_rate=16000, return_tensors="np",
        padding="max_length", max_length=400, truncation=True,
    )  # fmt: skip
    assert cut["attention_mask"].sum(1).tolist() == [400, 90]


def test_the_exported_feature_extractor_is_the_saved_one(folder: Path, tmp_path: Path) -> None:
    SpearFeatureExtractor().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    exported = json.loads((folder / "preprocessor_config.json").read_text())
    assert {**exported, "auto_map": None} == {**saved, "auto_map": None}


@pytest.mark.parametrize("change", ["missing", "unexpected", "mismatch"])
def test_weights_of_the_encoder_must_all_be_there(folder: Path, change: str) -> None:
    state = load_file(folder / "model.safetensors")
    name = "model.model.encoder_embed.out.weight"
    if change == "missing":
        del state[name]
    elif change == "unexpected":
        state["model.model.encoder.extra"] = state[name].clone()
    else:
        state[name] = state[name][:, :-1].contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    # Of shapes transformers has its own error, after a table.
    expected = RuntimeError if change == "mismatch" else CheckpointError
    with pytest.raises(expected, match=change):
        SpearModel.from_pretrained(folder)


def test_a_published_folder_loads(golden_dir: Path) -> None:
    source = golden_dir / "spear_tiny_50hz"
    reference = torch.load(source / "reference.pt", weights_only=True)
    model = transformers.AutoModel.from_pretrained(source).eval()
    with torch.no_grad():
        found = model(reference["audio"], reference["audio_lens"])
    assert (found.encoder_out[0] - reference["encoder_out"][0]).abs().max() < 2e-4


def test_from_scratch_it_begins_as_the_encoder_does() -> None:
    student = tiny_encoder().config
    torch.manual_seed(3)
    ours = SpearEncoder(student)
    torch.manual_seed(3)
    theirs = SpearModel(SpearConfig(**released_fields(student)))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.model.state_dict()[name])
