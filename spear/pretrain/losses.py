"""The loss of multi-codebook token prediction, and what goes with it.

For every teacher, with weights w_t = alpha on masked and 1 - alpha on unmasked frames:

    L_teacher = mean over frames t and codebooks n of  w_t CE(logits[t, n], tokens[t, n])

The logits, (frames, N x K), would be the largest tensor of a training step. They are made a few
thousand frames at a time, in the forward pass, together with the gradient that they pass on;
neither they nor their softmax are kept.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spear.errors import ConfigError
from spear.training import Metric

CHUNK_LOGITS = {"cpu": 1 << 22}
"""Logits that exist at a time, by device: 16 MiB in float32 suit a CPU's cache, elsewhere
`MAX_CHUNK_LOGITS` keep a GPU busy."""
MAX_CHUNK_LOGITS = 1 << 25

Domain = Literal["speech", "audio"]


@dataclass
class LossConfig:
    """How teachers and frames are weighed."""

    mode: Literal["asymmetric", "joint", "disjoint"] = "asymmetric"
    """Which clips learn from which teachers. asymmetric: speech from the speech teachers, general
    audio from all; joint: every clip from all; disjoint: every clip from its own domain's."""

    audio_weight: float = 0.1
    """Factor lambda of the audio teachers' loss; the speech teachers' have 1."""

    alpha: float = 0.5
    """Weight of masked frames; unmasked ones have 1 - alpha."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(f"loss.alpha is {self.alpha}: give a fraction, 0 to 1")
        if self.audio_weight < 0:
            raise ConfigError(f"loss.audio_weight is {self.audio_weight}: it must be 0 or more")


def required_teachers(
    mode: Literal["asymmetric", "joint", "disjoint"], domains: dict[str, Domain]
) -> dict[str, tuple[str, ...]]:
    """Says whose tokens clips of each domain learn from.

    Args:
        mode: See `LossConfig.mode`.
        domains: Teacher -> its domain.

    Returns:
        Domain of a clip -> names of teachers, in the order of `domains`.
    """
    everyone = tuple(domains)
    speech = tuple(name for name, domain in domains.items() if domain == "speech")
    audio = tuple(name for name, domain in domains.items() if domain == "audio")
    if mode == "joint":
        return {"speech": everyone, "audio": everyone}
    return {"speech": speech, "audio": everyone if mode == "asymmetric" else audio}


class TokenHead(nn.Linear):
    """Predicts every codebook of a teacher independently: one linear layer, D -> N x K.

    Args:
        dim: D, channels of the student.
        num_codebooks: N.
        codebook_size: K.
    """

    def __init__(self, dim: int, num_codebooks: int, codebook_size: int) -> None:
        super().__init__(dim, num_codebooks * codebook_size)
        self.num_codebooks = num_codebooks
        self.codebook_size = codebook_size

    def loss(self, hidden: Tensor, tokens: Tensor, frame_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the weighted cross-entropy, summed over frames and codebooks.

        Args:
            hidden: (F, D) float, the student's frames.
            tokens: (F, N) integer targets below K.
            frame_weights: (F,) float32.

        Returns:
            () float32 sum, and (F, N) int64 predictions.
        """
        inputs = (hidden, self.weight, self.bias, tokens, frame_weights)
        total, predictions = _ChunkedCrossEntropy.apply(
            *inputs, self.codebook_size, torch.is_grad_enabled()
        )
        return total, predictions


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Linear layer and weighted cross-entropy over chunks of frames.

    The loss is the last thing that is computed, so its gradient is known in the forward pass up to
    one factor: d total / d logits[t, n, :] = w_t (softmax - one-hot). Each chunk turns it into
    gradients of its frames and of the layer at once; backward multiplies by the factor.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 (autograd passes by position)
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        tokens: Tensor,
        frame_weights: Tensor,
        codebook_size: int,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = _matmul_dtype(hidden)
        kernel = weight.to(dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        predictions = torch.empty_like(tokens, dtype=torch.int64)
        grads = [torch.zeros_like(x) for x in (hidden, weight, bias)] if with_gradient else []
        limit = CHUNK_LOGITS.get(hidden.device.type, MAX_CHUNK_LOGITS)
        frames = max(1, limit // weight.size(0))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), frames):
                part = slice(start, start + frames)
                inputs = hidden[part].to(dtype)
                logits = torch.addmm(bias.to(dtype), inputs, kernel.T).float()
                log_probs = logits.unflatten(1, (-1, codebook_size)).log_softmax(dim=-1)
                targets = tokens[part].long().unsqueeze(-1)
                weights = frame_weights[part].float()
                losses = -log_probs.gather(-1, targets).squeeze(-1)
                total += (losses * weights.unsqueeze(-1)).sum()
                predictions[part] = log_probs.argmax(dim=-1)
                if with_gradient:
                    slope = log_probs.exp_().scatter_add_(
                        -1, targets, torch.full_like(targets, -1, dtype=log_probs.dtype)
                    )
                    slope = slope.mul_(weights[:, None, None]).flatten(1)
                    grads[2] += slope.sum(dim=0).to(bias.dtype)
                    slope = slope.to(dtype)
                    grads[0][part] = (slope @ kernel).to(hidden.dtype)
                    grads[1] += (slope.T @ inputs).to(weight.dtype)
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(predictions)
        return total, predictions

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        factor = grad_outputs[0]
        grads = [grad * factor.to(grad.dtype) for grad in ctx.saved_tensors]
        return (*grads, None, None, None, None)


def _matmul_dtype(tensor: Tensor) -> torch.dtype:
    """Returns what a linear layer would compute in at this place: autocast's type, if it is on."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def frame_weights(is_masked: Tensor, alpha: float) -> Tensor:
    """Returns (F,) float32 weights: alpha where `is_masked` (F,) bool, else 1 - alpha."""
    return torch.where(is_masked, alpha, 1.0 - alpha)


def token_metrics(
    predictions: Tensor, tokens: Tensor, is_masked: Tensor, frequent: Tensor, codebook_size: int
) -> dict[str, Metric]:
    """Computes what a teacher's predictions are worth.

    Args:
        predictions: (F, N) int64.
        tokens: (F, N) integer targets.
        is_masked: (F,) bool.
        frequent: (N,) int64, the most frequent token of each codebook in the training data.
        codebook_size: K.

    Returns:
        masked_accuracy and unmasked_accuracy: fraction of tokens predicted exactly;
        baseline_accuracy: the same on masked frames for always saying `frequent`;
        predicted_usage and target_usage: entropy of the tokens of this batch over log K, averaged
        over codebooks (1: all are used alike, 0: always the same).
    """
    masked = is_masked.unsqueeze(1)
    num_codebooks = tokens.size(1)
    num_masked = is_masked.sum() * num_codebooks
    num_unmasked = tokens.numel() - num_masked
    is_right = predictions == tokens
    is_frequent = tokens == frequent
    has_frames = torch.tensor(float(len(tokens) > 0))
    return {
        "masked_accuracy": Metric((is_right & masked).sum(), num_masked),
        "unmasked_accuracy": Metric((is_right & ~masked).sum(), num_unmasked),
        "baseline_accuracy": Metric((is_frequent & masked).sum(), num_masked),
        "predicted_usage": Metric(usage_entropy(predictions, codebook_size), has_frames),
        "target_usage": Metric(usage_entropy(tokens, codebook_size), has_frames),
    }


def usage_entropy(tokens: Tensor, codebook_size: int) -> Tensor:
    """Returns the entropy of each codebook's tokens (F, N) over log K, averaged: (), 0 to 1."""
    num_frames, num_codebooks = tokens.shape
    if num_frames == 0 or codebook_size < 2:
        return torch.zeros((), device=tokens.device)
    counts = torch.zeros(num_codebooks, codebook_size, device=tokens.device)
    ones = torch.ones((), device=tokens.device).expand(num_codebooks, num_frames)
    counts.scatter_add_(1, tokens.T.long(), ones)
    shares = counts / num_frames
    entropy = -torch.special.xlogy(shares, shares).sum(dim=1)
    return entropy.mean() / math.log(codebook_size)
