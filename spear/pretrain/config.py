"""Everything that can be set of a pre-training run, in one dataclass."""

from dataclasses import dataclass, field

from spear.data.index.clip_index import SourceConfig
from spear.data.index.plan import BatchConfig
from spear.pretrain.augment import AugmentConfig
from spear.pretrain.losses import LossConfig
from spear.pretrain.masking import MaskConfig
from spear.pretrain.model import TeacherTarget
from spear.training import TrainConfig
from spear.zipformer import ZipformerConfig


@dataclass
class PretrainConfig:
    """Pre-trains a student on teachers' tokens."""

    data: list[SourceConfig] = field(default_factory=list)
    """Shard folders to train on, speech and general audio; a clip's domain stands in its cut."""

    valid: list[SourceConfig] = field(default_factory=list)
    """Shard folders to validate on; without any there is no validation."""

    teachers: dict[str, TeacherTarget] = field(default_factory=dict)
    """Teachers by name, the name under which their tokens were extracted."""

    student: ZipformerConfig = field(default_factory=ZipformerConfig)
    """The encoder."""

    activation_checkpointing: bool = False
    """Runs every layer again in the backward pass instead of keeping its inside: the memory of a
    step falls to a fraction, the step takes about a third longer."""

    mask: MaskConfig = field(default_factory=MaskConfig)
    """What the student may not see."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Noise and token mixing."""

    loss: LossConfig = field(default_factory=LossConfig)
    """How teachers and frames are weighed."""

    batch: BatchConfig = field(default_factory=BatchConfig)
    """How clips are put into batches."""

    num_workers: int = 4
    """Processes per rank that read and prepare batches; 0 does it in the training process."""

    baseline_clips: int = 2000
    """Training clips in which the most frequent tokens are counted."""

    profile: bool = False
    """Trace 20 steps with torch's profiler into the run folder's profile/; `--profile` will do."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """The loop: steps, learning rate, checkpoints, seed."""
