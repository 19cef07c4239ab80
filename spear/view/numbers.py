"""The numbers behind the pictures of `spear view`: similarity of frames, colours of layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_COMPONENTS = 3  # red, green, blue
_MAX_COMPARED = 1500
_SPREAD = 0.2  # of the colours' scale that one standard deviation takes: 2.5 of them end it


@dataclass(frozen=True)
class LayerColours:
    """A layer over time, as colours.

    Attributes:
        colours: (T, 3) float32 in [0, 1].
        explained: (3,) float32, shares of the variance of the first principal components.
    """

    colours: Tensor
    explained: Tensor


def pooling_step(num_frames: int) -> int:
    """Returns how many neighbouring frames are averaged before they are compared."""
    return max(1, -(-num_frames // _MAX_COMPARED))


def similarity(frames: Tensor) -> Tensor:
    """Compares every frame with every other.

    Args:
        frames: (T, D) float; above 1500 of them, neighbours are averaged first.

    Returns:
        (T', T') float32 in [-1, 1], the cosine of the frames less their mean.
    """
    parts = frames.float().split(pooling_step(len(frames)))
    pooled = torch.stack([part.mean(dim=0) for part in parts])
    unit = torch.nn.functional.normalize(pooled - pooled.mean(dim=0), dim=1)
    return (unit @ unit.T).clamp(-1.0, 1.0)


def layer_colours(layers: Sequence[Tensor]) -> list[LayerColours]:
    """Turns the first three principal components of each layer into colours.

    Components have no sign and neighbouring layers may swap them. So those of each layer, scaled to
    unit variance, are rotated among themselves towards those of the layer before: what keeps its
    colour from layer to layer stays where it is in feature space.

    Args:
        layers: (T, D_layer) float of each, all with the same T of at least 1.
    """
    found: list[LayerColours] = []
    before: Tensor | None = None
    for layer in layers:
        scores, explained = principal_scores(layer)
        if before is not None:
            scores = scores @ _rotation(scores, before)
        before = scores
        found.append(LayerColours((0.5 + _SPREAD * scores).clamp(0.0, 1.0), explained))
    return found


def principal_scores(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Projects frames (T, D) on their first three principal components.

    Returns:
        (T, 3) float32 scores of unit variance, zero where there are fewer components, and the
        share of the variance (3,) of each.
    """
    centred = frames.float() - frames.float().mean(dim=0)
    left, singular, right = torch.linalg.svd(centred, full_matrices=False)
    missing = max(0, NUM_COMPONENTS - len(singular))
    left = torch.nn.functional.pad(left, (0, missing))[:, :NUM_COMPONENTS]
    power = torch.nn.functional.pad(singular.square(), (0, missing))
    explained = power[:NUM_COMPONENTS] / power.sum().clamp_min(torch.finfo(torch.float32).tiny)
    # The largest weight of a component is positive, so that every machine draws the same colours.
    largest = right.abs().argmax(dim=1, keepdim=True)
    signs = torch.nn.functional.pad(right.gather(1, largest).sign().squeeze(1), (0, missing))
    scores = left * signs[:NUM_COMPONENTS] * len(frames) ** 0.5
    return scores * (explained > 1e-9), explained


def _rotation(scores: Tensor, target: Tensor) -> Tensor:
    """Returns the orthogonal (3, 3) that brings scores (T, 3) nearest to a target (T, 3)."""
    left, _, right = torch.linalg.svd(scores.T @ target)
    return left @ right
