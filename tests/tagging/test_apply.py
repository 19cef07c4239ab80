"""A tagger on recordings of any length, and `spear tag`."""

import json

import numpy as np
import pytest
import soundfile
import torch

from spear.errors import AudioError, ConfigError, DataError
from spear.tagging.apply import Tagger
from spear.tagging.model import load_tagging_model
from spear.tagging.pooling import pool
from spear.tagging.tag import TagConfig, run, top_classes


@pytest.fixture(scope="module")
def model(trained_run):
    return load_tagging_model(trained_run, weights="last")


@pytest.fixture
def recordings(play, tmp_path):
    """Files of a low tone, and of a long one that is low, then high, at 8 kHz in stereo."""
    soundfile.write(tmp_path / "short.flac", play(["low"], 0.5), 16000)
    long = np.concatenate([play(["low"], 1.0), play(["high"], 0.5)])
    soundfile.write(tmp_path / "long.wav", np.stack([long, long], 1), 16000)
    return tmp_path


def tag(trained_run, files, **options):
    run(TagConfig(str(trained_run), [str(f) for f in files], weights="last", **options))


def test_one_window_is_one_forward_pass(model, play):
    audio = play(["low", "high"], 0.6)
    fbank, lens = Tagger(model).fbank(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
    with torch.no_grad():
        expected = pool(*model.frame_logits(fbank, lens), model.pooling)[0].sigmoid()
    (found,) = Tagger(model).probabilities([audio])
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_batches_change_nothing(model, play):
    clips = [play(["low"], s, seed=n) for n, s in enumerate((0.3, 2.3, 0.02, 1.0, 0.7))]
    one_by_one = list(Tagger(model, window_s=0.5, batch_s=0.5).probabilities(clips))
    together = list(Tagger(model, window_s=0.5, batch_s=60.0).probabilities(clips))
    np.testing.assert_allclose(one_by_one, together, atol=1e-4)
    assert len(together) == len(clips)


def test_windows_of_a_recording_pool_to_the_whole(model, play):
    tagger = Tagger(model, window_s=0.5)
    low, high = play(["low"], 0.5), play(["high"], 0.5, seed=1)
    windows = tagger.windows(np.concatenate([low, high, low[:1600]]))
    assert [(begin, end) for begin, end, _ in windows] == [(0.0, 0.5), (0.5, 1.0), (1.0, 1.1)]
    for clip, (_, _, found) in zip((low, high), windows, strict=False):
        np.testing.assert_allclose(found, next(tagger.probabilities([clip])), atol=1e-4)
    (whole,) = tagger.probabilities([np.concatenate([low, high])])
    apart = np.stack([found for _, _, found in windows[:2]])
    assert (whole <= apart.max(0) + 1e-5).all()
    assert (whole >= apart.min(0) - 1e-5).all()


def test_an_empty_recording_is_silence(model):
    (found,) = Tagger(model).probabilities([np.zeros(0, np.float32)])
    (silence,) = Tagger(model).probabilities([np.zeros(1600, np.float32)])
    np.testing.assert_allclose(found, silence, atol=1e-6)


def test_text_names_the_most_probable_class_first(trained_run, recordings, capsys):
    tag(trained_run, [recordings / "short.flac"], top=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{recordings / 'short.flac'} (0.5 s)"
    assert len(lines) == 3
    assert lines[1].endswith("a low tone")


def test_json_has_all_numbers_and_windows(trained_run, recordings, capsys):
    tag(trained_run, [recordings], format="json", by_window=True, window_s=1.0)
    found = {r["file"]: r for r in map(json.loads, capsys.readouterr().out.splitlines())}
    assert found.keys() == {str(recordings / "short.flac"), str(recordings / "long.wav")}
    long = found[str(recordings / "long.wav")]
    assert long["duration_s"] == 1.5
    assert [(w["begin_s"], w["end_s"]) for w in long["windows"]] == [(0.0, 1.0), (1.0, 1.5)]
    assert [next(iter(w["classes"])) for w in long["windows"]] == ["a low tone", "a high tone"]
    assert set(long["classes"]) == {"a low tone", "middle", "a high tone"}
    values = list(long["classes"].values())
    assert values == sorted(values, reverse=True)


def test_top_and_threshold_limit_the_classes():
    probabilities = np.array([0.2, 0.9, 0.5], np.float32)
    names = ("a", "b", "c")
    assert top_classes(probabilities, names, 2, 0.0) == {"b": 0.9, "c": 0.5}
    assert top_classes(probabilities, names, 3, 0.6) == {"b": 0.9}


def test_a_bad_recording_is_named_and_the_others_go_on(trained_run, recordings, capsys, caplog):
    (recordings / "broken.wav").write_bytes(b"no audio at all")
    with pytest.raises(AudioError, match="1 of 3 recordings"):
        tag(trained_run, [recordings])
    assert capsys.readouterr().out.count(" s)\n") == 2
    assert "broken.wav" in caplog.text


def test_mistakes_are_one_line(trained_run, tmp_path):
    with pytest.raises(ConfigError, match="no files"):
        tag(trained_run, [])
    with pytest.raises(DataError, match=r"nowhere\.wav"):
        tag(trained_run, [tmp_path / "nowhere.wav"])
    for change in ({"top": 0}, {"threshold": 2.0}, {"window_s": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            TagConfig("run", **change)
