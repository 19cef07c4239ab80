"""Training of the quantiser: search for codes, solve for centres, and again.

With centres fixed, the search of `spear.mvq.search` gives codes; with codes fixed, the best centres
are the solution of one linear system (`spear.mvq.statistics`). The alternation starts from
codebooks that share the work equally (`spear.mvq.initialisation`), is shaken by noise that fades,
so that it does not stop at the first local optimum (the stochastic relaxation of Martinez et al.,
LSQ++, ECCV 2018), and puts unused codes to work again. It ends with a plain solve and with linear
classifiers for the first guess. No learning rate, no gradient; minutes where gradient training
takes hours.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spear.errors import ConfigError, DataError
from spear.mvq.codebooks import check_training_frames
from spear.mvq.initialisation import initial_centers
from spear.mvq.quantizer import Quantizer, check_sizes
from spear.mvq.search import ProductTable, search
from spear.mvq.statistics import CodeStatistics
from spear.progress import get_logger, progress

_BLOCK_FRAMES = 1024
_STATISTICS_BLOCK = 1 << 14
_INITIAL_FRAMES = 1 << 15
_MIN_CHANNEL_SHARE = 1e-6

Frames = np.ndarray | Tensor
_logger = get_logger(__name__)


@dataclass
class TrainingBudget:
    """How long and how hard the alternation works."""

    num_iterations: int = 16
    """Rounds of search and solve."""
    frames_per_iteration: int = 16384
    """Frames searched in one round (count); each round takes the next ones of a shuffled list.
    Raise it with the number of frames: 100,000 or more where 1,000,000 are given."""
    beam_width: int = 4
    """Codes that each codebook shortlists in the search while training (count)."""
    noise: float = 0.4
    """Noise added to the centres at the start, as a share of their standard deviation; it falls
    to 0 in equal steps."""
    ridge: float = 0.3
    """Pull of every centre towards its codebook's mean, counted in frames."""
    inertia: float = 1.0
    """Pull of every centre towards its last place, counted in frames."""
    memory: float = 0.7
    """Weight of the earlier rounds' statistics in each round, 0 to below 1."""
    min_usage: float = 0.1
    """A code chosen less often than this share of uniform usage is put to work elsewhere."""


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
) -> Quantizer:
    """Trains a quantiser on a sample of frames.

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
        metadata: Stored with the quantiser.
        device: Where to compute.

    Returns:
        The quantiser, on `device`.

    Raises:
        ConfigError: A number is out of range.
        DataError: Too few frames, a wrong shape, or values that are not finite.
    """
    budget = budget or TrainingBudget()
    check_sizes(num_codebooks, codebook_size)
    check_budget(budget)
    rows = torch.arange(len(frames)) if rows is None else rows
    check_training_frames(frames.shape, len(rows), codebook_size)
    mean, scale = normalization(frames, rows, normalize_channels)
    trainer = _Trainer(
        frames,
        rows=rows,
        mean=mean,
        scale=scale,
        sizes=(num_codebooks, codebook_size),
        seed=seed,
        budget=budget,
        device=device,
    )
    for iteration in progress(range(budget.num_iterations), "train quantizer"):
        trainer.step(iteration)
    weight, bias = trainer.statistics.classifiers()
    # The classifiers saw frames relative to the origin; fold it into the bias.
    bias = bias - weight @ trainer.origin
    return Quantizer(
        trainer.centers(),
        classifier_weight=weight,
        classifier_bias=bias,
        channel_mean=mean,
        channel_scale=scale,
        metadata=metadata,
    ).to(device)


