"""Scores of an evaluation, its files and its report."""

import json

import numpy as np
import pytest

from spear.errors import ConfigError, DataError
from spear.tagging import report
from spear.tagging.evaluate import EvaluateTaggingConfig, Evaluation, run
from spear.tagging.labels import Classes
from spear.tagging.metrics import TaggingScores, score

CLASSES = Classes.of(["a", "b", "c"])
TARGETS = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
PROBABILITIES = np.array(
    [[0.9, 0.8, 0.1], [0.5, 0.7, 0.1], [0.4, 0.1, 0.1], [0.2, 0.6, 0.1]], np.float32
)
NAN = float("nan")
SCORES = TaggingScores(
    CLASSES, 4, np.array([2, 2, 0]), np.array([0.8, 0.5, NAN]), np.array([0.75, 0.25, NAN]), None
)


def average_precision(scores, truth):
    """Mean, over the positives, of the share of positives among what is ranked no lower."""
    order = np.argsort(-scores, kind="stable")
    hits = np.asarray(truth)[order]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits > 0].mean())


def test_average_precision_is_its_definition_and_classes_without_clips_do_not_count():
    pytest.importorskip("sklearn")
    found = score(PROBABILITIES, TARGETS, CLASSES)
    expected = [average_precision(PROBABILITIES[:, k], TARGETS[:, k]) for k in range(2)]
    assert found.average_precision[:2].tolist() == pytest.approx(expected)
    assert np.isnan(found.average_precision[2])
    assert found.mean_average_precision == pytest.approx(np.mean(expected))
    assert found.counts.tolist() == [2, 2, 0]
    assert found.roc_area[0] == pytest.approx(3 / 4)  # of 4 pairs, one is the wrong way round
    assert found.accuracy is None  # one clip has two classes, one has none


def test_accuracy_is_of_clips_with_exactly_one_class():
    pytest.importorskip("sklearn")
    found = score(PROBABILITIES[:2], TARGETS[:2], CLASSES)
    assert found.accuracy == 1.0
    assert score(PROBABILITIES[:2, [1, 0, 2]], TARGETS[:2], CLASSES).accuracy == 0.0


def test_the_summary_has_no_number_that_is_none():
    summary = SCORES.summary()
    assert summary["mean_average_precision"] == 0.65
    assert summary["mean_roc_area"] == 0.5
    assert summary["num_classes_without_clips"] == 1
    assert summary["classes"]["a"] == {"clips": 2, "average_precision": 0.8, "roc_area": 0.75}
    assert summary["classes"]["c"] == {"clips": 0, "average_precision": None, "roc_area": None}
    everything = np.array([4, 4, 4])
    area = TaggingScores(CLASSES, 4, everything, np.ones(3), np.full(3, NAN), 0.5).summary()
    assert json.loads(json.dumps(area))["mean_roc_area"] is None


def test_the_table_has_the_best_first_and_those_without_clips_last():
    rows = [line.split("|")[1:-1] for line in report.class_table(SCORES).splitlines()[2:]]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["`a`", "2", "80.00", "50.00", "0.7500"],
        ["`b`", "2", "50.00", "50.00", "0.2500"],
        ["`c`", "0", "", "0.00", ""],
    ]


def test_the_report_has_a_picture(pictures, tmp_path):
    report.write_report(tmp_path, SCORES, "last")
    assert "report.png" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_scores_labelled_shards(trained_run, sound_dir, sounds, tmp_path):
    pytest.importorskip("sklearn")
    (tmp_path / "ids").write_text("\n".join("abcdefg"))
    config = EvaluateTaggingConfig(
        run_dir=str(trained_run),
        shards=[str(sound_dir / "shards")],
        labels=[str(sound_dir / "utt2labels")],
        ids=str(tmp_path / "ids"),
        output_dir=str(tmp_path / "out"),
        weights="last",
        device="cpu",
        batch_s=20.0,
        num_workers=1,
    )
    run(config)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["num_clips"] == 7
    assert summary["mean_average_precision"] > 0.9
    with np.load(tmp_path / "out" / "scores.npz", allow_pickle=False) as found:
        assert sorted(found["ids"].tolist()) == list("abcdefg")
        for name, targets in zip(found["ids"], found["targets"], strict=True):
            assert set(found["labels"][targets > 0].tolist()) == set(sounds[name])
    assert "| 7 |" in (tmp_path / "out" / "report.md").read_text()


def test_labels_that_the_tagger_does_not_know_are_refused(trained_run, sound_dir, tmp_path):
    pytest.importorskip("sklearn")
    (tmp_path / "labels").write_text("a thunder\n")
    config = EvaluateTaggingConfig(
        run_dir=str(trained_run),
        shards=[str(sound_dir / "shards")],
        labels=[str(tmp_path / "labels")],
        skip_unlabelled=True,
        weights="last",
    )
    with pytest.raises(DataError, match="'thunder'"):
        run(config)


def test_impossible_settings_are_refused():
    for change in ({"window_s": 0.0}, {"batch_s": -1.0}, {"num_workers": -1}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            Evaluation(**change)
