"""`spear train-quantizer`: frames that `spear embed` collected in, quantiser and report out.

It reads `{name}.frames.npy` with `{name}.frames.json` beside it, keeps a few frames aside to
measure on, trains on the others, and stores with the quantiser who the teacher was and what it was
trained from. Run again it does nothing, unless the frames or the settings differ: then it refuses.
Besides the multi-codebook quantiser it trains the baselines of `spear.mvq.training.baselines`.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from spear.errors import ConfigError, DataError
from spear.mvq.evaluation import evaluate, spread_out
from spear.mvq.quantizers.codebooks import CodebookQuantizer
from spear.mvq.quantizers.loading import load_quantizer
from spear.mvq.quantizers.quantizer import Quantizer
from spear.mvq.quantizers.random_projection import RandomProjectionQuantizer
from spear.mvq.report import write_report
from spear.mvq.training.baselines import BaselineBudget, check_baseline, train_baseline
from spear.mvq.training.budget import TrainingBudget, check_budget
from spear.mvq.training.frames import read_rows
from spear.mvq.training.mvq import train_quantizer
from spear.system.differences import describe_differences
from spear.system.distributed import Ranks, join_ranks
from spear.system.files import remove_partials, sha256_of
from spear.system.progress import get_logger

_HELD_OUT_RUN = 32
_MAX_EVALUATED = 10_000
_logger = get_logger(__name__)


@dataclass
class TrainQuantizerConfig:
    """Settings of `spear train-quantizer`."""

    frames: str = ""
    """The frames that `spear embed` wrote: its `output`, or that with .frames.npy at the end."""
    output: str = ""
    """Where the quantiser goes: a path that ends in .safetensors."""
    report_dir: str = ""
    """Folder of report.md, usage.png and summary.json; empty for the output's own folder."""
    method: Literal["mvq", "kmeans", "random-projection", "residual"] = "mvq"
    """The multi-codebook quantiser, or a baseline to compare it with: one codebook of k-means,
    frozen random projections (BEST-RQ), or k-means on residuals stage by stage."""
    num_codebooks: int = 16
    """Codebooks (count), 1 to 64: so many tokens describe a frame. K-means has 1."""
    codebook_size: int = 256
    """Codes of each codebook (count), 2 to 256; with kmeans up to 4096, with random-projection up
    to 8192. Tokens take one byte up to 256, else two."""
    seed: int = 0
    """Fixes every random choice."""
    normalize_channels: bool | None = None
    """Zero mean and unit variance for every channel; by default what the teacher asks for, and
    always with random-projection."""
    held_out_fraction: float = 0.05
    """Share of the frames kept aside to measure on, at most 10,000 frames."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    budget: TrainingBudget = field(default_factory=TrainingBudget)
    """How long and how hard mvq works."""
    baseline: BaselineBudget = field(default_factory=BaselineBudget)
    """How long the baselines work."""


def run(config: TrainQuantizerConfig) -> None:
    """Trains the quantiser that `config` describes, unless it is already there.

    Raises:
        ConfigError: A value is out of range, or the output was made from something else.
        DataError: The frames are missing, broken or too few.
    """
    _check(config)
    with join_ranks(config.device) as ranks:
        _run(config, ranks)


def _run(config: TrainQuantizerConfig, ranks: Ranks) -> None:
    output = Path(config.output)
    report_dir = Path(config.report_dir or output.parent)
    frames, teacher = load_frames(frames_path(config.frames))
    normalize = config.normalize_channels
    if normalize is None:
        is_random = config.method == RandomProjectionQuantizer.kind
        normalize = is_random or bool(teacher.get("normalize_channels", False))
    metadata = _metadata(config, teacher, normalize)
    train_rows, held_out_rows = split_rows(len(frames), config.held_out_fraction)
    if ranks.broadcast_int(output.exists()):
        quantizer = load_quantizer(output, ranks.device)
        _check_same(output, quantizer.metadata, metadata)
        if (report_dir / "summary.json").is_file():  # the last file of the report
            _logger.info("%s is there already, from the same frames and settings", output)
            return
    else:
        common = {
            "seed": config.seed,
            "normalize_channels": normalize,
            "rows": train_rows,
            "metadata": metadata,
        }
        quantizer = _train(config, frames, common, ranks)
    if not ranks.is_main:
        return
    train = evaluate(quantizer, read_rows(frames, spread_out(train_rows, _MAX_EVALUATED)))
    held_out = evaluate(quantizer, read_rows(frames, held_out_rows))
    write_report(report_dir, quantizer, train, held_out)
    _logger.info(
        "%s: %d codebooks of %d, relative error %.4f (held out %.4f), lowest entropy %.3f; %s",
        output,
        quantizer.num_codebooks,
        quantizer.codebook_size,
        train.relative_error,
        held_out.relative_error,
        min(train.entropies),
        report_dir / "report.md",
    )


def _train(
    config: TrainQuantizerConfig, frames: np.ndarray, common: dict[str, Any], ranks: Ranks
) -> CodebookQuantizer:
    """Trains what the method says, with arguments that all methods share, and saves it."""
    output, sizes = Path(config.output), (config.num_codebooks, config.codebook_size)
    if ranks.is_main:
        remove_partials(output.parent)
    quantizer: CodebookQuantizer
    if config.method == Quantizer.kind:
        state_path = output.with_name(f"{output.stem}.training.safetensors")
        quantizer = train_quantizer(
            frames, *sizes, budget=config.budget, ranks=ranks, state_path=state_path, **common
        )
    elif ranks.world_size > 1:
        raise ConfigError(
            f"--method {config.method} runs in one process: start it without torchrun"
        )
    else:
        quantizer = train_baseline(
            config.method, frames, *sizes, budget=config.baseline, device=ranks.device, **common
        )
    if ranks.is_main:
        quantizer.save(output)
        if config.method == Quantizer.kind:
            state_path.unlink(missing_ok=True)
    return quantizer


def frames_path(frames: str) -> Path:
    """Returns the path of the frames for what a user wrote: that path, or what embed calls it."""
    return Path(frames if frames.endswith(".npy") else f"{frames}.frames.npy")


def load_frames(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Opens frames without reading them.

    Args:
        path: `{name}.frames.npy`; `{name}.frames.json` lies beside it.

    Returns:
        (F, D) memory map, and the teacher's identity.

    Raises:
        DataError: A file is missing or broken, or does not hold frames.
    """
    sidecar = path.with_suffix(".json")
    for needed in (path, sidecar):
        if not needed.is_file():
            raise DataError(f"no frames at {needed}: make them with `spear embed`")
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is broken ({error}): remove it and run `spear embed`") from error
    if frames.ndim != 2 or not np.issubdtype(frames.dtype, np.floating):
        raise DataError(
            f"{path} holds {frames.dtype} of shape {frames.shape}, not frames (F, D): remove it "
            "and run `spear embed`"
        )
    try:
        teacher = json.loads(sidecar.read_text("utf-8"))["teacher"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{sidecar} does not name the teacher ({error!r}): remove it and run `spear embed`"
        ) from error
    if not isinstance(teacher, dict):
        raise DataError(f"{sidecar}: `teacher` must be a mapping, not {type(teacher).__name__}")
    dim = teacher.get("dim", frames.shape[1])
    if dim != frames.shape[1]:
        raise DataError(f"{path} has width {frames.shape[1]}, but its teacher has {dim}")
    return frames, teacher


