"""The environment is made once, reused, repaired after an interruption, and never made twice."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FAKE_PYTHON = """#!/usr/bin/env bash
# Stands for an interpreter: makes no real environment and installs nothing, but says so.
if [[ "$1" != -c ]]; then printf '%s|' "$@" >>"$CALLS"; echo >>"$CALLS"; fi
case "$1 $2" in
  "-m venv") mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python"; sleep "${SLOW:-0}" ;;
  "-m pip") [[ "$*" != *"${FAIL_PIP:-nothing}"* ]] ;;
  *) exec "$REAL_PYTHON" "$@" ;;
esac
"""


class Checkout:
    """A checkout in a folder with a space, and a search path with a fake interpreter."""

    def __init__(self, folder: Path, repo: Path) -> None:
        self.root = folder / "my checkout"
        (self.root / "local").mkdir(parents=True)
        for name in ("common.sh", "setup_env.sh"):
            shutil.copy(repo / "local" / name, self.root / "local")
        (self.root / "requirements.txt").write_text("# first\ntorch==9.9\nnumpy==1\n")
        (self.root / "setup.py").write_text("")
        programs = folder / "bin"
        programs.mkdir()
        (programs / "python3.11").write_text(FAKE_PYTHON)
        (programs / "python3.11").chmod(0o755)
        self.calls_file = folder / "calls"
        self.environment = {
            **{key: value for key, value in os.environ.items() if key != "SPEAR_PYTHON"},
            "PATH": f"{programs}:{os.environ['PATH']}",
            "CALLS": str(self.calls_file),
            "REAL_PYTHON": sys.executable,
        }

    def start(self, **variables: str) -> "subprocess.Popen[str]":
        script = f'set -euo pipefail; . "{self.root}/local/setup_env.sh"; echo "$SPEAR_PYTHON"'
        return subprocess.Popen(
            ["bash", "-c", script],
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def source(self, **variables: str) -> tuple[int, str, str]:
        process = self.start(**variables)
        out, err = process.communicate(timeout=1800)
        return process.returncode, out.strip(), err

    def take_calls(self) -> list[list[str]]:
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return [line.split("|")[:-1] for line in lines]


@pytest.fixture
def checkout(tmp_path, repo_dir) -> Checkout:
    return Checkout(tmp_path, repo_dir)


def test_the_first_call_makes_it_with_torch_first_and_the_second_reuses_it(checkout):
    python = str(checkout.root / ".venv/bin/python")
    assert checkout.source()[:2] == (0, python)
    root = str(checkout.root)
    assert checkout.take_calls() == [
        ["-m", "venv", "--clear", f"{root}/.venv"],
        ["-m", "pip", "install", "--quiet", "torch==9.9"],
        ["-m", "pip", "install", "--quiet", "-r", f"{root}/requirements.txt"],
        ["-m", "pip", "install", "--quiet", "--no-deps", "--editable", root],
    ]
    assert checkout.source()[:2] == (0, python)
    assert checkout.take_calls() == []


def test_torch_can_come_from_an_index_of_its_own(checkout):
    checkout.source(SPEAR_TORCH_INDEX="https://example.org/cpu")
    assert checkout.take_calls()[1][4:] == ["--index-url", "https://example.org/cpu", "torch==9.9"]


def test_changed_requirements_are_installed_into_the_same_environment(checkout):
    checkout.source()
    checkout.take_calls()
    (checkout.root / "requirements.txt").write_text("torch==10\n")
    assert checkout.source()[0] == 0
    calls = checkout.take_calls()
    assert calls[0] == ["-m", "pip", "install", "--quiet", "torch==10"]
    assert all(call[1] == "pip" for call in calls)


def test_an_interrupted_setup_goes_on_and_says_so_meanwhile(checkout):
    status, out, err = checkout.source(FAIL_PIP="requirements.txt")
    assert (status, out) == (2, "")
    assert "pip failed, see above; the same command goes on from here" in err
    checkout.take_calls()
    assert checkout.source()[0] == 0
    assert "venv" not in [call[1] for call in checkout.take_calls()]


def test_two_at_the_same_time_make_one(checkout):
    processes = [checkout.start(SLOW="1") for _ in range(2)]
    ends = [process.communicate(timeout=1800) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(checkout.take_calls()) == 4
    assert sum("waiting until it is done" in err for _, err in ends) == 1


def test_a_named_interpreter_is_used_and_nothing_is_installed(checkout, repo_dir):
    status, out, _ = checkout.source(SPEAR_PYTHON=sys.executable, PYTHONPATH=str(repo_dir))
    assert (status, out) == (0, sys.executable)
    assert checkout.take_calls() == []
    assert not (checkout.root / ".venv").exists()


def test_a_named_interpreter_must_be_there_and_have_the_packages(checkout, tmp_path):
    status, _, err = checkout.source(SPEAR_PYTHON=str(tmp_path / "no python"))
    assert (status, err.count("\n")) == (2, 1)
    assert "is not there" in err
    bare = tmp_path / "bare"
    bare.write_text('#!/usr/bin/env bash\nexec "$REAL_PYTHON" -S "$@"\n')  # without its packages
    bare.chmod(0o755)
    status, _, err = checkout.source(SPEAR_PYTHON=str(bare), PYTHONPATH="")
    assert (status, err.count("\n")) == (2, 1)
    assert f"lacks packages: {bare} -m pip install -r" in err


def test_an_old_python_is_refused(checkout, tmp_path):
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    status, _, err = checkout.source(SPEAR_PYTHON=str(old))
    assert (status, err.count("\n")) == (2, 1)
    assert "older than Python 3.10" in err
