"""Windows cover a recording without waste, and their transcripts are stitched where they agree."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spear.asr.apply.long_recordings import Window, WindowConfig, cut_windows, stitch
from spear.asr.model import Transcript
from spear.audio import read_audio
from spear.errors import ConfigError

RATE = 16000
CONFIG = WindowConfig(length_s=10.0, overlap_s=4.0)


@pytest.mark.parametrize("seconds", [0.5, 10.0, 10.1, 16.0, 16.001, 17.0, 100.0, 3600.0])
def test_windows_cover_everything_and_overlap(seconds):
    num_samples = round(seconds * RATE)
    windows = cut_windows(Path("x"), num_samples, CONFIG)
    assert windows[0].start == 0 and windows[-1].end == num_samples
    for left, right in pairwise(windows):
        assert left.end - right.start == 4 * RATE
        assert left.end - left.start == 10 * RATE
        assert right.end > left.end
    assert len(windows) == max(1, -(-(num_samples - 4 * RATE) // (6 * RATE)))


def test_a_window_reads_its_part_alone(tmp_path):
    audio = np.sin(np.arange(3 * RATE) / 7).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", audio, RATE, subtype="FLOAT")
    window = Window(tmp_path / "a.wav", RATE, 2 * RATE)
    np.testing.assert_array_equal(window(), read_audio(tmp_path / "a.wav")[RATE : 2 * RATE])
    assert window.recording().duration_s == 1.0


def transcript(tokens, times, start_s=0.0):
    return Transcript("", list(tokens), [round(time - start_s, 4) for time in times])


def windows_at(*starts_s):
    return [Window(Path("x"), round(s * RATE), round((s + 10) * RATE)) for s in starts_s]


def test_equal_tokens_in_the_overlap_join():
    # The seam is between 6 s and 10 s. The left window ends badly, the right one begins badly.
    left = transcript("ABCDX", [1.0, 6.5, 7.5, 8.2, 9.9])
    right = transcript("YBCDE", [6.1, 6.52, 7.54, 8.2, 12.0], start_s=6.0)
    found = stitch(windows_at(0, 6), [left, right])
    assert found.tokens == list("ABCDE")
    assert found.times_s == [1.0, 6.5, 7.5, 8.2, 12.0] or found.times_s[2] == 7.54
    assert found.text == "ABCDE"
    assert found.times_s == sorted(found.times_s)


def test_repeated_tokens_are_kept_apart_by_their_times():
    left = transcript("AAAA", [5.0, 7.0, 8.0, 9.0])
    right = transcript("AAAA", [7.05, 8.05, 9.05, 13.0], start_s=6.0)
    assert len(stitch(windows_at(0, 6), [left, right]).tokens) == 5


def test_without_agreement_the_seam_is_at_a_words_beginning():
    left = transcript(["▁A", "B", "▁C", "D"], [7.0, 7.4, 7.9, 8.1])
    right = transcript(["▁X", "Y", "▁Z"], [7.8, 8.05, 8.6], start_s=6.0)
    found = stitch(windows_at(0, 6), [left, right])
    assert found.tokens == ["▁A", "B", "▁C", "D", "▁Z"]
    assert found.text == "AB CD Z"


def test_many_windows_and_silence():
    windows = windows_at(0, 6, 12)
    said = [("A", 1.0), ("B", 7.0), ("C", 13.0), ("D", 20.0)]
    parts = [
        transcript(*zip(*own, strict=True), start_s=start)
        if (own := [pair for pair in said if start <= pair[1] < start + 10])
        else Transcript("", [], [])
        for start in (0, 6, 12)
    ]
    assert stitch(windows, parts).tokens == list("ABCD")
    assert stitch(windows, [Transcript("", [], [])] * 3) == Transcript("", [], [])
    assert stitch(windows[:1], parts[:1]) is parts[0]


def test_windows_that_do_not_get_on_are_refused():
    for length_s, overlap_s in ((10.0, 0.0), (10.0, 5.1), (0.0, 0.0)):
        with pytest.raises(ConfigError, match="overlap_s"):
            WindowConfig(length_s, overlap_s)
