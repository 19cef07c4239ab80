"""The loss of multi-codebook token prediction: who learns what from whom, with which weight.

For every teacher, with weights w_t = alpha on masked and 1 - alpha on unmasked frames:

    L_teacher = mean over frames t and codebooks n of  w_t CE(logits[t, n], tokens[t, n])

`spear.pretrain.chunked_loss` computes it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from spear.errors import ConfigError
from spear.pretrain.chunked_loss import TokenLoss, chunked_cross_entropy

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

    def loss(self, hidden: Tensor, tokens: Tensor, frame_weights: Tensor) -> TokenLoss:
        """Computes the weighted cross-entropy, summed over frames and codebooks, and its parts.

        Args:
            hidden: (F, D) float, the student's frames.
            tokens: (F, N) integer targets below K.
            frame_weights: (F,) float32.
        """
        return chunked_cross_entropy(
            hidden,
            self.weight,
            self.bias,
            tokens,
            frame_weights=frame_weights,
            codebook_size=self.codebook_size,
        )


def frame_weights(is_masked: Tensor, alpha: float) -> Tensor:
    """Returns (F,) float32 weights: alpha where `is_masked` (F,) bool, else 1 - alpha."""
    return torch.where(is_masked, alpha, 1.0 - alpha)
