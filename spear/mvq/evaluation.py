"""How good a quantiser is: errors, use of its codes, and what each codebook contributes.

Works on every quantiser whose decoding is a sum of one vector per codebook, which all of
`spear.mvq` are; what only some have (first guesses, a search with a beam) is left out for others.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from spear.mvq.quantizers.quantizer import BEAM_WIDTH, NUM_PASSES, Quantizer
from spear.mvq.training.statistics import count_codes, normalized_entropies

_BLOCK_ELEMENTS = 1 << 24
# Frames to time the search on, times N: merging costs grow faster than the number of codebooks.
_MAX_SAMPLE_CODES, _MAX_SAMPLE = 1 << 13, 1024
_WARM_UP_FRAMES = 64
# From the cheapest to more than anybody needs.
_SEARCHES = (
    (0, BEAM_WIDTH),
    (1, 4),
    (NUM_PASSES, 4),
    (1, 8),
    (NUM_PASSES, 8),
    (1, BEAM_WIDTH),
    (2, BEAM_WIDTH),
    (NUM_PASSES, BEAM_WIDTH),
    (NUM_PASSES, 2 * BEAM_WIDTH),
)
_MAX_SWEEP_S = 15.0


class FrameQuantizer(Protocol):
    """What the evaluation asks of a quantiser."""

    metadata: dict[str, str]

    @property
    def dim(self) -> int:
        """D, the width of frames."""

    @property
    def num_codebooks(self) -> int:
        """N."""

    @property
    def codebook_size(self) -> int:
        """K."""

    @property
    def id(self) -> str:
        """Name by content, 16 hexadecimal digits."""

    def encode(self, x: Tensor) -> Tensor:
        """Frames (*, D) to codes (*, N), integers."""

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (*, N) to frames (*, D), a sum of one vector per codebook."""


@dataclass
class Evaluation:
    """What a set of frames says about a quantiser.

    Errors are relative: |x - x_hat|^2 / |x - mean|^2 summed over all frames, in the normalised
    space. 1 is what a single mean vector would reach.
    """

    num_frames: int
    """Frames looked at (count)."""
    relative_error: float
    """Error of the decoded tokens."""
    first_guess_error: float | None
    """Error before the full search, of the classifiers' guess; None without classifiers."""
    errors_without: list[float] = field(default_factory=list)
    """For every codebook the error when its mean contribution stands for it."""
    entropies: list[float] = field(default_factory=list)
    """For every codebook the entropy of its usage, divided by log K."""
    usage: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """(N, K) int64, how often each code was chosen."""
    correlations: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """(N, N) float64, how much codebooks do each other's work: see `evaluate`."""
    sample: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """(F', D) some of the frames, to time the search on."""

    @property
    def num_unused(self) -> list[int]:
        """For every codebook, how many codes no frame chose."""
        return [int(count) for count in (self.usage == 0).sum(dim=1)]

    @property
    def used_bits(self) -> float:
        """Sum over codebooks of the entropy of their usage, in bits a frame."""
        return sum(self.entropies) * math.log2(max(self.usage.shape[1], 2))

    def strongest_pairs(self, count: int) -> list[tuple[int, int, float]]:
        """Returns pairs of codebooks with their correlation, the furthest from 0 first."""
        size = len(self.correlations)
        pairs = [(a, b, float(self.correlations[a, b])) for a in range(size) for b in range(a)]
        return sorted(pairs, key=lambda pair: -abs(pair[2]))[:count]


@dataclass
class SearchPoint:
    """What one setting of the search gives for its time."""

    num_passes: int
    """Full passes; 0 is the first guess."""
    beam_width: int
    """Codes that each codebook shortlists in a pass."""
    relative_error: float
    """As `Evaluation.relative_error`, of the sample."""
    frames_per_s: float
    """Frames encoded per second, once, here and now."""


@torch.no_grad()
def evaluate(quantizer: FrameQuantizer, frames: Tensor) -> Evaluation:
    """Encodes frames (F, D) of the teacher's own space and measures what is lost.

    The correlation of codebooks n and m is that of what they contribute to the decoded frames:
    with y_n the vector chosen from codebook n, less its mean over the frames, it is
    E<y_n, y_m> / sqrt(E|y_n|^2 E|y_m|^2), from -1 to 1. At 0 two codebooks share no work; above,
    both say in part the same; below, one takes back what the other said. The mutual information of
    the codes would not do: K^2 = 65,536 pairs seen in 10,000 frames look dependent by
    (K - 1)^2 / 2F = 3 nats where they are not.

    Raises:
        ConfigError: Frames of the wrong width.
        DataError: NaN or infinite values.
    """
    frames = frames.float()
    codes = quantizer.encode(frames).long()
    target = normalized(quantizer, frames.to(codes.device))
    spread = _spread(target)
    residual, gram, coupling = _contribution_products(quantizer, target, codes)
    usage = count_codes(codes, quantizer.codebook_size).cpu()
    energy = gram.diagonal()
    norms = energy.clamp(min=1e-20).sqrt()
    # |x - x_hat + y_n|^2 of every frame, summed.
    without = (residual + 2 * coupling + energy) / spread
    return Evaluation(
        num_frames=len(frames),
        relative_error=residual / spread,
        first_guess_error=_first_guess_error(quantizer, frames),
        errors_without=without.tolist(),
        entropies=normalized_entropies(usage).tolist(),
        usage=usage,
        correlations=(gram / norms / norms.unsqueeze(1)).cpu(),
        sample=spread_out(frames, _sample_size(quantizer)).cpu(),
    )


