"""What the label lists of all corpora have in common: `utt2labels`, `classes` and folds.

A corpus's own script finds out which recording has which labels and lies in which fold; here the
lists are written as `spear finetune-tagging` reads them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spear.errors import DataError
from spear.system.files import write_text


@dataclass(frozen=True)
class Labelled:
    """A recording: its id, its labels, and its fold from 1 where there are folds (0: none)."""

    id: str
    labels: tuple[str, ...]
    fold: int = 0


def write_lists(
    folder: Path, recordings: Sequence[Labelled], classes: Mapping[str, str] | None = None
) -> None:
    """Writes `utt2labels`, `classes`, and for fold k `fold{k}/train_ids` and `fold{k}/valid_ids`.

    Args:
        folder: Where to.
        recordings: What the lists are of.
        classes: Names by label, in order; None: the labels that occur, sorted.

    Raises:
        DataError: There is no recording, one is there twice, or a label has a comma in it.
    """
    if not recordings:
        raise DataError(f"{folder}: no labelled recording to write lists of")
    key, count = Counter(one.id for one in recordings).most_common(1)[0]
    if count > 1:
        raise DataError(f"{folder}: recording {key!r} is there {count} times")
    labels = {label for one in recordings for label in one.labels}
    if classes is None:
        classes = {label: label for label in sorted(labels)}
    bad = sorted(label for label in {*labels, *classes} if "," in label or not label.strip())
    if bad:
        raise DataError(f"label {bad[0]!r} has a comma in it or is empty: lists cannot hold it")
    ordered = sorted(recordings, key=lambda one: one.id)
    _write(folder / "utt2labels", [f"{one.id} {','.join(one.labels)}" for one in ordered])
    _write(folder / "classes", [f"{label} {name}" for label, name in classes.items()])
    for fold in sorted({one.fold for one in ordered} - {0}):
        for name, is_held_out in (("train_ids", False), ("valid_ids", True)):
            ids = [one.id for one in ordered if (one.fold == fold) == is_held_out]
            _write(folder / f"fold{fold}" / name, ids)


def _write(path: Path, lines: Sequence[str]) -> None:
    write_text(path, "".join(f"{line}\n" for line in lines))
