"""Where an encoder's frames lie in time, and frames brought to a grid that begins at 0.

`StudentFrames` counts in fbank frames, as targets and masks of training are matched to frames.

s3prl, X-ARES and lhotse take for granted that frame i is the i-th 20 ms of a recording; HEAR asks
for the time of each. Both are answered here.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spear.audio.checks import FRAME_HOP, SAMPLE_RATE_HZ
from spear.zipformer.config import ZipformerConfig

STUDENT_RATE_HZ = 50.0
HOP_MS = 1000 * FRAME_HOP // SAMPLE_RATE_HZ
"""Milliseconds between frames at 50 Hz."""
_FBANK_MS = 10.0


@dataclass(frozen=True)
class StudentFrames:
    """Where the student's frames lie: how many there are and which fbank frames they look at.

    Student frame i is centred on fbank frame 2 i + 1 where the front end pads its input (3 frames
    left, 4 right: its receptive field is 2 i - 3 .. 2 i + 5), else on fbank frame 2 i + 4.

    Attributes:
        frontend_pad: As in the student's configuration.
    """

    frontend_pad: bool = True

    def count(self, num_fbank_frames: int) -> int:
        """Returns T' for T fbank frames: T // 2 with padding, else (T - 7) // 2, never below 0."""
        return max(0, (num_fbank_frames - (0 if self.frontend_pad else 7)) // 2)

    @property
    def centre(self) -> int:
        """The fbank frame on which student frame 0 is centred."""
        return 1 if self.frontend_pad else 4

    @property
    def token_shift(self) -> int:
        """The token frame (at 50 Hz) that lies nearest to student frame 0.

        Fbank frame j is centred at 10 j + 5 ms and WavLM's frame i at 20 i + 12.5 ms, so a padded
        student is 2.5 ms late and an unpadded one 32.5 ms, which is 1.6 frames.
        """
        return 0 if self.frontend_pad else 2

    def mask(self, fbank_mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Brings a mask to the student's frames: a frame is masked if its central frame is.

        Args:
            fbank_mask: (B, T) bool at 100 Hz.

        Returns:
            (B, T') bool at 50 Hz.
        """
        count = self.count(fbank_mask.shape[1])
        return fbank_mask[:, self.centre : self.centre + 2 * count : 2]


def layer_centre_ms(config: ZipformerConfig) -> float:
    """Returns where the first of the layers' 50 Hz frames is centred, in ms."""
    return _FBANK_MS * StudentFrames(config.frontend_pad).centre + _FBANK_MS / 2


def output_centre_ms(config: ZipformerConfig) -> float:
    """Returns where the first frame of the output is centred, in ms."""
    return layer_centre_ms(config) + HOP_MS / 2 * (config.output_downsampling_factor - 1)


def num_slots(num_samples: int, hop_ms: int) -> int:
    """Returns how many steps of a grid a recording at 16 kHz has, as lhotse rounds them."""
    hop = SAMPLE_RATE_HZ * hop_ms // 1000
    return (num_samples + hop // 2) // hop


def on_grid(
    frames: Tensor, lens: Tensor, num_slots: int, first_ms: float, hop_ms: float = HOP_MS
) -> Tensor:
    """Picks, for every slot of a time grid that begins at 0, the frame that is nearest in time.

    Front ends with padding make a frame per slot: at most the last is repeated or left out. Those
    without (the published checkpoints') see the first 45 ms as a whole: their first frame is there
    twice more at the beginning, the last up to twice more at the end.

    Args:
        frames: (B, T, D) float.
        lens: (B,) int64, valid frames, all above 0.
        num_slots: N, length of the grid.
        first_ms: The middle of frame 0.
        hop_ms: Milliseconds between frames, and length of a slot.

    Returns:
        (B, N, D) float; beyond its end a recording's last frame is repeated.
    """
    late = round(first_ms / hop_ms - 0.5)
    index = (torch.arange(num_slots, device=frames.device) - late).clamp(min=0)
    index = torch.minimum(index, lens.to(frames.device)[:, None] - 1)
    return frames[torch.arange(len(frames), device=frames.device)[:, None], index]
