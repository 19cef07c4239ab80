"""The lint stage holds the layers: an import that goes up, or round in a circle, is found."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LINT = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which(
    "lint-imports"
)
needs_linter = pytest.mark.skipif(LINT is None, reason="import-linter is not installed")


@pytest.fixture
def house(tmp_path, repo_dir):
    """A copy of the package and of its contracts."""
    shutil.copytree(repo_dir / "spear", tmp_path / "spear")
    shutil.copy(repo_dir / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder):
    return subprocess.run(
        [LINT, "--no-cache", "--no-logo"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": str(Path(sys.executable).parent)},
        capture_output=True,
        text=True,
        check=False,
    )


def add(path, lines):
    path.write_text(path.read_text(encoding="utf-8") + lines, encoding="utf-8")


@needs_linter
def test_the_house_keeps_its_contracts(house):
    done = lint(house)
    assert done.returncode == 0, done.stdout
    assert re.search(r"[1-9]\d* kept, 0 broken", done.stdout)


@needs_linter
@pytest.mark.parametrize(
    ("place", "imported", "said"),
    [
        ("training/loss.py", "spear.pretrain.losses", "spear.training is not allowed to import"),
        ("asr/tokenizer.py", "spear.tagging.labels", "spear.asr is not allowed to import"),
        ("audio/fbank.py", "spear.audio.io", "No cycles are allowed in spear.audio"),
    ],
    ids=["up", "task to task", "circle"],
)
def test_an_import_within_a_function_is_found(house, place, imported, said):
    if said.startswith("No cycles"):
        add(house / "spear/audio/io.py", "\n\ndef late():\n    import spear.audio.fbank\n")
    add(house / "spear" / place, f"\n\ndef late():\n    import {imported}\n")
    done = lint(house)
    assert done.returncode == 1 and said in done.stdout, done.stdout


def test_modules_are_imported_by_name_where_they_are_listed_only(repo_dir):
    """A name in a string is no import to the linter; hub names its own folder for transformers."""
    files = {
        str(path.relative_to(repo_dir / "spear"))
        for path in (repo_dir / "spear").rglob("*.py")
        if re.search(r"\bimport_module\(|\b__import__\(", path.read_text(encoding="utf-8"))
    }
    hub = {"hub/__init__.py", "hub/transformers_hook.py"}
    assert files <= {"cli.py", "system/optional.py", "teachers/load.py", *hub}
