"""Fine-tuning for speech recognition as the training loop sees it.

`AsrTask` holds the model and the data, and names the utterances that no loss can learn from.
Schedules and the frozen start of a pre-trained encoder are those of all fine-tuning
(`spear.finetune.encoder`).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from spear.asr.model import AsrModel
from spear.asr.search.ctc import num_frames_needed
from spear.asr.train.data import AsrBatch, AsrData
from spear.asr.transducer import TransducerModel
from spear.finetune.encoder import EncoderPace, EncoderStart
from spear.system.progress import get_logger
from spear.training.position import Position

logger = get_logger(__name__)


class AsrTask:
    """What is fine-tuned, on what; a `spear.training.Task`.

    Args:
        model: The recogniser.
        data: Its batches.
        start: When the encoder begins to learn, and how fast.
    """

    def __init__(self, model: AsrModel, data: AsrData, start: EncoderStart) -> None:
        self.model: nn.Module = model
        self.recognizer = model
        self.data = data
        self.start = start
        self._pace = EncoderPace(model, self.start, model.idle)
        self._named: set[str] = set()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the encoder, which learns slowly, and the heads."""
        return self._pace.parameter_groups()

    def before_step(self, position: Position) -> bool:
        """Moves schedules; freezes or unfreezes the encoder and says whether that changed."""
        if isinstance(self.recognizer, TransducerModel):
            self.recognizer.set_step(position.step)
        return self._pace.before_step(position)

    def train_batches(
        self, epoch: int, start_step: int, shares: range, num_shares: int
    ) -> Iterator[AsrBatch]:
        """Yields this rank's batches of an epoch; names utterances that the loss leaves out."""
        for batch in self.data.train_batches(epoch, start_step, shares, num_shares):
            self._name_infeasible(batch)
            yield batch

    def steps_in_epoch(self, epoch: int, num_shares: int) -> int:
        """Returns the number of steps of an epoch."""
        return self.data.steps_in_epoch(epoch, num_shares)

    def valid_batches(self, rank: int, world_size: int) -> Iterator[AsrBatch]:
        """Yields this rank's share of the validation data."""
        for batch in self.data.valid_batches(rank, world_size):
            self._name_infeasible(batch)
            yield batch

    def longest_batch(self, epoch: int, num_shares: int) -> AsrBatch:
        """Makes the training batch of an epoch that is largest with its padding."""
        return self.data.longest_batch(epoch, num_shares)

    def loss_counts(self, batch: AsrBatch) -> dict[str, float]:
        """Returns the frames of the utterances that take part in the loss, term by term."""
        frames = self._frames(batch)
        ctc = float(sum(there for there, needed in frames if there >= needed))
        counts = {"ctc": ctc} if batch.num_copies == 1 else {"ctc": ctc, "consistency": ctc}
        if isinstance(self.recognizer, TransducerModel):
            lens = torch.tensor([there for there, _ in frames])
            takes_part = self.recognizer.fits(lens, batch.token_lens.cpu())
            counts |= dict.fromkeys(("simple", "pruned"), float(lens[takes_part].sum()))
        return counts

    def data_config(self) -> dict[str, Any]:
        """Returns what decides which batches come and what is in them."""
        return self.data.identity()

    def model_config(self) -> dict[str, Any]:
        """Returns what rebuilds the model."""
        return self.recognizer.model_config()

    def describe_validation(self, metrics: dict[str, float]) -> str:
        """Returns the validation in one line."""
        nan = float("nan")  # what has no count has no value
        names = ("ctc", "pruned") if isinstance(self.recognizer, TransducerModel) else ("ctc",)
        losses = ", ".join(f"{name} loss {metrics.get(f'{name}_loss', nan):.4f}" for name in names)
        return f"{losses} per frame, greedy WER {metrics.get('wer', nan):.2f}%"

    def _frames(self, batch: AsrBatch) -> list[tuple[int, int]]:
        """Returns the output frames of each utterance, and how many its labels need."""
        needed = num_frames_needed(batch.tokens, batch.token_lens).clamp(min=1).tolist()
        there = [
            self.recognizer.encoder.num_output_frames(num) for num in batch.fbank_lens.tolist()
        ]
        return list(zip(there, needed, strict=True))

    def _name_infeasible(self, batch: AsrBatch) -> None:
        """Warns once of each utterance whose labels do not fit into its frames."""
        for name, (num_frames, num_needed) in zip(batch.ids, self._frames(batch), strict=True):
            if num_frames < num_needed and name not in self._named:
                self._named.add(name)
                logger.warning(
                    "%s is left out of the loss: its transcript needs %d frames, it has %d",
                    name,
                    num_needed,
                    num_frames,
                )
