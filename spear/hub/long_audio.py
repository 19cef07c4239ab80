"""Recordings of any length in bounded memory: windows with context on both sides.

A window is a core, whose frames are kept, with context around it, whose frames are thrown away. It
begins at a multiple of the slowest frame rate's step, so that every rate groups the same frames as
in one pass over the whole, and sees real neighbours wherever there are some. What differs is that
attention does not reach beyond the context: see docs/zipformer.md for how much that is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import lcm

import torch
from torch import Tensor

from spear.audio.fbank import Fbank
from spear.audio.fbank_stream import FbankStream
from spear.errors import ConfigError
from spear.zipformer import Zipformer

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
    model: Zipformer, fbank: Fbank, pieces: Iterator[Tensor], windows: Windows
) -> Iterator[Tensor]:
    """Encodes a recording window by window.

    Args:
        model: In evaluation mode.
        fbank: The features, on the device of the model.
        pieces: The recording's samples (S,) float, in order.
        windows: How it is cut.

    Yields:
        (T, D) float, frames in order; together one pass's number of them.
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
            yield _core(model, seen, done - begin, core_end - begin, core_end == end)
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
def _core(model: Zipformer, seen: Tensor, first: int, end: int, is_last: bool) -> Tensor:
    """Encodes fbank frames (T, M) and returns the encoder's frames of first to end."""
    lens = torch.tensor([len(seen)], device=seen.device)
    encoded = model(seen.unsqueeze(0), lens)
    per_frame = _FBANK_PER_FRAME * model.config.output_downsampling_factor
    stop = int(encoded.lens) if is_last else end // per_frame
    output: Tensor = encoded.output[0, first // per_frame : stop]
    return output
