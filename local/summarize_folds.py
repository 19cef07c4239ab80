"""Collects cross-validated taggers into Markdown: mean and spread over folds, and every class.

Reads `{run}/fold{k}/evaluation/summary.json` below a folder, as `spear finetune-tagging` leaves
them, for every run that is there.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from spear.errors import DataError, SpearError
from spear.system.files import write_text
from spear.system.markdown import markdown_table

Folds = list[dict[str, Any]]

MEASURES = {
    "mAP %": "mean_average_precision",
    "accuracy %": "accuracy",
    "mean ROC area %": "mean_roc_area",
}


def read_runs(exp: Path) -> dict[str, Folds]:
    """Returns the summaries of all folds by run.

    Raises:
        DataError: There is none, one is broken, or runs differ in their folds or classes.
    """
    runs: dict[str, Folds] = {}
    for path in sorted(exp.glob("*/fold*/evaluation/summary.json")):
        try:
            summary = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not readable as JSON ({error})") from error
        runs.setdefault(path.parents[2].name, []).append(summary)
    if not runs:
        raise DataError(f"{exp}: no evaluations of folds; train first")
    if len({len(folds) for folds in runs.values()}) > 1:
        counts = ", ".join(f"{name} {len(folds)}" for name, folds in runs.items())
        raise DataError(f"{exp}: unequal numbers of folds ({counts}); train those that are missing")
    if len({tuple(fold.get("classes", ())) for folds in runs.values() for fold in folds}) > 1:
        raise DataError(f"{exp}: the folds have not all the same classes; evaluate them again")
    return runs


def mean_and_spread(values: list[float | None]) -> str:
    """Returns "mean ± standard deviation" in percent; empty where a fold has no value."""
    known = [100 * value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return ""
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}"


def run_table(runs: dict[str, Folds]) -> str:
    """Returns the table of runs."""
    rows = [
        [name, str(len(folds)), *(mean_and_spread([f[key] for f in folds]) for key in keys)]
        for keys in [MEASURES.values()]
        for name, folds in runs.items()
    ]
    return markdown_table(("run", "folds", *MEASURES), rows, "lrrrr")


def class_table(runs: dict[str, Folds]) -> str:
    """Returns the table of classes: average precision over folds, by run."""
    first = next(iter(runs.values()))
    rows = []
    for label in first[0]["classes"]:
        clips = sum(fold["classes"][label]["clips"] for fold in first)
        chance = 100 * clips / sum(fold["num_clips"] for fold in first)
        precisions = [
            mean_and_spread([fold["classes"][label]["average_precision"] for fold in folds])
            for folds in runs.values()
        ]
        rows.append((f"`{label}`", str(clips), f"{chance:.1f}", *precisions))
    header = ("class", "clips", "chance %", *(f"{name}: average precision %" for name in runs))
    return markdown_table(header, rows, "l" + "r" * (len(header) - 1))


def main(argv: list[str] | None = None) -> int:
    """Writes `folds.md` into the folder and prints it; 2 after a user's error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--exp-dir", type=Path, required=True, help="folder of the runs")
    args = parser.parse_args(argv)
    try:
        runs = read_runs(args.exp_dir)
    except SpearError as error:
        sys.stderr.write(f"summarize_folds.py: error: {error}\n")
        return 2
    text = f"{run_table(runs)}\n\n{class_table(runs)}\n"
    write_text(args.exp_dir / "folds.md", text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
