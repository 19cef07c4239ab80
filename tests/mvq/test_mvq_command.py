"""`spear train-quantizer`: files in, files out, and running it again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from spear.errors import ConfigError, DataError
from spear.mvq import Quantizer, TrainingBudget, describe
from spear.mvq.command import TrainQuantizerConfig, run, split_rows
from spear.mvq.evaluation import evaluate
from spear.mvq.report import bits_per_frame
from tests.mvq.mvq_frames import correlated_frames, random_centers, relative_error

TEACHER = {
    "name": "logmel",
    "family": "logmel",
    "layer": None,
    "frame_rate_hz": 25.0,
    "dim": 16,
    "weights_sha256": "ab",
    "normalize_channels": True,
}


def config_in(folder: Path) -> TrainQuantizerConfig:
    return TrainQuantizerConfig(
        frames=str(folder / "my frames.frames.npy"),
        output=str(folder / "q" / "quantizer.safetensors"),
        num_codebooks=3,
        codebook_size=16,
        device="cpu",
        budget=TrainingBudget(num_iterations=2, frames_per_iteration=1000),
    )


def write_frames(folder: Path) -> None:
    np.save(folder / "my frames.frames.npy", correlated_frames(1500, 16).numpy())
    (folder / "my frames.frames.json").write_text(json.dumps({"teacher": TEACHER, "seed": 0}))


@pytest.fixture
def config(tmp_path: Path) -> TrainQuantizerConfig:
    write_frames(tmp_path)
    return config_in(tmp_path)


@pytest.fixture(scope="module")
def finished_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    write_frames(folder)
    with pytest.MonkeyPatch.context() as patch:  # no pictures, whichever test comes first
        patch.setattr("spear.mvq.pictures.new_figure", lambda *size: None)
        run(config_in(folder))
    return folder


@pytest.fixture
def finished(finished_folder: Path, tmp_path: Path) -> TrainQuantizerConfig:
    """The settings of a run that is over, in a folder of the test's own."""
    shutil.copytree(finished_folder, tmp_path, dirs_exist_ok=True)
    return config_in(tmp_path)


def test_writes_quantiser_and_report(finished: TrainQuantizerConfig, tmp_path: Path) -> None:
    quantizer = Quantizer.load(finished.output)
    assert (quantizer.num_codebooks, quantizer.codebook_size, quantizer.dim) == (3, 16, 16)
    assert quantizer.teacher() == TEACHER
    assert (quantizer.channel_scale != 1).all()  # the teacher asked for it
    summary = json.loads((tmp_path / "q" / "summary.json").read_text())
    frames = torch.from_numpy(np.load(finished.frames))
    _, held_out = split_rows(1500, finished.held_out_fraction)
    error = relative_error(quantizer, frames[held_out], quantizer.encode(frames[held_out]))
    assert summary["relative_error"] == pytest.approx(error, rel=1e-4)
    assert summary["id"] == quantizer.id
    assert 0.5 < summary["usage_entropy"] <= 1
    report = (tmp_path / "q" / "report.md").read_text()
    assert f"{summary['relative_error']:.4f}" in report
    assert "12 (300 bits/s)" in report
    assert report.count("\n| 0 |") == 1
    assert report.count("\n| 2 |") == 1


def test_frames_may_be_named_as_embed_was_told(finished: TrainQuantizerConfig) -> None:
    before = Path(finished.output).read_bytes()
    Path(finished.output).with_name("summary.json").unlink()
    finished.frames = finished.frames.removesuffix(".frames.npy")
    run(finished)  # finds the same frames: else it would refuse
    assert Path(finished.output).with_name("summary.json").is_file()
    assert Path(finished.output).read_bytes() == before