@torch.no_grad()
def sweep_search(quantizer: FrameQuantizer, frames: Tensor) -> list[SearchPoint]:
    """Encodes frames (F, D) with several widths and numbers of passes.

    Returns:
        From fast to thorough, as many as a quarter of a minute allows; empty for quantisers whose
        search has no such settings.
    """
    if not isinstance(quantizer, Quantizer) or len(frames) == 0:
        return []
    points: list[SearchPoint] = []
    deadline = time.perf_counter() + _MAX_SWEEP_S
    for num_passes, beam_width in _SEARCHES:
        if time.perf_counter() > deadline:
            break
        encode = partial(quantizer.encode, num_passes=num_passes, beam_width=beam_width)
        encode(frames[:_WARM_UP_FRAMES]).cpu()
        started = time.perf_counter()
        codes = encode(frames).cpu()  # on the CPU: waits for the device
        seconds = max(time.perf_counter() - started, 1e-9)
        error = relative_error(quantizer, frames, codes)
        points.append(SearchPoint(num_passes, beam_width, error, len(frames) / seconds))
    return points


def relative_error(quantizer: FrameQuantizer, frames: Tensor, codes: Tensor) -> float:
    """Returns |x - x_hat|^2 / |x - mean|^2 of frames (F, D) and their codes (F, N)."""
    decoded = quantizer.decode(codes.long())
    target = normalized(quantizer, frames.float().to(decoded.device))
    error = (target - normalized(quantizer, decoded)).double().square().sum()
    return float(error) / _spread(target)


def bits_per_frame(quantizer: FrameQuantizer) -> float:
    """Returns N * log2 K: what the tokens of one frame can say at most."""
    return quantizer.num_codebooks * math.log2(quantizer.codebook_size)


def frame_rate_hz(quantizer: FrameQuantizer) -> float | None:
    """Returns the teacher's frames per second, where the metadata says it."""
    rate = teacher_identity(quantizer.metadata).get("frame_rate_hz")
    return float(rate) if isinstance(rate, (int, float)) else None


def teacher_identity(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Returns the teacher's identity from a quantiser's metadata; empty when it is not there."""
    identity = json.loads(metadata.get("teacher", "{}"))
    return identity if isinstance(identity, dict) else {}


def normalized(quantizer: FrameQuantizer, frames: Tensor) -> Tensor:
    """Returns frames (*, D) in the space where the quantiser counts errors."""
    normalize = getattr(quantizer, "normalize", None)
    return frames.float() if normalize is None else normalize(frames)


def _contribution_products(
    quantizer: FrameQuantizer, target: Tensor, codes: Tensor
) -> tuple[float, Tensor, Tensor]:
    """Inner products of residuals and of what codebooks contribute, summed over the frames.

    Args:
        quantizer: What made the codes.
        target: (F, D) normalised frames.
        codes: (F, N) int64.

    Returns:
        The squared error; (N, N) float64 products of the centred contributions; (N,) float64 of
        the residuals with them.
    """
    table = _contributions(quantizer, codes.device)
    books = torch.arange(quantizer.num_codebooks, device=codes.device)
    size = max(_BLOCK_ELEMENTS // (quantizer.num_codebooks * quantizer.dim), 1)
    total = torch.zeros(quantizer.num_codebooks, quantizer.dim, dtype=torch.float64)
    total = total.to(codes.device)
    for part in codes.split(size):
        total += table[books, part].double().sum(dim=0)
    mean = total / max(len(codes), 1)
    gram = total.new_zeros(len(books), len(books))
    coupling = total.new_zeros(len(books))
    squared = 0.0
    for block, part in zip(target.split(size), codes.split(size), strict=True):
        chosen = table[books, part].double() - mean  # (B, N, D)
        residual = (block - normalized(quantizer, quantizer.decode(part))).double()
        flat = chosen.transpose(0, 1).flatten(1)
        gram += flat @ flat.t()
        coupling += flat @ residual.flatten()
        squared += float(residual.square().sum())
    return squared, gram, coupling


def _contributions(quantizer: FrameQuantizer, device: torch.device) -> Tensor:
    """Returns (N, K, D): what each code adds to a normalised frame, beside code 0 of its codebook.

    Found by decoding, one codebook at a time: every quantiser can do that.
    """
    zeros = torch.zeros(1, quantizer.num_codebooks, dtype=torch.long, device=device)
    origin = normalized(quantizer, quantizer.decode(zeros))
    parts = []
    for codebook in range(quantizer.num_codebooks):
        codes = zeros.repeat(quantizer.codebook_size, 1)
        codes[:, codebook] = torch.arange(quantizer.codebook_size, device=device)
        parts.append(normalized(quantizer, quantizer.decode(codes)) - origin)
    return torch.stack(parts)


def _first_guess_error(quantizer: FrameQuantizer, frames: Tensor) -> float | None:
    if not isinstance(quantizer, Quantizer) or not quantizer.has_classifiers:
        return None
    return relative_error(quantizer, frames, quantizer.encode(frames, num_passes=0))


def _sample_size(quantizer: FrameQuantizer) -> int:
    return min(_MAX_SAMPLE, max(_MAX_SAMPLE_CODES // quantizer.num_codebooks, 1))


def _spread(target: Tensor) -> float:
    """Returns the sum of |x - mean|^2, never 0."""
    return max(float((target - target.mean(dim=0)).double().square().sum()), 1e-20)


def spread_out(rows: Tensor, count: int) -> Tensor:
    """Returns at most `count` rows of a tensor, evenly spread."""
    if len(rows) <= count:
        return rows
    return rows[torch.arange(count) * len(rows) // count]
