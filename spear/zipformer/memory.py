"""What a layer of a streaming model remembers of the frames before a chunk."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Remember = Callable[[Tensor], Tensor]
"""Takes the frames of a chunk (B, T, C), gives them behind those remembered (B, L + T, C)."""


class LayerMemory:
    """The past of one layer, and what a chunk makes of it.

    Args:
        past: (B, L, C) tensors by the name of the module that uses them. They are not changed.

    Attributes:
        updated: The same for the next chunk; complete when the layer has run.
    """

    def __init__(self, past: dict[str, Tensor]) -> None:
        self.past = past
        self.updated: dict[str, Tensor] = {}

    def remember(self, name: str) -> Remember:
        """Returns what extends frames by those remembered under a name."""
        return partial(self._extend, name)

    def _extend(self, name: str, x: Tensor) -> Tensor:
        past = self.past[name]
        joined = torch.cat((past, x), dim=1)
        self.updated[name] = joined[:, joined.shape[1] - past.shape[1] :]
        return joined


def no_memory(x: Tensor) -> Tensor:
    """A `Remember` for whole utterances: there is nothing before the first frame."""
    return x
