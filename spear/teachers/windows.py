"""Windows of recordings that are too long for one pass of a teacher.

Attention over a whole recording needs memory that grows with its length squared. A long recording
is cut into windows: a core, whose frames are kept, with context on both sides, whose frames are
thrown away. Windows begin at whole frames, so that frame i of the windows is frame i of one pass.
What a teacher takes from the whole recording (its mean, its loudest frame) it still takes from the
whole: `Excerpts` carries it, and tokens do not jump where windows meet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from spear.errors import ConfigError

MIN_WINDOW_S = 1.0
MIN_CONTEXT_S = 0.2
"""Frames at a window's edges are computed without neighbours: context has at least these."""


@dataclass(frozen=True)
class Windowing:
    """How long recordings are cut.

    Attributes:
        window_s: Seconds whose frames a window keeps; 0 never cuts.
        context_s: Seconds on either side that the teacher sees besides. A recording of at most
            `window_s + 2 * context_s` is one pass.

    Raises:
        ConfigError: Lengths that make no windows.
    """

    window_s: float = 30.0
    context_s: float = 5.0

    def __post_init__(self) -> None:
        if self.window_s != 0 and self.window_s < MIN_WINDOW_S:
            raise ConfigError(f"window_s must be 0 or at least {MIN_WINDOW_S}, not {self.window_s}")
        if self.window_s > 0 and self.context_s < MIN_CONTEXT_S:
            raise ConfigError(f"context_s must be at least {MIN_CONTEXT_S}, not {self.context_s}")

    def may_cut(self, duration_s: float) -> bool:
        """Whether some teacher may get a recording of so many seconds in windows."""
        return 0 < self.window_s < duration_s


@dataclass(frozen=True)
class Window:
    """One window of a recording.

    Attributes:
        start: First sample.
        stop: Sample behind its last one; None where it ends with the recording.
        first_frame: Number in the recording of the first frame that is kept.
        num_context: Frames of the window before that one.
        num_frames: Frames that are kept; None for all to the end.
    """

    start: int
    stop: int | None
    first_frame: int
    num_context: int
    num_frames: int | None

    def core(self, frames: Tensor) -> Tensor:
        """Returns the kept ones of the window's frames (T, D)."""
        stop = None if self.num_frames is None else self.num_context + self.num_frames
        return frames[self.num_context : stop]


@dataclass(frozen=True)
class Excerpts:
    """What the rows of a batch are to the recordings that they are windows of.

    Attributes:
        num_context: For each row its frames before the first that is kept.
        statistics: (B, k) float32, `Teacher.statistics` of each row's whole recording.
    """

    num_context: Sequence[int]
    statistics: Tensor


def cut_windows(num_frames: int, core: int, context: int, hop: int) -> list[Window]:
    """Cuts a recording into windows.

    Args:
        num_frames: Frames of the recording, more than `core`.
        core: Frames that a window keeps.
        context: Frames on either side of them, as far as the recording goes; at least 1.
        hop: Samples per frame.

    Returns:
        Windows whose cores are all frames, in order. What is too short to be a window of its own
        belongs to the one before.
    """
    windows: list[Window] = []
    first = 0
    while first < num_frames:
        stop = first + core
        is_last = stop + context >= num_frames
        start = max(0, first - context)
        windows.append(
            Window(
                start=start * hop,
                stop=None if is_last else (stop + context) * hop,
                first_frame=first,
                num_context=first - start,
                num_frames=None if is_last else core,
            )
        )
        first = num_frames if is_last else stop
    return windows
