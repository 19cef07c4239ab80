"""What `spear.from_pretrained` takes, what it says that it found, and what it refuses."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import spear
from spear.encoders.config_json import released_fields
from spear.encoders.icefall import to_icefall, write_checkpoint
from spear.encoders.loading import to_released_names
from spear.errors import CheckpointError
from spear.hub.export import EXPORT_FILE, write_model_folder
from tests.hub.models import export_tiny, tiny_encoder


def encoded(model: torch.nn.Module) -> torch.Tensor:
    audio = torch.linspace(-0.1, 0.1, 8000).unsqueeze(0)
    with torch.no_grad():
        output: torch.Tensor = model(audio)["encoder_out"]
    return output


@pytest.fixture
def expected() -> torch.Tensor:
    return encoded(tiny_encoder())


def test_an_export_is_called_one(
    tmp_path: Path, expected: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    folder = export_tiny(tmp_path / "model")
    with caplog.at_level(logging.INFO):
        assert torch.equal(encoded(spear.from_pretrained(str(folder))), expected)
    assert f"loaded {folder}: an export of spear {spear.__version__}" in caplog.text


def test_a_published_layout_is_called_one(
    tmp_path: Path, expected: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_encoder()
    save_file(to_released_names(model.state_dict()), tmp_path / "model.safetensors")
    content = {"model_type": "spear", **released_fields(model.config)}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with caplog.at_level(logging.INFO):
        assert torch.equal(encoded(spear.from_pretrained(tmp_path)), expected)
    assert "a SPEAR folder as published" in caplog.text


def test_icefalls_checkpoint_with_the_configuration_given_or_beside_it(
    tmp_path: Path, expected: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_encoder()
    alone = tmp_path / "pretrained.pt"
    torch.save({"model": {**to_icefall(model), "joiner.weight": torch.zeros(2)}}, alone)
    with caplog.at_level(logging.INFO):
        found = spear.from_pretrained(str(alone), student=model.config.to_dict())
    assert torch.equal(encoded(found), expected)
    assert "left aside: joiner" in caplog.text
    assert "an icefall checkpoint" in caplog.text
    with pytest.raises(CheckpointError, match="does not tell the sizes"):
        spear.from_pretrained(str(alone))
    write_checkpoint(model, tmp_path / "export")
    found = spear.from_pretrained(str(tmp_path / "export" / "pretrained.pt"))
    assert torch.equal(encoded(found), expected)


def test_a_student_is_for_files_only(tmp_path: Path) -> None:
    folder = export_tiny(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"icefall's \.pt files"):
        spear.from_pretrained(str(folder), student={"encoder_dim": [32]})


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_missing_and_edited_files_of_an_export_are_named(tmp_path: Path, name: str) -> None:
    folder = export_tiny(tmp_path / "model")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content + b" ")
    with pytest.raises(CheckpointError, match=f"{name} was changed since its export"):
        spear.from_pretrained(str(folder))
    if name != "model.safetensors":
        assert spear.from_pretrained(str(folder), verify=False)
        record = (folder / EXPORT_FILE).read_bytes()
        (folder / EXPORT_FILE).unlink()
        assert spear.from_pretrained(str(folder))
        (folder / EXPORT_FILE).write_bytes(record)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        spear.from_pretrained(str(folder))


def test_cards_and_code_may_be_edited(tmp_path: Path) -> None:
    folder = export_tiny(tmp_path / "model")
    (folder / "README.md").write_text("my words")
    (folder / "modeling_spear.py").write_text("# my code")
    assert spear.from_pretrained(str(folder))


def test_a_hub_id_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(CheckpointError) as caught:
        spear.from_pretrained("nobody/nothing")
    message = str(caught.value)
    assert "nobody/nothing" in message
    assert "no route to the hub" in message
    assert "download the folder" in message
    assert "\n" not in message


def test_a_hub_id_is_downloaded_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    folder = tmp_path / "cache"
    write_model_folder(tiny_encoder(), folder, {"weights": "last"})
    monkeypatch.setattr(hub, "snapshot_download", lambda repo, allow_patterns: str(folder))
    with caplog.at_level(logging.INFO):
        assert spear.from_pretrained("some/model")
    assert f"loaded some/model: an export of spear {spear.__version__}" in caplog.text
    assert f"downloaded to {folder}" in caplog.text
