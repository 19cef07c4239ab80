"""A finished SPEAR student as a teacher, for instance for a smaller or causal student.

Layers are the student's own hidden states, one for each Zipformer layer at 50 Hz, counted from 1;
`layer` none is the encoder's output.
"""

from math import lcm

from torch import Tensor

from spear.encoders.encoder import SpearEncoder
from spear.encoders.layer_frames import LayerFrames
from spear.encoders.loading import from_pretrained
from spear.teachers.base import Teacher, TeacherIdentity, check_layer
from spear.teachers.config import TeacherConfig
from spear.teachers.source import resolve_model_folder, weights_digest, weights_files
from spear.teachers.windows import Excerpts


class SpearTeacher(Teacher):
    """One layer's output, or the final output, of a SPEAR encoder.

    Args:
        identity: What it is.
        student: The encoder.
    """

    def __init__(self, identity: TeacherIdentity, student: SpearEncoder) -> None:
        super().__init__(identity, normalize_channels=True)
        self.student = student
        self._read = LayerFrames(student, identity.layer)

    def num_frames(self, num_samples: int) -> int:
        """Returns the frames of the wanted layer, or of the output."""
        return self._read.num_frames(num_samples)

    @property
    def window_step(self) -> int:  # type: ignore[override]
        """The slowest layer's step: every layer groups the frames of one pass."""
        config = self.student.config
        step = lcm(*config.downsampling_factor, config.output_downsampling_factor)
        return step // (config.output_downsampling_factor if self.layer is None else 1)

    def represent(
        self, audio: Tensor, audio_lens: Tensor, lens: Tensor, excerpts: Excerpts | None = None
    ) -> Tensor:
        """Runs the student, which is batch-invariant itself."""
        return self._read.pick(self.student(audio, audio_lens))[:, : int(lens.max())]


def load_spear_teacher(config: TeacherConfig) -> SpearTeacher:
    """Loads a student from an export folder, a published SPEAR folder, or the hub.

    Raises:
        CheckpointError: There is no such model, its weights do not fit, or it has no such layer.
    """
    assert config.path is not None
    folder = resolve_model_folder(config.path, config.name)
    student = from_pretrained(folder)
    check_layer(config.layer, student.num_layers, config.name, first=1)
    read = LayerFrames(student, config.layer)
    identity = TeacherIdentity(
        name=config.name,
        family="spear",
        path=config.path,
        layer=config.layer,
        frame_rate_hz=1000 / read.hop_ms,
        dim=read.dim,
        weights_sha256=weights_digest(weights_files(folder)),
    )
    return SpearTeacher(identity, student)
