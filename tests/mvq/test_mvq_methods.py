"""`spear train-quantizer --method`: baselines take the same way as the multi-codebook quantiser."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spear.config import parse_config
from spear.errors import ConfigError, DataError
from spear.mvq import BaselineBudget, KMeansQuantizer, TrainingBudget, load_quantizer
from spear.mvq.command import TrainQuantizerConfig, run
from tests.mvq.mvq_frames import correlated_frames

SIZES = {"kmeans": (1, 300), "residual": (3, 16), "random-projection": (2, 32)}


@pytest.fixture
def config(tmp_path: Path) -> TrainQuantizerConfig:
    np.save(tmp_path / "sample.frames.npy", correlated_frames(1500, 16).numpy())
    teacher = {"name": "logmel", "dim": 16, "frame_rate_hz": 25.0, "weights_sha256": "ab"}
    (tmp_path / "sample.frames.json").write_text(json.dumps({"teacher": teacher}))
    return TrainQuantizerConfig(
        frames=str(tmp_path / "sample"),
        output=str(tmp_path / "q" / "quantizer.safetensors"),
        method="kmeans",
        num_codebooks=1,
        codebook_size=20,
        device="cpu",
        budget=TrainingBudget(num_iterations=2, frames_per_iteration=1000),
    )


@pytest.mark.parametrize("method", SIZES)
def test_each_method_leaves_quantiser_and_report(config: TrainQuantizerConfig, method: str) -> None:
    num_codebooks, codebook_size = SIZES[method]
    config = replace(
        config,
        method=method,  # type: ignore[arg-type]
        num_codebooks=num_codebooks,
        codebook_size=codebook_size,
    )
    run(config)
    quantizer = load_quantizer(config.output)
    assert (quantizer.kind, quantizer.num_codebooks) == (method, num_codebooks)
    assert quantizer.teacher()["name"] == "logmel"
    # Only random projections ask for it themselves; the teacher does not.
    assert bool((quantizer.channel_scale != 1).all()) == (method == "random-projection")
    folder = Path(config.output).parent
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["id"] == quantizer.id
    assert 0 < summary["relative_error"] < 1
    assert method in (folder / "report.md").read_text()
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    run(config)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps


def test_differences_are_named(config: TrainQuantizerConfig) -> None:
    run(config)
    with pytest.raises(ConfigError, match=r"baseline.num_iterations is 16, asked for 3\. Remove"):
        run(replace(config, baseline=BaselineBudget(num_iterations=3)))
    with pytest.raises(ConfigError) as caught:
        run(replace(config, method="mvq"))
    assert "differently: method is 'kmeans', asked for 'mvq'. Remove" in str(caught.value)


def test_another_method_does_not_overwrite_the_multi_codebook_quantiser(
    config: TrainQuantizerConfig,
) -> None:
    run(replace(config, method="mvq"))
    settings = json.loads(load_quantizer(config.output).metadata["settings"])
    assert "method" not in settings and "baseline" not in settings
    with pytest.raises(ConfigError, match="method is 'mvq', asked for 'kmeans'"):
        run(config)


def test_mvq_settings_do_not_bind_a_baseline(config: TrainQuantizerConfig) -> None:
    run(config)
    before = Path(config.output).read_bytes()
    run(replace(config, budget=TrainingBudget(num_iterations=5)))
    assert Path(config.output).read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_codebooks": 16}, "num_codebooks must be 1, not 16"),
        ({"codebook_size": 5000}, "2 to 4096"),
        ({"method": "residual", "codebook_size": 300}, "2 to 256"),
        ({"method": "mvq", "codebook_size": 300}, "2 to 256"),
        ({"baseline": BaselineBudget(num_iterations=0)}, "num_iterations"),
    ],
)
def test_bad_settings_are_named(
    config: TrainQuantizerConfig, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(replace(config, **changes))  # type: ignore[arg-type]
    assert not Path(config.output).exists()


def test_too_few_frames_are_named(config: TrainQuantizerConfig) -> None:
    with pytest.raises(DataError, match="too few for codebooks of 2000 codes"):
        run(replace(config, codebook_size=2000))


def test_the_command_line_knows_the_methods(config: TrainQuantizerConfig) -> None:
    arguments = [
        *("--frames", config.frames, "--output", config.output, "--method", "kmeans"),
        *("--num_codebooks", "1", "--codebook_size", "30", "--device", "cpu"),
        *("--baseline.num_iterations", "4"),
    ]
    run(parse_config(TrainQuantizerConfig, arguments))
    assert isinstance(load_quantizer(config.output), KMeansQuantizer)
