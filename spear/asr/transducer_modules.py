"""The two small networks of a transducer beside its encoder: decoder and joiner.

The decoder is stateless: it sees the last few labels only (Ghodsi et al., ICASSP 2020), so a
search needs nothing but these to go on. Parameter names are icefall's (its `zipformer` recipe), and
so are the initial scales, which let the joiner begin near zero.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear.asr.ctc import BLANK_ID
from spear.zipformer.modules.initialization import scaled_linear
from spear.zipformer.modules.regularizers import Balancer

NO_LABEL = -1
"""What stands before the beginning of a transcript; its vector is zero."""
PROJECTION_SCALE = 0.25
_GROUP_SIZE = 4


def _keep_magnitude() -> Balancer:
    """Keeps vectors from drifting in size, which the averaging of weights would feel."""
    return Balancer(min_positive=0.0, max_positive=1.0, min_abs=0.5, max_abs=1.0, prob=0.05)


class Decoder(nn.Module):
    """An embedding of labels and a convolution over the last `context_size` of them.

    Args:
        vocab_size: V, with the blank at id 0.
        decoder_dim: D, a multiple of 4.
        context_size: Labels that are seen, at least 1.
    """

    def __init__(self, vocab_size: int, decoder_dim: int, context_size: int) -> None:
        super().__init__()
        self.context_size = context_size
        self.embedding = nn.Embedding(vocab_size, decoder_dim)
        self.balancer = _keep_magnitude()
        if context_size > 1:
            groups = decoder_dim // _GROUP_SIZE
            self.conv = nn.Conv1d(decoder_dim, decoder_dim, context_size, groups=groups, bias=False)
            self.balancer2 = _keep_magnitude()

    def forward(self, contexts: Tensor) -> Tensor:
        """Sees every stretch of `context_size` neighbours.

        Args:
            contexts: (B, L + context_size - 1) int64 ids, `NO_LABEL` before the beginning.

        Returns:
            (B, L, D) float.
        """
        is_there = (contexts != NO_LABEL).unsqueeze(-1)
        x = self.balancer(self.embedding(contexts.clamp(min=0)) * is_there)
        if self.context_size == 1:
            return x
        x = F.relu(self.conv(x.transpose(1, 2)).transpose(1, 2))
        return self.balancer2(x)

    def initial_context(self, batch_size: int) -> Tensor:
        """Returns (B, context_size) int64: nothing, and a blank as icefall begins."""
        context = self.embedding.weight.new_full(
            (batch_size, self.context_size), NO_LABEL, dtype=torch.long
        )
        context[:, -1] = BLANK_ID
        return context

    def read(self, tokens: Tensor) -> Tensor:
        """Returns (B, L + 1, D): what is seen before each token of (B, L) int64, and after all."""
        return self(torch.cat([self.initial_context(len(tokens)), tokens], dim=1))


class Joiner(nn.Module):
    """Projects encoder and decoder vectors to one size, adds them, and scores every token.

    Args:
        encoder_dim: Channels of the encoder's frames.
        decoder_dim: Channels of the decoder's vectors.
        joiner_dim: J, the common size.
        vocab_size: V, with the blank at id 0.
    """

    def __init__(
        self, encoder_dim: int, decoder_dim: int, joiner_dim: int, vocab_size: int
    ) -> None:
        super().__init__()
        self.encoder_proj = scaled_linear(encoder_dim, joiner_dim, PROJECTION_SCALE)
        self.decoder_proj = scaled_linear(decoder_dim, joiner_dim, PROJECTION_SCALE)
        self.output_linear = nn.Linear(joiner_dim, vocab_size)

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        """(*, J) projected vectors of each -> (*, V) logits."""
        return self.output_linear(torch.tanh(encoded + decoded))
