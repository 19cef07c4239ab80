"""Fine-tuning for speech recognition as the training loop sees it.

`AsrTask` is the task of all fine-tunings, and names the utterances that no loss can learn from.
"""

from collections.abc import Iterator
from typing import Any

import torch

from spear.asr.batch import AsrBatch
from spear.asr.ctc import num_frames_needed
from spear.asr.model import AsrModel
from spear.asr.train.data import AsrData
from spear.asr.transducer import TransducerModel
from spear.finetune.encoder import EncoderStart
from spear.finetune.task import FinetuneTask
from spear.system.progress import get_logger
from spear.training.position import Position

logger = get_logger(__name__)


class AsrTask(FinetuneTask[AsrBatch]):
    """What is fine-tuned, on what.

    Args:
        model: The recogniser.
        data: Its batches.
        start: When the encoder begins to learn, and how fast.
    """

    def __init__(self, model: AsrModel, data: AsrData, start: EncoderStart) -> None:
        super().__init__(model, data, start, model.idle)
        self.recognizer = model
        self._named: set[str] = set()

    def before_step(self, position: Position) -> bool:
        """Moves schedules; freezes or unfreezes the encoder and says whether that changed."""
        if isinstance(self.recognizer, TransducerModel):
            self.recognizer.set_step(position.step)
        return super().before_step(position)

    def train_batches(
        self, epoch: int, start_step: int, shares: range, num_shares: int
    ) -> Iterator[AsrBatch]:
        """Yields this rank's batches of an epoch; names utterances that the loss leaves out."""
        return self._naming(super().train_batches(epoch, start_step, shares, num_shares))

    def valid_batches(self, rank: int, world_size: int) -> Iterator[AsrBatch]:
        """Yields this rank's share of the validation data."""
        return self._naming(super().valid_batches(rank, world_size))

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

    def _naming(self, batches: Iterator[AsrBatch]) -> Iterator[AsrBatch]:
        """Warns once of each utterance whose labels do not fit into its frames."""
        for batch in batches:
            for name, (num_frames, num_needed) in zip(batch.ids, self._frames(batch), strict=True):
                if num_frames < num_needed and name not in self._named:
                    self._named.add(name)
                    logger.warning(
                        "%s is left out of the loss: its transcript needs %d frames, it has %d",
                        name,
                        num_needed,
                        num_frames,
                    )
            yield batch
