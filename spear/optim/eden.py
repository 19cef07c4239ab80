"""Eden, ScaledAdam's learning-rate schedule: a warm-up, then a decay by two clocks.

One clock counts batches, the other epochs or anything that measures the amount of data: this
project counts hours of audio, so that runs with other batch sizes decay alike.
"""

from typing import Any

from torch.optim import Optimizer


class Eden:
    """Sets the learning rate of every group of an optimiser.

    With b batches and e epochs (or hours), as in icefall's `zipformer/optim.py`:

        lr = base_lr * (1 + (b / lr_batches)^2)^-1/4 * (1 + (e / lr_epochs)^2)^-1/4 * warmup(b)

    where warmup rises linearly from `warmup_start` to 1 over `warmup_batches` batches. As in
    icefall, nothing is set before the first call of `step_batch` or `step_epoch`: a loop calls one
    of them before its first update too, or that update takes the full base rate.

    Args:
        optimizer: Its groups' `lr` at this moment are the base rates.
        lr_batches: Batches after which the rate falls visibly.
        lr_epochs: The same for the second clock, in the unit that `step_epoch` is given.
        warmup_batches: Length of the warm-up.
        warmup_start: Factor at the start of the warm-up, in [0, 1].
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_batches: float,
        lr_epochs: float,
        warmup_batches: float = 500.0,
        warmup_start: float = 0.5,
    ) -> None:
        if not 0.0 <= warmup_start <= 1.0:
            raise ValueError(f"warmup_start must lie in [0, 1], not {warmup_start}")
        if lr_batches <= 0 or lr_epochs <= 0:
            raise ValueError(
                f"lr_batches and lr_epochs must be positive, not {lr_batches}, {lr_epochs}"
            )
        self.optimizer = optimizer
        self.base_lrs: list[float] = [group["lr"] for group in optimizer.param_groups]
        self.lr_batches = lr_batches
        self.lr_epochs = lr_epochs
        self.warmup_batches = warmup_batches
        self.warmup_start = warmup_start
        self.batch: float = 0
        self.epoch: float = 0

    def factor(self) -> float:
        """Returns what the base rates are multiplied with at the present position."""
        batches = ((self.batch**2 + self.lr_batches**2) / self.lr_batches**2) ** -0.25
        epochs = ((self.epoch**2 + self.lr_epochs**2) / self.lr_epochs**2) ** -0.25
        return batches * epochs * self._warmup()

    def step_batch(self, batch: float | None = None) -> None:
        """Moves the first clock to `batch`, counted from the start of the run, or on by one."""
        self.batch = self.batch + 1 if batch is None else batch
        self._set_lrs()

    def step_epoch(self, epoch: float | None = None) -> None:
        """Moves the second clock to `epoch` (epochs, or hours of audio seen), or on by one."""
        self.epoch = self.epoch + 1 if epoch is None else epoch
        self._set_lrs()

    def get_last_lr(self) -> list[float]:
        """Returns the present rate of every group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Returns the two clocks; the base rates belong to the configuration."""
        return {"batch": self.batch, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moves both clocks, and sets the rates that belong there."""
        self.batch, self.epoch = state["batch"], state["epoch"]
        self._set_lrs()

    def _warmup(self) -> float:
        if self.batch >= self.warmup_batches:
            return 1.0
        return self.warmup_start + (1.0 - self.warmup_start) * (self.batch / self.warmup_batches)

    def _set_lrs(self) -> None:
        factor = self.factor()
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * factor
