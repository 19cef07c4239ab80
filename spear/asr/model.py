"""The speech recogniser: an encoder with a CTC head and the tokenizer that its ids belong to.

Takes log-mel features, gives log-probabilities, the training loss, or text. Its weights are the
encoder's (`encoder.*`), `ctc_head.*` and, where it mixes layers, `layer_mix.*`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spear.asr.batch import AsrBatch
from spear.asr.consistency import consistency_loss
from spear.asr.ctc import CtcHead, CtcLoss, Hypothesis, ctc_loss, greedy_decode
from spear.asr.layer_mix import LAST, LayerMix, idle_parameters, parse_layers, read_frames
from spear.asr.scoring import ErrorCounts, total_errors, word_errors
from spear.asr.tokenizer import Tokenizer, normalize
from spear.encoders.frame_grid import HOP_MS, output_centre_ms
from spear.training.task import LossTerm, Metric, StepOutput
from spear.zipformer import Zipformer, ZipformerConfig


@dataclass(frozen=True)
class Transcript:
    """What was recognised in one recording."""

    text: str
    """Text, normalised as the training transcripts were."""
    tokens: list[str]
    """Its tokens as the tokenizer writes them."""
    times_s: list[float]
    """For each token the middle of the encoder frame at which it begins, in seconds."""
    score: float = 0.0
    """Log-probability, with what a language model adds; 0 where the search computes none."""


class AsrModel(nn.Module):
    """Recogniser of one language's transcripts; called, it does a training step.

    Args:
        config: The encoder; `output_downsampling_factor` 2 gives CTC 25 frames a second.
        tokenizer: What the ids mean.
        dropout: Probability of dropout before the last layer.
        layers: What the head reads: "last" (the output), "weighted" (a learned sum of all layers)
            or a layer's number.
        consistency_weight: Factor of the consistency loss of batches that hold two copies.

    Attributes:
        encoder: What the heads read.
        idle: Names of encoder parameters that the layers read do not depend on.
    """

    def __init__(
        self,
        config: ZipformerConfig,
        tokenizer: Tokenizer,
        dropout: float = 0.1,
        layers: str = LAST,
        consistency_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = Zipformer(config)
        self.tokenizer = tokenizer
        self.dropout = dropout
        self.layers = layers
        self.consistency_weight = consistency_weight
        chosen = parse_layers(layers, sum(config.num_encoder_layers))
        self.layer_mix = None if chosen is None else LayerMix(chosen, self.encoder.output_dim)
        self.idle = frozenset[str]()
        if self.layer_mix is not None:
            names = idle_parameters(self.encoder, self.layer_mix)
            self.idle = frozenset(f"encoder.{name}" for name in names)
        self.ctc_head = CtcHead(self.encoder.output_dim, tokenizer.vocab_size, dropout)

    @property
    def has_ctc(self) -> bool:
        """Whether the CTC head is trained, so that what it says counts."""
        return True

    def forward(self, batch: AsrBatch) -> StepOutput:
        """Computes the loss of a batch, and in evaluation mode the word error rate too."""
        frames, lens = self.encode(batch.fbank, batch.fbank_lens)
        output = self.losses(frames, lens, batch)
        if not self.training:
            found = self.greedy(frames, lens)
            output.metrics["wer"] = self._word_error_rate(found, batch.texts)
        return output

    def encode(self, fbank: Tensor, fbank_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the heads read: (B, T', D) float frames and (B,) int64 valid frames."""
        encoded = self.encoder(fbank, fbank_lens)
        return read_frames(self.encoder, encoded, fbank_lens, self.layer_mix), encoded.lens

    def losses(self, frames: Tensor, lens: Tensor, batch: AsrBatch) -> StepOutput:
        """Computes the CTC loss of encoded frames (B, T', D), valid as `lens` (B,) says."""
        log_probs = self.ctc_head(frames)
        loss = ctc_loss(log_probs, lens, batch.tokens, batch.token_lens)
        terms = {"ctc": LossTerm(loss.total, loss.num_frames)}
        if batch.num_copies == 2:
            total = consistency_loss(log_probs, lens, loss.feasible)
            terms["consistency"] = LossTerm(total, loss.num_frames, self.consistency_weight)
        return StepOutput(terms, {"left_out": _share_left_out(loss)})

    def greedy(self, frames: Tensor, lens: Tensor) -> list[Hypothesis]:
        """Decodes encoded frames (B, T', D) greedily."""
        return greedy_decode(self.ctc_head(frames), lens)

    def log_probs(self, fbank: Tensor, fbank_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Scores tokens at every encoder frame with the CTC head.

        Args:
            fbank: (B, T, M) float32 log-mel.
            fbank_lens: (B,) int64, valid fbank frames.

        Returns:
            (B, T', V) float32 log-probabilities and (B,) int64 valid frames.
        """
        frames, lens = self.encode(fbank, fbank_lens)
        return self.ctc_head(frames), lens

    @torch.no_grad()
    def recognize(self, fbank: Tensor, fbank_lens: Tensor) -> list[Transcript]:
        """Recognises a batch of features (B, T, M) greedily; set evaluation mode before.

        A recording too short for one encoder frame gives an empty transcript.
        """
        hypotheses = self.greedy(*self.encode(fbank, fbank_lens))
        return [self.transcript(hypothesis) for hypothesis in hypotheses]

    def frame_time_s(self, frame: int) -> float:
        """Returns the middle of an encoder frame in seconds from the recording's start."""
        config = self.encoder.config
        hop_ms = HOP_MS * config.output_downsampling_factor
        return round((output_centre_ms(config) + hop_ms * frame) / 1000, 4)

    def transcript(self, hypothesis: Hypothesis) -> Transcript:
        """Puts what a search found into text and seconds."""
        return Transcript(
            text=self.tokenizer.decode(hypothesis.tokens),
            tokens=[self.tokenizer.piece(token) for token in hypothesis.tokens],
            times_s=[self.frame_time_s(frame) for frame in hypothesis.frames],
            score=hypothesis.score,
        )

    def _word_error_rate(self, hypotheses: Sequence[Hypothesis], texts: Sequence[str]) -> Metric:
        errors: ErrorCounts = total_errors(
            word_errors(
                normalize(text, self.tokenizer.config), self.tokenizer.decode(hypothesis.tokens)
            )
            for hypothesis, text in zip(hypotheses, texts, strict=True)
        )
        percent = torch.tensor(100.0 * errors.num_errors)
        return Metric(percent, torch.tensor(errors.num_ref))

    def model_config(self) -> dict[str, Any]:
        """Returns what rebuilds the model beside its tokenizer, as JSON."""
        return {
            "task": "asr",
            "student": self.encoder.config.to_dict(),
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer_sha256": self.tokenizer.sha256,
            "dropout": self.dropout,
            "layers": self.layers,
        }


def _share_left_out(loss: CtcLoss) -> Metric:
    """The share of utterances that have more labels than frames."""
    return Metric((~loss.feasible).sum(), torch.tensor(loss.feasible.numel()))
