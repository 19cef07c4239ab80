"""Fixtures that every part's tests share."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from spear.errors import MissingPackageError

ROOT = Path(__file__).resolve().parent.parent


NUMBERS = (
    "asr/rnnt",
    "asr/test_consistency.py",
    "asr/test_ctc.py",
    "audio/test_fbank.py",
    "optim",
    "teachers/test_dasheng_teacher.py",
    "zipformer/test_zipformer_golden.py",
)
"""Tests whose point is a number that another processor rounds otherwise; `local/test.sh` runs them
with the vector instructions of several."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that compare numbers."""
    places = [ROOT / "tests" / name for name in NUMBERS]
    for item in items:
        if any(item.path.is_relative_to(place) for place in places):
            item.add_marker(pytest.mark.numbers)


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """The models here are tiny: one thread each is fastest, and parallel workers do not fight."""
    torch.set_num_threads(int(os.environ.get("SPEAR_TEST_THREADS", "1")))


@pytest.fixture
def pictures() -> None:
    """Asked for by the tests that look at the pictures of reports."""
    pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than most stages here: as if matplotlib were missing, unless asked."""
    if "pictures" in request.fixturenames:
        return

    def missing(module: str, purpose: str, package: str | None = None) -> None:
        raise MissingPackageError(f"{purpose} needs {module}")

    monkeypatch.setattr("spear.system.markdown.require", missing)


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """Commands and benchmarks set the level of the log; the next test finds it as it was."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


@pytest.fixture(scope="session")
def repo_dir() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference numbers and recordings beside a developer's checkout."""
    folder = Path(os.environ.get("SPEAR_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared reference data at {folder}")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """What the public implementations compute; see its README."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def data_dir(shared_dir: Path) -> Path:
    folder = shared_dir / "data"
    if not folder.is_dir():
        pytest.skip("no shared recordings")
    return folder
