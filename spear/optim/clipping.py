"""Gradient clipping by the median of past norms, without asking the device for a number.

ScaledAdam clips the gradient of a parameter group to `clipping_scale` times the median of the
norms of its last steps. The norms, the threshold and the count of clipped steps stay tensors on
the device, so a training step never waits for them.
"""

from typing import Any

import torch
from torch import Tensor

# A first threshold is wanted long before a whole window of norms has been seen. The norms change
# quickly that early, hence the factor.
EARLY_UPDATES = (10, 20, 40)
EARLY_FACTOR = 2.0


class MedianClipper:
    """Keeps the norms of one parameter group and says how much to scale its gradient.

    Args:
        clipping_scale: The threshold in medians; None never clips (non-finite norms give 0 still).
        update_period: Length of the window of norms, and steps between two thresholds.
        device: Where the norms live.
    """

    def __init__(
        self, clipping_scale: float | None, update_period: int, device: torch.device
    ) -> None:
        self.clipping_scale = clipping_scale
        self.update_period = update_period
        self.step = 0
        self.norms = torch.zeros(update_period, device=device)
        self.threshold = torch.full((), float("inf"), device=device)
        self.num_clipped = torch.zeros((), device=device)
        self.window_start = 0

    def scale(self, norm: Tensor) -> Tensor:
        """Takes the norm of one step's gradient and returns the factor for that gradient.

        Args:
            norm: () float32.

        Returns:
            () float32 in [0, 1]; 0 when the norm is not finite.
        """
        if self.step > 0:  # the reference leaves the very first norm out of its window
            safe_norm = torch.where(norm.isfinite(), norm, float("inf"))
            self.norms[self.step % self.update_period] = safe_norm
            self._update_threshold()
        self.step += 1
        factor = (self.threshold / (norm + 1.0e-20)).clamp(max=1.0)
        factor = torch.where(norm.isfinite(), factor, 0.0)
        self.num_clipped += factor < 1.0
        return factor

    def _update_threshold(self) -> None:
        early = self.step in EARLY_UPDATES and self.step < self.update_period
        if self.clipping_scale is None or not (early or self.step % self.update_period == 0):
            return
        num_norms = self.step if early else self.update_period
        # Slots that are still empty hold 0 and sort to the front: only the last ones are norms.
        recent = self.norms.sort().values[-num_norms:]
        median = recent[num_norms // 4 * 2]
        factor = EARLY_FACTOR if early else 1.0
        self.threshold = self.clipping_scale * median * factor
        self.num_clipped = torch.zeros_like(self.num_clipped)
        self.window_start = self.step

    @property
    def clipped_fraction(self) -> Tensor:
        """() float32: share of clipped steps since the threshold was last set."""
        return self.num_clipped / max(1, self.step - self.window_start)

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that the next `scale` depends on."""
        return {
            "step": self.step,
            "window_start": self.window_start,
            "norms": self.norms.clone(),
            "threshold": self.threshold.clone(),
            "num_clipped": self.num_clipped.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a `state_dict`; one of another window length is begun anew."""
        if state["norms"].numel() != self.update_period:
            return
        device = self.norms.device
        self.step, self.window_start = state["step"], state["window_start"]
        self.norms = state["norms"].to(device, copy=True)
        self.threshold = state["threshold"].to(device, copy=True)
        self.num_clipped = state["num_clipped"].to(device, copy=True)
