"""A finished SPEAR student as a teacher, for instance for a smaller or causal student.

Layers are the student's own hidden states, one for each Zipformer layer at 50 Hz, counted from 1;
`layer` none is the encoder's output.
"""

from math import lcm

import torch
from torch import Tensor

from spear.audio import SAMPLE_RATE_HZ, num_fbank_frames
from spear.encoders.encoder import SpearEncoder
from spear.encoders.loading import from_pretrained
from spear.teachers.base import Teacher, TeacherIdentity, check_layer
from spear.teachers.config import TeacherConfig
from spear.teachers.source import resolve_model_folder, weights_digest, weights_files
from spear.teachers.windows import Excerpts
from spear.zipformer.subsampling import num_subsampled

HIDDEN_RATE_HZ = 50.0


class SpearTeacher(Teacher):
    """One layer's output, or the final output, of a SPEAR encoder.

    Args:
        identity: What it is.
        student: The encoder.
    """

    def __init__(self, identity: TeacherIdentity, student: SpearEncoder) -> None:
        super().__init__(identity, normalize_channels=True)
        self.student = student

    def num_frames(self, num_samples: int) -> int:
        """Returns the frames of the wanted layer, or of the output."""
        num_fbank = num_fbank_frames(num_samples)
        if self.layer is None:
            return self.student.model.num_output_frames(num_fbank)
        return int(num_subsampled(num_fbank, self.student.config.frontend_pad))

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
        out = self.student(audio, audio_lens)
        chosen = out["encoder_out"] if self.layer is None else out["hidden_states"][self.layer - 1]
        return chosen[:, : int(lens.max())]


def load_spear_teacher(config: TeacherConfig) -> SpearTeacher:
    """Loads a student from an export folder, a published SPEAR folder, or the hub.

    Raises:
        CheckpointError: There is no such model, its weights do not fit, or it has no such layer.
    """
    assert config.path is not None
    folder = resolve_model_folder(config.path, config.name)
    student = from_pretrained(folder)
    widths = _layer_widths(student)
    check_layer(config.layer, len(widths), config.name, first=1)
    is_output = config.layer is None
    identity = TeacherIdentity(
        name=config.name,
        family="spear",
        path=config.path,
        layer=config.layer,
        frame_rate_hz=student.frame_rate_hz if is_output else HIDDEN_RATE_HZ,
        dim=student.output_dim if config.layer is None else widths[config.layer - 1],
        weights_sha256=weights_digest(weights_files(folder)),
    )
    return SpearTeacher(identity, student)


@torch.no_grad()
def _layer_widths(student: SpearEncoder) -> list[int]:
    """Returns the width of every hidden state, as half a second of silence shows them."""
    num_samples = SAMPLE_RATE_HZ // 2
    out = student(torch.zeros(1, num_samples), torch.tensor([num_samples]))
    return [hidden.shape[2] for hidden in out["hidden_states"]]
