"""The feed-forward module of a Zipformer layer."""

from torch import Tensor, nn

from spear.zipformer.modules.activations import SWOOSH_L, SwooshDropoutLinear
from spear.zipformer.modules.regularizers import Balancer, Whiten, whitening_schedule
from spear.zipformer.schedule import FloatLike


class FeedForward(nn.Module):
    """Linear, SwooshL, dropout, linear.

    Args:
        dim: Channels in and out.
        hidden_dim: Channels between.
        dropout: Probability, or its schedule.
    """

    def __init__(self, dim: int, hidden_dim: int, dropout: FloatLike) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, hidden_dim)
        self.hidden_balancer = Balancer(
            min_positive=0.3, max_positive=1.0, min_abs=0.75, max_abs=5.0
        )
        self.out_proj = SwooshDropoutLinear(
            hidden_dim, dim, SWOOSH_L, initial_scale=0.1, dropout=dropout
        )
        self.out_whiten = Whiten(whitening_schedule(7.5), grad_scale=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, T, dim) to (B, T, dim), each frame by itself."""
        return self.out_whiten(self.out_proj(self.hidden_balancer(self.in_proj(x))))
