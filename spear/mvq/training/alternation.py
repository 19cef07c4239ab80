"""The alternation that trains a quantiser: codes for centres, centres for codes.

One round takes the next frames of a shuffled list, searches their codes, and solves for the centres
of least squared error (`spear.mvq.training.statistics`). Until the last round the centres are then
shaken by noise that fades, so that the alternation does not stop at the first local optimum (the
stochastic relaxation of Martinez et al., LSQ++, ECCV 2018), and codes that few frames choose are
put to work elsewhere.

Frames are worked on in blocks, dealt to the processes in turn. All that they tell each other is
exact (sums of `CodeStatistics`, and tables in which every entry has one author), so that the result
does not depend on their number.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spear.mvq.search.joint import search
from spear.mvq.search.products import ProductTable
from spear.mvq.training.budget import TrainingBudget
from spear.mvq.training.frames import NormalizedFrames
from spear.mvq.training.initialisation import initial_centers
from spear.mvq.training.statistics import CodeStatistics
from spear.mvq.usage import normalized_entropies
from spear.system.distributed import Ranks

_BLOCK_FRAMES = 1024
_INITIAL_FRAMES = 1 << 15


@dataclass
class Round:
    """How one round ended."""

    iteration: int
    """Index of the round (count)."""
    relative_error: float
    """|x - x_hat|^2 / |x - mean|^2 of the round's frames, with its new centres."""
    least_entropy: float
    """Entropy of the usage of codes over log K, in the codebook where it is least."""
    num_dead: int
    """Codes that hardly any frame chose (count)."""


