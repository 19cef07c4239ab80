"""The model of pre-training: an encoder that sees masked features, and one head per teacher.

Its parameters are the encoder's (`encoder.*`), the vector that stands for masked frames
(`mask_emb`) and the heads (`heads.{teacher}.*`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from spear.data.formats.tokens import MAX_CODEBOOK_SIZE
from spear.encoders.frame_grid import StudentFrames
from spear.encoders.protocol import Encoder
from spear.errors import ConfigError
from spear.pretrain.collate import PretrainBatch
from spear.pretrain.losses import LossConfig, TokenHead, frame_weights
from spear.pretrain.token_metrics import UnigramBaseline, token_metrics, usage_metrics
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


class PretrainModel(nn.Module):
    """Predicts teachers' tokens from masked features.

    Args:
        student: The encoder.
        teachers: Name -> what is predicted.
        loss: Weights.
        channel_mask_value: What masked mel bins are set to.

    Attributes:
        encoder: What is trained.
        mask_emb: (M,) parameter, replaces masked fbank frames.
        heads: Teacher -> `TokenHead`.
        baselines: Teacher -> `UnigramBaseline`, of which nothing is saved.
        frames: Geometry of the student's frames.
    """

    def __init__(
        self,
        student: ZipformerConfig,
        teachers: Mapping[str, TeacherTarget],
        loss: LossConfig,
        channel_mask_value: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder: Encoder = Zipformer(student)
        self.loss_config = loss
        self.channel_mask_value = channel_mask_value
        self.frames = StudentFrames(student.frontend_pad)
        self.teachers = dict(teachers)
        self.mask_emb = nn.Parameter(torch.empty(student.feature_dim).uniform_(-1.0, 1.0))
        self.heads = nn.ModuleDict(
            {
                name: TokenHead(self.encoder.output_dim, target.num_codebooks, target.codebook_size)
                for name, target in teachers.items()
            }
        )
        self.baselines = nn.ModuleDict(
            {
                name: UnigramBaseline(target.num_codebooks, target.codebook_size)
                for name, target in teachers.items()
            }
        )

    def set_token_counts(self, teacher: str, counts: Tensor) -> None:
        """Sets how often each token (N, K) occurs in training: what the student must beat."""
        self.baseline(teacher).set_counts(counts)

    def baseline(self, teacher: str) -> UnigramBaseline:
        """Returns what one knows of a teacher's tokens without listening."""
        baseline = self.baselines[teacher]
        assert isinstance(baseline, UnigramBaseline)
        return baseline

    def encode(self, batch: PretrainBatch) -> Tensor:
        """Masks the features and runs the student.

        Returns:
            (B, T', D) frames at 50 Hz.
        """
        fbank = mask_features(
            batch.fbank, batch.mask, batch.channel_mask, self.mask_emb, self.channel_mask_value
        )
        return self.encoder(fbank, batch.fbank_lens).output

    def forward(self, batch: PretrainBatch) -> StepOutput:
        """Computes every teacher's loss term and metrics on a batch, without waiting for a GPU.

        Returns:
            A term per teacher, counted in frames times codebooks, and the metrics of
            `token_metrics` (in evaluation also of `usage_metrics`), each with the teacher's name
            before it; in training `data/padding(%)`.
        """
        hidden = self.encode(batch).flatten(0, 1)
        output = StepOutput({}, {"data/padding(%)": padding(batch)} if self.training else {})
        for name in self.teachers:
            term, metrics = self._predict(name, hidden, batch)
            output.terms[name] = term
            output.metrics |= {f"{name}_{metric}": value for metric, value in metrics.items()}
        return output

    def _predict(
        self, name: str, hidden: Tensor, batch: PretrainBatch
    ) -> tuple[LossTerm, dict[str, Metric]]:
        """Returns what one teacher's head makes of all frames (B T', D)."""
        target, head = self.teachers[name], self.heads[name]
        assert isinstance(head, TokenHead)
        places = batch.valid_frames[name]
        tokens = batch.tokens[name].flatten(0, 1)[places]
        is_masked = batch.student_mask.flatten()[places]
        frames = hidden.index_select(0, places)  # its backward sorts nothing, unlike hidden[places]
        loss = head.loss(frames, tokens, frame_weights(is_masked, self.loss_config.alpha))
        weight = 1.0 if target.role == "speech" else self.loss_config.audio_weight
        count = torch.full((), float(tokens.numel()), device=hidden.device)
        metrics = token_metrics(loss, tokens, is_masked, self.baseline(name))
        if not self.training:
            metrics |= usage_metrics(loss, tokens, target.codebook_size)
        return LossTerm(loss.total, count, weight), metrics


def padding(batch: PretrainBatch) -> Metric:
    """Returns the percentage of fbank frames that are padding."""
    num_frames = torch.full((), float(batch.mask.numel()), device=batch.fbank_lens.device)
    return Metric(100.0 * (num_frames - batch.fbank_lens.sum()), num_frames)


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
