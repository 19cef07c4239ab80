"""The script that compares how predictable tokens are, on bursts of noise."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile as sf
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ["--num-codebooks=2", "--codebook-size=8", "--iterations=2", "--clip-s=1", "--steps=8"]
TINY += ["--batch-clips=4", "--width=16", "--held-out-share=0.3", "--reference-steps=4"]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    path = ROOT / "local/benchmarks/mvq_predictability.py"
    sys.path.insert(0, str(path.parent))  # as when it is run
    spec = importlib.util.spec_from_file_location("mvq_predictability", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["mvq_predictability"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(path.parent))


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Three recordings of 3 s, with bursts of noise of different loudness."""
    folder = tmp_path / "audio" / "deep er"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(3):
        loudness = np.repeat(rng.choice([0.001, 0.02, 0.3], size=15), 3200)
        sf.write(folder / f"{index}.wav", loudness * rng.standard_normal(48000) * 0.3, 16000)
    (folder / "broken.wav").write_bytes(b"nothing")
    return tmp_path / "audio"


def test_writes_a_table_of_all_methods(
    script: ModuleType, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "result.md"
    words = ["--audio-dir", str(recordings), "--output", str(output), *TINY]
    script.main([*words, "--methods", "mvq,kmeans:16,residual"])
    out, err = capsys.readouterr()
    assert output.read_text() == out
    assert "broken.wav" in err
    rows = [line for line in out.splitlines() if line.startswith(("| mvq", "| kmeans", "| resid"))]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[1:3] for row in cells] == [["2 x 8", "6"], ["1 x 16", "4"], ["2 x 8", "6"]]
    for row in cells:
        assert 0 < float(row[3]) < 1
        assert 0 <= float(row[5].rstrip("%")) <= 100
    script.main([*words, "--methods", "mvq"])
    again = next(line for line in output.read_text().splitlines() if line.startswith("| mvq"))
    assert again.split("|")[:9] == rows[0].split("|")[:9]  # all but the seconds


def test_too_little_audio_is_one_line(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="at least 2"):
        script.main(["--audio-dir", str(tmp_path)])


def test_score_against_definitions(script: ModuleType) -> None:
    """A student that knows nothing explains less than nothing; one that knows all, everything."""
    torch.manual_seed(0)
    student = script.Student(2, 4, 16, torch.zeros(128), torch.ones(128))
    for parameter in student.head.parameters():
        torch.nn.init.zeros_(parameter)
    clips = script.Clips(torch.randn(3, 40, 128), torch.randn(3, 20, 256))
    codes = torch.zeros(3, 20, 2, dtype=torch.long)
    train = torch.randint(4, (4000, 2))
    found = script.score(student, clips, codes, train, seed=0)
    assert found.accuracy == 1.0  # code 0 is the first of equals
    frequency = (torch.bincount(train[:, 0], minlength=4)[0] + 1) / 4004
    other = (torch.bincount(train[:, 1], minlength=4)[0] + 1) / 4004
    entropy = -float(frequency.log2() + other.log2())
    assert found.bits_to_explain == pytest.approx(entropy, rel=1e-5)
    assert found.bits_explained == pytest.approx(entropy - 4.0, abs=1e-4)
    student.head.bias.data.copy_(torch.tensor([50.0, 0, 0, 0, 50.0, 0, 0, 0]))
    found = script.score(student, clips, codes, train, seed=0)
    assert found.bits_explained == pytest.approx(found.bits_to_explain, abs=1e-4)


def test_only_wholly_masked_frames_count(script: ModuleType) -> None:
    mask = torch.tensor([[True, True, True, False, False, False]])
    assert script.hidden_frames(mask).tolist() == [[True, False, False]]
