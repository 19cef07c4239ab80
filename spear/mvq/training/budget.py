"""How long and how hard a quantiser is trained."""

from dataclasses import dataclass

from spear.errors import ConfigError


@dataclass
class TrainingBudget:
    """How long and how hard the alternation works."""

    num_iterations: int = 16
    """Rounds of search and solve."""
    frames_per_iteration: int = 32768
    """Frames searched in one round (count); each round takes the next ones of a shuffled list.
    Raise it with the number of frames: 100,000 or more where 1,000,000 are given."""
    num_passes: int = 3
    """Merging passes of the search while training (count)."""
    beam_width: int = 16
    """Codes that each codebook shortlists in the search while training (count)."""
    noise: float = 0.1
    """Noise added to the centres at the start, as a share of their standard deviation; it falls
    to 0 in equal steps."""
    ridge: float = 1.0
    """Pull of every centre towards its share of the mean frame, counted in frames."""
    inertia: float = 1.0
    """Pull of every centre towards its last place, counted in frames."""
    memory: float = 0.5
    """Weight of the earlier rounds' statistics in each round, 0 to below 1."""
    min_usage: float = 0.1
    """A code chosen less often than this share of uniform usage is put to work elsewhere."""


def check_budget(budget: TrainingBudget) -> None:
    """Refuses budgets that cannot work.

    Raises:
        ConfigError: It names the field and its range.
    """
    ranges: list[tuple[str, bool, str]] = [
        ("num_iterations", budget.num_iterations >= 1, "at least 1"),
        ("frames_per_iteration", budget.frames_per_iteration >= 1, "at least 1"),
        ("num_passes", budget.num_passes >= 1, "at least 1"),
        ("beam_width", budget.beam_width >= 2, "at least 2"),
        ("noise", budget.noise >= 0, "at least 0"),
        ("ridge", budget.ridge > 0, "above 0"),
        ("inertia", budget.inertia >= 0, "at least 0"),
        ("memory", 0 <= budget.memory < 1, "at least 0 and below 1"),
        ("min_usage", 0 <= budget.min_usage < 1, "at least 0 and below 1"),
    ]
    for name, is_good, allowed in ranges:
        if not is_good:
            raise ConfigError(f"budget.{name} must be {allowed}, not {getattr(budget, name)}")
