"""The encoder against published numbers, its loading and its export."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import spear
from spear.errors import AudioError, CheckpointError
from spear.hub.encoder import SpearEncoder
from spear.hub.loading import read_weights, to_released_names
from spear.hub.released_config import released_fields, student_config
from spear.zipformer import ZipformerConfig


def tiny_config(**changes: object) -> ZipformerConfig:
    fields: dict[str, object] = {
        "feature_dim": 128,
        "downsampling_factor": (1, 2),
        "encoder_dim": (32, 48),
        "num_encoder_layers": (1, 1),
        "encoder_unmasked_dim": (24, 32),
        "num_heads": (2, 2),
        "feedforward_dim": (48, 48),
        "cnn_module_kernel": (15, 15),
    }
    return ZipformerConfig.from_dict({**fields, **changes})


def write_folder(folder: Path, model: SpearEncoder) -> Path:
    folder.mkdir()
    save_file(to_released_names(model.state_dict()), folder / "model.safetensors")
    content = {"model_type": "spear", **released_fields(model.config)}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    return write_folder(tmp_path / "model", SpearEncoder(tiny_config()))


def test_published_checkpoint_gives_published_numbers(golden_dir: Path) -> None:
    source = golden_dir / "spear_tiny_50hz"
    reference = torch.load(source / "reference.pt", weights_only=True)
    model = spear.from_pretrained(str(source))
    with torch.no_grad():
        out = model(reference["audio"], reference["audio_lens"])
    assert torch.equal(out["encoder_out_lens"], reference["encoder_out_lens"])
    for i, alone in enumerate(reference["alone"]):
        valid = int(out["encoder_out_lens"][i])
        assert (out["encoder_out"][i, :valid] - alone["encoder_out"]).abs().max() < 2e-4
        for ours, theirs in zip(out["hidden_states"], alone["hidden_states"], strict=True):
            assert (ours[i, :valid] - theirs).abs().max() < 2e-4
    assert (out["encoder_out"][0] - reference["encoder_out"][0]).abs().max() < 2e-4


def test_batch_mates_and_padding_change_nothing(folder: Path) -> None:
    model = spear.from_pretrained(str(folder))
    lens = torch.tensor([9000, 800, 16000, 3210])
    audio = torch.randn(4, 16000) * 0.1
    with torch.no_grad():
        together = model(audio, lens)
        for i, length in enumerate(lens.tolist()):
            alone = model(audio[i : i + 1, :length], lens[i : i + 1])
            valid = int(together["encoder_out_lens"][i])
            assert valid == int(alone["encoder_out_lens"][0])
            difference = together["encoder_out"][i, :valid] - alone["encoder_out"][0]
            assert difference.abs().max() < 1e-4
    assert together.attention_mask.sum(1).tolist() == together["encoder_out_lens"].tolist()
    assert together.last_hidden_state is together["encoder_out"]


def test_auto_model_loads_the_same_folder(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = spear.from_pretrained(str(folder))
    theirs = transformers.AutoModel.from_pretrained(str(folder)).eval()
    audio, lens = torch.randn(2, 8000) * 0.1, torch.tensor([8000, 5000])
    mask = torch.arange(8000) < lens[:, None]
    with torch.no_grad():
        expected = ours(audio, lens)
        for found in (theirs(audio, attention_mask=mask), theirs(audio=audio, audio_lens=lens)):
            assert torch.equal(found.last_hidden_state, expected["encoder_out"])
            assert torch.equal(found.encoder_out_lens, expected["encoder_out_lens"])
    with pytest.raises(AudioError, match="44100 Hz"):
        theirs(audio, sampling_rate=44100)
    assert theirs.config.hidden_size == ours.output_dim
    assert theirs.config.num_hidden_layers == 2


def test_saved_by_transformers_loads_here_and_there(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(str(folder)).eval()
    model.save_pretrained(tmp_path / "again")
    audio = torch.randn(1, 4000) * 0.1
    with torch.no_grad():
        expected = model(audio).last_hidden_state
        again = transformers.AutoModel.from_pretrained(tmp_path / "again").eval()
        assert torch.equal(again(audio).last_hidden_state, expected)
        assert torch.equal(
            spear.from_pretrained(str(tmp_path / "again"))(audio)["encoder_out"], expected
        )


def test_both_dialects_of_the_configuration_mean_the_same() -> None:
    config = tiny_config(frontend_pad=False)
    ours = {"model_type": "spear", **released_fields(config)}
    published = {
        key: ",".join(map(str, value)) if isinstance(value, list | tuple) else value
        for key, value in ours.items()
        if key != "frontend_pad"
    }
    assert student_config(ours, "a") == student_config(published, "b") == config


@pytest.mark.parametrize(
    ("audio", "lens", "expected"),
    [
        (torch.zeros(8000), None, "expected \\(batch, samples\\)"),
        (torch.zeros(1, 2, 8000), None, "expected \\(batch, samples\\)"),
        (torch.zeros(1, 8000, dtype=torch.int16), None, "divide by 32768"),
        (torch.full((1, 8000), 12345.0), None, "magnitude 12345"),
        (torch.full((1, 8000), float("nan")), None, "magnitude"),
        (torch.zeros(1, 8000), torch.tensor([8001]), "between 1 and"),
        (torch.zeros(1, 8000), torch.tensor([0]), "between 1 and"),
        (torch.zeros(2, 8000), torch.tensor([8000]), "audio_lens has shape"),
        (torch.zeros(1, 0), None, "is empty"),
    ],
)
def test_what_cannot_be_audio_is_refused(
    audio: torch.Tensor, lens: torch.Tensor | None, expected: str
) -> None:
    model = SpearEncoder(tiny_config()).eval()
    with pytest.raises(AudioError, match=expected):
        model(audio, lens)


def test_broken_folders_are_one_clear_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a model folder"):
        spear.from_pretrained(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        spear.from_pretrained(str(tmp_path / "empty"))

    state = load_file(folder / "model.safetensors")
    missing = state.pop("model.model.encoder_embed.out.weight")
    save_file({**state, "model.model.extra": missing}, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        spear.from_pretrained(str(folder))
    assert "encoder_embed.out.weight" in str(caught.value)
    assert "extra" in str(caught.value)

    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        spear.from_pretrained(str(folder))
    (folder / "config.json").write_text('{"model_type": "wavlm"}')
    with pytest.raises(CheckpointError, match="'wavlm' model"):
        spear.from_pretrained(str(folder))


def test_weights_round_trip_by_name(folder: Path) -> None:
    model = spear.from_pretrained(str(folder))
    state = read_weights(folder / "model.safetensors")
    assert set(state) == set(model.state_dict())
    assert all(name.startswith("model.") for name in state)


def test_info_prints_sizes(folder: Path, repo_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "spear", "info", "model", str(folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=repo_dir,
    )
    assert "48 channels at 50 Hz" in done.stdout
    assert done.stdout.count("\n") == 7
