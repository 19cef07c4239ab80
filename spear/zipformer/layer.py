"""One Zipformer layer: attention weights shared by three modules, two halves, bypasses."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spear.zipformer.frames import Frames
from spear.zipformer.kernels.recompute import recomputed
from spear.zipformer.memory import LayerMemory, Remember, no_memory
from spear.zipformer.modules.attention import AttentionWeights, NonlinAttention, SelfAttention
from spear.zipformer.modules.bypass import Bypass, add_branch, draw_kept, mix
from spear.zipformer.modules.convolution import ConvolutionModule
from spear.zipformer.modules.feedforward import FeedForward
from spear.zipformer.modules.norm import BiasNorm
from spear.zipformer.modules.regularizers import Balancer, Whiten, whitening_schedule
from spear.zipformer.schedule import FloatLike, ScheduledFloat


@dataclass(frozen=True)
class LayerShape:
    """The sizes of a layer; see `ZipformerConfig`, whose per-stack fields these are."""

    dim: int
    pos_dim: int
    num_heads: int
    query_head_dim: int
    pos_head_dim: int
    value_head_dim: int
    feedforward_dim: int
    kernel_size: int
    causal: bool


class ZipformerLayer(nn.Module):
    """A layer of a stack (arXiv 2310.11230, figure 2; icefall, `Zipformer2EncoderLayer`).

    Order: feed-forward, nonlinear attention, self-attention, convolution, feed-forward, mid bypass,
    self-attention, convolution, feed-forward, norm, bypass. In training every branch but the first
    is left out of an utterance with some probability that goes down on a schedule. icefall's option
    to make attention constant now and then is left out: the authors' runs never had it active.

    Args:
        shape: Sizes.
        dropout: Probability in the feed-forward modules, or its schedule.
        skip_rate: Probability to leave the whole layer out of an utterance, or its schedule.
    """

    is_shard_unit = True
    """Where parameters are spread over processes, those of a layer travel together."""

    def __init__(self, shape: LayerShape, dropout: FloatLike, skip_rate: FloatLike) -> None:
        super().__init__()
        self.shape = shape
        dim, hidden = shape.dim, shape.feedforward_dim
        # icefall's files have this unused scale. A buffer, not a parameter: DDP and optimisers
        # would wait for its gradient.
        self.register_buffer("bypass_scale", torch.full((dim,), 0.5))
        self.skip_rate = skip_rate
        self.bypass = Bypass(dim)
        self.bypass_mid = Bypass(dim)
        self.self_attn_weights = AttentionWeights(
            dim, shape.pos_dim, shape.num_heads, shape.query_head_dim, shape.pos_head_dim
        )
        self.self_attn1 = SelfAttention(dim, shape.num_heads, shape.value_head_dim)
        self.self_attn2 = SelfAttention(dim, shape.num_heads, shape.value_head_dim)
        self.feed_forward1 = FeedForward(dim, hidden * 3 // 4, dropout)
        self.feed_forward2 = FeedForward(dim, hidden, dropout)
        self.feed_forward3 = FeedForward(dim, hidden * 5 // 4, dropout)
        self.nonlin_attention = NonlinAttention(dim, 3 * dim // 4)
        self.conv_module1 = ConvolutionModule(dim, shape.kernel_size, shape.causal)
        self.conv_module2 = ConvolutionModule(dim, shape.kernel_size, shape.causal)
        self.norm = BiasNorm(dim)
        self._add_schedules()
        self._add_regularizers()

    def _add_schedules(self) -> None:
        self.attention_skip_rate = ScheduledFloat((0.0, 0.2), (4000.0, 0.05), (16000.0, 0.0))
        self.conv_skip_rate = ScheduledFloat((0.0, 0.2), (4000.0, 0.05), (16000.0, 0.0))
        # Against outputs that are too large beside the residual.
        self.ff2_skip_rate = ScheduledFloat((0.0, 0.1), (4000.0, 0.01), (50000.0, 0.0))
        self.ff3_skip_rate = ScheduledFloat((0.0, 0.1), (4000.0, 0.01), (50000.0, 0.0))

    def _add_regularizers(self) -> None:
        self.balancer1 = Balancer(min_positive=0.45, max_positive=0.55, min_abs=0.2, max_abs=4.0)
        self.balancer2 = Balancer(min_positive=0.45, max_positive=0.55, min_abs=0.1, max_abs=4.0)
        # Small probabilities: they mend rare problems, and slowly is fast enough.
        na_min = ScheduledFloat((0.0, 0.004), (4000.0, 0.02), default=0.004)
        ff2_min = ScheduledFloat((0.0, 0.0), (4000.0, 0.1))
        ff3_min = ScheduledFloat((0.0, 0.0), (4000.0, 0.2))
        self.balancer_na = Balancer(min_positive=0.3, max_positive=0.7, min_abs=na_min, prob=0.05)
        self.balancer_ff2 = Balancer(
            min_positive=0.3, max_positive=0.7, min_abs=ff2_min, max_abs=2.0, prob=0.05
        )
        self.balancer_ff3 = Balancer(
            min_positive=0.3, max_positive=0.7, min_abs=ff3_min, max_abs=4.0, prob=0.05
        )
        self.whiten = Whiten(whitening_schedule(4.0, ratio=3.0), grad_scale=0.01)

    def forward(
        self, x: Tensor, positions: Tensor, frames: Frames, memory: LayerMemory | None = None
    ) -> Tensor:
        """Maps (B, T, dim) to (B, T, dim).

        In training, utterances that skip the layer are not computed.

        Args:
            x: The input.
            positions: (T + S - 1, pos_dim), the encoding of offsets.
            frames: The valid frames.
            memory: Of a stream.
        """
        rows = self._draw_rows(x)
        if rows is None:
            return self._run(x, positions, frames, memory)
        if len(rows) == 0:  # DDP wants a gradient, if zero, of every parameter in every step
            return x + 0.0 * self._run(x, positions, frames, memory)
        y = self._run(x[rows], positions, frames.of(rows), memory)
        return x.index_copy(0, rows, y.to(x.dtype))

    def _draw_rows(self, x: Tensor) -> Tensor | None:
        """Draws which utterances (B',) go through the layer; None is all of them.

        By the CPU's generator: a GPU would have to be waited for.
        """
        rate = float(self.skip_rate)
        if not self.training or rate == 0.0:
            return None
        kept = torch.rand(len(x)) > rate
        return None if bool(kept.all()) else kept.nonzero().squeeze(1).to(x.device)

    def _run(
        self, x: Tensor, positions: Tensor, frames: Frames, memory: LayerMemory | None
    ) -> Tensor:
        before = x

        def remember(name: str) -> Remember:
            return no_memory if memory is None else memory.remember(name)

        weights = self.self_attn_weights(x, positions, frames, remember("key"))
        kept = self._draw(x, self.attention_skip_rate)
        x = x + self.feed_forward1(x)
        branch = self.nonlin_attention(x, weights.one_head, remember("nonlin"))
        x = add_branch(x, self.balancer_na(branch), kept)
        x = add_branch(x, self.self_attn1(x, weights.first, remember("value1")), kept)
        branch = self.conv_module1(x, frames, remember("conv1"))
        x = add_branch(x, branch, self._draw(x, self.conv_skip_rate))
        branch = self.balancer_ff2(self.feed_forward2(x))
        x = add_branch(x, branch, self._draw(x, self.ff2_skip_rate))
        x = self.bypass_mid(before, x)
        x = add_branch(x, self.self_attn2(x, weights.second, remember("value2")), kept)
        branch = self.conv_module2(x, frames, remember("conv2"))
        x = add_branch(x, branch, self._draw(x, self.conv_skip_rate))
        branch = self.balancer_ff3(self.feed_forward3(x))
        x = add_branch(x, branch, self._draw(x, self.ff3_skip_rate))
        return self.whiten(self.balancer2(self._finish(before, self.balancer1(x))))

    def empty_memory(self, batch_size: int, num_remembered: int) -> dict[str, Tensor]:
        """Returns the memory of streams that have not begun, see `LayerMemory`."""
        attention, shape = self.self_attn_weights, self.shape
        value_dim = shape.num_heads * shape.value_head_dim
        weight = self.bypass_mid.bypass_scale
        sizes = {
            "key": (num_remembered, attention.query_dim),
            "value1": (num_remembered, value_dim),
            "value2": (num_remembered, value_dim),
            "nonlin": (num_remembered, self.nonlin_attention.out_proj.in_features),
            "conv1": (shape.kernel_size // 2, shape.dim),
            "conv2": (shape.kernel_size // 2, shape.dim),
        }
        return {name: weight.new_zeros(batch_size, *size) for name, size in sizes.items()}

    def _finish(self, before: Tensor, x: Tensor) -> Tensor:
        """Applies the norm and the bypass."""

        def finish(before: Tensor, x: Tensor, log_scale: Tensor, scale: Tensor) -> Tensor:
            return mix(before, self.norm(x, log_scale), scale)

        scales = self.norm.draw_log_scale(), self.bypass.draw_scale()
        return recomputed(finish, before, x, *scales)

    def _draw(self, x: Tensor, rate: FloatLike) -> Tensor | None:
        return draw_kept(x, float(rate), self.training)
