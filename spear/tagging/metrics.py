"""How well clips are tagged: average precision and ROC area of every class, by scikit-learn.

mAP is the mean of the average precisions of the classes that occur among the clips, as AudioSet's
papers report it. The mean precision of random scores is the share of clips that have the class.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spear.system.optional import require
from spear.tagging.labels import Classes

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TaggingScores:
    """What an evaluation found.

    Attributes:
        classes: What was told apart.
        num_clips: Clips with labels.
        counts: (C,) clips that have each class.
        average_precision: (C,) 0 to 1; NaN where no clip has the class.
        roc_area: (C,) 0 to 1; NaN where no clip or every clip has the class.
        accuracy: Share of clips whose most probable class is theirs; None where some clip has not
            exactly one class.
    """

    classes: Classes
    num_clips: int
    counts: NDArray[np.int64]
    average_precision: Floats
    roc_area: Floats
    accuracy: float | None

    @property
    def mean_average_precision(self) -> float:
        """MAP over the classes that occur."""
        return float(np.nanmean(self.average_precision))

    @property
    def mean_roc_area(self) -> float:
        """Mean area under the ROC curve over the classes for which there is one."""
        known = self.roc_area[~np.isnan(self.roc_area)]
        return float(known.mean()) if len(known) else float("nan")

    def summary(self) -> dict[str, Any]:
        """Returns the numbers, as JSON; what has no value is None."""
        return {
            "mean_average_precision": _rounded(self.mean_average_precision),
            "mean_roc_area": _rounded(self.mean_roc_area),
            "accuracy": None if self.accuracy is None else _rounded(self.accuracy),
            "num_clips": self.num_clips,
            "num_classes": len(self.classes),
            "num_classes_without_clips": int((self.counts == 0).sum()),
            "classes": {
                label: {
                    "clips": int(self.counts[number]),
                    "average_precision": _rounded(self.average_precision[number]),
                    "roc_area": _rounded(self.roc_area[number]),
                }
                for number, label in enumerate(self.classes.labels)
            },
        }


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


def require_scores() -> Any:
    """Returns `sklearn.metrics`.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    return require("sklearn.metrics", "scoring taggers", "scikit-learn")


def score(
    probabilities: NDArray[np.float32], targets: NDArray[Any], classes: Classes
) -> TaggingScores:
    """Compares probabilities with labels.

    Args:
        probabilities: (n, C) float; any values that rank clips will do.
        targets: (n, C), 0 or 1; some clip has some class.
        classes: The C classes.

    Returns:
        The `TaggingScores`.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    metrics = require_scores()
    truth = np.asarray(targets) > 0.5
    assert truth.any(), "clips without any class cannot be scored"
    counts = truth.sum(0)
    precision, area = np.full((2, len(classes)), np.nan)
    for number, count in enumerate(counts):
        if count:
            column = truth[:, number], probabilities[:, number]
            precision[number] = metrics.average_precision_score(*column)
            if count < len(truth):
                area[number] = metrics.roc_auc_score(*column)
    return TaggingScores(
        classes, len(truth), counts, precision, area, _accuracy(probabilities, truth)
    )


def _accuracy(probabilities: NDArray[np.float32], truth: NDArray[np.bool_]) -> float | None:
    if not (truth.sum(1) == 1).all():
        return None
    return float((probabilities.argmax(1) == truth.argmax(1)).mean())
