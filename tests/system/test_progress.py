"""Bars on a terminal, plain lines elsewhere; lines do not tear a bar."""

import contextlib
import io
import logging
from collections.abc import Iterator

import pytest

from spear.system.progress import StepBar, get_logger, progress, setup_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@contextlib.contextmanager
def terminal() -> Iterator[Terminal]:
    with contextlib.redirect_stderr(Terminal()) as stream:
        yield stream


def test_the_bar_shows_steps_and_words() -> None:
    with terminal() as shown, StepBar("pretrain", total=400, done=100) as bar:
        bar.update(150, "loss 2.61")
        bar.update(200)
    last = shown.getvalue().rsplit("\r", maxsplit=1)[-1]
    assert "pretrain" in last
    assert "200/400" in last
    assert "50%" in last
    assert "loss 2.61" in last


def test_lines_come_out_above_the_bar() -> None:
    with terminal() as shown, StepBar("pretrain", total=10) as bar:
        setup_logging()
        bar.update(3)
        get_logger("spear.test").info("step 3/10: loss 2.61")
        bar.update(4)
    text = shown.getvalue()
    start = text.index("INFO step 3/10: loss 2.61")
    before, after = text[:start], text[start:]
    assert len(before.rsplit("\r", maxsplit=1)[-1]) == len("2026-01-01 00:00:00 ")
    assert before.rsplit("\r", maxsplit=2)[-2].strip() == ""  # the bar was wiped out before
    assert after.startswith("INFO step 3/10: loss 2.61\n")
    assert "4/10" in after


@pytest.mark.parametrize("rank", ["0", "1"])
def test_without_a_terminal_there_is_no_bar(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    with StepBar("pretrain", total=10) as bar:
        bar.update(3, "loss 2.61")
    assert capsys.readouterr().err == ""


def test_other_ranks_have_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with terminal() as shown, StepBar("pretrain", total=10) as bar:
        bar.update(3)
    assert shown.getvalue() == ""


def test_plain_lines_have_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    assert list(progress([1, 2, 3], "shard speech")) == [1, 2, 3]
    err = capsys.readouterr().err
    assert "INFO shard speech: 3 of 3 done in" in err
    assert err[:4].isdigit()
