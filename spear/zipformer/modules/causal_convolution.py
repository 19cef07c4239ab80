"""A depthwise convolution that sees the past, and the future only within its chunk.

For streaming models: what a block-triangular mask is to attention, this is to the convolution
modules (icefall, scaling.py, `ChunkCausalDepthwiseConv1d`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear.zipformer.frames import Frames
from spear.zipformer.memory import Remember, no_memory


class ChunkCausalDepthwiseConv1d(nn.Module):
    """Sum of a causal convolution of half the width and one of full width within chunks.

    The second loses what it cannot see near the edges of a chunk; a learned scale, by distance from
    either edge, makes up for it.

    Args:
        num_channels: Channels in and out.
        kernel_size: K, odd.
    """

    def __init__(self, num_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        half = (kernel_size + 1) // 2
        self.causal_conv = nn.Conv1d(num_channels, num_channels, half, groups=num_channels)
        self.chunkwise_conv = nn.Conv1d(
            num_channels, num_channels, kernel_size, padding=kernel_size // 2, groups=num_channels
        )
        nn.init.uniform_(self.causal_conv.bias, -0.1, 0.1)  # type: ignore[arg-type]
        self.chunkwise_conv_scale = nn.Parameter(torch.zeros(2, num_channels, kernel_size))

    def forward(self, x: Tensor, frames: Frames, remember: Remember = no_memory) -> Tensor:
        """Maps (B, T, C) with zeros as padding to (B, T, C).

        Args:
            x: The frames; of a stream, those of one chunk.
            frames: Which are there.
            remember: Puts the K // 2 frames of a stream's past before x.
        """
        num_frames = x.shape[1]
        chunk_size = frames.chunk_size
        if chunk_size < 0 or (not torch.compiler.is_compiling() and chunk_size > num_frames):
            chunk_size = num_frames  # the same numbers; where there are chunks it saves time
        columns, seen = x.transpose(1, 2), remember(x).transpose(1, 2)
        causal = self.causal_conv(
            F.pad(seen, (self.kernel_size // 2 + num_frames - seen.shape[2], 0))
        )
        chunks = self._chunkwise(columns, chunk_size) * self._scale(frames.ends, chunk_size)
        chunkwise = chunks.flatten(2)[..., :num_frames]
        return (causal + chunkwise).transpose(1, 2)

    def _chunkwise(self, columns: Tensor, chunk_size: int) -> Tensor:
        """Convolves (B, C, T) within chunks; returns (B, C, chunks, chunk_size)."""
        batch_size, _, num_frames = columns.shape
        chunks = F.pad(columns, (0, -num_frames % chunk_size)).unflatten(2, (-1, chunk_size))
        y = self.chunkwise_conv(chunks.transpose(1, 2).flatten(0, 1))
        return y.unflatten(0, (batch_size, -1)).transpose(1, 2)

    def _scale(self, ends: Tensor, chunk_size: int) -> Tensor:
        """Returns the scale (B, C, 1, chunk_size) of each position within a chunk.

        The right edge of an utterance shorter than a chunk is its own end, whatever the batch's.
        """
        left, right = self.chunkwise_conv_scale
        position = torch.arange(chunk_size, device=ends.device)
        from_end = position - ends.clamp(max=chunk_size).unsqueeze(1) + self.kernel_size
        return 1.0 + (_take(left, position.unsqueeze(0)) + _take(right, from_end)).unsqueeze(2)


def _take(edge: Tensor, index: Tensor) -> Tensor:
    """Returns edge (C, K) at index (B, T), zero outside, as (B, C, T)."""
    inside = (index >= 0) & (index < edge.shape[1])
    taken = edge[:, index.clamp(0, edge.shape[1] - 1)].transpose(0, 1)
    return taken.masked_fill(~inside.unsqueeze(1), 0.0)
