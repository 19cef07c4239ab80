"""One process of a training that `test_mvq_resume` starts: the argument is a folder."""

import sys
from pathlib import Path

import torch

from spear.mvq import Quantizer, TrainingBudget, train_quantizer
from spear.system.distributed import join_ranks
from tests.mvq.mvq_frames import correlated_frames

BUDGET = {"num_iterations": 5, "frames_per_iteration": 3500, "min_usage": 0.5}


def train(folder: Path, **options: object) -> Quantizer:
    """Trains on frames of which some codes get too few, so that all steps are walked through."""
    return train_quantizer(
        correlated_frames(6000, 12),
        3,
        40,
        normalize_channels=True,
        budget=TrainingBudget(**BUDGET),
        metadata={"teacher": "{}"},
        state_path=folder / "q.training.safetensors",
        save_every_s=0.0,
        **options,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    with join_ranks("cpu") as ranks:
        quantizer = train(Path(sys.argv[1]), ranks=ranks)
        quantizer.save(Path(sys.argv[1]) / f"rank-{ranks.rank}.safetensors")
