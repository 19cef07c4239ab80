"""Label lists of sounds: from names, from ESC-50's table, from AudioSet's CSV; tables of folds."""

import json
from collections import Counter

import audioset_labels
import esc50_labels
import label_lists
import prefix_labels
import pytest
import summarize

from spear.errors import DataError
from spear.tagging.labels import Classes, read_labels


@pytest.fixture
def sounds_dir(tmp_path):
    folder = tmp_path / "sounds"
    for name, num in (("dog", 11), ("rain", 8), ("rare", 2)):
        (folder / "sub").mkdir(parents=True, exist_ok=True)
        for i in range(num):
            (folder / ("sub" if i % 2 else "") / f"{name}_{i}_x.wav").touch()
    return folder


def read(path):
    return path.read_text().splitlines()


def by_prefix(sounds_dir, output, *words):
    return prefix_labels.main(["--audio-dir", str(sounds_dir), "--output-dir", str(output), *words])


def test_the_class_is_the_beginning_of_the_name_and_small_classes_are_left_out(
    sounds_dir, tmp_path, capsys
):
    assert by_prefix(sounds_dir, tmp_path / "lists") == 0
    labels = read_labels([str(tmp_path / "lists" / "utt2labels")])
    assert Counter(labels.values()) == {("dog",): 11, ("rain",): 8}
    assert labels["sub-dog_1_x"] == ("dog",)
    assert Classes.load(tmp_path / "lists" / "classes").labels == ("dog", "rain")
    assert "left out, below 8 recordings: rare (2)" in capsys.readouterr().out


def test_folds_are_stratified_and_every_recording_is_held_out_once(sounds_dir, tmp_path):
    assert by_prefix(sounds_dir, tmp_path / "a") == by_prefix(sounds_dir, tmp_path / "b") == 0
    held_out = []
    for fold in range(1, 6):
        folder = tmp_path / "a" / f"fold{fold}"
        train, valid = read(folder / "train_ids"), read(folder / "valid_ids")
        assert valid == read(tmp_path / "b" / f"fold{fold}" / "valid_ids")
        assert not set(train) & set(valid)
        assert len(train) + len(valid) == 19
        assert sum("dog" in one for one in valid) in (2, 3)
        assert sum("rain" in one for one in valid) in (1, 2)
        held_out += valid
    assert len(set(held_out)) == len(held_out) == 19
    assert by_prefix(sounds_dir, tmp_path / "c", "--seed", "1") == 0
    assert read(tmp_path / "c/fold1/valid_ids") != read(tmp_path / "a/fold1/valid_ids")


