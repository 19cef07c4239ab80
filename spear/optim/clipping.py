"""Gradient clipping by the median of past norms, without asking the device for a number.

ScaledAdam clips the gradient of a parameter group to `clipping_scale` times the median of the
norms of its last steps. The norms, the threshold and every counter are tensors on the device, so
a training step never waits for them, and a step that must not happen leaves them as they are.
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
        clipping_scale: The threshold in medians; None never clips.
        update_period: Length of the window of norms, and steps between two thresholds.
        device: Where everything lives.

    Attributes:
        step: () int64, steps so far.
        norms: (update_period,) float32, a ring.
        threshold: () float32, the largest norm that is let through.
    """

    def __init__(
        self, clipping_scale: float | None, update_period: int, device: torch.device
    ) -> None:
        self.clipping_scale = clipping_scale
        self.update_period = update_period
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.norms = torch.zeros(update_period, device=device)
        self.threshold = torch.full((), float("inf"), device=device)
        self._slots = torch.arange(update_period, device=device)
        self._early = torch.tensor([n for n in EARLY_UPDATES if n < update_period], device=device)

    def scale(self, norm: Tensor, is_good: Tensor) -> Tensor:
        """Takes the norm of one step's gradient and returns the factor for that gradient.

        Args:
            norm: () float32.
            is_good: () bool; False says that the step does not happen: nothing is remembered.

        Returns:
            () float32 in [0, 1]; 0 when the step does not happen.
        """
        is_seen = is_good & (self.step > 0)  # the reference leaves the very first norm out
        is_slot = self._slots == self.step % self.update_period
        self.norms = torch.where(is_seen & is_slot, norm, self.norms)
        if self.clipping_scale is not None:
            self._update_threshold(is_seen, self.clipping_scale)
        factor = (self.threshold / (norm + 1.0e-20)).clamp(max=1.0)
        self.step = self.step + is_good
        return torch.where(is_good, factor, 0.0)

    def _update_threshold(self, is_seen: Tensor, clipping_scale: float) -> None:
        """Sets the threshold where it is due at this step."""
        is_early = (self._early == self.step).any()
        is_due = is_seen & (is_early | (self.step % self.update_period == 0))
        num_norms = torch.where(is_early, self.step, self.update_period)
        # Slots that are still empty hold 0 and sort to the front: only the last ones are norms.
        place = self.update_period - num_norms + num_norms // 4 * 2
        median = self.norms.sort().values.gather(0, place.unsqueeze(0))[0]
        factor = torch.where(is_early, EARLY_FACTOR, 1.0)
        self.threshold = torch.where(is_due, clipping_scale * median * factor, self.threshold)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns everything that the next `scale` depends on; copies."""
        return {
            "step": self.step.clone(),
            "norms": self.norms.clone(),
            "threshold": self.threshold.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a `state_dict`; one of another window length is begun anew."""
        if state["norms"].numel() != self.update_period:
            return
        for name, own in self.state_dict().items():
            # In older checkpoints the counters are plain numbers.
            setattr(self, name, torch.as_tensor(state[name]).to(own, copy=True))
