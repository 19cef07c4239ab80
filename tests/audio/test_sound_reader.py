"""Recordings in blocks and in parts: the same samples as read at once, in less memory."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spear.audio import AudioParts, check_audio, read_audio, resample
from spear.audio import sound_reader as reader_module
from spear.audio.resampling import resample_blocks
from spear.audio.sound_reader import SoundReader
from spear.errors import AudioError

FORMATS = [
    ("WAV", "PCM_16", "wav", 0.0),
    ("WAV", "PCM_U8", "wav", 0.0),
    ("WAV", "ULAW", "wav", 0.0),
    ("WAV", "IMA_ADPCM", "wav", 0.0),
    ("WAV", "GSM610", "wav", 0.0),  # cannot seek
    ("FLAC", "PCM_24", "flac", 0.0),
    ("OGG", "VORBIS", "ogg", 0.0),
    ("OGG", "OPUS", "opus", 0.0),
    ("MP3", "MPEG_LAYER_III", "mp3", 2e-7),
]
RATES_HZ = [4000, 8000, 11025, 16000, 22050, 44100, 48000, 192000, 15999]


def noise(num_samples: int, channels: int = 1) -> np.ndarray:
    shape = (num_samples, channels) if channels > 1 else num_samples
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


def spans(total: int) -> list[tuple[int, int]]:
    """Parts in any order: the first, some that follow each other, jumps back, the last, beyond."""
    third = total // 3
    follow = [(third, third + 5000), (third + 5000, third + 9000)]
    return [(0, 100), *follow, (total - 777, total), (1, 4001), (total - 100, total + 500)]


@pytest.mark.parametrize(("container", "subtype", "suffix", "tolerance"), FORMATS)
def test_a_part_is_what_the_whole_has_there(
    tmp_path: Path, container: str, subtype: str, suffix: str, tolerance: float
) -> None:
    path, rate_hz = tmp_path / f"x.{suffix}", 8000 if subtype == "GSM610" else 16000
    soundfile.write(path, noise(12 * rate_hz), rate_hz, format=container, subtype=subtype)
    whole = read_audio(path)
    with AudioParts(path) as parts:
        assert abs(parts.num_samples - len(whole)) <= 1
        for start, end in spans(len(whole)):
            atol = max(tolerance, 2e-7 if rate_hz != 16000 else 0.0)
            np.testing.assert_allclose(parts.read(start, end), whole[start:end], rtol=0, atol=atol)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_parts_lie_on_the_grid_of_the_resampled_whole(tmp_path: Path, rate_hz: int) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, noise(3 * rate_hz + 17, 2), rate_hz, subtype="FLOAT")
    for channel in (None, 1):
        whole = read_audio(path, channel=channel)
        with AudioParts(path, channel=channel) as parts:
            assert abs(parts.num_samples - len(whole)) <= 1
            for start, end in spans(len(whole)):
                part, expected = parts.read(start, end), whole[start:end]
                np.testing.assert_allclose(part, expected, rtol=0, atol=2e-7)
        with AudioParts(path, channel=channel) as parts:
            np.testing.assert_array_equal(parts.read(0, len(whole)), whole)


def test_what_was_read_before_decides_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.opus"
    soundfile.write(path, noise(16000 * 20), 16000, format="OGG", subtype="OPUS")
    with AudioParts(path) as parts:
        in_order = [parts.read(n * 16000, (n + 1) * 16000) for n in range(20)]
        back = [parts.read(n * 16000, (n + 1) * 16000) for n in reversed(range(20))]
    for number in range(20):
        with AudioParts(path) as alone:
            fresh = alone.read(number * 16000, (number + 1) * 16000)
        np.testing.assert_array_equal(fresh, in_order[number])
        np.testing.assert_array_equal(back[::-1][number], in_order[number])


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("block", [997, 16384])
def test_resampling_in_blocks_changes_no_bit(rate_hz: int, block: int) -> None:
    audio = noise(rate_hz + 13)
    blocks = (audio[start : start + block] for start in range(0, len(audio), block))
    together = np.concatenate(list(resample_blocks(blocks, rate_hz, 16000)))
    np.testing.assert_array_equal(together, resample(audio, rate_hz, 16000))


@pytest.mark.parametrize("block", [1000, 4096, 1 << 20])
def test_the_size_of_blocks_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    samples = noise(50000, 3)
    soundfile.write(tmp_path / "x.wav", samples, 44100, subtype="FLOAT")
    monkeypatch.setattr(reader_module, "BLOCK_SAMPLES", block)
    expected = resample(samples.mean(axis=1), 44100, 16000)
    np.testing.assert_array_equal(read_audio(tmp_path / "x.wav"), expected)
    assert check_audio(tmp_path / "x.wav").num_samples == 50000


def test_memory_is_that_of_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight channels of 48 kHz hold 24 times what is wanted of them."""
    monkeypatch.setattr(reader_module, "BLOCK_SAMPLES", 1 << 14)
    soundfile.write(tmp_path / "x.wav", np.zeros((48000 * 10, 8), np.int16), 48000)
    tracemalloc.start()
    audio = read_audio(tmp_path / "x.wav")
    read = tracemalloc.get_traced_memory()[1]
    del audio
    tracemalloc.reset_peak()
    check_audio(tmp_path / "x.wav")
    checked = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read < 3 * 160000 * 4
    assert checked < 400_000


def test_bad_samples_are_an_error_only_of_their_part(tmp_path: Path) -> None:
    samples = noise(16000 * 8)
    samples[16000 * 4] = np.nan
    soundfile.write(tmp_path / "x.wav", samples, 16000, subtype="FLOAT")
    with AudioParts(tmp_path / "x.wav") as parts:
        first = parts.read(0, 16000)
        with pytest.raises(AudioError, match=r"x\.wav: 1 of \d+ samples are NaN or infinite"):
            parts.read(16000 * 4 - 100, 16000 * 4 + 100)
        np.testing.assert_array_equal(parts.read(0, 16000), first)
        np.testing.assert_array_equal(parts.read(96000, 112000), samples[96000:112000])
    with pytest.raises(AudioError, match=r"1 of 128000 samples"):
        check_audio(tmp_path / "x.wav")


def test_a_file_that_ends_early_is_noticed_where_its_header_cannot_tell(tmp_path: Path) -> None:
    """FLAC has no size in bytes: only decoding shows that half of it is missing."""
    soundfile.write(tmp_path / "x.flac", noise(16000 * 8), 16000)
    content = (tmp_path / "x.flac").read_bytes()
    (tmp_path / "x.flac").write_bytes(content[: len(content) // 2])
    with AudioParts(tmp_path / "x.flac") as parts:
        assert len(parts.read(0, 16000)) == 16000
        with pytest.raises(AudioError, match=r"x\.flac"):
            parts.read(16000 * 7, 16000 * 8)


def test_a_reader_that_failed_to_open_leaves_no_file_open(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", noise(16000), 16000)
    (tmp_path / "x.wav").write_bytes((tmp_path / "x.wav").read_bytes()[:1000])
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for _ in range(20):
        with pytest.raises(AudioError, match="truncated"):
            SoundReader(tmp_path / "x.wav")
    after = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    assert after <= before


def test_headerless_samples_are_an_audio_error(tmp_path: Path) -> None:
    (tmp_path / "x.raw").write_bytes(bytes(1000))
    with pytest.raises(AudioError, match=r"x\.raw: cannot be read"):
        read_audio(tmp_path / "x.raw")
