"""Transcripts for people and programs: words with times, subtitles (SRT), JSON, plain text.

A token says when it begins, not when it ends: a word ends a little after its last token began, or
where the next word begins.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from spear.asr.model import Transcript
from spear.asr.tokenizer import WORD_BEGIN

LAST_TOKEN_S = 0.2
"""Longest time that a word lasts after its last token began."""
MAX_LINE_CHARS = 84
"""Two lines of 42 characters, which subtitles keep to."""
MAX_LINE_S = 6.0
MAX_PAUSE_S = 1.0
Join = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class Word:
    """A word, or a few in a row, and when it is heard."""

    text: str
    """What was said."""
    start_s: float
    """Seconds from the recording's start."""
    end_s: float
    """Seconds from the recording's start."""


def words_of(transcript: Transcript, join: Join, has_spaces: bool = True) -> list[Word]:
    """Groups tokens into words.

    Args:
        transcript: Tokens with the times at which they begin.
        join: Writes tokens as text, as `Tokenizer.join` does.
        has_spaces: Whether the language has spaces between words; else every token is a word.
    """
    groups: list[list[tuple[str, float]]] = []
    for token, time in zip(transcript.tokens, transcript.times_s, strict=True):
        if not groups or token.startswith(WORD_BEGIN) or not has_spaces:
            groups.append([])
        groups[-1].append((token, time))
    words = [_word(group, join) for group in groups]
    heard = [word for word in words if word.text]
    for number, following in enumerate(heard[1:]):
        word = heard[number]
        heard[number] = Word(word.text, word.start_s, min(word.end_s, following.start_s))
    return heard


def _word(group: Sequence[tuple[str, float]], join: Join) -> Word:
    # A separator by itself is no sound: the word begins with the first token that has text.
    sounding = [time for token, time in group if join([token])] or [group[0][1]]
    text = join([token for token, _ in group])
    return Word(text, sounding[0], round(sounding[-1] + LAST_TOKEN_S, 4))


def subtitle_lines(words: Sequence[Word], has_spaces: bool = True) -> list[Word]:
    """Joins words into lines: a new one after a pause, or when it gets too long to read."""
    space = " " if has_spaces else ""
    lines: list[Word] = []
    for word in words:
        last = lines[-1] if lines else None
        if last is not None and _fits(last, word):
            lines[-1] = Word(f"{last.text}{space}{word.text}", last.start_s, word.end_s)
        else:
            lines.append(word)
    return lines


def _fits(line: Word, word: Word) -> bool:
    return (
        word.start_s - line.end_s <= MAX_PAUSE_S
        and word.end_s - line.start_s <= MAX_LINE_S
        and len(line.text) + 1 + len(word.text) <= MAX_LINE_CHARS
    )


def as_srt(lines: Sequence[Word]) -> str:
    """Writes subtitles in SubRip's form."""
    return "\n".join(
        f"{number}\n{_clock(line.start_s)} --> {_clock(line.end_s)}\n{line.text}\n"
        for number, line in enumerate(lines, start=1)
    )


def _clock(seconds: float) -> str:
    """Writes 3661.5 as `01:01:01,500`."""
    total_ms = round(seconds * 1000)
    minutes, rest_ms = divmod(total_ms, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest_ms // 1000:02d},{rest_ms % 1000:03d}"


def as_json(transcript: Transcript, words: Sequence[Word]) -> dict[str, Any]:
    """Returns a transcript with its words' times, as JSON holds it."""
    return {"text": transcript.text, "words": list(_word_fields(words))}


def _word_fields(words: Sequence[Word]) -> Iterator[dict[str, Any]]:
    for word in words:
        yield {"word": word.text, "start_s": word.start_s, "end_s": word.end_s}
