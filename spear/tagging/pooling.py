"""From frame logits to one logit for each class of a clip.

"mean" averages logits. "linear-softmax" (Wang, Li and Metze, ICASSP 2019) weights frame
probabilities by themselves, p = sum p_t^2 / sum p_t: frames that hear the event count, silence
does not. Both give logits in float32. For the latter, with ls the logarithm of the sigmoid,

    log p - log(1 - p) = logsumexp_t(2 ls(x_t)) - logsumexp_t(ls(x_t) + ls(-x_t)),

as 1 - p = sum p_t (1 - p_t) / sum p_t: nothing has to be clamped, however sure the frames are.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Pooling = Literal["mean", "linear-softmax"]


def pool(logits: Tensor, lens: Tensor, pooling: Pooling) -> Tensor:
    """Pools frame logits over time.

    Args:
        logits: (B, T, C) float, of every frame and class.
        lens: (B,) int64, valid frames, at least 1.
        pooling: How.

    Returns:
        (B, C) float32 logits.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        is_padding = torch.arange(logits.size(1), device=lens.device) >= lens[:, None]
        is_padding = is_padding.unsqueeze(-1)
        if pooling == "mean":
            return logits.masked_fill(is_padding, 0.0).sum(1) / lens[:, None]
        return _linear_softmax(logits.masked_fill(is_padding, 0.0), is_padding)


def _linear_softmax(logits: Tensor, is_padding: Tensor) -> Tensor:
    """See the formula at the top; `logits` (B, T, C) are finite in the padding, too."""
    present, absent = F.logsigmoid(logits), F.logsigmoid(-logits)
    log_squares = (2 * present).masked_fill(is_padding, -torch.inf)
    log_products = (present + absent).masked_fill(is_padding, -torch.inf)
    return log_squares.logsumexp(1) - log_products.logsumexp(1)
