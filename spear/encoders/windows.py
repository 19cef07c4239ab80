"""Recordings of any length in bounded memory: windows with context on both sides.

A window is a core, whose frames are kept, with context around it, whose frames are thrown away. It
begins at a multiple of the slowest frame rate's step, so that every rate groups the same frames as
in one pass over the whole, and sees real neighbours wherever there are some. What differs is that
attention does not reach beyond the context: see docs/zipformer.md for how much that is.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import lcm

import torch
from torch import Tensor

from spear.audio.fbank import Fbank
from spear.audio.fbank_stream import FbankStream
from spear.errors import ConfigError
from spear.zipformer.model import Zipformer

FBANK_HZ = 100
FBANK_PER_FRAME = 2
"""Fbank frames to a frame of the layers."""


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
        step = FBANK_PER_FRAME * lcm(*rates)
        core, context = (
            round(seconds * FBANK_HZ / step) * step for seconds in (window_s, context_s)
        )
        if core < step or context < step:
            raise ConfigError(
                f"window_s {window_s} and context_s {context_s}: both must be at least "
                f"{step / FBANK_HZ} s"
            )
        return cls(core, context)

    def cut(self, num_frames: int) -> Iterator[tuple[slice, slice]]:
        """Cuts a recording of so many fbank frames; what fits into one window is one.

        Yields:
            The frames that a window sees, and those of them that are kept, counted from the first
            that it sees; the last window's are open at the end. Together they are the recording.
        """
        if num_frames <= self.core + 2 * self.context:
            yield slice(0, num_frames), slice(0, None)
            return
        # What is too short to be a window of its own belongs to the one before.
        for begin in range(0, num_frames - self.context, self.core):
            end = begin + self.core
            first = max(begin - self.context, 0)
            if num_frames - end <= self.context:
                yield slice(first, num_frames), slice(begin - first, None)
            else:
                yield slice(first, end + self.context), slice(begin - first, end - first)


def encode_windows(
    model: Zipformer,
    fbank: Fbank,
    pieces: Iterator[Tensor],
    cut: Iterable[tuple[slice, slice]],
    layers: Sequence[int] = (),
) -> Iterator[list[Tensor]]:
    """Encodes a recording window by window.

    Args:
        model: In evaluation mode.
        fbank: The features, on the device of the model.
        pieces: The recording's samples (S,) float, in order.
        cut: What its windows see and what is kept of them, from `Windows.cut`.
        layers: Numbers of layers to return besides the output.

    Yields:
        (T, D) float of the output and of each of the layers, frames in order; together one pass's
        number of them.
    """
    features = _features(fbank, pieces)
    waiting, begin = fbank.window.new_zeros(0, fbank.num_mel_bins), 0
    for seen, core in cut:
        waiting, begin = waiting[seen.start - begin :], seen.start
        while len(waiting) < seen.stop - seen.start:
            waiting = torch.cat((waiting, next(features)))
        yield _core(model, waiting[: seen.stop - seen.start], core, layers)


def _features(fbank: Fbank, pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yields frames (T, M)."""
    stream = FbankStream(fbank)
    for piece in pieces:
        yield stream.push(piece.to(fbank.window.device))
    yield stream.finish()


@torch.no_grad()
def _core(model: Zipformer, seen: Tensor, core: slice, layers: Sequence[int]) -> list[Tensor]:
    """Encodes fbank frames (T, M) and returns what belongs to some of them, here to the end."""
    encoded = model(seen.unsqueeze(0), torch.tensor([len(seen)], device=seen.device))
    per_output = FBANK_PER_FRAME * model.config.output_downsampling_factor
    return [
        rows_of(encoded.output[0], core, per_output),
        *(rows_of(encoded.layer(layer)[0], core, FBANK_PER_FRAME) for layer in layers),
    ]


def rows_of(x: Tensor, frames: slice, per_row: int) -> Tensor:
    """Returns the rows of x (T, D) that belong to fbank frames, `per_row` to each."""
    stop = None if frames.stop is None else frames.stop // per_row
    return x[frames.start // per_row : stop]
