"""Which clips form which batch: a pure function of the seed, the place in the run and the index.

`BatchPlan` takes the durations and ids of all clips and answers `batch(epoch, step, rank,
world_size)` with clip numbers. Clips of like duration go together, a batch is as large as its
padded length allows, and every clip comes once per epoch (or as often as its source's weight says).
There is no state to save: going on at step s of an epoch costs one plan of that epoch, whatever s.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from spear.data.rng import generator
from spear.errors import ConfigError, DataError
from spear.progress import get_logger

logger = get_logger(__name__)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass
class BatchConfig:
    """How clips are put into batches."""

    max_duration_s: float = 600.0
    """Audio in one batch of one rank, in seconds, counted with padding and with the room that
    token mixing may need."""

    min_clip_s: float = 0.5
    """Clips shorter than this many seconds are counted and left out."""

    max_clip_s: float = 30.0
    """Clips longer than this many seconds are counted and left out."""

    duration_jitter: float = 0.1
    """Clips whose durations differ by up to about twice this fraction share a batch. 0 gives the
    least padding and, among clips of different durations, the same batches in every epoch."""


@dataclass(frozen=True)
class EpochPlan:
    """The batches of one epoch: batch b holds the clips order[bounds[b]:bounds[b + 1]].

    Attributes:
        order: (I,) clip numbers; a clip with weight 2 stands there twice.
        bounds: (num_batches + 1,) ascending positions in `order`.
        steps: (num_steps, world_size) the batch of each step and rank.
    """

    order: Ints
    bounds: Ints
    steps: Ints = field(repr=False)


class BatchPlan:
    """The order of a run: see the file's first paragraph.

    Args:
        durations: (n,) seconds of every clip.
        ids: n names. The plan depends on them and not on the order in which clips are listed.
        seed: The run's seed.
        config: Limits in seconds.
        weights: (n,) how often each clip comes per epoch, on average; a source's weight is its
            clips' weight. With 0.3, three tenths of the clips come in each epoch, the others in
            the following ones. None means 1.
        growth_s: Seconds by which augmentation may lengthen the longest clip of a batch.

    Raises:
        DataError: No clip is left within the limits.
        ConfigError: A clip within the limits is longer than a batch, or a weight is negative.
    """

    def __init__(
        self,
        durations: Sequence[float] | Floats,
        ids: Sequence[str],
        seed: int,
        config: BatchConfig,
        *,
        weights: Sequence[float] | Floats | None = None,
        growth_s: float = 0.0,
    ) -> None:
        self.durations = np.asarray(durations, dtype=np.float64)
        self.seed = seed
        self.config = config
        self.growth_s = growth_s
        weight = np.ones(len(ids)) if weights is None else np.asarray(weights, dtype=np.float64)
        if len(ids) != len(self.durations) or len(weight) != len(self.durations):
            raise ValueError("durations, ids and weights differ in length")
        if (weight < 0).any():
            raise ConfigError(f"a source's weight is negative: {weight.min():g}; use 0 or more")
        self.num_too_short = int((self.durations < config.min_clip_s).sum())
        self.num_too_long = int((self.durations > config.max_clip_s).sum())
        usable = (self.durations >= config.min_clip_s) & (self.durations <= config.max_clip_s)
        # Python's sort needs no second copy of the names, which would be gigabytes for 10^7 clips.
        by_id = np.fromiter(sorted(range(len(ids)), key=ids.__getitem__), np.int64, len(ids))
        self._clips: Ints = by_id[usable[by_id] & (weight[by_id] > 0)]
        self._weights: Floats = weight[self._clips]
        self._check_usable()
        self._cached: tuple[tuple[int, int], EpochPlan] | None = None

    def steps(self, epoch: int, world_size: int = 1) -> int:
        """Returns the number of steps in an epoch; it is the same on every rank."""
        return len(self.epoch(epoch, world_size).steps)

    def batch(self, epoch: int, step: int, rank: int = 0, world_size: int = 1) -> list[int]:
        """Returns the clip numbers of one rank's batch at one step.

        Raises:
            IndexError: The epoch has no such step, or the group no such rank.
        """
        plan = self.epoch(epoch, world_size)
        number = plan.steps[step, rank]
        clips: list[int] = plan.order[plan.bounds[number] : plan.bounds[number + 1]].tolist()
        return clips

    def epoch(self, epoch: int, world_size: int = 1) -> EpochPlan:
        """Plans an epoch, or returns the plan that was asked for last.

        The batches do not depend on the number of ranks, apart from at most `world_size - 1` that
        are halved so that every rank has one batch at every step, none lost and none doubled.
        Batches of one step are neighbours in duration, so ranks wait little for each other.
        """
        key = (epoch, world_size)
        if self._cached is None or self._cached[0] != key:
            self._cached = (key, self._plan(epoch, world_size))
        return self._cached[1]

    def padding_share(self, epoch: int, world_size: int = 1) -> float:
        """Returns the padded share of an epoch's batches, 0 to 1, before augmentation."""
        plan = self.epoch(epoch, world_size)
        durations = self.durations[plan.order]
        longest = np.maximum.reduceat(durations, plan.bounds[:-1])
        return float(1 - durations.sum() / (longest * np.diff(plan.bounds)).sum())

    def _check_usable(self) -> None:
        limits = f"{self.config.min_clip_s:g} s to {self.config.max_clip_s:g} s"
        if self.num_too_short or self.num_too_long:
            logger.info(
                "left out %d clips that are too short and %d that are too long (limits: %s)",
                self.num_too_short,
                self.num_too_long,
                limits,
            )
        if not len(self._clips):
            raise DataError(
                f"no clip to train on: {self.num_too_short} of {len(self.durations)} are too "
                f"short and {self.num_too_long} too long; check min_clip_s, max_clip_s ({limits}) "
                "and the sources' weights"
            )
        longest = self.durations[self._clips].max()
        if longest > self.config.max_duration_s:
            raise ConfigError(
                f"a clip of {longest:.1f} s does not fit into a batch of max_duration_s = "
                f"{self.config.max_duration_s:g} s: raise max_duration_s or lower max_clip_s"
            )

    def _plan(self, epoch: int, world_size: int) -> EpochPlan:
        rng = generator(self.seed, "plan", epoch)
        clips = np.repeat(self._clips, self._repeats(epoch))
        durations = self.durations[clips]
        spread = self.config.duration_jitter
        keys = np.log(np.maximum(durations, 1e-3)) + rng.uniform(-spread, spread, len(clips))
        # Ties (no jitter, or none needed) are broken at random, not by name.
        by_duration = np.lexsort((rng.random(len(clips)), keys))
        bounds = pack(durations[by_duration], self.config.max_duration_s, self.growth_s)
        bounds, num_left_out = _even_out(bounds, world_size)
        if num_left_out:
            logger.warning(
                "epoch %d: %d batches of one clip each cannot be shared by %d ranks; left out",
                epoch,
                num_left_out,
                world_size,
            )
        num_steps = (len(bounds) - 1) // world_size
        steps = np.arange(num_steps * world_size).reshape(num_steps, world_size)
        steps = rng.permuted(rng.permutation(steps), axis=1)
        return EpochPlan(order=clips[by_duration], bounds=bounds, steps=steps)

    def _repeats(self, epoch: int) -> Ints:
        """Returns how often each usable clip comes in an epoch, whole numbers around its weight.

        Clip i comes floor((e + 1) w + u_i) - floor(e w + u_i) times: after any number of epochs
        E it came floor or ceil of E w times, and with the u_i spread evenly every epoch is of
        nearly the same size (systematic sampling).
        """
        num_clips = len(self._clips)
        offsets = (generator(self.seed, "repeats").permutation(num_clips) + 0.5) / num_clips
        before = np.floor(epoch * self._weights + offsets)
        after = np.floor((epoch + 1) * self._weights + offsets)
        repeats = (after - before).astype(np.int64)
        if not repeats.any():
            repeats[np.argmax(offsets)] = 1  # weights near 0: an epoch holds at least one clip
        return repeats