class _Trainer:
    """The state of the alternation: centres, statistics of the rounds so far, random numbers."""

    def __init__(
        self,
        frames: Frames,
        *,
        rows: Tensor,
        mean: Tensor,
        scale: Tensor,
        sizes: tuple[int, int],
        seed: int,
        budget: TrainingBudget,
        device: str | torch.device,
    ) -> None:
        self.frames, self.mean, self.scale = frames, mean.to(device), scale.to(device)
        self.budget, self.device = budget, torch.device(device)
        self.generator = torch.Generator().manual_seed(seed)
        self.shape = (*sizes, int(frames.shape[1]))
        self.order = rows[torch.randperm(len(rows), generator=self.generator)]
        self.statistics = CodeStatistics(*self.shape, device=self.device)
        sample = self._read(self.order[:_INITIAL_FRAMES])
        # All statistics are kept relative to the sample's mean, a constant: the tables' own
        # offset moves with the centres.
        self.origin = sample.mean(dim=0)
        centers = initial_centers(sample - self.origin, *sizes, self.generator)
        self.table = ProductTable(centers)

    def centers(self) -> Tensor:
        """Returns (N, K, D) centres in the normalised space."""
        total = (self.table.offset + self.origin) / self.shape[0]
        return self.table.centered.view(self.shape) + total

    def step(self, iteration: int) -> None:
        """One round: codes of the next frames, statistics, centres."""
        budget = self.budget
        is_last = iteration + 1 == budget.num_iterations
        frames = self._read(self._next_frames(iteration)) - self.origin
        codes = self._search(frames)
        self.statistics.decay(budget.memory if iteration else 0.0)
        self.statistics.accumulate(frames, codes)
        previous = self.table.centered.view(self.shape) + self.table.offset / self.shape[0]
        centers = self.statistics.least_squares(
            previous, ridge=budget.ridge, inertia=budget.inertia
        )
        residual = frames - ProductTable(centers).decode(codes)
        error = float(residual.square().sum() / _spread(frames))
        num_dead = 0
        if not is_last:
            centers = self._shake(centers, iteration)
            num_dead = self._revive(centers, codes, residual)
        self.table = ProductTable(centers)
        _logger.debug("round %d: relative error %.4f, %d revived", iteration, error, num_dead)

    def _next_frames(self, iteration: int) -> Tensor:
        """Returns sorted indexes of the frames of a round, walking round the shuffled list."""
        count = min(self.budget.frames_per_iteration, len(self.order))
        start = iteration * count
        places = torch.arange(start, start + count) % len(self.order)
        return self.order[places].sort().values

    def _read(self, chosen: Tensor) -> Tensor:
        """Returns normalised frames (B, D) float32 at sorted or unsorted indexes."""
        block = read_rows(self.frames, chosen).to(self.device)
        return (block.float() - self.mean) / self.scale

    def _search(self, frames: Tensor) -> Tensor:
        """Finds codes (B, N), from the guess that the classifiers of the rounds before give.

        Not from each frame's last codes: those would hold on to their centres, and the search that
        the quantiser is used with begins with classifiers too. Measured, this ends 3% better.
        """
        guess: Tensor | None = None
        if self.statistics.num_frames > 0:
            weight, bias = self.statistics.classifiers()
            logits = torch.addmm(bias, frames, weight.t())
            guess = logits.view(len(frames), *self.shape[:2]).argmax(dim=2)
        found = []
        for start in range(0, len(frames), _BLOCK_FRAMES):
            part = slice(start, start + _BLOCK_FRAMES)
            codes = search(
                self.table,
                self.table.unary(frames[part]),
                None if guess is None else guess[part],
                num_passes=1,
                beam_width=self.budget.beam_width,
                num_narrow_passes=1,
            )
            found.append(codes)
        return torch.cat(found)

    def _shake(self, centers: Tensor, iteration: int) -> Tensor:
        """Adds noise per dimension in proportion to the centres' deviation there."""
        share = self.budget.noise * (1 - (iteration + 1) / self.budget.num_iterations)
        noise = torch.randn(centers.shape, generator=self.generator).to(centers.device)
        return centers + share * centers.std(dim=(0, 1)) * noise

    def _revive(self, centers: Tensor, codes: Tensor, residual: Tensor) -> int:
        """Moves rarely used codes to where they remove a badly served frame's whole error.

        Args:
            centers: (N, K, D), changed in place.
            codes: (B, N) of the round's frames.
            residual: (B, D) what the centres leave of them.

        Returns:
            How many codes were moved.
        """
        usage = self.statistics.usage()
        uniform = self.statistics.num_frames / self.shape[1]
        dead = (usage < self.budget.min_usage * uniform).nonzero()
        # No more than one code for every eight frames: others wait for the next round.
        dead = dead[torch.randperm(len(dead), generator=self.generator).to(dead.device)]
        dead = dead[: len(codes) // 8]
        errors = residual.square().sum(dim=1).cpu().double()
        if len(dead) == 0 or float(errors.sum()) == 0:
            return 0
        served = torch.multinomial(
            errors + 1e-12 * errors.sum(), len(dead), generator=self.generator
        )
        served = served.to(codes.device)
        codebook, code = dead[:, 0], dead[:, 1]
        centers[codebook, code] = centers[codebook, codes[served, codebook]] + residual[served]
        return len(dead)


def read_rows(frames: Frames, rows: Tensor) -> Tensor:
    """Returns the frames (B, D) at indexes (B,), as a tensor of their own type."""
    if isinstance(frames, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(frames[rows.numpy()]))
    return frames[rows.to(frames.device)]


def normalization(frames: Frames, rows: Tensor, normalize_channels: bool) -> tuple[Tensor, Tensor]:
    """Returns what to subtract from and divide by, (D,) each; without normalisation 0 and 1.

    The frames are read in either case: values that are not finite must not reach the training.

    Raises:
        DataError: A value is not finite.
    """
    mean, scale = channel_statistics(frames, rows)
    if normalize_channels:
        return mean, scale
    return torch.zeros_like(mean), torch.ones_like(scale)


def channel_statistics(frames: Frames, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel, computed in float64 block by block.

    A channel that never changes keeps the scale 1.

    Args:
        frames: (F, D).
        rows: (F',) int64 indexes of the frames that count.

    Returns:
        (D,) and (D,) float32.

    Raises:
        DataError: A value is not finite.
    """
    total = torch.zeros(frames.shape[1], dtype=torch.float64)

    def add_sum(block: Tensor) -> None:
        total.add_(block.sum(dim=0))

    def add_squares(block: Tensor) -> None:
        squares.add_((block - mean).square().sum(dim=0))

    _for_blocks(frames, rows, add_sum)
    mean = total / len(rows)
    squares = torch.zeros_like(mean)
    _for_blocks(frames, rows, add_squares)
    scale = (squares / len(rows)).sqrt()
    scale[scale <= _MIN_CHANNEL_SHARE * scale.max()] = 1.0
    return mean.float(), scale.float()


def check_budget(budget: TrainingBudget) -> None:
    """Refuses budgets that cannot work.

    Raises:
        ConfigError: It names the field and its range.
    """
    ranges: list[tuple[str, bool, str]] = [
        ("num_iterations", budget.num_iterations >= 1, "at least 1"),
        ("frames_per_iteration", budget.frames_per_iteration >= 1, "at least 1"),
        ("beam_width", budget.beam_width >= 2, "at least 2"),
        ("noise", budget.noise >= 0, "at least 0"),
        ("ridge", budget.ridge > 0, "above 0"),
        ("inertia", budget.inertia >= 0, "at least 0"),
        ("memory", 0 <= budget.memory < 1, "at least 0 and below 1"),
        ("min_usage", 0 <= budget.min_usage < 1, "at least 0 and below 1"),
    ]
    for name, is_good, allowed in ranges:
        if not is_good:
            raise ConfigError(f"budget.{name} must be {allowed}, not {getattr(budget, name)}")


def _for_blocks(frames: Frames, rows: Tensor, visit: Callable[[Tensor], None]) -> None:
    """Calls `visit` with all frames, float64, block by block; refuses values not finite."""
    for part in rows.split(_STATISTICS_BLOCK):
        block = read_rows(frames, part).double().cpu()
        bad = (~torch.isfinite(block).all(dim=1)).nonzero()[:, 0]
        if len(bad):
            raise DataError(
                f"frame {int(part[bad[0]])} of the training frames holds NaN or infinite values: "
                "embed the clips again, and look for a broken teacher"
            )
        visit(block)


def _spread(frames: Tensor) -> Tensor:
    """Returns the scalar sum |x - mean|^2, never 0."""
    return (frames - frames.mean(dim=0)).square().sum().clamp(min=1e-20)
