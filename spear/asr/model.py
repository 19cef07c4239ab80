"""The speech recogniser: a Zipformer with a CTC head and the tokenizer that its ids belong to.

Takes log-mel features, gives log-probabilities, the training loss, or text. Its weights are named
`encoder_embed.*`, `encoder.*` and `ctc_head.*`, so encoder weights move between pre-training,
exports and recognisers without a translation table.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear.asr.apply.scoring import ErrorCounts, total_errors, word_errors
from spear.asr.layer_mix import LAST, LayerMix, idle_parameters, parse_layers, read_frames
from spear.asr.search.ctc import CtcHead, CtcLoss, Hypothesis, ctc_loss, greedy_decode
from spear.asr.tokenizer import Tokenizer, normalize
from spear.asr.train.consistency import consistency_loss
from spear.asr.train.data import AsrBatch
from spear.encoders.frame_grid import StudentFrames
from spear.errors import CheckpointError
from spear.system.files import sha256_of
from spear.system.model_folder import read_json_object
from spear.training.checkpoints.checkpoint import load_tensors, load_weights
from spear.training.task import LossTerm, Metric, StepOutput
from spear.zipformer import Zipformer, ZipformerConfig
from spear.zipformer.weights import load_exact

TOKENIZER_FOLDER = "tokenizer"
RECOGNIZER_FILE = "recognizer.json"
RECOGNIZER_WEIGHTS = "model.safetensors"
FBANK_SHIFT_S = 0.01


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


class AsrModel(Zipformer):
    """Recogniser of one language's transcripts.

    It is a Zipformer so that the weights' names are those of one, and what moves schedules or
    exports an encoder finds what it looks for; called, it does a training step.

    Args:
        config: The encoder; `output_downsampling_factor` 2 gives CTC 25 frames a second.
        tokenizer: What the ids mean.
        dropout: Probability of dropout before the last layer.
        layers: What the head reads: "last" (the output), "weighted" (a learned sum of all layers)
            or a layer's number.
        consistency_weight: Factor of the consistency loss of batches that hold two copies.

    Attributes:
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
        super().__init__(config)
        self.tokenizer = tokenizer
        self.dropout = dropout
        self.layers = layers
        self.consistency_weight = consistency_weight
        chosen = parse_layers(layers, sum(config.num_encoder_layers))
        self.layer_mix = None if chosen is None else LayerMix(chosen, self.output_dim)
        self.idle = frozenset[str]()
        if self.layer_mix is not None:
            self.idle = idle_parameters(self, self.layer_mix)
        self.ctc_head = CtcHead(self.output_dim, tokenizer.vocab_size, dropout)

    @property
    def has_ctc(self) -> bool:
        """Whether the CTC head is trained, so that what it says counts."""
        return True

    def forward(self, batch: AsrBatch) -> StepOutput:  # type: ignore[override]
        """Computes the loss of a batch, and in evaluation mode the word error rate too."""
        frames, lens = self.encode(batch.fbank, batch.fbank_lens)
        output = self.losses(frames, lens, batch)
        if not self.training:
            found = self.greedy(frames, lens)
            output.metrics["wer"] = self._word_error_rate(found, batch.texts)
        return output

    def encode(self, fbank: Tensor, fbank_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the heads read: (B, T', D) float frames and (B,) int64 valid frames."""
        encoded = super().forward(fbank, fbank_lens)
        return read_frames(self, encoded, fbank_lens, self.layer_mix), encoded.lens

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
        factor = self.config.output_downsampling_factor
        fbank_frame = StudentFrames(self.config.frontend_pad).centre + 2 * factor * frame
        return round(FBANK_SHIFT_S * (fbank_frame + 0.5 + factor - 1), 4)

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
            "student": self.config.to_dict(),
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer_sha256": self.tokenizer.sha256,
            "dropout": self.dropout,
            "layers": self.layers,
        }


def _share_left_out(loss: CtcLoss) -> Metric:
    """The share of utterances that have more labels than frames."""
    return Metric((~loss.feasible).sum(), torch.tensor(loss.feasible.numel()))


def with_output_rate(config: ZipformerConfig, factor: int | None) -> ZipformerConfig:
    """Returns the configuration with another `output_downsampling_factor`; None keeps it."""
    if factor is None:
        return config
    return dataclasses.replace(config, output_downsampling_factor=factor)


def load_asr_model(run_dir: str | Path, weights: str = "averaged", device: str = "cpu") -> AsrModel:
    """Loads a finished or running recogniser in evaluation mode.

    Args:
        run_dir: Run folder of `spear finetune-asr`, one of its checkpoint folders, or a recogniser
            that was exported or imported.
        weights: Which of the run's weights, as
            `spear.training.checkpoints.checkpoint.load_weights` takes it; a folder that is no run
            has its weights only.
        device: Where the weights go.

    Raises:
        CheckpointError: It is no such folder, or its parts do not belong together.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise CheckpointError(f"no run folder {folder}; run `spear finetune-asr` first")
    if is_recognizer_folder(folder):
        state, content = _read_recognizer(folder)
    else:
        state, content = load_weights(folder, weights)
    if content.get("task") != "asr":
        raise CheckpointError(f"{folder} is not a run of `spear finetune-asr`: it has no ASR head")
    tokenizer = Tokenizer.load(find_tokenizer(folder))
    if tokenizer.sha256 != content["tokenizer_sha256"]:
        raise CheckpointError(
            f"{folder}: the tokenizer is not the one the weights were trained with"
        )
    model = _build(content, tokenizer)
    load_exact(model, state, str(folder))
    return model.to(device).eval()


def is_recognizer_folder(folder: Path) -> bool:
    """Whether this is a recogniser without its run, which has one set of weights only."""
    return (folder / RECOGNIZER_FILE).is_file()


def _read_recognizer(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads weights and configuration of a folder that `write_recognizer` wrote."""
    content = read_json_object(folder / RECOGNIZER_FILE)
    weights = folder / RECOGNIZER_WEIGHTS
    if not weights.is_file() or sha256_of(weights) != content.get("weights_sha256"):
        raise CheckpointError(f"{weights} is not the file that was written there")
    return load_tensors(weights), content


def _build(content: dict[str, Any], tokenizer: Tokenizer) -> AsrModel:
    """Builds the model that `model_config` described."""
    student = ZipformerConfig.from_dict(content["student"])
    dropout, layers = float(content["dropout"]), str(content.get("layers", LAST))
    if "transducer" not in content:
        return AsrModel(student, tokenizer, dropout, layers)
    from spear.asr.transducer import TransducerConfig, TransducerModel  # made on top of AsrModel

    transducer = TransducerConfig(**content["transducer"])
    return TransducerModel(student, tokenizer, transducer, dropout=dropout, layers=layers)


def find_tokenizer(folder: Path) -> Path:
    """Finds the tokenizer of a run folder, or of the run that a checkpoint folder lies in."""
    for candidate in (folder, folder.parent, folder.parent.parent):
        if (candidate / TOKENIZER_FOLDER).is_dir():
            return candidate / TOKENIZER_FOLDER
    return folder / TOKENIZER_FOLDER
