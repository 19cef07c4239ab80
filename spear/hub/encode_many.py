"""Many recordings through an encoder: those of like length together, long ones in windows.

Each gets the features that it would get alone, to 1e-4 in float32.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from spear.audio import SAMPLE_RATE_HZ
from spear.data.index.packing import pack_by_length
from spear.data.tokens.batches import pad_audio
from spear.encoders.encoder import SpearEncoder
from spear.encoders.layer_frames import ONE_PASS_S, LayerFrames
from spear.zipformer.modules.resampling import match_channels

Layers = tuple[int, ...] | None
"""Numbers of layers, 0 for the front end, or None for the encoder's output."""
_BATCHES_AHEAD = 8  # what is read before it is sorted by length


def encode_many(
    model: SpearEncoder,
    recordings: Iterable[tuple[str, np.ndarray]],
    layers: Layers = None,
    batch_s: float = 80.0,
) -> Iterator[tuple[str, Tensor]]:
    """Encodes recordings, those of like length together.

    Args:
        model: In evaluation mode.
        recordings: Name and (S,) float32 at 16 kHz of each; each long enough for a frame.
        layers: Numbers of layers; None is the encoder's output.
        batch_s: Most seconds, padding counted, that are encoded at once.

    Yields:
        The name of each, not in their order, with (T, D) float32 on the CPU for the output or one
        layer, or (L, T, D) for several, narrow layers filled with 0.
    """
    for batch in _batches(recordings, batch_s):
        names, waveforms = zip(*batch, strict=True)
        is_long = len(waveforms[0]) > ONE_PASS_S * SAMPLE_RATE_HZ
        encode = _encode_long if is_long else _encode_together
        for name, chosen in zip(names, encode(model, waveforms, layers), strict=True):
            yield name, _join([one.cpu() for one in chosen], model.output_dim)


def _batches(
    recordings: Iterable[tuple[str, np.ndarray]], batch_s: float
) -> Iterator[list[tuple[str, np.ndarray]]]:
    """Groups recordings by length, as many at a time as some batches hold; long ones are alone."""
    waiting: list[tuple[str, np.ndarray]] = []
    seconds = 0.0
    for name, waveform in recordings:
        duration_s = len(waveform) / SAMPLE_RATE_HZ
        if duration_s > ONE_PASS_S:
            yield [(name, waveform)]
            continue
        waiting.append((name, waveform))
        seconds += duration_s
        if seconds >= _BATCHES_AHEAD * batch_s:
            yield from _by_length(waiting, batch_s)
            waiting, seconds = [], 0.0
    yield from _by_length(waiting, batch_s)


def _by_length(
    recordings: list[tuple[str, np.ndarray]], batch_s: float
) -> Iterator[list[tuple[str, np.ndarray]]]:
    durations = [len(waveform) / SAMPLE_RATE_HZ for _, waveform in recordings]
    for group in pack_by_length(durations, batch_s):
        yield [recordings[number] for number in group]


@torch.no_grad()
def _encode_together(
    model: SpearEncoder, waveforms: Sequence[np.ndarray], layers: Layers
) -> Iterator[list[Tensor]]:
    """Encodes a batch; yields the chosen layers (T, D_layer) of each recording."""
    audio, lens = pad_audio(waveforms)
    device = model.device
    out = model(audio.to(device), lens.to(device))
    reads = [LayerFrames(model, layer) for layer in ([None] if layers is None else layers)]
    for row, num_samples in enumerate(lens.tolist()):
        num_frames = reads[0].num_frames(num_samples)
        yield [read.pick(out)[row, :num_frames] for read in reads]


def _encode_long(
    model: SpearEncoder, waveforms: Sequence[np.ndarray], layers: Layers
) -> Iterator[list[Tensor]]:
    """Encodes recordings in windows; yields the chosen layers (T, D_layer) of each."""
    for waveform in waveforms:
        out = model.encode_long(torch.from_numpy(waveform), layers=layers or ())
        yield [one[0] for one in ([out["encoder_out"]] if layers is None else out["hidden_states"])]


def _join(chosen: list[Tensor], num_channels: int) -> Tensor:
    if len(chosen) == 1:
        return chosen[0]
    return torch.stack([match_channels(layer, num_channels) for layer in chosen])
