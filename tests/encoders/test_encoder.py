"""The encoder against published numbers, its loading and its export."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import spear
from spear.encoders.config_json import released_fields, student_config
from spear.encoders.encoder import SpearEncoder
from spear.encoders.loading import read_weights
from spear.errors import AudioError, CheckpointError
from tests.hub.models import tiny_config, write_folder


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
    with pytest.raises(CheckpointError, match="not a readable weights file"):
        spear.from_pretrained(str(folder))
    (folder / "config.json").write_text('{"model_type": "wavlm"}')
    with pytest.raises(CheckpointError, match="'wavlm' model"):
        spear.from_pretrained(str(folder))


def test_weights_round_trip_by_name(folder: Path) -> None:
    model = spear.from_pretrained(str(folder))
    state = read_weights(folder / "model.safetensors")
    assert set(state) == set(model.state_dict())
    assert all(name.startswith("model.") for name in state)