class Alternation:
    """Centres, statistics of the rounds so far, random numbers: all that training knows.

    Args:
        source: The frames.
        rows: (F,) int64 indexes of those to train on.
        sizes: (N, K).
        largest_value: No value of a normalised frame is further from the mean.
        seed: Fixes all random choices.
        budget: How long and how hard to work.
        ranks: The processes that share the work.
    """

    def __init__(
        self,
        source: NormalizedFrames,
        *,
        rows: Tensor,
        sizes: tuple[int, int],
        largest_value: float,
        seed: int,
        budget: TrainingBudget,
        ranks: Ranks,
    ) -> None:
        self.source, self.budget, self.ranks = source, budget, ranks
        self.shape = (*sizes, len(source.mean))
        self.iteration = 0
        self.generator = torch.Generator().manual_seed(seed)
        self.order = rows[torch.randperm(len(rows), generator=self.generator)]
        self.frames_per_round = min(budget.frames_per_iteration, len(rows))

        def statistics() -> CodeStatistics:
            return CodeStatistics(
                *self.shape,
                largest_value=largest_value,
                max_frames=self.frames_per_round,
                device=source.mean.device,
            )

        self.statistics, self._newest = statistics(), statistics()
        self.origin = torch.zeros_like(source.mean)
        self.centers = torch.zeros(self.shape, device=source.mean.device)

    def begin(self) -> None:
        """Makes the first centres from some of the frames."""
        sample = self.source.read(self.order[:_INITIAL_FRAMES].sort().values)
        # All statistics are kept relative to the sample's mean, a constant.
        self.origin = self.ranks.broadcast(sample.mean(dim=0))
        first = initial_centers(sample - self.origin, *self.shape[:2], self.generator)
        self.centers = self.ranks.broadcast(first)

    @property
    def is_done(self) -> bool:
        """Whether all rounds are over."""
        return self.iteration >= self.budget.num_iterations

    def step(self) -> Round:
        """One round: codes of the next frames, statistics, centres."""
        rows = self._next_frames()
        codes = self._search(rows)
        self.statistics.absorb(self._newest, self.budget.memory)
        centers = self.statistics.least_squares(
            self.centers, ridge=self.budget.ridge, inertia=self.budget.inertia
        )
        errors = self._errors(rows, codes, centers)
        usage = self.statistics.usage()
        dead = usage < self.budget.min_usage * self.statistics.num_frames / self.shape[1]
        found = Round(
            self.iteration,
            float(errors.sum()) / self._newest.spread(),
            float(normalized_entropies(usage).min()),
            int(dead.sum()),
        )
        self.iteration += 1
        if not self.is_done:
            self._revive(dead.nonzero(), centers, rows, codes, errors)
            centers = self._shake(centers)
        self.centers = self.ranks.broadcast(centers)
        return found

    def quantizer_tensors(self) -> dict[str, Tensor]:
        """Returns centres and classifiers for normalised frames, named as `Quantizer` has them."""
        weight, bias = self.statistics.classifiers()
        # The classifiers saw frames relative to the origin; fold it into the bias.
        return {
            "centers": self.centers + self.origin / self.shape[0],
            "classifier_weight": weight,
            "classifier_bias": bias - weight @ self.origin,
        }

    def state(self) -> dict[str, Tensor]:
        """Returns all that the next rounds depend on, by name: references, not copies."""
        return {
            **self._tensors(),
            "iteration": torch.tensor(self.iteration),
            "random_state": self.generator.get_state(),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Goes on from what `state` gave, in an alternation made with the same arguments."""
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])
        self.iteration = int(state["iteration"])
        self.generator.set_state(state["random_state"])

    def _tensors(self) -> dict[str, Tensor]:
        return {"centers": self.centers, "origin": self.origin, **self.statistics.tensors()}

    def _next_frames(self) -> Tensor:
        """Returns sorted indexes of the frames of this round, walking round the shuffled list."""
        start = self.iteration * self.frames_per_round
        places = torch.arange(start, start + self.frames_per_round) % len(self.order)
        return self.order[places].sort().values

    def _own_blocks(self, count: int) -> Iterator[slice]:
        """Yields the blocks of `count` frames that are this process's."""
        step = _BLOCK_FRAMES * self.ranks.world_size
        for start in range(_BLOCK_FRAMES * self.ranks.rank, count, step):
            yield slice(start, min(start + _BLOCK_FRAMES, count))

    def _search(self, rows: Tensor) -> Tensor:
        """Finds the codes (B, N) int64 of the round's frames, and what they sum up to.

        The search begins with the guess that the classifiers of the rounds before give, not with
        each frame's last codes: those would hold on to their centres, and encoding begins with
        classifiers, too. Measured, this ends 3% better.
        """
        table = ProductTable(self.centers)
        has_guess = bool(self.statistics.num_frames > 0)
        weight, bias = self.statistics.classifiers() if has_guess else (None, None)
        codes = torch.zeros(len(rows), self.shape[0], dtype=torch.int64, device=table.cross.device)
        self._newest.clear()
        for part in self._own_blocks(len(rows)):
            frames = self.source.read(rows[part]) - self.origin
            guess = None
            if weight is not None and bias is not None:
                logits = torch.addmm(bias, frames, weight.t())
                guess = logits.view(len(frames), *self.shape[:2]).argmax(dim=2)
            codes[part] = search(
                table,
                table.unary(frames),
                guess,
                num_passes=self.budget.num_passes,
                beam_width=self.budget.beam_width,
            )
            self._newest.accumulate(frames, codes[part])
        self._newest.all_reduce(self.ranks)
        return self.ranks.all_reduce(codes)

    def _errors(self, rows: Tensor, codes: Tensor, centers: Tensor) -> Tensor:
        """Returns (B,) float64 on the CPU: squared errors of the round's frames."""
        errors = torch.zeros(len(rows), dtype=torch.float64, device=centers.device)
        for part in self._own_blocks(len(rows)):
            residual = self._residual(rows[part], codes[part], centers)
            errors[part] = residual.square().sum(dim=1).double()
        return self.ranks.all_reduce(errors).cpu()

    def _residual(self, rows: Tensor, codes: Tensor, centers: Tensor) -> Tensor:
        """Returns (B, D): what the centres leave of frames."""
        first_rows = torch.arange(self.shape[0], device=codes.device) * self.shape[1]
        decoded = F.embedding_bag(codes + first_rows, centers.flatten(0, 1), mode="sum")
        return self.source.read(rows) - self.origin - decoded

    def _shake(self, centers: Tensor) -> Tensor:
        """Adds noise per dimension in proportion to the centres' deviation there."""
        share = self.budget.noise * (1 - self.iteration / self.budget.num_iterations)
        noise = torch.randn(centers.shape, generator=self.generator).to(centers.device)
        return centers + share * centers.std(dim=(0, 1)) * noise

    def _revive(
        self, dead: Tensor, centers: Tensor, rows: Tensor, codes: Tensor, errors: Tensor
    ) -> None:
        """Moves unused codes to where they remove a badly served frame's whole error.

        Args:
            dead: (M, 2) codebooks and codes.
            centers: (N, K, D), changed in place.
            rows: (B,) indexes of the round's frames.
            codes: (B, N) of them.
            errors: (B,) squared errors.
        """
        # No more than one code for every eight frames: others wait for the next round.
        dead = dead[torch.randperm(len(dead), generator=self.generator).to(dead.device)]
        dead = dead[: len(rows) // 8]
        if len(dead) == 0 or float(errors.sum()) == 0:
            return
        chosen = _draw(errors + 1e-12 * errors.sum(), len(dead), self.generator)
        its_codes = codes[chosen.to(codes.device)]
        codebook = dead[:, 0]
        now = its_codes.gather(1, codebook.unsqueeze(1))[:, 0]
        residual = self._residual(rows[chosen], its_codes, centers)
        centers[codebook, dead[:, 1]] = centers[codebook, now] + residual


def _draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws `count` different indexes of (B,) float64 weights above 0, in proportion to them.

    The largest keys u^(1 / weight) win (Efraimidis and Spirakis, 2006): unlike `multinomial` this
    has no limit on B.
    """
    keys = torch.rand(len(weights), generator=generator, dtype=torch.float64).log() / weights
    return keys.topk(count).indices
