"""The benchmark beside lhotse: both sides read every clip of the same files."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

SCRIPTS = Path(__file__).resolve().parents[3] / "local" / "benchmarks"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    import data_reading

    yield data_reading
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def folders(script, tmp_path_factory):
    return script.write_corpus(tmp_path_factory.mktemp("reading") / "corpus", hours=0.03)


def test_both_sides_read_everything(script, folders):
    sides = script.make_sides(folders, 60.0)
    assert len(sides) == 5
    batches = {name: list(side(0)) for name, side in sides.items()}
    seconds = {name: sum(one.audio_s for one in found) for name, found in batches.items()}
    assert min(seconds.values()) > 100
    assert max(seconds.values()) - min(seconds.values()) < 0.1, seconds
    theirs = torch.cat([one.content["inputs"].flatten(0, 1) for one in batches["lhotse", "none"]])
    ours = torch.cat([one.fbank.flatten(0, 1) for one in batches["spear", "none"]])
    # The same frames in another order, those of padding aside. lhotse mirrors the last frames of a
    # clip at the end of the padded batch, so that a few differ.
    sums = [x[x[:, 0] > -20].sum(dim=1).numpy() for x in (theirs, ours)]
    assert len(sums[0]) == len(sums[1])
    shares = np.linspace(0.0, 1.0, 51)
    np.testing.assert_allclose(*(np.quantile(one, shares) for one in sums), rtol=2e-3)


def test_noise_changes_the_features_of_both(script, folders):
    sides = script.make_sides(folders, 60.0)
    energy = {
        name: sum(float(one.content["inputs"].mean()) for one in side(0))
        for name, side in sides.items()
        if name[0] == "lhotse"
    }
    assert energy["lhotse", "recorded noise"] > energy["lhotse", "none"]
    plain, noisy = (next(iter(sides["spear", kind](0))) for kind in ("none", "synthetic noise"))
    assert float(noisy.fbank.mean()) != float(plain.fbank.mean())


def test_a_run_ends_with_a_table_and_a_verdict(script, tmp_path, capsys):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", 0.1 * rng.standard_normal(30 * 16000), 16000)
    words = ["--hours", "0.05", "--repeats", "1", "--workers", "0", "--max-duration-s", "60"]
    words += ["--audio-dir", str(tmp_path), "--output", str(tmp_path / "result.md")]
    script.main(words)
    text = (tmp_path / "result.md").read_text()
    assert text in capsys.readouterr().out
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| lh", "| sp"))]
    kinds = ["none", "recorded noise", "synthetic noise"]
    assert [row[1] for row in rows] == [*kinds[:2], *kinds]
    ours, theirs = (float(row[3].replace(",", "")) for row in (rows[2], rows[0]))
    assert float(rows[2][6]) == pytest.approx(ours / theirs, rel=0.02)
    assert "Goal of 1.3 times lhotse's rate" in text
