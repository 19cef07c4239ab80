"""What the tests of shell scripts and recipes share."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parent.parent.parent
# Scripts import their neighbours, and those of one recipe what all share.
sys.path[:0] = [str(ROOT / "local"), *(str(path) for path in sorted(ROOT.glob("recipes/*/local")))]

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
            timeout=1800,  # for what hangs: a busy machine is slow
        )

    return run


@pytest.fixture(scope="session")
def tone_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tones that stand for ten digits, by three speakers, eight times each, a third of a second."""
    folder = tmp_path_factory.mktemp("recordings of digits")
    rng = np.random.default_rng(0)
    time = np.arange(2700) / 8000
    for speaker, pitch in (("anna", 1.0), ("ben", 1.1), ("carl", 0.9)):
        for digit in range(10):
            tone = np.sin(2 * np.pi * (200 + 250 * digit) * pitch * time)
            for index in range(8):
                audio = 0.3 * tone + 0.01 * rng.standard_normal(len(time))
                soundfile.write(folder / f"{digit}_{speaker}_{index}.wav", audio, 8000)
    return folder
