from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import MonoCut, Recording
from lhotse.cut import PaddingCut

from spear.audio import resample
from spear.data.corpus.cut_audio import CutReader
from spear.errors import AudioError


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


@pytest.fixture
def stereo(tmp_path: Path) -> Recording:
    soundfile.write(tmp_path / "two.wav", noise(16000, 2), 16000, subtype="FLOAT")
    return Recording.from_file(tmp_path / "two.wav")


def test_a_cut_of_one_channel_takes_that_channel(stereo: Recording) -> None:
    for channel in (0, 1):
        cut = MonoCut("c", start=0.25, duration=0.5, channel=channel, recording=stereo)
        np.testing.assert_array_equal(CutReader().load(cut), cut.load_audio()[0])
    both = CutReader().load(stereo.to_cut())
    np.testing.assert_allclose(both, stereo.load_audio().mean(axis=0), atol=1e-7)


def test_one_reader_does_not_confuse_recordings_or_channels(stereo: Recording) -> None:
    reader = CutReader()
    cuts = [MonoCut(f"{c}", 0.0, 0.5, channel=c, recording=stereo) for c in (0, 1, 0)]
    loaded = [reader.load(cut) for cut in cuts]
    np.testing.assert_array_equal(loaded[0], loaded[2])
    assert not np.array_equal(loaded[0], loaded[1])


def test_a_mix_of_rates_is_joined_at_its_offsets(tmp_path: Path) -> None:
    cuts = []
    for rate_hz in (8000, 16000):
        path = tmp_path / f"{rate_hz}.wav"
        soundfile.write(path, noise(rate_hz), rate_hz, subtype="FLOAT")
        cuts.append(Recording.from_file(path).to_cut())
    slow, fast = cuts
    fast = fast.resample(8000)  # only so that lhotse lets them be appended
    joined = slow.append(fast)
    for track, cut in zip(joined.tracks, cuts, strict=True):
        track.cut = cut
    audio = CutReader().load(joined)
    np.testing.assert_array_equal(audio[:16000], resample(noise(8000), 8000, 16000))
    np.testing.assert_array_equal(audio[16000:], noise(16000))


def test_padding_is_silence() -> None:
    cut = PaddingCut("p", 0.5, sampling_rate=8000, feat_value=0.0, num_samples=4000)
    assert np.array_equal(CutReader().load(cut), np.zeros(8000, np.float32))


def test_gains_and_noise_are_left_to_lhotse(stereo: Recording) -> None:
    cut = MonoCut("c", 0.0, 1.0, channel=0, recording=stereo)
    loud = cut.perturb_volume(2.0)
    np.testing.assert_allclose(
        CutReader().load(loud), 2.0 * CutReader().load(cut), rtol=1e-3, atol=1e-5
    )
    mixed = cut.mix(MonoCut("n", 0.0, 1.0, channel=1, recording=stereo), snr=10)
    np.testing.assert_allclose(CutReader().load(mixed), mixed.load_audio()[0], atol=1e-6)


def test_a_cut_beyond_its_recording_is_an_error(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(16000), 16000)
    recording = Recording.from_file(tmp_path / "a.wav")
    cut = MonoCut("long", 0.5, 0.5, channel=0, recording=recording)
    assert len(CutReader().load(cut)) == 8000
    soundfile.write(tmp_path / "a.wav", noise(12000), 16000)
    with pytest.raises(AudioError, match=r"cut 'long' ends at 1\.000 s .* at 0\.750"):
        CutReader().load(cut)


def test_what_lhotse_cannot_read_is_an_audio_error(stereo: Recording) -> None:
    cut = MonoCut("c", 0.0, 1.0, channel=0, recording=stereo).perturb_volume(2.0)
    Path(stereo.sources[0].source).unlink()
    with pytest.raises(AudioError, match=r"cut 'c_vp2\.0': cannot be read") as raised:
        CutReader().load(cut)
    assert "\n" not in str(raised.value)
