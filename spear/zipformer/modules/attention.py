"""Attention: weights computed once per layer, and the three modules that use them."""

from torch import Tensor, nn

from spear.zipformer.frames import Frames
from spear.zipformer.kernels.recompute import recomputed
from spear.zipformer.memory import Remember, no_memory
from spear.zipformer.modules.attention_scores import (
    Projections,
    SharedWeights,
    attention_weights,
    split_heads,
)
from spear.zipformer.modules.initialization import scaled_linear
from spear.zipformer.modules.regularizers import Balancer, Whiten, whitening_schedule
from spear.zipformer.schedule import ScheduledFloat, chance

_SCORE_PENALTY = 1e-4
_SCORE_PENALTY_PROB = 0.1


class AttentionWeights(nn.Module):
    """Multi-head attention weights with relative positions.

    The score of frame j for frame i is q_i k_j + p_i r(j - i), with a query of its own for the
    position. There is no division by the square root of the head size; the initial scale of the
    projection stands for it.

    Args:
        dim: Channels of the input.
        pos_dim: Channels of the positional encoding.
        num_heads: H.
        query_head_dim: Channels of a query or key per head.
        pos_head_dim: Channels of a position query per head.
    """

    def __init__(
        self, dim: int, pos_dim: int, num_heads: int, query_head_dim: int, pos_head_dim: int
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_dim = query_head_dim * num_heads
        self.pos_dim = pos_head_dim * num_heads
        self.in_proj = scaled_linear(
            dim, 2 * self.query_dim + self.pos_dim, initial_scale=query_head_dim**-0.25
        )
        self.linear_pos = scaled_linear(pos_dim, self.pos_dim, initial_scale=0.05, bias=False)
        self.pos_emb_skip_rate = ScheduledFloat((0.0, 0.5), (4000.0, 0.0))
        self.whiten_keys = Whiten(whitening_schedule(3.0), grad_scale=0.025, num_groups=num_heads)
        # Softmax does not see a constant added to all keys, so their bias has no true gradient and
        # rounding alone would let it drift.
        self.balance_keys = Balancer(
            min_positive=0.4, max_positive=0.6, min_abs=0.0, max_abs=100.0, prob=0.025
        )

    def forward(
        self, x: Tensor, positions: Tensor, frames: Frames, remember: Remember = no_memory
    ) -> SharedWeights:
        """Computes the weights.

        Args:
            x: (B, T, dim).
            positions: (T + S - 1, pos_dim), the encoding of offsets.
            frames: What may be seen.
            remember: Puts the keys of a stream's past before those of x.

        Returns:
            (B, H, T, S) twice and (B, T, S); the sources are the frames of x behind those
            remembered.
        """
        projected = self.in_proj(x)
        query, key, pos_query = projected.split(
            (self.query_dim, self.query_dim, self.pos_dim), dim=-1
        )
        key = remember(self.whiten_keys(self.balance_keys(key)))
        if self.training and chance(float(self.pos_emb_skip_rate)):
            # DDP wants a gradient, if zero, of every parameter in every step.
            query = query + 0.0 * self.linear_pos.weight.sum()
            projections = Projections(query, key, None, None)
        else:
            encoded = self.linear_pos(positions).unflatten(1, (self.num_heads, -1))
            projections = Projections(query, key, pos_query, encoded.permute(1, 2, 0))
        penalty = 0.0
        if self.training and chance(_SCORE_PENALTY_PROB):
            # A failsafe: once the weights of a head are all but one-hot, the softmax passes no
            # gradient back that could undo it. icefall's slope is for a loss summed over frames,
            # ours is a mean.
            penalty = _SCORE_PENALTY / x[..., 0].numel()
        return attention_weights(projections, frames.hidden, self.num_heads, penalty)


class SelfAttention(nn.Module):
    """Attention with weights that are already there: values, weighted sum, output projection.

    Args:
        dim: Channels in and out.
        num_heads: H.
        value_head_dim: Channels of a value per head.
    """

    def __init__(self, dim: int, num_heads: int, value_head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj = nn.Linear(dim, num_heads * value_head_dim)
        self.out_proj = scaled_linear(num_heads * value_head_dim, dim, initial_scale=0.05)
        self.whiten = Whiten(whitening_schedule(7.5, ratio=3.0), grad_scale=0.01)

    def forward(self, x: Tensor, weights: Tensor, remember: Remember = no_memory) -> Tensor:
        """Maps (B, T, dim), with weights (B, H, T, S), to (B, T, dim)."""
        values = split_heads(remember(self.in_proj(x)), self.num_heads)
        mixed = (weights @ values).transpose(1, 2).flatten(2)
        return self.whiten(self.out_proj(mixed))


class NonlinAttention(nn.Module):
    """A gated module in which attention of one head stands where a convolution would.

    out(weights @ (x * tanh(s)) * y) with x, s, y projected from the input.

    Args:
        dim: Channels in and out.
        hidden_dim: Channels of x, s and y.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, 3 * hidden_dim)
        self.out_proj = scaled_linear(hidden_dim, dim, initial_scale=0.05)
        # Before the tanh. Well-trained modules have magnitudes from about 3 there.
        self.balancer = Balancer(
            min_positive=ScheduledFloat((0.0, 0.25), (20000.0, 0.05), default=0.25),
            max_positive=ScheduledFloat((0.0, 0.75), (20000.0, 0.95), default=0.75),
            min_abs=0.5,
            max_abs=5.0,
        )
        self.whiten1 = Whiten(whitening_schedule(5.0), grad_scale=0.01)
        self.whiten2 = Whiten(whitening_schedule(5.0, ratio=3.0), grad_scale=0.01)

    def forward(self, x: Tensor, weights: Tensor, remember: Remember = no_memory) -> Tensor:
        """Maps (B, T, dim), with the weights (B, T, S) of one head, to (B, T, dim)."""
        gate, x, y = self.in_proj(x).chunk(3, dim=-1)

        def mix(x: Tensor, gate: Tensor, y: Tensor, weights: Tensor) -> Tensor:
            mixed: Tensor = self.out_proj((weights @ remember(x * gate.tanh())) * y)
            return mixed

        return self.whiten2(recomputed(mix, self.whiten1(x), self.balancer(gate), y, weights))
