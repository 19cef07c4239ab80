"""The report of a decoding: error rates of all splits, and where the errors are.

Which words are taken for which, and every alignment, stand in `errs-{split}.txt`; here are the
numbers to compare, and the utterances to listen to first.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spear.asr.scoring import ErrorCounts, Recognition, Scores, word_errors
from spear.system.markdown import (
    code,
    embed_picture,
    markdown_table,
    new_figure,
    save_figure,
    whole_ticks,
    write_markdown,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_WORST = 10
"""Utterances shown for each split."""
_MAX_BARS = 20
_KINDS = {"substitutions": "num_sub", "deletions": "num_del", "insertions": "num_ins"}
_COUNTS = (
    *("scored", "not scored", "words", "WER %", "95% interval", "ins", "del", "sub", "CER %"),
    *("wrong", "RTF"),
)


@dataclass(frozen=True)
class SplitResult:
    """What decoding a split gave."""

    num_recordings: int
    """Recordings recognised, with a transcript or without."""
    recognitions: Sequence[Recognition] = ()
    """Those that could be scored."""
    scores: Scores | None = None
    """Their scores; None where nothing could be scored."""
    audio_s: float = 0.0
    """Seconds of all recordings."""
    decoding_s: float = 0.0
    """Seconds that it took from files to text."""

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of work per second of audio; None where there was no audio."""
        return self.decoding_s / self.audio_s if self.audio_s > 0 else None


def write_report(folder: Path, results: Mapping[str, SplitResult], weights: str) -> None:
    """Writes `report.md` and, where matplotlib is installed, `report.png`.

    Args:
        folder: The folder of the decoding.
        results: Results by split.
        weights: Which weights were used, as the configuration says it.
    """
    scored = {split: one for split, one in results.items() if one.scores is not None}
    errors = {
        split: [word_errors(r.ref, r.hyp) for r in one.recognitions]
        for split, one in scored.items()
    }
    rows = [_rates(split, one) for split, one in results.items()]
    blocks = [
        "# Decoding",
        f"Weights: {weights}. Utterances are wrong with at least one word error. The interval is a "
        "bootstrap over utterances. RTF: seconds of work, reading included, per second of audio.",
        markdown_table(("split", *_COUNTS), rows, "lrrrrrrrrrrr"),
    ]
    for split, one in scored.items():
        blocks += _worst(split, one.recognitions, errors[split])
    everything = [counts for own in errors.values() for counts in own]
    picture = folder / "report.png"
    if everything and _draw(picture, everything):
        blocks.append(embed_picture(picture, "errors by length of the utterance, and by utterance"))
    write_markdown(folder / "report.md", blocks)


def _rates(split: str, result: SplitResult) -> tuple[str, ...]:
    scores, factor = result.scores, result.real_time_factor
    speed = "" if factor is None else f"{factor:.4f}"
    if scores is None:
        return (split, "0", f"{result.num_recordings:,}", *[""] * 8, speed)
    words, (low, high) = scores.words, scores.interval
    return (
        split,
        f"{scores.num_utterances:,}",
        f"{result.num_recordings - scores.num_utterances:,}",
        f"{words.num_ref:,}",
        f"{words.percent:.2f}",
        f"{low:.2f} to {high:.2f}",
        *(f"{count:,}" for count in (words.num_ins, words.num_del, words.num_sub)),
        f"{scores.characters.percent:.2f}",
        f"{scores.num_wrong_utterances:,}",
        speed,
    )


def _worst(
    split: str, recognitions: Sequence[Recognition], errors: Sequence[ErrorCounts]
) -> list[str]:
    """Returns a section of the utterances with the most errors, or nothing where none has any."""
    pairs = [pair for pair in zip(recognitions, errors, strict=True) if pair[1].num_errors]
    pairs.sort(key=lambda pair: (-pair[1].num_errors, pair[0].id))
    rows = [
        (code(one.id), str(counts.num_errors), str(counts.num_ref), code(one.ref), code(one.hyp))
        for one, counts in pairs[:NUM_WORST]
    ]
    if not rows:
        return []
    header = ("utterance", "errors", "words", "reference", "recognised")
    return [
        f"## Most errors in {split}",
        markdown_table(header, rows, "lrrll"),
        f"All alignments and the words most often confused: `errs-{split}.txt`.",
    ]


def _draw(path: Path, errors: Sequence[ErrorCounts]) -> bool:
    """Draws word errors by length of the reference, and how many utterances have how many.

    Returns:
        Whether it could.
    """
    figure = new_figure(9.0, 3.4)
    if figure is None:
        return False
    left, right = figure.subplots(1, 2)
    _draw_by_length(left, errors)
    per_utterance = Counter(min(one.num_errors, _MAX_BARS) for one in errors)
    right.bar(list(per_utterance), list(per_utterance.values()), color="tab:gray")
    right.set(xlim=(-0.6, max(per_utterance) + 0.6), ylabel="utterances")
    right.set(xlabel=f"word errors in the utterance ({_MAX_BARS}: or more)")
    whole_ticks(left, "x")
    whole_ticks(right, "both")
    save_figure(figure, path)
    return True


def _draw_by_length(axes: "Axes", errors: Sequence[ErrorCounts]) -> None:
    """Stacks substitutions, deletions and insertions per 100 words by length of the reference."""
    longest = max(one.num_ref for one in errors)
    width = max(1, -(-longest // _MAX_BARS))
    groups = group_by_length(errors, width)
    places = np.array([start + (width - 1) / 2 for start in groups])
    bottom = np.zeros(len(groups))
    for name, count in _KINDS.items():
        heights = [100 * getattr(one, count) / one.num_ref for one in groups.values()]
        axes.bar(places, heights, width=0.8 * width, bottom=bottom, label=name)
        bottom += heights
    axes.set(xlim=(0.0, longest + width), ylim=(0.0, 1.05 * max([*bottom, 1.0])))
    axes.set(xlabel="words in the reference", ylabel="errors per 100 words")
    axes.legend(fontsize="small", ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def group_by_length(errors: Sequence[ErrorCounts], width: int) -> dict[int, ErrorCounts]:
    """Adds up the errors of utterances of like length, empty references aside.

    Args:
        errors: Counts of single utterances.
        width: Lengths, in words, that form a group: 1 to `width`, and so on.

    Returns:
        Sums by the shortest length of the group, ascending.
    """
    groups: dict[int, ErrorCounts] = {}
    for one in sorted(errors, key=lambda counts: counts.num_ref):
        if one.num_ref:
            start = (one.num_ref - 1) // width * width + 1
            groups[start] = groups.get(start, ErrorCounts()) + one
    return groups
