"""Recordings of any length in bounded memory: windows with context on both sides.

A window is a core, whose frames are kept, with context around it, whose frames are thrown away. It
begins at a multiple of the slowest frame rate's step, so that every rate groups the same frames as
in one pass over the whole, and sees real neighbours wherever there are some. What differs is that
attention does not reach beyond the context: see docs/zipformer.md for how much that is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import lcm

import torch
from torch import Tensor

from spear.audio.fbank import Fbank
from spear.audio.fbank_stream import FbankStream
from spear.errors import ConfigError
from spear.zipformer.model import Zipformer

_FBANK_HZ = 100
_FBANK_PER_FRAME = 2


@dataclass(frozen=True)
class Windows:
    """How a long recording is cut, in fbank frames.

    Attributes:
        core: Frames of a window that are kept.
        context: Frames on either side that are seen besides.
    """

    core: int
    context: int

    @classmethod
    def of_seconds(cls, window_s: float, context_s: float, model: Zipformer) -> "Windows":
        """Rounds lengths to whole steps of the model's slowest frame rate.

        Raises:
            ConfigError: One of them is shorter than such a step.
        """
        rates = (*model.config.downsampling_factor, model.config.output_downsampling_factor)
        step = _FBANK_PER_FRAME * lcm(*rates)
        core, context = (
            round(seconds * _FBANK_HZ / step) * step for seconds in (window_s, context_s)
        )
        if core < step or context < step:
            raise ConfigError(
                f"window_s {window_s} and context_s {context_s}: both must be at least "
                f"{step / _FBANK_HZ} s"
            )
        return cls(core, context)


def encode_windows(
    model: Zipformer,
    fbank: Fbank,
    pieces: Iterator[Tensor],
    windows: Windows,
    layers: Sequence[int] = (),
) -> Iterator[list[Tensor]]:
    """Encodes a recording window by window.

    Args:
        model: In evaluation mode.
        fbank: The features, on the device of the model.
        pieces: The recording's samples (S,) float, in order.
        windows: How it is cut.
        layers: Numbers of layers to return besides the output.

    Yields:
        (T, D) float of the output and of each of the layers, frames in order; together one pass's
        number of them.
    """
    waiting = fbank.window.new_zeros(0, fbank.num_mel_bins)
    begin, done = 0, 0  # of `waiting` in the recording, and how far its frames were encoded
    for frames, is_last in _features(fbank, pieces):
        waiting = torch.cat((waiting, frames))
        end = begin + len(waiting)
        while done < end and (is_last or end - done >= windows.core + windows.context):
            core_end = min(done + windows.core, end)
            # What is too short to be a window of its own belongs to the one before.
            if is_last and end - core_end <= windows.context:
                core_end = end
            seen = waiting[: core_end + windows.context - begin]
            core = slice(done - begin, None if core_end == end else core_end - begin)
            yield _core(model, seen, core, layers)
            done = core_end
            keep_from = max(done - windows.context, begin)
            waiting, begin = waiting[keep_from - begin :], keep_from


def _features(fbank: Fbank, pieces: Iterator[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Yields frames (T, M), and whether they are the recording's last."""
    stream = FbankStream(fbank)
    for piece in pieces:
        yield stream.push(piece.to(fbank.window.device)), False
    yield stream.finish(), True


@torch.no_grad()
def _core(model: Zipformer, seen: Tensor, core: slice, layers: Sequence[int]) -> list[Tensor]:
    """Encodes fbank frames (T, M) and returns what belongs to some of them, here to the end."""
    encoded = model(seen.unsqueeze(0), torch.tensor([len(seen)], device=seen.device))
    per_output = _FBANK_PER_FRAME * model.config.output_downsampling_factor
    return [
        _of_frames(encoded.output[0], core, per_output),
        *(_of_frames(encoded.layer(layer)[0], core, _FBANK_PER_FRAME) for layer in layers),
    ]


def _of_frames(x: Tensor, frames: slice, per_row: int) -> Tensor:
    """Returns the rows of x (T, D) that belong to fbank frames, `per_row` to each."""
    stop = None if frames.stop is None else frames.stop // per_row
    return x[frames.start // per_row : stop]