def test_second_run_does_nothing_and_a_lost_report_is_made_again(
    finished: TrainQuantizerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Path(finished.output)
    stamp, report = output.stat().st_mtime_ns, (output.parent / "report.md").read_text()

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("spear.mvq.command.train_quantizer", fail)
    run(finished)
    for lost in ("report.md", "summary.json"):
        (output.parent / lost).unlink()
    run(finished)
    assert output.stat().st_mtime_ns == stamp
    assert (output.parent / "report.md").read_text() == report


def test_a_killed_run_leaves_nothing_half_made(
    config: TrainQuantizerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(config.output).parent
    folder.mkdir()
    (folder / ".quantizer.partial-1.safetensors").write_bytes(b"half")
    monkeypatch.setattr("spear.mvq.command.write_report", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(config)
    made = Path(config.output).read_bytes()
    monkeypatch.undo()
    run(config)
    assert Path(config.output).read_bytes() == made
    assert not [file for file in folder.iterdir() if "partial" in file.name]


def test_differences_are_named_and_nothing_is_overwritten(finished: TrainQuantizerConfig) -> None:
    before = Path(finished.output).read_bytes()
    finished.seed, finished.budget.noise = 5, 0.25
    frames = np.load(finished.frames)
    np.save(finished.frames, frames + 1)
    with pytest.raises(ConfigError) as caught:
        run(finished)
    message = str(caught.value)
    assert "seed is 0, asked for 5" in message
    assert "budget.noise is 0.1, asked for 0.25" in message
    assert "other frames" in message
    assert "Remove it" in message
    assert "\n" not in message
    assert Path(finished.output).read_bytes() == before


def test_normalisation_can_be_asked_for(config: TrainQuantizerConfig) -> None:
    config.normalize_channels = False
    run(config)
    assert (Quantizer.load(config.output).channel_scale == 1).all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("frames", "", "frames is not set"),
        ("output", "q.pt", "safetensors"),
        ("held_out_fraction", 0.0, "held_out_fraction"),
        ("num_codebooks", 65, "num_codebooks"),
        ("codebook_size", 1, "codebook_size"),
        ("device", "abacus", "device 'abacus'"),
    ],
)
def test_bad_settings_are_named(
    config: TrainQuantizerConfig, field: str, value: object, message: str
) -> None:
    setattr(config, field, value)
    with pytest.raises(ConfigError, match=message):
        run(config)


def test_broken_frames_are_named(config: TrainQuantizerConfig, tmp_path: Path) -> None:
    path, sidecar = Path(config.frames), Path(config.frames).with_suffix(".json")
    content = path.read_bytes()
    path.write_bytes(content[:1000])
    with pytest.raises(DataError, match=r"frames\.npy is broken"):
        run(config)
    np.save(path, np.zeros((100, 16), dtype=np.int64))
    with pytest.raises(DataError, match="int64"):
        run(config)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="broken"):  # never unpickled
        run(config)
    np.save(path, np.zeros((100, 17), dtype=np.float32))
    with pytest.raises(DataError, match="width 17, but its teacher has 16"):
        run(config)
    sidecar.write_text("{}")
    with pytest.raises(DataError, match="teacher"):
        run(config)
    sidecar.unlink()
    with pytest.raises(DataError, match=r"no frames at .*\.json"):
        run(config)
    assert not Path(config.output).exists()


def test_held_out_frames_are_spread_and_disjoint() -> None:
    for num_frames in (3, 100, 5000, 400_000):
        train, held_out = split_rows(num_frames, 0.05)
        joined = torch.cat((train, held_out)).sort().values
        assert torch.equal(joined, torch.arange(num_frames))
        assert 1 <= len(held_out) <= 10_000
        middle = float(held_out.double().mean() / num_frames)
        assert 0.3 < middle < 0.7
    assert len(split_rows(5000, 0.05)[1]) == pytest.approx(250, abs=32)


def test_report_without_matplotlib(finished: TrainQuantizerConfig) -> None:
    folder = Path(finished.output).parent
    (folder / "summary.json").unlink()
    run(finished)
    assert not (folder / "usage.png").exists()
    assert "usage.png" not in (folder / "report.md").read_text()


@pytest.mark.usefixtures("pictures")
def test_report_draws_usage_with_matplotlib(finished: TrainQuantizerConfig) -> None:
    Path(finished.output).with_name("summary.json").unlink()
    run(finished)
    picture = Path(finished.output).with_name("usage.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "](usage.png)" in picture.with_name("report.md").read_text()


def test_evaluation_against_definitions() -> None:
    quantizer = Quantizer(random_centers(3, 8, 16), channel_scale=torch.full((16,), 2.0))
    frames = correlated_frames(400, 16)
    found = evaluate(quantizer, frames)
    codes = quantizer.encode(frames)
    assert found.relative_error == pytest.approx(relative_error(quantizer, frames, codes), rel=1e-5)
    assert torch.equal(found.usage[1], torch.bincount(codes[:, 1].long(), minlength=8))
    target = quantizer.normalize(frames)
    parts = [quantizer.centers[n][codes[:, n].long()] for n in range(3)]
    without = parts[0] + parts[1] + parts[2].mean(dim=0)
    expected = (target - without).square().sum() / (target - target.mean(dim=0)).square().sum()
    assert found.errors_without[2] == pytest.approx(float(expected), rel=1e-4)


def test_describe_tells_what_it_is() -> None:
    quantizer = Quantizer(
        random_centers(4, 256, 16), metadata={"teacher": json.dumps(TEACHER), "note": "mine"}
    )
    text = describe(quantizer)
    for expected in (quantizer.id, "32 (800 bits/s)", "logmel", "weights_sha256", "mine", "256"):
        assert expected in text
    assert bits_per_frame(quantizer) == 32
