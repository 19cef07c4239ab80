"""The linear probe of digits."""

import probe_digits
import pytest
import torch
from digit_lists import find_digits

from spear.encoders.encoder import SpearEncoder
from spear.hub.export import write_model_folder
from tests.encoders.test_encoder import tiny_config

pytest.importorskip("sklearn")


def rows_of(text):
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()[2:]]


def test_every_layer_gets_its_error_rates(tone_digits, tmp_path, capsys):
    torch.manual_seed(0)
    encoder = SpearEncoder(tiny_config())
    write_model_folder(encoder, tmp_path / "model", {})
    words = ["--digits-dir", str(tone_digits), "--held-out-speaker", "carl"]
    assert probe_digits.main([*words, str(tmp_path / "model")]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert [row[1] for row in rows] == ["log-mel", *map(str, range(encoder.num_layers + 1))]
    assert rows[0][2] == "0.0"  # tones are easily told apart
    assert all(0.0 <= float(cell) <= 100.0 for row in rows for cell in row[2:])


def test_the_sets_do_not_overlap(tone_digits):
    sets = probe_digits.split(find_digits(tone_digits), "carl", seed=0)
    assert len(sets.train) == 20  # all there is: ten digits, two speakers, index 7
    assert {digit.index for digit in sets.train} == {7}
    assert len(sets.test) == 100
    assert {digit.speaker for digit in sets.speaker} == {"carl"}


def test_a_long_recording_has_means_of_its_quarters():
    frames = torch.arange(8.0).unsqueeze(1)
    assert probe_digits.stretch_means(frames).tolist() == [0.5, 2.5, 4.5, 6.5]
    assert len(probe_digits.stretch_means(frames[:2])) == 4


def test_a_missing_model_is_one_line(tone_digits, tmp_path, capsys):
    words = ["--digits-dir", str(tone_digits), "--held-out-speaker", "carl", str(tmp_path / "none")]
    assert probe_digits.main(words) == 2
    assert capsys.readouterr().err.startswith("probe_digits.py: error: ")