def test_esc50_has_the_folds_of_its_table(tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text(
        "filename,fold,target,category,esc10,src_file,take\n"
        "1-100032-A-0.wav,1,0,dog,True,100032,A\n"
        "5-9032-A-0.wav,5,0,dog,True,9032,A\n"
        "1-100038-A-14.wav,1,14,chirping_birds,False,100038,A\n"
    )
    words = ["--esc50-dir", str(tmp_path), "--output-dir", str(tmp_path / "lists")]
    assert esc50_labels.main(words) == 0
    assert read(tmp_path / "lists" / "utt2labels") == [
        "1-100032-A-0 dog", "1-100038-A-14 chirping_birds", "5-9032-A-0 dog",
    ]  # fmt: skip
    assert read(tmp_path / "lists/fold5/valid_ids") == ["5-9032-A-0"]
    assert read(tmp_path / "lists/fold5/train_ids") == ["1-100032-A-0", "1-100038-A-14"]


@pytest.fixture
def audioset(tmp_path):
    """Two recordings, a table of three classes and a CSV of two segments."""
    (tmp_path / "wav").mkdir()
    for name in ("Y--PJHxphWEs", "Ygone"):
        (tmp_path / "wav" / f"{name}.wav").touch()
    (tmp_path / "classes.csv").write_text(
        'index,mid,display_name\n0,/m/09x0r,Speech\n1,/m/05zppz,"Male speech, man speaking"\n'
        "2,/t/dd00088,Gush\n"
    )
    (tmp_path / "segments.csv").write_text(
        "# Segments csv created Sun Mar  5 10:54:31 2017\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n'
        '--ZhevVpy1s, 50.000, 60.000, "/m/012xff"\n'
    )
    return tmp_path


def by_csv(folder, *words):
    options = ["--audio-dir", "wav", "--segments", "segments.csv", "--classes", "classes.csv"]
    paths = [word if word.startswith("--") else str(folder / word) for word in options]
    return audioset_labels.main([*paths, "--output-dir", str(folder / "lists"), *words])


def test_audiosets_segments_label_the_recordings_that_are_there(audioset, capsys):
    assert by_csv(audioset, "--name-format", "Y{ytid}") == 0
    assert read(audioset / "lists" / "utt2labels") == ["Y--PJHxphWEs /m/09x0r,/t/dd00088"]
    classes = Classes.load(audioset / "lists" / "classes")
    assert classes.labels == ("/m/09x0r", "/m/05zppz", "/t/dd00088")
    assert classes.names[1] == "Male speech, man speaking"
    assert "1 of 2 recordings" in capsys.readouterr().out


def test_mistakes_are_one_line(audioset, sounds_dir, capsys):
    assert by_csv(audioset) == 2
    assert "--name-format" in capsys.readouterr().err
    (audioset / "segments.csv").write_text("a, b\n")
    assert by_csv(audioset) == 2
    assert "segment 1 is no" in capsys.readouterr().err
    assert by_prefix(sounds_dir, audioset / "l", "--min-clips", "3") == 2
    assert "--num-folds" in capsys.readouterr().err
    nowhere = ["--esc50-dir", str(audioset), "--output-dir", str(audioset / "l")]
    assert esc50_labels.main(nowhere) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_labels_that_a_list_cannot_hold_are_refused(tmp_path):
    with pytest.raises(DataError, match="'a,b' has a comma"):
        label_lists.write_lists(tmp_path, [label_lists.Labelled("x", ("a,b",))])
    twice = [label_lists.Labelled("x", ("a",))] * 2
    with pytest.raises(DataError, match="'x' is there 2 times"):
        label_lists.write_lists(tmp_path, twice)
    with pytest.raises(DataError, match="no labelled recording"):
        label_lists.write_lists(tmp_path, [])


@pytest.fixture
def write_fold(tmp_path):
    def write(run, fold, precision, accuracy=0.5):
        folder = tmp_path / run / f"fold{fold}" / "evaluation"
        folder.mkdir(parents=True)
        one = {"clips": 3, "average_precision": precision}
        summary = {
            "mean_average_precision": precision,
            "accuracy": accuracy,
            "mean_roc_area": None,
            "num_clips": 12,
            "classes": {"dog": one, "gone": {"clips": 0, "average_precision": None}},
        }
        (folder / "summary.json").write_text(json.dumps(summary))

    return write


def test_the_table_of_folds_has_mean_and_spread(write_fold, tmp_path, capsys):
    for fold, precision in ((1, 0.5), (2, 0.7)):
        write_fold("finetuned", fold, precision)
        write_fold("scratch", fold, precision / 2)
    assert summarize.main(["--folds", "--exp-dir", str(tmp_path)]) == 0
    text = (tmp_path / "folds.md").read_text()
    assert "| finetuned | 2 | 60.0 ± 14.1 | 50.0 ± 0.0 |  |" in text
    assert "| `dog` | 6 | 25.0 | 60.0 ± 14.1 | 30.0 ± 7.1 |" in text
    assert "| `gone` | 0 | 0.0 |  |  |" in text
    assert capsys.readouterr().out == text


def test_missing_folds_are_named(write_fold, tmp_path, capsys):
    assert summarize.main(["--folds", "--exp-dir", str(tmp_path)]) == 2
    assert "train first" in capsys.readouterr().err
    write_fold("finetuned", 1, 0.5)
    write_fold("scratch", 1, 0.5)
    write_fold("scratch", 2, 0.5)
    assert summarize.main(["--folds", "--exp-dir", str(tmp_path)]) == 2
    assert "finetuned 1, scratch 2" in capsys.readouterr().err


def test_folds_of_other_classes_are_not_averaged(write_fold, tmp_path, capsys):
    write_fold("finetuned", 1, 0.5)
    write_fold("finetuned", 2, 0.5)
    path = tmp_path / "finetuned" / "fold2" / "evaluation" / "summary.json"
    path.write_text(path.read_text().replace("dog", "cat"))
    assert summarize.main(["--folds", "--exp-dir", str(tmp_path)]) == 2
    assert "same classes" in capsys.readouterr().err
