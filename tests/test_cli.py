"""The command line: every command has help, and a user's error is one line and status 2."""

import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import soundfile

from spear.cli import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_lists_its_fields(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: spear {name}" in text
    assert "--config" in text


@pytest.mark.parametrize("name", [name for name, one in COMMANDS.items() if one.ledger])
def test_the_ledgers_folder_is_a_field_of_the_command(name: str) -> None:
    command = COMMANDS[name]
    fields = command.ledger.partition("/")[0].split(".")
    hints: dict[str, Any] = get_type_hints(command.load()[1])
    for field in fields[:-1]:
        hints = get_type_hints(hints[field])
    assert hints[fields[-1]] in (str, list[str], Path, str | None)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pretrian"], "unknown command 'pretrian'"),
        (["prepare", "--sorce_dir", "x"], "did you mean source_dir?"),
        (["info", "model", "no/such/folder/x"], "neither a model folder nor a hub id"),
        (["pretrain", "--config", "missing.yaml"], "no configuration file missing.yaml"),
    ],
)
def test_user_errors_are_one_line(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    message = capsys.readouterr().err.strip()
    assert expected in message
    assert "\n" not in message


def test_usage_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    assert main([]) == 2


def test_import_needs_no_optional_package(repo_dir: Path) -> None:
    optional = ["transformers", "k2", "icefall", "tensorboard", "matplotlib", "sentencepiece"]
    optional += ["pynvml", "sklearn"]
    code = (
        "import sys\n"
        f"for name in {optional}: sys.modules[name] = None\n"
        "import spear, spear.cli, spear.zipformer, spear.mvq, spear.training, spear.pretrain\n"
        "import spear.data.corpus.prepare, spear.asr, spear.tagging, spear.teachers\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repo_dir)


def test_a_file_in_the_place_of_a_folder_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wav").mkdir()
    (tmp_path / "file").touch()
    soundfile.write(tmp_path / "wav" / "a.wav", np.zeros(16000), 16000)
    words = ["--source_dir", str(tmp_path / "wav"), "--corpus", "c"]
    assert main(["prepare", *words, "--output_dir", str(tmp_path / "file" / "below")]) == 2
    error = capsys.readouterr().err
    assert "choose another path" in error and "Traceback" not in error
