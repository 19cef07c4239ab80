"""Where an encoder's frames lie in time, and frames brought to a grid that begins at 0.

s3prl, X-ARES and lhotse take for granted that frame i is the i-th 20 ms of a recording; HEAR asks
for the time of each. Both are answered here.
"""

import torch
from lhotse.utils import compute_num_frames_from_samples
from torch import Tensor

from spear.audio.checks import FRAME_HOP, SAMPLE_RATE_HZ
from spear.pretrain.collate import StudentFrames
from spear.zipformer.config import ZipformerConfig

HOP_MS = 1000 * FRAME_HOP // SAMPLE_RATE_HZ
"""Milliseconds between frames at 50 Hz."""
_FBANK_MS = 10.0


def layer_centre_ms(config: ZipformerConfig) -> float:
    """Returns where the first of the layers' 50 Hz frames is centred, in ms."""
    return _FBANK_MS * StudentFrames(config.frontend_pad).centre + _FBANK_MS / 2


def output_centre_ms(config: ZipformerConfig) -> float:
    """Returns where the first frame of the output is centred, in ms."""
    return layer_centre_ms(config) + HOP_MS / 2 * (config.output_downsampling_factor - 1)


def num_slots(num_samples: int, hop_ms: int) -> int:
    """Returns how many steps of a grid a recording at 16 kHz has, rounded to the nearest."""
    count: int = compute_num_frames_from_samples(num_samples, hop_ms / 1000, SAMPLE_RATE_HZ)
    return count


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
