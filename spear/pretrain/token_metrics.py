"""What predictions of tokens are worth: by codebook, masked and unmasked, against mere frequencies.

All of it stays on the device: sums and counts, as tensors, that are divided when they are written.
"""

import math

import torch
from torch import Tensor, nn

from spear.mvq.usage import count_codes, entropies, normalized_entropies
from spear.pretrain.chunked_loss import TokenLoss
from spear.training import Metric


class UnigramBaseline(nn.Module):
    """What one knows of a teacher's tokens without listening: how often each occurs.

    Args:
        num_codebooks: N.
        codebook_size: K.

    Attributes:
        frequent: (N,) int64, the most frequent tokens.
        entropy: (N,) float32, nats: the cross-entropy of always answering with the frequencies.
            Until they are known all tokens are alike: log K.
    """

    frequent: Tensor
    entropy: Tensor

    def __init__(self, num_codebooks: int, codebook_size: int) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        frequent = torch.zeros(num_codebooks, dtype=torch.long)
        self.register_buffer("frequent", frequent, persistent=False)
        entropy = torch.full((num_codebooks,), math.log(codebook_size))
        self.register_buffer("entropy", entropy, persistent=False)

    def set_counts(self, counts: Tensor) -> None:
        """Takes the counts (N, K) of the training data's tokens; all zero, nothing changes."""
        if not counts.any():
            return
        self.frequent.copy_(counts.argmax(dim=1))
        self.entropy.copy_(entropies(counts))


def token_metrics(
    loss: TokenLoss, tokens: Tensor, is_masked: Tensor, baseline: UnigramBaseline
) -> dict[str, Metric]:
    """Computes what a teacher's predictions are worth in one batch.

    Args:
        loss: The head's answer for F frames and N codebooks.
        tokens: (F, N) integer targets.
        is_masked: (F,) bool.
        baseline: What is known without listening.

    Returns:
        masked_accuracy, unmasked_accuracy: fraction of tokens predicted exactly;
        baseline_accuracy: the same on masked frames for always saying the most frequent token;
        masked_loss(nats), unmasked_loss(nats): cross-entropy per token;
        unigram_entropy(nats): what it would be of a student that knows only the frequencies;
        information(bits): what the predictions know of a masked frame's tokens beyond that: the
        two entropies' difference, summed over codebooks;
        predicted_usage, target_usage: entropy of the tokens of this batch over log K (1: all are
        used alike, 0: always the same).
        All but the information are averages over codebooks; codebook_* of each is the same for
        every codebook, (N,).
    """
    num_frames = len(tokens)
    num_masked = is_masked.sum()
    num_unmasked = num_frames - num_masked
    is_right = loss.predictions == tokens
    sides = {"masked": (is_masked, num_masked), "unmasked": (~is_masked, num_unmasked)}
    metrics: dict[str, Metric] = {}
    for side, (chosen, count) in sides.items():
        by_frame = chosen.unsqueeze(1)
        right = (is_right & by_frame).sum(dim=0)
        nats = (loss.cross_entropy * by_frame).sum(dim=0)
        metrics |= _averaged(f"{side}_accuracy", right, count)
        metrics |= _averaged(f"{side}_loss(nats)", nats, count)
    saved = num_masked * baseline.entropy - metrics["codebook_masked_loss(nats)"].total
    metrics["codebook_information(bits)"] = Metric(saved / math.log(2), num_masked)
    metrics["information(bits)"] = Metric(saved.sum() / math.log(2), num_masked)
    is_frequent = (tokens == baseline.frequent) & is_masked.unsqueeze(1)
    metrics |= _averaged("baseline_accuracy", is_frequent.sum(dim=0), num_masked)
    has_frames = torch.full((), float(num_frames > 0), device=tokens.device)
    metrics |= _averaged("unigram_entropy(nats)", baseline.entropy * has_frames, has_frames)
    for name, values in (("predicted", loss.predictions), ("target", tokens)):
        usage = normalized_entropies(count_codes(values, baseline.codebook_size)).float()
        metrics |= _averaged(f"{name}_usage", usage, has_frames)
    return metrics


def usage_metrics(loss: TokenLoss, tokens: Tensor, codebook_size: int) -> dict[str, Metric]:
    """Computes how often each token is predicted, and should be: shares (N, K) of all frames.

    Args:
        loss: The head's answer for F frames and N codebooks.
        tokens: (F, N) integer targets.
        codebook_size: K.
    """
    num_frames = torch.full((), float(len(tokens)), device=tokens.device)
    return {
        "predicted_tokens": Metric(
            count_codes(loss.predictions, codebook_size).float(), num_frames
        ),
        "target_tokens": Metric(count_codes(tokens, codebook_size).float(), num_frames),
    }


def _averaged(name: str, totals: Tensor, count: Tensor) -> dict[str, Metric]:
    """Returns a metric of all codebooks together and one of each, from totals (N,)."""
    together = Metric(totals.sum(), count * len(totals))
    return {name: together, f"codebook_{name}": Metric(totals, count)}
