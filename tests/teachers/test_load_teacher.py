"""Specifications of teachers: what is accepted, what is refused, where weights are looked for."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spear.errors import CheckpointError, ConfigError, MissingPackageError
from spear.teachers import FAMILIES, TeacherConfig, load_teacher
from spear.teachers.load import _BUILDERS

Spec = Callable[[str], dict[str, Any]]


def test_name_is_the_family_unless_one_is_given(make_spec: Spec) -> None:
    assert load_teacher({"name": "logmel"}).family == "logmel"
    labelled = load_teacher(TeacherConfig(name="first-iteration", family="mfcc"))
    assert (labelled.name, labelled.family) == ("first-iteration", "mfcc")
    assert load_teacher({**make_spec("dasheng"), "path": Path(make_spec("dasheng")["path"])})


def test_every_family_has_a_builder() -> None:
    assert set(_BUILDERS) == set(FAMILIES)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "needs a name"),
        ({"name": "logmel", "layr": 3}, "unknown key layr; did you mean layer"),
        ({"name": "logmel", "colour": 3}, "unknown key colour; known: .*family, .*name"),
        ({"name": "wavlmm", "path": "x"}, "unknown family 'wavlmm'.*wavlm, hubert"),
        ({"name": "a/b", "family": "logmel"}, "name must be letters"),
        ({"name": "wavlm"}, "needs path"),
        ({"name": "wavlm", "path": "x", "deltas": True}, "deltas is for logmel and mfcc"),
        ({"name": "mfcc", "path": "x"}, "leave out path"),
        ({"name": "mfcc", "layer": 1}, "leave out layer"),
        ({"name": "mfcc", "frame_rate_hz": 30}, "must be 50 or 25"),
        ({"name": "mfcc", "num_mel_bins": 5}, "must be 13 to 128"),
    ],
)
def test_unusable_specifications_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_teacher(spec)
    assert "\n" not in str(caught.value)


def test_another_frame_rate_than_the_model_has_is_refused(make_spec: Spec) -> None:
    spec = make_spec("dasheng")
    assert load_teacher({**spec, "frame_rate_hz": 25}).frame_rate_hz == 25.0
    with pytest.raises(ConfigError, match="25 frames per second, not frame_rate_hz 50"):
        load_teacher({**spec, "frame_rate_hz": 50})


@pytest.mark.parametrize("family", ["wavlm", "dasheng", "spear"])
def test_missing_files_are_named(family: str, tmp_path: Path) -> None:
    def refuse(path: Path, message: str) -> None:
        with pytest.raises(CheckpointError, match=message) as caught:
            load_teacher({"name": family, "path": str(path)})
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    refuse(tmp_path / "nowhere", "no file or folder")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "has no config.json")
    (tmp_path / "empty" / "config.json").write_text("{}")
    refuse(tmp_path / "empty", "has no weights")


def test_file_instead_of_a_folder_and_broken_json(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file, expected a model folder"):
        load_teacher({"name": "wavlm", "path": str(tmp_path / "model" / "config.json")})
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        load_teacher({"name": "wavlm", "path": str(tmp_path / "model")})
    (tmp_path / "model" / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_teacher({"name": "wavlm", "path": str(tmp_path / "model")})


def test_transformers_is_asked_for_when_missing(
    make_spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec("wavlm")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackageError, match="pip install transformers"):
        load_teacher(spec)
    load_teacher(make_spec("dasheng"))  # the others do without it


class FakeHub:
    """`huggingface_hub` with one repository; remembers what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[list[str]] = []

    def snapshot_download(self, repo: str, allow_patterns: list[str]) -> str:
        self.asked.append(allow_patterns)
        if repo != "someone/wavlm":
            raise OSError("404\nnot found")
        return str(self.folder)


def test_hub_ids_are_downloaded(make_spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec("wavlm")
    hub = FakeHub(Path(spec["path"]))
    monkeypatch.setattr("spear.system.model_folder.require", lambda *args: hub)
    teacher = load_teacher({"name": "wavlm", "path": "someone/wavlm"})
    assert teacher.identity()["path"] == "someone/wavlm"
    assert teacher.weights_sha256 == load_teacher(spec).weights_sha256
    assert len(hub.asked) == 1 and not any(".bin" in pattern for pattern in hub.asked[0])
    with pytest.raises(CheckpointError, match=r"no folder someone/else, .*404 not found"):
        load_teacher({"name": "wavlm", "path": "someone/else"})


def test_pickles_are_fetched_only_where_safetensors_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    hub = FakeHub(tmp_path)
    monkeypatch.setattr("spear.system.model_folder.require", lambda *args: hub)
    with pytest.raises(CheckpointError, match="has no weights"):
        load_teacher({"name": "wavlm", "path": "someone/wavlm"})
    assert len(hub.asked) == 2 and "pytorch_model*.bin" in hub.asked[1]


def test_import_is_light() -> None:
    import subprocess

    code = "import sys, spear.teachers; print('transformers' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
