"""Which layers of the encoder a recogniser reads: the last, another one, or a learned mixture.

The best layer for a task need not be the last one, least of all where the encoder is kept frozen.
The mixture is a softmax-weighted sum over the front end and all layers with one learned weight for
each, as in ELMo (Peters et al., NAACL 2018, equation 1) and SUPERB.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spear.encoders.layers import check_layers
from spear.errors import ConfigError
from spear.zipformer import Zipformer
from spear.zipformer.frames import Frames
from spear.zipformer.model import ZipformerOutput
from spear.zipformer.modules.resampling import match_channels
from spear.zipformer.subsampling import num_subsampled

LAST, WEIGHTED = "last", "weighted"
_PROBE_FRAMES = 64


def parse_layers(text: str, num_layers: int) -> list[int] | None:
    """Reads "last", "weighted" or a layer's number.

    Args:
        text: What the configuration says.
        num_layers: L of the encoder.

    Returns:
        Numbers of the layers that are read, 0 for the front end; None for the encoder's output.

    Raises:
        ConfigError: It is nothing of these, or there is no such layer.
    """
    if text == LAST:
        return None
    if text == WEIGHTED:
        return list(range(num_layers + 1))
    if not text.isdecimal():
        raise ConfigError(
            f"layers is {text!r}: give {LAST}, {WEIGHTED}, or a number from 0 to {num_layers}"
        )
    check_layers([int(text)], num_layers)
    return [int(text)]


class LayerMix(nn.Module):
    """A weighted sum of layers at 50 Hz; with one layer, that layer.

    Args:
        layers: Their numbers, 0 for the front end.
        num_channels: D of the result; narrower layers are filled up with zeros.

    Attributes:
        weights: One number per layer; their softmax are the weights, equal at first.
    """

    def __init__(self, layers: Sequence[int], num_channels: int) -> None:
        super().__init__()
        self.layers = list(layers)
        self.num_channels = num_channels
        self.weights = nn.Parameter(torch.zeros(len(layers))) if len(layers) > 1 else None

    def forward(self, encoded: ZipformerOutput) -> Tensor:
        """Mixes layers into (B, T, D) float at 50 Hz."""
        chosen = (match_channels(encoded.layer(i), self.num_channels) for i in self.layers)
        if self.weights is None:
            return next(chosen)
        weighted = zip(self.weights.softmax(dim=0), chosen, strict=True)
        mixed = [weight * layer for weight, layer in weighted]
        return torch.stack(mixed).sum(dim=0)


def read_frames(
    encoder: Zipformer, encoded: ZipformerOutput, lens: Tensor, mix: LayerMix | None
) -> Tensor:
    """Returns the frames (B, T', D) that a head reads, at the encoder's output rate.

    Args:
        encoder: What encoded; a lower output rate takes its learned downsampling.
        encoded: What it returned.
        lens: (B,) int64, valid fbank frames that it was given.
        mix: Layers to read; None for the encoder's output.
    """
    if mix is None or encoded.num_frames == 0:
        return encoded.output
    mixed = mix(encoded)
    downsample = encoder.encoder.downsample_output
    if downsample is None:
        return mixed
    num_valid = num_subsampled(lens, encoder.config.frontend_pad)
    return downsample(mixed, Frames(num_valid, encoded.num_frames))


def idle_parameters(encoder: Zipformer, mix: LayerMix) -> frozenset[str]:
    """Names the encoder's parameters that have no part in what is read, so no gradient.

    They are found by a backward pass through a second of silence: what lies behind a chosen layer
    depends on how the stacks are joined.
    """
    named = dict(encoder.named_parameters())
    reference = encoder.encoder_embed.out.weight
    lens = torch.tensor([_PROBE_FRAMES], device=reference.device)
    fbank = reference.new_zeros(1, _PROBE_FRAMES, encoder.config.feature_dim)
    was_training = encoder.training
    encoder.eval()
    with torch.enable_grad():
        total = read_frames(encoder, encoder(fbank, lens), lens, mix).sum()
    encoder.train(was_training)
    gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return frozenset(
        name for name, gradient in zip(named, gradients, strict=True) if gradient is None
    )
