"""Which frames of a batch are real, at every frame rate of the model.

Whatever looks sideways (attention, convolution, pooling) asks `Frames` what it may see, so that in
evaluation an utterance gets the output that it would get alone.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

# Scores of what may not be seen. Finite, so that a row without any visible frame is no NaN; exp of
# it is exactly 0 beside any real score.
MASKED_SCORE = -1000.0


@dataclass
class Frames:
    """The valid frames of a padded batch at one frame rate.

    Attributes:
        lens: (B,) int64, valid frames.
        num_frames: T, frames of the padded batch.
        chunk_size: Frames of a chunk, for causal models; -1 is no chunking.
        left_context_chunks: Chunks before its own that a frame attends to; -1 is all.
    """

    lens: Tensor
    num_frames: int
    chunk_size: int = -1
    left_context_chunks: int = -1

    @property
    def num_remembered(self) -> int:
        """Source frames before the first of the batch."""
        return 0

    @property
    def ends(self) -> Tensor:
        """(B,) int64, frames from an utterance's beginning to where it ends, if it ends here."""
        return self.lens

    @cached_property
    def padding(self) -> Tensor:
        """(B, T, 1) bool, True behind the end of an utterance."""
        positions = torch.arange(self.num_frames, device=self.lens.device)
        return (positions >= self.lens.unsqueeze(1)).unsqueeze(2)

    @cached_property
    def may_have_padding(self) -> bool:
        """False only where it is known without waiting for a device that there is none."""
        if self.lens.device.type != "cpu" or torch.compiler.is_compiling():
            return True
        return bool((self.lens < self.num_frames).any())

    @cached_property
    def hidden(self) -> Tensor:
        """(B, 1, 1 or T, T) bool, True where a frame (dim 2) must not attend to another (dim 3)."""
        hidden = self.padding.transpose(1, 2).unsqueeze(1)
        if self.chunk_size < 0:
            return hidden
        chunk = torch.arange(self.num_frames, device=self.lens.device) // self.chunk_size
        target, source = chunk.unsqueeze(1), chunk
        outside = source > target
        if self.left_context_chunks >= 0:
            outside = outside | (source < target - self.left_context_chunks)
        return hidden | outside

    def zero_padding(self, x: Tensor) -> Tensor:
        """Sets the padding of x (B, T, C) to zero, even where it holds NaN."""
        return x.masked_fill(self.padding, 0.0) if self.may_have_padding else x

    def repeat_last(self, x: Tensor, num_frames: int) -> Tensor:
        """Makes x (B, T, C) `num_frames` long, padded with each utterance's last valid frame."""
        longer = Frames(self.lens, num_frames)
        if not longer.may_have_padding:
            return x
        # Indexing, whose backward pass unlike that of `gather` does not keep x.
        rows = torch.arange(x.shape[0], device=x.device)
        last = x[rows, (self.lens - 1).clamp_min(0)].unsqueeze(1)
        return torch.where(longer.padding, last, F.pad(x, (0, 0, 0, num_frames - x.shape[1])))

    def of(self, rows: Tensor) -> "Frames":
        """Returns the frames of some utterances, by their numbers (B',) in the batch."""
        return replace(self, lens=self.lens[rows])

    def downsampled(self, factor: int) -> "Frames":
        """Returns the frames at a rate lower by `factor`; a started group counts as a frame."""
        if factor == 1:
            return self
        return Frames(
            lens=(self.lens + factor - 1) // factor,
            num_frames=(self.num_frames + factor - 1) // factor,
            chunk_size=self.chunk_size // factor if self.chunk_size > 0 else -1,
            left_context_chunks=self.left_context_chunks,
        )


@dataclass
class StreamFrames(Frames):
    """The frames of one chunk of each of several streams.

    Attributes:
        num_processed: (B,) int64, frames of each stream before this chunk.
        num_before: L, as many of them are remembered, where there were that many.
    """

    num_processed: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    num_before: int = 0

    @property
    def num_remembered(self) -> int:
        """Source frames before the first of the batch."""
        return self.num_before

    @property
    def ends(self) -> Tensor:
        """(B,) int64, frames from an utterance's beginning to where it ends, if it ends here."""
        return self.num_processed + self.lens

    @cached_property
    def hidden(self) -> Tensor:
        """(B, 1, 1, L + T) bool, True at what was never there."""
        places = torch.arange(self.num_before, device=self.lens.device)
        never = places < self.num_before - self.num_processed.unsqueeze(1)
        hidden = torch.cat((never, self.padding.squeeze(2)), dim=1)
        return hidden.unsqueeze(1).unsqueeze(1)

    def downsampled(self, factor: int) -> "StreamFrames":
        """Returns the frames at a rate lower by `factor`, which divides whole chunks."""
        low = super().downsampled(factor)
        return StreamFrames(
            low.lens,
            low.num_frames,
            low.chunk_size,
            low.left_context_chunks,
            num_processed=self.num_processed // factor,
            num_before=self.num_before // factor,
        )
