"""Which clips form which batch: a pure function of the seed, the place in the run and the index.

`BatchPlan` takes a `ClipTable` and answers `batch(epoch, step, share, num_shares)` with clip
numbers. An epoch is planned window by window. Shards come in random order, every source spread
evenly over the epoch; the shards of a window, some hundred thousand clips, are read together, which
is what network disks and page caches want. Within a window clips of like duration go together, a
batch is as large as its padded length allows, neighbours in duration form a step, and the steps are
shuffled. Every clip comes once per epoch, or as often as its source's weight says.

There is no state to save: going on at step s of an epoch is a look into the epoch's plan. A plan
costs about a second per million clips and four bytes per clip; with a folder to keep it in, it is
memory-mapped by all processes of a machine and found again after a restart.

The class has two methods that others use, `steps` and `batch`: a sampler of lhotse's that could be
sought would take its place by offering the same.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spear.audio.io import SAMPLE_RATE_HZ
from spear.data.index.arrays import map_arrays, write_arrays
from spear.data.index.clip_table import ClipTable
from spear.data.index.packing import even_out, pack
from spear.data.index.shard_order import count_clips, pick, windows
from spear.errors import ConfigError, DataError
from spear.system.progress import get_logger
from spear.system.rng import generator

logger = get_logger(__name__)

PLAN_VERSION = 1
"""Changes when the same table would be planned otherwise."""

Ints = NDArray[np.int64]


@dataclass
class BatchConfig:
    """How clips are put into batches."""

    max_duration_s: float = 600.0
    """Audio in one batch of one process, in seconds, counted with padding and with the room that
    token mixing may need."""

    min_clip_s: float = 0.5
    """Clips shorter than this many seconds are counted and left out."""

    max_clip_s: float = 30.0
    """Clips longer than this many seconds are counted and left out."""

    duration_jitter: float = 0.02
    """Clips whose durations differ by up to about twice this fraction share a batch; it is also
    about the share of padding. Data of a few thousand clips wants more, for other batches in every
    epoch: 0.1."""

    window_clips: int = 100_000
    """Clips that are shuffled together, about. Their shards are read at the same time: fewer are
    kinder to network disks, more mix better."""


@dataclass(frozen=True)
class EpochPlan:
    """The batches of one epoch: batch b holds the clips order[bounds[b]:bounds[b + 1]].

    Attributes:
        order: (I,) uint32 clip numbers; a clip with weight 2 stands there twice.
        bounds: (num_batches + 1,) int64 ascending positions in `order`.
        steps: (num_steps, num_shares) uint32, the batch of each step and share.
    """

    order: NDArray[np.uint32]
    bounds: Ints
    steps: NDArray[np.uint32] = field(repr=False)


class BatchPlan:
    """The order of a run: see the file's first paragraphs.

    Args:
        clips: Lengths, shards and weights.
        seed: The run's seed.
        config: Limits in seconds.
        growth_s: Seconds by which augmentation may lengthen the longest clip of a batch.
        keep_in: Folder for plans, so that they are made once; None makes them anew.

    Raises:
        DataError: No clip is left within the limits.
        ConfigError: A clip within the limits is longer than a batch.
    """

    def __init__(
        self,
        clips: ClipTable,
        seed: int,
        config: BatchConfig,
        *,
        growth_s: float = 0.0,
        keep_in: Path | None = None,
    ) -> None:
        self.clips = clips
        self.seed = seed
        self.config = config
        self.growth_s = growth_s
        self.keep_in = keep_in if clips.fingerprint else None
        if config.window_clips < 1:
            raise ConfigError("batch.window_clips must be 1 or more")
        self._limits = tuple(
            int(min(np.ceil(limit * SAMPLE_RATE_HZ), 2**32 - 1))
            for limit in (config.min_clip_s, np.nextafter(config.max_clip_s, np.inf))
        )
        counts = count_clips(clips, *self._limits)
        self.num_too_short, self.num_too_long = counts.num_too_short, counts.num_too_long
        self._usable = counts.usable
        self._check_usable(counts.longest / SAMPLE_RATE_HZ)
        self._cached: tuple[tuple[int, int], EpochPlan] | None = None

    def steps(self, epoch: int, num_shares: int = 1) -> int:
        """Returns the number of steps in an epoch; each has one batch for every share."""
        return len(self.epoch(epoch, num_shares).steps)

    def batch(self, epoch: int, step: int, share: int = 0, num_shares: int = 1) -> list[int]:
        """Returns the clip numbers of one share of a step, which is one batch.

        Raises:
            IndexError: The epoch has no such step, or the step no such share.
        """
        plan = self.epoch(epoch, num_shares)
        number = int(plan.steps[step, share])
        clips: list[int] = plan.order[plan.bounds[number] : plan.bounds[number + 1]].tolist()
        return clips

    def epoch(self, epoch: int, num_shares: int = 1) -> EpochPlan:
        """Plans an epoch, finds the plan in the folder, or returns what was asked for last.

        The batches do not depend on the number of shares, apart from at most `num_shares - 1` of
        a window that are halved so that every share of a step is one batch, none lost and none
        doubled. Batches of one step are neighbours in duration, so processes wait little for
        each other.
        """
        key = (epoch, num_shares)
        if self._cached is None or self._cached[0] != key:
            self._cached = (key, self._find(epoch, num_shares))
        return self._cached[1]

    def largest(self, epoch: int, num_shares: int = 1) -> tuple[int, int]:
        """Returns step and share of the batch of an epoch that is largest, padding included."""
        plan = self.epoch(epoch, num_shares)
        sizes = padded_samples(self.clips, plan)
        step, share = np.unravel_index(int(sizes[plan.steps].argmax()), plan.steps.shape)
        return int(step), int(share)

    def padding_share(self, epoch: int, num_shares: int = 1) -> float:
        """Returns the padded share of an epoch's batches, 0 to 1, before augmentation."""
        return padding_share(self.clips, self.epoch(epoch, num_shares))

    def _check_usable(self, longest_s: float) -> None:
        limits = f"{self.config.min_clip_s:g} s to {self.config.max_clip_s:g} s"
        if self.num_too_short or self.num_too_long:
            logger.info(
                "left out %d clips that are too short and %d that are too long (limits: %s)",
                self.num_too_short,
                self.num_too_long,
                limits,
            )
        if not self._usable.any():
            raise DataError(
                f"no clip to train on: {self.num_too_short} of {len(self.clips)} are too "
                f"short and {self.num_too_long} too long; check min_clip_s, max_clip_s ({limits}) "
                "and the sources' weights"
            )
        if longest_s > self.config.max_duration_s:
            raise ConfigError(
                f"a clip of {longest_s:.1f} s does not fit into a batch of max_duration_s = "
                f"{self.config.max_duration_s:g} s: raise max_duration_s or lower max_clip_s"
            )

    def _find(self, epoch: int, num_shares: int) -> EpochPlan:
        if self.keep_in is None:
            return self._make(epoch, num_shares)
        key = self._key(epoch, num_shares)
        folder = self.keep_in / f"epoch-{epoch:05d}-{key[:16]}.plan"
        names = [one.name for one in fields(EpochPlan)]
        if folder.is_dir():
            try:
                return EpochPlan(**map_arrays(folder, names))
            except DataError:  # damaged: it costs little to make another
                shutil.rmtree(folder, ignore_errors=True)
        write_arrays(folder, vars(self._make(epoch, num_shares)))
        self._forget_others(folder)
        return EpochPlan(**map_arrays(folder, names))

    def _key(self, epoch: int, num_shares: int) -> str:
        facts = (
            PLAN_VERSION,
            self.clips.fingerprint,
            self.clips.weights.tolist(),
            self.seed,
            asdict(self.config),
            self.growth_s,
            epoch,
            num_shares,
        )
        return hashlib.sha256(json.dumps(facts).encode("utf-8")).hexdigest()

    def _forget_others(self, kept: Path) -> None:
        """Removes the plans of other epochs: a run does not go back."""
        epoch = kept.name.split("-")[1]
        for other in kept.parent.glob("epoch-*.plan"):
            if other.name.split("-")[1] != epoch:
                shutil.rmtree(other, ignore_errors=True)  # who still reads it keeps its view

    def _make(self, epoch: int, num_shares: int) -> EpochPlan:
        begin = time.monotonic()
        plan = self._plan(epoch, num_shares)
        logger.info(
            "epoch %d: %d steps of %d batches, %.1f%% padding (planned in %.1f s)",
            epoch,
            len(plan.steps),
            num_shares,
            100.0 * padding_share(self.clips, plan),
            time.monotonic() - begin,
        )
        return plan

    def _plan(self, epoch: int, num_shares: int) -> EpochPlan:
        order: list[NDArray[np.uint32]] = []
        bounds: list[Ints] = [np.zeros(1, np.int64)]
        steps: list[NDArray[np.uint32]] = []
        num_clips = num_batches = num_left_out = 0
        for clips, ends, window_steps, left_out in self._windows(epoch, num_shares):
            order.append(clips.astype(np.uint32))
            bounds.append(ends[1:] + num_clips)
            steps.append((window_steps + num_batches).astype(np.uint32))
            num_clips += len(clips)
            num_batches += len(ends) - 1
            num_left_out += left_out
        if num_left_out:
            logger.warning(
                "epoch %d: %d batches of one clip each cannot be shared by %d ranks; left out",
                epoch,
                num_left_out,
                num_shares,
            )
        return EpochPlan(np.concatenate(order), np.concatenate(bounds), np.concatenate(steps))

    def _windows(self, epoch: int, num_shares: int) -> Iterator[tuple[Ints, Ints, Ints, int]]:
        """Yields clips, bounds and steps of every window, and the batches left out of it."""
        drawn = windows(self.clips, self._usable, self.seed, epoch, self.config.window_clips)
        for number, pieces in enumerate(drawn):
            rng = generator(self.seed, "plan", epoch, number)
            clips = pick(self.clips, pieces, self._limits, self.seed, epoch)
            if not len(clips):
                continue
            # Shuffled first: ties are broken at random, not by place.
            clips = rng.permutation(clips)
            durations = self.clips.durations_s(clips)
            spread = self.config.duration_jitter
            keys = np.log(np.maximum(durations, 1e-3)) + rng.uniform(-spread, spread, len(clips))
            by_duration = np.argsort(keys, kind="stable")
            bounds = pack(durations[by_duration], self.config.max_duration_s, self.growth_s)
            bounds, left_out = even_out(bounds, num_shares)
            num_steps = (len(bounds) - 1) // num_shares
            steps = np.arange(num_steps * num_shares).reshape(num_steps, num_shares)
            steps = rng.permuted(rng.permutation(steps), axis=1)
            yield clips[by_duration[: bounds[-1]]], bounds, steps, left_out


def padding_share(clips: ClipTable, plan: EpochPlan) -> float:
    """Returns the padded share of a plan's batches, 0 to 1, before augmentation."""
    samples = clips.num_samples[plan.order].sum(dtype=np.uint64)
    return 1 - float(samples / padded_samples(clips, plan).sum())


def padded_samples(clips: ClipTable, plan: EpochPlan) -> Ints:
    """Returns (num_batches,) samples of a plan's batches, padding included."""
    longest = np.maximum.reduceat(clips.num_samples[plan.order], plan.bounds[:-1])
    padded: Ints = longest * np.diff(plan.bounds)
    return padded