def split_rows(num_frames: int, held_out_fraction: float) -> tuple[Tensor, Tensor]:
    """Deals frames to training and measuring, in short runs spread over the whole file.

    Runs, because neighbouring frames of a clip are alike; over the whole, because the file may be
    sorted by clip or domain.

    Returns:
        Ascending indexes of the training and of the held-out frames; the second has at least one.
    """
    wanted = int(min(max(num_frames * held_out_fraction, 1), _MAX_EVALUATED))
    run_length = min(_HELD_OUT_RUN, wanted)
    num_runs = max(wanted // run_length, 1)
    is_held_out = torch.zeros(num_frames, dtype=torch.bool)
    for index in range(num_runs):
        start = (2 * index + 1) * num_frames // (2 * num_runs)
        is_held_out[max(0, start - run_length // 2) :][:run_length] = True
    return (~is_held_out).nonzero()[:, 0], is_held_out.nonzero()[:, 0]


def _check(config: TrainQuantizerConfig) -> None:
    if not config.frames:
        raise ConfigError("frames is not set: name what `spear embed` wrote")
    if not config.output.endswith(".safetensors"):
        raise ConfigError(f"output must name a .safetensors file, not {config.output!r}")
    if not 0 < config.held_out_fraction <= 0.5:
        raise ConfigError(
            f"held_out_fraction must be above 0 and at most 0.5, not {config.held_out_fraction}"
        )
    if config.method == Quantizer.kind:
        Quantizer.check_sizes(config.num_codebooks, config.codebook_size)
        check_budget(config.budget)
    else:
        sizes = (config.num_codebooks, config.codebook_size)
        check_baseline(config.method, *sizes, config.baseline)


def _metadata(
    config: TrainQuantizerConfig, teacher: dict[str, Any], normalize: bool
) -> dict[str, str]:
    """What is stored with the quantiser: everything that its weights depend on."""
    settings: dict[str, Any] = {
        "num_codebooks": config.num_codebooks,
        "codebook_size": config.codebook_size,
        "seed": config.seed,
        "normalize_channels": normalize,
        "held_out_fraction": config.held_out_fraction,
    }
    if config.method == Quantizer.kind:
        settings["budget"] = asdict(config.budget)
    else:
        settings |= {"method": config.method, "baseline": asdict(config.baseline)}
    return {
        "teacher": json.dumps(teacher, sort_keys=True),
        "frames_sha256": sha256_of(frames_path(config.frames)),
        "settings": json.dumps(settings, sort_keys=True),
    }


def _check_same(output: Path, stored: dict[str, str], wanted: dict[str, str]) -> None:
    """Refuses an output that was made from something else, naming the differences."""
    # mvq does not name itself.
    there, asked = ({"method": Quantizer.kind} | _read(one, "settings") for one in (stored, wanted))
    if there["method"] != asked["method"]:  # another method has other settings, which are no news
        there, asked = ({key: one[key] for key in there.keys() & asked} for one in (there, asked))
    there["teacher"], asked["teacher"] = _read(stored, "teacher"), _read(wanted, "teacher")
    differences = describe_differences(there, asked, "{} is {!r}, asked for {!r}")
    if stored.get("frames_sha256") != wanted["frames_sha256"]:
        differences.append("it was trained on other frames")
    if differences:
        raise ConfigError(
            f"{output} was made differently: {'; '.join(differences)}. "
            "Remove it or choose another output"
        )


def _read(metadata: dict[str, str], name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(metadata.get(name, "{}"))
    return content
