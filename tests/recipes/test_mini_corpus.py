"""The corpus that the mini recipe carries, and the sounds that its script draws."""

import re
from itertools import pairwise

import make_mini_corpus
import numpy as np
import pytest
import sound_events
import soundfile as sf

from spear.audio import read_audio
from spear.data.formats.kaldi_text import read_ids, read_text, read_utt2spk

MAX_BYTES = 6_000_000


@pytest.fixture(scope="module")
def corpus(repo_dir):
    return repo_dir / "recipes" / "mini" / "corpus"


@pytest.fixture(scope="module")
def files_by_id(corpus):
    paths = (corpus / "speech").rglob("*.ogg")
    return {p.relative_to(corpus / "speech").with_suffix("").as_posix().replace("/", "-"): p
            for p in paths}  # fmt: skip


def test_corpus_is_small(corpus):
    assert sum(path.stat().st_size for path in corpus.rglob("*") if path.is_file()) < MAX_BYTES


def test_every_recording_has_a_transcript_of_three_to_six_digits_and_a_speaker(corpus, files_by_id):
    text = read_text(corpus / "speech" / "text")
    assert text.keys() == files_by_id.keys() == read_utt2spk(corpus / "speech" / "utt2spk").keys()
    for words in text.values():
        assert 3 <= len(words.split()) <= 6
        assert set(words.split()) <= set(make_mini_corpus.DIGITS)


def test_held_out_strings_are_unseen_and_their_voices_are_seen(corpus):
    folder = corpus / "speech"
    text, speakers = read_text(folder / "text"), read_utt2spk(folder / "utt2spk")
    test, valid = read_ids(folder / "test_ids"), read_ids(folder / "valid_ids")
    assert test and valid and not test & valid
    assert test | valid <= text.keys()
    train = text.keys() - test - valid
    assert not {text[key] for key in train} & {text[key] for key in test | valid}
    assert {speakers[key] for key in train} == {speakers[key] for key in test}
    assert len({speakers[key] for key in train}) >= 12


def test_lengths_fit_the_texts(corpus, files_by_id):
    text = read_text(corpus / "speech" / "text")
    total_s = 0.0
    for key, path in files_by_id.items():
        info = sf.info(path)
        assert (info.samplerate, info.channels) == (16000, 1)
        assert 0.15 < info.duration / len(text[key].split()) < 1.0, key
        total_s += info.duration
    assert 16 * 60 < total_s < 20 * 60


def test_recordings_can_be_read_and_hold_sound(corpus, files_by_id):
    keys = sorted(files_by_id)[::29]
    for path in [files_by_id[key] for key in keys] + sorted((corpus / "audio").glob("*_000.ogg")):
        audio = read_audio(path)
        assert audio.dtype == np.float32
        assert 0.01 < np.abs(audio).max() <= 1.1, path
        assert np.sqrt(np.mean(audio**2)) > 0.003, path


def test_audio_has_ten_classes_of_about_six_minutes(corpus):
    paths = sorted((corpus / "audio").glob("*.ogg"))
    classes = [re.fullmatch(r"(\w+)_\d{3}", path.stem)[1] for path in paths]
    assert set(classes) == set(sound_events.EVENTS)
    assert len(set(classes)) == 10
    assert 5 * 60 < sum(sf.info(path).duration for path in paths) < 7 * 60


@pytest.mark.parametrize("name", sorted(sound_events.EVENTS))
def test_an_event_is_fixed_by_its_seed_and_varies_with_it(name):
    def draw(seed):
        return sound_events.draw_event(name, np.random.default_rng(seed), 1.5)

    first, again, other = draw(1), draw(1), draw(2)
    assert first.shape == (24000,)
    assert np.array_equal(first, again)
    assert np.abs(np.corrcoef(first, other)[0, 1]) < 0.9
    for sound in (first, other):
        assert np.isfinite(sound).all()
        assert 10 ** (-14 / 20) * 0.999 <= np.abs(sound).max() <= 10 ** (-1 / 20) * 1.001


def test_noise_has_the_slope_that_was_asked_for():
    rng = np.random.default_rng(0)
    for slope in (0.0, 1.0, 2.0):
        noise = sound_events.coloured_noise(rng, 1 << 17, slope)
        power = np.abs(np.fft.rfft(noise)) ** 2
        frequency = np.fft.rfftfreq(len(noise), 1 / sound_events.RATE_HZ)
        edges = (250.0, 500.0, 1000.0, 2000.0, 4000.0)
        octaves = [
            np.log2(power[(frequency >= low) & (frequency < high)].mean())
            for low, high in pairwise(edges)
        ]
        assert np.diff(octaves).mean() == pytest.approx(-slope, abs=0.1)


def test_strings_are_all_different_and_equally_long_on_average():
    strings = make_mini_corpus.draw_strings(np.random.default_rng(0), 600)
    assert len(set(strings)) == 600
    lengths = [len(string) for string in strings]
    assert {lengths.count(length) for length in (3, 4, 5, 6)} == {150}
    assert strings == make_mini_corpus.draw_strings(np.random.default_rng(0), 600)