def pack(durations: Floats, max_duration_s: float, growth_s: float = 0.0) -> Ints:
    """Cuts a sequence of clips into consecutive batches, each as large as fits.

    A batch of n clips costs n x (its longest clip + growth) seconds; a batch of one has no partner
    to be mixed with and does not grow. A single clip always fits.

    Args:
        durations: (n,) seconds, in the order in which clips are to be batched.
        max_duration_s: Most seconds of a batch, padding included.
        growth_s: Seconds that augmentation may add to the longest clip.

    Returns:
        (num_batches + 1,) positions where batches begin, and n at the end.
    """
    bounds = [0]
    window = 64
    while bounds[-1] < len(durations):
        ahead = durations[bounds[-1] : bounds[-1] + window]
        counts = np.arange(1, len(ahead) + 1)
        costs = (np.maximum.accumulate(ahead) + growth_s) * counts
        costs[0] -= growth_s
        num_fitting = int(np.searchsorted(costs, max_duration_s, side="right"))
        if num_fitting == len(ahead) and bounds[-1] + window < len(durations):
            window *= 2
            continue
        bounds.append(bounds[-1] + max(num_fitting, 1))
        window = max(64, 2 * num_fitting)
    return np.asarray(bounds, dtype=np.int64)


def _even_out(bounds: Ints, world_size: int) -> tuple[Ints, int]:
    """Halves the batches with most clips until their number is a multiple of `world_size`.

    Only where every batch has one clip is that impossible: then the fewest are left out.

    Returns:
        The new bounds and the number of batches left out.

    Raises:
        DataError: There are fewer clips than ranks.
    """
    while (len(bounds) - 1) % world_size:
        sizes = np.diff(bounds)
        largest = int(sizes.argmax())
        if sizes[largest] == 1:
            break
        middle = bounds[largest] + sizes[largest] // 2
        bounds = np.insert(bounds, largest + 1, middle)
    num_left_out = (len(bounds) - 1) % world_size
    if num_left_out == len(bounds) - 1:
        raise DataError(f"{len(bounds) - 1} clips cannot be shared by {world_size} processes")
    return bounds[: len(bounds) - num_left_out], num_left_out
