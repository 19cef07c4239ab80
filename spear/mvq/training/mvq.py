"""Training of the quantiser on frames that need not fit into memory.

`spear.mvq.training.alternation` does the work; this module checks what it is given, shows how it
goes, and keeps its state on disk, so that a training that was stopped goes on where it was and ends
as it would have.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from spear.mvq.quantizers.quantizer import Quantizer
from spear.mvq.training.alternation import Alternation, Round
from spear.mvq.training.budget import TrainingBudget, check_budget
from spear.mvq.training.frames import (
    ChannelStatistics,
    Frames,
    NormalizedFrames,
    channel_statistics,
    check_training_frames,
    normalization,
)
from spear.mvq.training.state import TrainingState
from spear.system.distributed import Ranks
from spear.system.progress import get_logger, progress

_logger = get_logger(__name__)


def train_quantizer(
    frames: Frames,
    num_codebooks: int,
    codebook_size: int = 256,
    *,
    seed: int = 0,
    normalize_channels: bool = False,
    rows: Tensor | None = None,
    budget: TrainingBudget | None = None,
    metadata: Mapping[str, str] | None = None,
    device: str | torch.device = "cpu",
    ranks: Ranks | None = None,
    state_path: Path | None = None,
    save_every_s: float = 60.0,
) -> Quantizer:
    """Trains a quantiser on a sample of frames.

    Search for codes with the centres fixed, least squares for the centres with the codes fixed, and
    again: no learning rate and no gradient (`spear.mvq.training.alternation`).

    Args:
        frames: (F, D) floating point array, memory map or tensor. Read in parts, never copied
            whole.
        num_codebooks: N, 1 to 64.
        codebook_size: K, 2 to 256.
        seed: Fixes all random choices.
        normalize_channels: Give every channel zero mean and unit variance first, by statistics of
            these frames that are stored with the quantiser (SPEAR does so for WavLM).
        rows: (F',) int64 indexes of the frames to train on, ascending; all by default.
        budget: How long to work.
        metadata: Stored with the quantiser; so is, as "history", how each round ended.
        device: Where to compute.
        ranks: The processes that share the work, each called with the same arguments and frames;
            their `device` is used. The quantiser does not depend on their number.
        state_path: A file in which to keep the state of the training. Where it is there, training
            goes on from it, and gives the same bits as without a stop. Remove it once the quantiser
            is saved.
        save_every_s: Seconds between two savings of the state.

    Returns:
        The quantiser, on `device`.

    Raises:
        ConfigError: A number is out of range, or the state is that of another training.
        DataError: Too few frames, a wrong shape, all frames equal, or values that are not finite.
        CheckpointError: The state is broken.
    """
    budget = budget or TrainingBudget()
    ranks = ranks or Ranks(torch.device(device))
    Quantizer.check_sizes(num_codebooks, codebook_size)
    check_budget(budget)
    rows = torch.arange(len(frames)) if rows is None else rows
    check_training_frames(frames.shape, len(rows), codebook_size)
    found = channel_statistics(frames, rows, ranks)
    mean, scale = normalization(found, normalize_channels)
    alternation = Alternation(
        NormalizedFrames(frames, mean.to(ranks.device), scale.to(ranks.device)),
        rows=rows,
        sizes=(num_codebooks, codebook_size),
        largest_value=_largest_deviation(found, scale),
        seed=seed,
        budget=budget,
        ranks=ranks,
    )
    made_from = {
        "sizes": alternation.shape,
        "seed": seed,
        "normalize_channels": normalize_channels,
        "budget": asdict(budget),
        "frames": [len(rows), *(float(part.double().sum()) for part in (found.mean, found.scale))],
        "metadata": dict(metadata or {}),
    }
    state = TrainingState(state_path, made_from, ranks, save_every_s)
    history = _run(alternation, state)
    quantizer = Quantizer(
        **alternation.quantizer_tensors(),
        channel_mean=mean,
        channel_scale=scale,
        metadata={**(metadata or {}), "history": json.dumps([asdict(one) for one in history])},
    )
    return quantizer.to(ranks.device)


def _run(alternation: Alternation, state: TrainingState) -> list[Round]:
    """Runs what is left of the rounds; returns how all of them ended."""
    history = state.load_into(alternation)
    if alternation.iteration == 0:
        alternation.begin()
    else:
        _logger.info("training goes on after round %d", alternation.iteration)
    total = alternation.budget.num_iterations
    left = range(alternation.iteration, total)
    for _ in progress(left, "train quantizer", status=lambda: _status(history)):
        history.append(alternation.step())
        state.save_when_due(alternation, history)
    return history


def _status(history: list[Round]) -> str:
    if not history:
        return ""
    last = history[-1]
    return (
        f"error {last.relative_error:.4f}, entropy {last.least_entropy:.3f}, dead {last.num_dead}"
    )


def _largest_deviation(found: ChannelStatistics, scale: Tensor) -> float:
    """Returns a bound on |x - origin| over all channels of normalised frames.

    The origin is the mean of a sample, so within the range of the channel.
    """
    return float(((found.highest - found.lowest) / scale).max()) * (1 + 1e-5)
