"""Words with times, subtitles that can be read, and JSON."""

import re

from spear.asr.apply.subtitles import (
    MAX_LINE_CHARS,
    MAX_LINE_S,
    Word,
    as_json,
    as_srt,
    subtitle_lines,
    words_of,
)
from spear.asr.model import Transcript

CHARS = Transcript("AB C", ["A", "B", "▁", "C"], [0.1, 0.2, 0.3, 0.5])
PIECES = Transcript("ABC D", ["▁AB", "C", "▁D"], [0.1, 0.15, 0.3])


def join(tokens):
    return "".join(tokens).replace("▁", " ").strip()


def test_tokens_become_words_with_times():
    assert words_of(CHARS, join) == [Word("AB", 0.1, 0.4), Word("C", 0.5, 0.7)]
    assert words_of(PIECES, join) == [Word("ABC", 0.1, 0.3), Word("D", 0.3, 0.5)]
    assert words_of(Transcript("", [], []), join) == []


def test_without_spaces_every_token_is_a_word():
    chinese = Transcript("你好", ["你", "好"], [0.1, 0.2])
    words = words_of(chinese, join, has_spaces=False)
    assert [word.text for word in words] == ["你", "好"]
    assert subtitle_lines(words, has_spaces=False) == [Word("你好", 0.1, 0.4)]


def test_lines_break_at_pauses_and_before_they_are_too_long():
    paused = [Word("A", 0.0, 0.5), Word("B", 0.6, 1.0), Word("C", 2.5, 3.0)]
    assert subtitle_lines(paused) == [Word("A B", 0.0, 1.0), Word("C", 2.5, 3.0)]
    many = [Word("WORDS" * 3, 0.4 * i, 0.4 * i + 0.3) for i in range(100)]
    lines = subtitle_lines(many)
    assert " ".join(line.text for line in lines) == " ".join(word.text for word in many)
    assert all(len(line.text) <= MAX_LINE_CHARS for line in lines)
    assert all(line.end_s - line.start_s <= MAX_LINE_S for line in lines)
    assert len(lines) < 30


def test_subrip():
    text = as_srt([Word("ONE", 0.0, 1.9996), Word("TWO", 3661.5, 36000.0)])
    assert text == (
        "1\n00:00:00,000 --> 00:00:02,000\nONE\n\n2\n01:01:01,500 --> 10:00:00,000\nTWO\n"
    )
    assert as_srt([]) == ""
    assert re.fullmatch(r"\d+", text.splitlines()[0])


def test_json_has_text_and_words():
    content = as_json(PIECES, words_of(PIECES, join))
    assert content["text"] == "ABC D"
    assert content["words"][1] == {"word": "D", "start_s": 0.3, "end_s": 0.5}
