"""What the tests of shell scripts and recipes share."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "local"))  # scripts there import their neighbours

Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Runs words, or a bash script given as one text, with the interpreter of the tests."""

    def run(
        *words: str | Path, cwd: Path = tmp_path, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        command = [str(word) for word in words]
        if len(command) == 1 and "\n" in command[0]:
            command = ["bash", "-c", command[0]]
        variables = {"SPEAR_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **variables}
        return subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return run
