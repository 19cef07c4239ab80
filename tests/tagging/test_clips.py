"""Clips and their labels, joined by id."""

import pickle

import numpy as np
import pytest

from spear.errors import ConfigError, DataError
from spear.tagging.clips import LabelledClips
from spear.tagging.labels import Classes

CLASSES = Classes.of(["low", "middle", "high"])


def open_clips(folder, labels, **options):
    return LabelledClips([str(folder / "shards")], labels, CLASSES, **options)


def test_every_clip_has_its_own_labels_and_audio(sound_dir, sounds, play):
    shuffled = dict(reversed(sounds.items()))  # the order of the label file does not matter
    clips = open_clips(sound_dir, shuffled)
    assert len(clips) == len(sounds)
    targets = clips.targets(range(len(clips)))
    for number in range(len(clips)):
        name, audio = clips.read(number)
        expected = [float(label in sounds[name]) for label in CLASSES.labels]
        assert targets[number].tolist() == expected
        place = list(sounds).index(name)
        np.testing.assert_allclose(
            audio, play(sounds[name], 0.3 + 0.05 * place, seed=place), atol=1e-4
        )
        assert clips.num_samples[number] == len(audio)
    assert clips.members.counts.tolist() == [4, 5, 3]  # high, low, middle: classes are sorted


def test_ids_choose_among_them(sound_dir, sounds, tmp_path):
    (tmp_path / "ids").write_text("e\nb\n")
    clips = open_clips(sound_dir, sounds, ids=str(tmp_path / "ids"))
    assert sorted(clips.read(number)[0] for number in range(len(clips))) == ["b", "e"]
    (tmp_path / "ids").write_text("e\nx\n")
    with pytest.raises(DataError, match=r"1 of 2 ids are of no cut in the shards, e.g. 'x'"):
        open_clips(sound_dir, sounds, ids=str(tmp_path / "ids"))


def test_a_cut_without_a_line_of_labels_is_an_error_unless_it_may_be_left_out(sound_dir, sounds):
    some = {name: labels for name, labels in sounds.items() if name not in "cf"}
    with pytest.raises(DataError, match=r"2 of 10 cuts have no labels, e.g. 'c'"):
        open_clips(sound_dir, some)
    clips = open_clips(sound_dir, some, skip_unlabelled=True)
    assert sorted(clips.read(number)[0] for number in range(len(clips))) == sorted(some)
    with pytest.raises(DataError, match="no train cut with labels"):
        open_clips(sound_dir, {"x": ("low",)}, skip_unlabelled=True)


def test_missing_folders_are_named(sounds):
    with pytest.raises(ConfigError, match=r"data.valid"):
        LabelledClips([], sounds, CLASSES, purpose="valid")
    with pytest.raises(DataError, match="nowhere"):
        LabelledClips(["nowhere"], sounds, CLASSES)


def test_the_fingerprint_is_of_clips_and_labels(sound_dir, sounds, tmp_path):
    (tmp_path / "ids").write_text("a\nb\n")
    other = {**sounds, "a": ("high",)}
    prints = [
        open_clips(sound_dir, sounds).fingerprint,
        open_clips(sound_dir, other).fingerprint,
        open_clips(sound_dir, sounds, ids=str(tmp_path / "ids")).fingerprint,
    ]
    assert len(set(prints)) == 3
    assert open_clips(sound_dir, sounds).fingerprint == prints[0]


def test_clips_travel_into_workers(sound_dir, sounds):
    clips = open_clips(sound_dir, sounds)
    copy = pickle.loads(pickle.dumps(clips))
    assert copy.read(3)[0] == clips.read(3)[0]
    assert np.array_equal(copy.targets([3]), clips.targets([3]))
