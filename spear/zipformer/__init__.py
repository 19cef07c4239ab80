"""The student encoder: Zipformer, its configuration and the schedules of its training.

Files, from the outside in: `model` (front end and stacks), `stack`, `layer`, and the modules of a
layer (`attention`, `convolution`, `feedforward`, `bypass`, `norm`); `subsampling` is the front end,
`frames` says what padding is, `regularizers` and `gradients` shape gradients, `schedule` holds
numbers that change in training; `streaming` runs causal models chunk by chunk.
"""

from spear.system.weights import load_exact
from spear.zipformer.config import ZipformerConfig
from spear.zipformer.model import Zipformer, ZipformerOutput
from spear.zipformer.schedule import ScheduledFloat, set_schedule
from spear.zipformer.streaming import StreamingZipformer, StreamState, ZipformerStream

__all__ = [
    "ScheduledFloat",
    "StreamState",
    "StreamingZipformer",
    "Zipformer",
    "ZipformerConfig",
    "ZipformerOutput",
    "ZipformerStream",
    "load_exact",
    "set_schedule",
]
