"""Connectionist temporal classification: the head, the loss, greedy decoding with times.

CTC (Graves et al., ICML 2006) reads one distribution over tokens and a blank per encoder frame. A
label sequence is what is left of a frame sequence after repeats are merged and blanks removed; its
probability is the sum over all frame sequences that leave it. A sequence of L labels with R equal
neighbours needs L + R frames; where there are fewer its probability is zero and its loss infinite.
Such utterances are left out of the loss, and counted, so that whoever trains can name them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLANK_ID = 0
PART_FRAMES = 6000
"""Frames that are scored at once (two minutes at 50 Hz): scores of all tokens over an hour would
fill the memory."""


class CtcHead(nn.Module):
    """Dropout and one linear layer, then log-probabilities.

    Args:
        input_dim: D, width of the encoder's frames.
        vocab_size: V, tokens with the blank at id 0.
        dropout: Probability that a value is zeroed in training.
    """

    def __init__(self, input_dim: int, vocab_size: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(input_dim, vocab_size)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, D) frames -> (B, T, V) float32 log-probabilities, whatever autocast says."""
        return F.log_softmax(self.linear(self.dropout(frames)).float(), dim=-1)


@dataclass(frozen=True)
class CtcLoss:
    """The loss of a batch, as sums, so that ranks and batches can be averaged rightly."""

    total: Tensor
    """Scalar float32: sum of -log p(labels) over the utterances that take part, in nats."""
    num_frames: Tensor
    """Scalar int64: encoder frames of these utterances."""
    feasible: Tensor
    """(B,) bool: which utterances take part."""


def num_frames_needed(tokens: Tensor, token_lens: Tensor) -> Tensor:
    """Counts the frames that label sequences need at least: labels plus equal neighbours.

    Args:
        tokens: (B, L) int64, padded with anything.
        token_lens: (B,) int64, labels of each.

    Returns:
        (B,) int64.
    """
    if tokens.size(1) < 2:
        return token_lens
    # Neighbour pair i is (i, i + 1): both are labels where i + 1 < length.
    pair = torch.arange(1, tokens.size(1), device=tokens.device)
    repeats = (tokens[:, 1:] == tokens[:, :-1]) & (pair < token_lens.unsqueeze(1))
    return token_lens + repeats.sum(dim=1)


def ctc_loss(log_probs: Tensor, lens: Tensor, tokens: Tensor, token_lens: Tensor) -> CtcLoss:
    """Computes the CTC loss, summed over all utterances that have enough frames.

    An utterance with too few frames, or without any, counts nothing and gets no gradient (an
    infinite loss would give NaN, and `zero_infinity` would hide it from the counts). This needs no
    decision on the host: it is computed as if it had no labels, where that is finite, times zero.

    Args:
        log_probs: (B, T, V) float32 log-probabilities.
        lens: (B,) int64, valid frames.
        tokens: (B, L) int64 in 1 .. V - 1, padded with anything.
        token_lens: (B,) int64, labels of each; 0 is allowed.
    """
    feasible = (num_frames_needed(tokens, token_lens) <= lens) & (lens > 0)
    if log_probs.size(1) == 0:  # torch wants at least one frame
        return CtcLoss(log_probs.sum(), lens.sum(), feasible)
    losses = F.ctc_loss(
        log_probs.transpose(0, 1),
        tokens,
        lens,
        torch.where(feasible, token_lens, 0),
        blank=BLANK_ID,
        reduction="none",
    )
    weights = feasible.to(losses.dtype)
    return CtcLoss((losses * weights).sum(), torch.where(feasible, lens, 0).sum(), feasible)


@dataclass(frozen=True)
class Hypothesis:
    """What was recognised in one utterance."""

    tokens: list[int]
    """Token ids, without blanks."""
    frames: list[int]
    """For each token the encoder frame at which it begins."""
    score: float = 0.0
    """Log-probability, with what a language model adds, where the search computes one."""


class CtcGreedy:
    """Takes the best token of every frame, merges repeats and removes blanks, part by part.

    Args:
        score: Turns frames (B, T, D) into (B, T, V) log-probabilities, e.g. a `CtcHead`; any scores
            with the same order will do.
        batch_size: B.
    """

    def __init__(self, score: Callable[[Tensor], Tensor], batch_size: int) -> None:
        self._score = score
        self._found = [Hypothesis([], []) for _ in range(batch_size)]
        self._previous = torch.full((batch_size, 1), BLANK_ID)
        self._num_frames = 0

    @torch.no_grad()
    def read(self, frames: Tensor, lens: Tensor) -> None:
        """Reads the next frames (B, T, D), valid as `lens` (B,) int64 says."""
        num_frames = frames.size(1)
        if num_frames == 0:
            return
        best = self._score(frames).argmax(dim=-1)
        before = torch.cat([self._previous.to(best.device), best[:, :-1]], dim=1)
        valid = torch.arange(num_frames, device=best.device) < lens.to(best.device).unsqueeze(1)
        begins = (best != BLANK_ID) & (best != before) & valid
        rows, places = begins.nonzero(as_tuple=True)
        tokens = best[rows, places].tolist()
        for row, token, place in zip(rows.tolist(), tokens, places.tolist(), strict=True):
            self._found[row].tokens.append(token)
            self._found[row].frames.append(self._num_frames + place)
        self._previous = best[:, -1:]
        self._num_frames += num_frames

    def results(self) -> list[Hypothesis]:
        """Returns what has been found so far, a hypothesis per utterance."""
        return [Hypothesis([*one.tokens], [*one.frames]) for one in self._found]


def greedy_decode(log_probs: Tensor, lens: Tensor) -> list[Hypothesis]:
    """Searches (B, T, V) log-probabilities, of which `lens` (B,) int64 are valid, greedily."""
    search = CtcGreedy(nn.Identity(), len(log_probs))
    search.read(log_probs, lens)
    return search.results()
