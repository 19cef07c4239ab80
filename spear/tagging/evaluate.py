"""`spear evaluate-tagging`: a tagger and labelled shards in, mAP and a per-class table out.

Writes `summary.json`, `report.md` with its picture, and `scores.npz`: `ids`, `labels` (of the
classes), `probabilities` (n, C) and `targets` (n, C), for what else one may want to compute.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spear.audio import SAMPLE_RATE_HZ
from spear.data.index.loader import made_in_order
from spear.errors import ConfigError
from spear.system import ledger
from spear.system.device import choose_device
from spear.system.files import atomic_path, write_json
from spear.system.progress import get_logger, progress
from spear.tagging.apply import Tagger
from spear.tagging.clips import LabelledClips
from spear.tagging.labels import read_labels
from spear.tagging.metrics import TaggingScores, require_scores, score
from spear.tagging.model import TaggingModel, load_tagging_model
from spear.tagging.report import write_report

logger = get_logger(__name__)

SUMMARY, SCORES = "summary.json", "scores.npz"


@dataclass
class Evaluation:
    """How a tagger is applied."""

    weights: str = "averaged"
    """Which of the run's weights: "averaged" (over the later half of the run), "averaged:SHARE"
    (over its last share, e.g. averaged:0.25), "last", "average_last:K" (mean of K checkpoints)."""
    window_s: float = 10.0
    """Longer recordings are cut into windows of so many seconds, whose frames are pooled."""
    batch_s: float = 100.0
    """Audio that is encoded at once, in seconds, counted with padding."""
    num_workers: int = 0
    """Processes that read recordings; 0 does it in this process."""
    device: str = "auto"
    """"auto" (CUDA where there is one), "cpu" or "cuda"."""

    def __post_init__(self) -> None:
        """Refuses values outside their ranges."""
        for name in ("window_s", "batch_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be above 0 seconds")
        if self.num_workers < 0:
            raise ConfigError(f"num_workers is {self.num_workers}: it must be 0 or more")


@dataclass(kw_only=True)
class EvaluateTaggingConfig(Evaluation):
    """Tags labelled recordings and scores the result."""

    run_dir: str
    """Run folder of `spear finetune-tagging`, or one of its checkpoint folders."""
    shards: list[str] = field(default_factory=list)
    """Shard folders."""
    labels: list[str] = field(default_factory=list)
    """Files of lines `id label,label,...` with the labels of their recordings."""
    ids: str | None = None
    """File of the ids that are evaluated; none: all."""
    skip_unlabelled: bool = False
    """Whether cuts without a line of labels are counted and left out; else they are an error."""
    output_dir: str | None = None
    """Folder for the results; none: `evaluation` in the run folder."""


def run(config: EvaluateTaggingConfig) -> None:
    """Evaluates.

    Raises:
        CheckpointError: The run folder cannot be used.
        DataError: Recordings or labels are missing, or a label is no class of the tagger.
        MissingPackageError: scikit-learn is not installed.
    """
    require_scores()
    classes = load_tagging_model(config.run_dir, config.weights).classes
    clips = LabelledClips(
        config.shards,
        read_labels(config.labels),
        classes,
        ids=config.ids,
        skip_unlabelled=config.skip_unlabelled,
        purpose="shards",
    )
    output = config.output_dir or os.path.join(config.run_dir, "evaluation")
    evaluate(Path(config.run_dir), clips, Path(output), config)


def evaluate(
    run_dir: Path, clips: LabelledClips, output: Path, settings: Evaluation
) -> TaggingScores:
    """Tags clips, scores them and writes the results into a folder."""
    device = choose_device(settings.device)
    model = load_tagging_model(run_dir, settings.weights, device)
    ids, probabilities = tag_clips(model, clips, settings)
    targets = clips.targets(np.arange(len(clips)))
    scores = score(probabilities, targets, clips.classes)
    _write_scores(output / SCORES, ids, probabilities, targets, clips)
    write_report(output, scores, settings.weights)
    write_json(output / SUMMARY, {**scores.summary(), "weights": settings.weights})
    ledger.note(audio_hours=float(clips.num_samples.sum()) / SAMPLE_RATE_HZ / 3600)
    logger.info(
        "mAP %.2f%% over %d clips; results in %s",
        100 * scores.mean_average_precision,
        scores.num_clips,
        output,
    )
    return scores


def tag_clips(
    model: TaggingModel, clips: LabelledClips, settings: Evaluation
) -> tuple[list[str], NDArray[np.float32]]:
    """Returns the ids of all clips and (n, C) probabilities, in their order."""
    tagger = Tagger(model, window_s=settings.window_s, batch_s=settings.batch_s)
    ids: list[str] = []

    def audio() -> Iterator[NDArray[np.float32]]:
        for cut_id, samples in made_in_order(clips.read, len(clips), settings.num_workers):
            ids.append(cut_id)
            yield samples

    found = progress(tagger.probabilities(audio()), "evaluate", len(clips))
    probabilities = np.stack(list(found))
    return ids, probabilities


def _write_scores(
    path: Path,
    ids: list[str],
    probabilities: NDArray[np.float32],
    targets: NDArray[np.float32],
    clips: LabelledClips,
) -> None:
    with atomic_path(path) as partial:
        np.savez_compressed(
            partial,
            ids=np.array(ids),
            labels=np.array(clips.classes.labels),
            probabilities=probabilities,
            targets=targets.astype(np.uint8),
        )
