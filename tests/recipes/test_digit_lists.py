"""Kaldi's lists from the names of the Free Spoken Digit Dataset."""

import digit_lists
import numpy as np
import pytest
import soundfile as sf


@pytest.fixture
def digits_dir(tmp_path):
    folder = tmp_path / "the digits"
    folder.mkdir()
    for digit in (0, 7):
        for speaker in ("theo", "anna"):
            for index in (0, 4, 5, 6, 7, 12):
                (folder / f"{digit}_{speaker}_{index}.wav").touch()
    return folder


def make(digits_dir, output, *words):
    return digit_lists.main(["--digits-dir", str(digits_dir), "--output-dir", str(output), *words])


def read(folder, name):
    return (folder / name).read_text().splitlines()


def test_lists_follow_from_the_names(digits_dir, tmp_path):
    output = tmp_path / "new" / "lists"
    assert make(digits_dir, output) == 0
    text = read(output, "text")
    assert len(text) == 24
    assert text == sorted(text)
    assert "7_anna_12 SEVEN" in text
    assert "0_theo_5 ZERO" in text
    assert "7_theo_4 theo" in read(output, "utt2spk")
    assert {line.rsplit("_", 1)[1] for line in read(output, "test_ids")} == {"0", "4"}
    assert {line.rsplit("_", 1)[1] for line in read(output, "valid_ids")} == {"5", "6"}


def test_held_out_indexes_can_be_chosen(digits_dir, tmp_path):
    assert make(digits_dir, tmp_path / "l", "--test", "12", "--valid", "4-5") == 0
    assert len(read(tmp_path / "l", "test_ids")) == 4
    assert len(read(tmp_path / "l", "valid_ids")) == 8


def test_a_held_out_speaker_is_in_the_test_set_alone(digits_dir, tmp_path):
    assert make(digits_dir, tmp_path / "l", "--held-out-speaker", "anna") == 0
    test, valid = (read(tmp_path / "l", name) for name in ("test_ids", "valid_ids"))
    assert sum("anna" in line for line in test) == 12
    assert sum("theo" in line for line in test) == 4
    assert test == sorted(test)
    assert valid == ["0_theo_5", "0_theo_6", "7_theo_5", "7_theo_6"]


def test_ids_are_those_of_prepare_below_subfolders(digits_dir, tmp_path):
    from spear.data.corpus.prepare import PrepareConfig, run

    (digits_dir / "more" / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    (digits_dir / "7_anna_12.wav").rename(digits_dir / "more" / "sub" / "7_anna_12.wav")
    for path in digits_dir.rglob("*.wav"):
        sf.write(path, rng.uniform(-0.1, 0.1, 4000), 8000)
    lists = tmp_path / "lists"
    assert make(digits_dir, lists) == 0
    assert "more-sub-7_anna_12 SEVEN" in read(lists, "text")
    files = {name: str(lists / name) for name in ("text", "utt2spk", "test_ids", "valid_ids")}
    run(PrepareConfig(str(digits_dir), "digits", str(tmp_path / "manifests"), **files))
    assert (tmp_path / "manifests" / "digits_test_cuts.jsonl.gz").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--test", "0-5"], "overlap"),
        (["--held-out-speaker", "dora"], "no digit of 'dora'; the speakers are anna, theo"),
        (["--test", "99"], "no recording has an index for test_ids"),
        (["--test", "4-2"], "looks like 0-4, not '4-2'"),
        (["--test", "x"], "looks like 0-4, not 'x'"),
    ],
)
def test_unusable_ranges_are_refused(digits_dir, tmp_path, capsys, words, message):
    assert make(digits_dir, tmp_path / "l", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "l").exists()


def test_other_names_and_missing_folders_are_refused(digits_dir, tmp_path, capsys):
    (digits_dir / "seven.wav").touch()
    assert make(digits_dir, tmp_path / "l") == 2
    assert "seven.wav: the name is not" in capsys.readouterr().err
    assert make(tmp_path / "nowhere", tmp_path / "l") == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert make(tmp_path / "empty", tmp_path / "l") == 2
    assert "no WAV files" in capsys.readouterr().err
