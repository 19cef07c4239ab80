import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spear.audio import check_audio, decode_audio, read_audio, resample
from spear.errors import AudioError

FORMATS = [
    ("WAV", "PCM_16", "wav"),
    ("WAV", "PCM_24", "wav"),
    ("WAV", "FLOAT", "wav"),
    ("WAVEX", "PCM_16", "wav"),
    ("RF64", "PCM_16", "wav"),
    ("FLAC", "PCM_16", "flac"),
    ("OGG", "VORBIS", "ogg"),
    ("OGG", "OPUS", "opus"),
    ("MP3", "MPEG_LAYER_III", "mp3"),
    ("AIFF", "PCM_16", "aiff"),
    ("AU", "PCM_16", "au"),
    ("W64", "PCM_16", "w64"),
    ("CAF", "PCM_16", "caf"),
]


def tone(rate_hz: int, duration_s: float = 1.0, pitch_hz: float = 440.0) -> np.ndarray:
    time_s = np.arange(round(rate_hz * duration_s)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * pitch_hz * time_s)).astype(np.float32)


@pytest.mark.parametrize(("container", "subtype", "suffix"), FORMATS)
def test_reads_every_format(tmp_path: Path, container: str, subtype: str, suffix: str) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(16000), 16000, format=container, subtype=subtype)
    audio = read_audio(path)
    assert audio.dtype == np.float32
    assert audio.shape == (16000,)
    assert np.std(audio) == pytest.approx(0.3 / np.sqrt(2), rel=0.05)


@pytest.mark.parametrize(("container", "subtype", "suffix"), FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_refuses_a_truncated_file_of_every_format(
    tmp_path: Path, container: str, subtype: str, suffix: str, share: float
) -> None:
    path = tmp_path / f"tone.{suffix}"
    noise = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    soundfile.write(path, noise, 16000, format=container, subtype=subtype)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(AudioError) as raised:
        read_audio(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_one_missing_sample_of_a_wav_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(16000), 16000)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(
        AudioError, match="promises 32000 bytes of samples and the file holds 31998"
    ):
        read_audio(path)


def test_a_wav_from_a_pipe_has_no_length_and_is_good(tmp_path: Path) -> None:
    path = tmp_path / "piped.wav"
    soundfile.write(path, tone(16000), 16000)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert len(read_audio(path)) == 16000


def test_refuses_what_is_no_recording(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("not audio")
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), 16000)
    causes = {"empty": "empty file", "text": "cannot be read", "none": "no samples"}
    for name, cause in {**causes, "missing": "no such file"}.items():
        with pytest.raises(AudioError, match=cause) as raised:
            read_audio(tmp_path / f"{name}.wav")
        assert f"{name}.wav" in str(raised.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refuses_samples_that_are_not_finite(tmp_path: Path, value: float) -> None:
    samples = tone(16000)
    samples[100] = value
    soundfile.write(tmp_path / "bad.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match="1 of 16000 samples are NaN or infinite"):
        read_audio(tmp_path / "bad.wav")


def test_averages_channels_or_takes_one(tmp_path: Path) -> None:
    left, right = tone(16000), np.full(16000, 0.25, np.float32)
    soundfile.write(tmp_path / "two.wav", np.stack([left, right], 1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "two.wav"), (left + right) / 2, atol=1e-6)
    np.testing.assert_array_equal(read_audio(tmp_path / "two.wav", channel=1), right)
    with pytest.raises(AudioError, match="no channel 2"):
        read_audio(tmp_path / "two.wav", channel=2)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 22050, 44100, 48000])
def test_a_tone_keeps_pitch_level_and_length_at_any_rate(tmp_path: Path, rate_hz: int) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(rate_hz), rate_hz, subtype="FLOAT")
    audio = read_audio(tmp_path / "tone.wav")
    assert abs(len(audio) - 16000) <= 1
    middle = slice(2000, 14000)  # away from the filter's edges
    np.testing.assert_allclose(audio[middle], tone(16000)[middle], atol=2e-3)


def test_resampling_removes_what_the_lower_rate_cannot_hold() -> None:
    above = resample(tone(48000, pitch_hz=10000.0), 48000, 16000)
    assert np.abs(above[1000:-1000]).max() < 1e-3


def test_resampling_at_one_rate_changes_nothing() -> None:
    samples = tone(16000)
    assert resample(samples, 16000, 16000) is samples
    with pytest.raises(ValueError, match="one channel"):
        resample(samples[None], 8000, 16000)
    with pytest.raises(ValueError, match="positive"):
        resample(samples, 0, 16000)


def test_check_says_what_the_file_holds(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "two.wav", np.zeros((4000, 2), np.float32), 8000)
    info = check_audio(tmp_path / "two.wav")
    assert (info.num_samples, info.rate_hz, info.num_channels) == (4000, 8000, 2)
    assert info.duration_s == 0.5


def test_decodes_from_memory_what_it_reads_from_disk(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tone.flac", tone(16000), 16000)
    data = (tmp_path / "tone.flac").read_bytes()
    np.testing.assert_array_equal(decode_audio(data, "x"), read_audio(tmp_path / "tone.flac"))
    for broken in (b"", b"nonsense", data[: len(data) // 2]):
        with pytest.raises(AudioError, match="clip 7"):
            decode_audio(broken, "clip 7")


def test_decoding_resamples_too() -> None:
    stream = io.BytesIO()
    soundfile.write(stream, tone(8000), 8000, format="FLAC")
    assert len(decode_audio(stream.getvalue(), "x")) == 16000
