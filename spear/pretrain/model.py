"""The model of pre-training: a Zipformer that sees masked features, and one head per teacher.

Its parameters are those of the Zipformer (`encoder_embed.*`, `encoder.*`) with the vector that
stands for masked frames (`mask_emb`) and the heads (`heads.{teacher}.*`), so a checkpoint of it is
an encoder's checkpoint with heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from spear.data.collate import PretrainBatch, StudentFrames
from spear.data.tokens import MAX_CODEBOOK_SIZE
from spear.errors import ConfigError
from spear.pretrain.losses import LossConfig, TokenHead, frame_weights, token_metrics
from spear.training import LossTerm, Metric, StepOutput
from spear.zipformer import Zipformer, ZipformerConfig


@dataclass
class TeacherTarget:
    """What the student predicts of one teacher."""

    role: Literal["speech", "audio"]
    """Domain of the teacher: what it knows, and with which weight it counts."""

    num_codebooks: int = 16
    """N, tokens in a frame."""

    codebook_size: int = 256
    """K, values of a token, at most 65,536; above 256 tokens have two bytes (baselines only)."""

    frame_rate_hz: float = 50.0
    """Token frames per second; the student's 50 Hz must be a multiple of it."""

    quantizer: str | None = None
    """quantizer.safetensors that made the tokens; if given, tokens of another one are refused."""

    def __post_init__(self) -> None:
        if self.num_codebooks < 1:
            raise ConfigError(f"num_codebooks is {self.num_codebooks}: it must be 1 or more")
        if not 1 < self.codebook_size <= MAX_CODEBOOK_SIZE:
            raise ConfigError(
                f"codebook_size is {self.codebook_size}: tokens have one byte or two, "
                f"2 to {MAX_CODEBOOK_SIZE}"
            )


class PretrainModel(Zipformer):
    """Predicts teachers' tokens from masked features.

    Args:
        student: The Zipformer.
        teachers: Name -> what is predicted.
        loss: Weights.
        channel_mask_value: What masked mel bins are set to.

    Attributes:
        mask_emb: (M,) parameter, replaces masked fbank frames.
        heads: Teacher -> `TokenHead`.
        frames: Geometry of the student's frames.
    """

    def __init__(
        self,
        student: ZipformerConfig,
        teachers: Mapping[str, TeacherTarget],
        loss: LossConfig,
        channel_mask_value: float = 0.0,
    ) -> None:
        super().__init__(student)
        self.loss_config = loss
        self.channel_mask_value = channel_mask_value
        self.frames = StudentFrames(student.frontend_pad)
        self.teachers = dict(teachers)
        self.mask_emb = nn.Parameter(torch.empty(student.feature_dim).uniform_(-1.0, 1.0))
        self.heads = nn.ModuleDict(
            {
                name: TokenHead(self.output_dim, target.num_codebooks, target.codebook_size)
                for name, target in teachers.items()
            }
        )
        for name, target in teachers.items():
            frequent = torch.zeros(target.num_codebooks, dtype=torch.long)
            self.register_buffer(f"frequent_{name}", frequent, persistent=False)

    def set_frequent_tokens(self, teacher: str, frequent: Tensor) -> None:
        """Sets the (N,) integer most frequent tokens, the baseline of a teacher's accuracy."""
        self.get_buffer(f"frequent_{teacher}").copy_(frequent)

    def encode(self, batch: PretrainBatch) -> Tensor:
        """Masks the features and runs the student.

        Returns:
            (B, T', D) frames at 50 Hz.
        """
        fbank = mask_features(
            batch.fbank, batch.mask, batch.channel_mask, self.mask_emb, self.channel_mask_value
        )
        output: Tensor = super().forward(fbank, batch.fbank_lens).output
        return output

    def forward(self, batch: PretrainBatch) -> StepOutput:  # type: ignore[override]
        """Computes every teacher's loss term and metrics on a batch.

        Returns:
            A term per teacher, counted in frames times codebooks, and the metrics of
            `token_metrics`, each with the teacher's name before it.
        """
        hidden = self.encode(batch).flatten(0, 1)
        student_mask = batch.student_mask.flatten()
        terms: dict[str, LossTerm] = {}
        metrics: dict[str, Metric] = {}
        for name, target in self.teachers.items():
            places = batch.valid_frames[name]
            tokens = batch.tokens[name].flatten(0, 1)[places]
            is_masked = student_mask[places]
            head = self.heads[name]
            assert isinstance(head, TokenHead)
            total, predictions = head.loss(
                hidden[places], tokens, frame_weights(is_masked, self.loss_config.alpha)
            )
            weight = 1.0 if target.role == "speech" else self.loss_config.audio_weight
            terms[name] = LossTerm(total, total.new_tensor(float(tokens.numel())), weight)
            frequent = self.get_buffer(f"frequent_{name}")
            values = token_metrics(predictions, tokens, is_masked, frequent, target.codebook_size)
            metrics |= {f"{name}_{metric}": value for metric, value in values.items()}
        return StepOutput(terms, metrics)


def mask_features(
    fbank: Tensor,
    mask: Tensor,
    channel_mask: Tensor,
    mask_emb: Tensor,
    channel_mask_value: float = 0.0,
) -> Tensor:
    """Hides frames, then mel bins, as wav2vec 2.0 does: a masked bin is masked in every frame.

    Args:
        fbank: (B, T, M) float features.
        mask: (B, T) bool, frames to replace by `mask_emb`.
        channel_mask: (B, M) bool, bins to set to `channel_mask_value`.
        mask_emb: (M,) what replaces a frame.
        channel_mask_value: What replaces a bin.

    Returns:
        (B, T, M), in the type of `fbank`.
    """
    hidden = torch.where(mask.unsqueeze(-1), mask_emb.to(fbank.dtype), fbank)
    return hidden.masked_fill(channel_mask.unsqueeze(1), channel_mask_value)
