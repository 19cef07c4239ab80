"""CR-CTC: the frames of two differently masked copies of an utterance are to say the same.

Every clip of a batch comes twice, with the same time warping and different masks. CTC learns from
both copies, and at every frame each copy's distribution is pulled towards the other's, which is
taken as given. Formulae: Yao et al., "CR-CTC: Consistency regularization on CTC for improved speech
recognition" (ICLR 2025, arXiv 2410.05101), equations 3 and 4.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from spear.errors import ConfigError
from spear.finetune.spec_augment import SpecAugmentConfig


@dataclass
class ConsistencyConfig:
    """Consistency-regularised CTC; costs twice the computation a clip."""

    weight: float = 0.0
    """Factor alpha of the consistency loss beside CTC; 0 turns it off, 0.2 is the paper's."""
    time_mask_ratio: float = 2.5
    """Factor on number and share of SpecAugment's time masks: what one copy lacks the other has."""

    def __post_init__(self) -> None:
        """Refuses values outside their ranges."""
        if self.weight < 0:
            raise ConfigError(f"consistency.weight is {self.weight}: 0 (off) or more")
        if not self.time_mask_ratio > 0:
            raise ConfigError(f"consistency.time_mask_ratio is {self.time_mask_ratio}: above 0")

    @property
    def num_copies(self) -> int:
        """Copies of every training clip in its batch."""
        return 2 if self.weight > 0 else 1

    def scale_masks(self, specaugment: SpecAugmentConfig) -> SpecAugmentConfig:
        """Returns the masks of one copy: as they are without consistency, else more of them."""
        if self.weight == 0:
            return specaugment
        return replace(
            specaugment,
            num_time_masks=round(specaugment.num_time_masks * self.time_mask_ratio),
            max_time_fraction=min(1.0, specaugment.max_time_fraction * self.time_mask_ratio),
        )


def consistency_loss(log_probs: Tensor, lens: Tensor, takes_part: Tensor) -> Tensor:
    """Sums over all frames the divergence of each copy from its other copy.

    For a frame with distributions p (this copy) and q (the other, without gradient) it is
    KL(q || p) = sum over v of q_v (log q_v - log p_v). Divided by the frames of all copies this is
    the paper's L_CR per frame, where each direction counts one half.

    Args:
        log_probs: (2 B, T, V) float32 log-probabilities; row i and row B + i are copies of one
            utterance.
        lens: (2 B,) int64, valid frames; those of two copies are equal.
        takes_part: (2 B,) bool, which utterances count.

    Returns:
        Scalar float32, in nats.
    """
    other = torch.cat(log_probs.detach().chunk(2)[::-1])
    divergence = F.kl_div(log_probs, other, reduction="none", log_target=True).sum(dim=-1)
    frames = torch.arange(log_probs.size(1), device=lens.device)
    counted = (frames < lens.unsqueeze(1)) & takes_part.unsqueeze(1)
    return divergence.masked_fill(~counted, 0.0).sum()
