"""Collects results into Markdown tables: `exp/summary.md`, or with `--folds` `exp/folds.md`.

Reads what the commands left: the quantisers' reports, the pre-training's and the decodings'
`summary.json`. A stage that was not run, or does not apply, is left out of the table and named in a
line below it. With `--folds` cross-validated taggers: mean and spread over folds, and every class.

A recipe with a table of its own makes it of `read_grid`, `mean_and_spread` and `write_table`.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from spear.errors import DataError, SpearError
from spear.system.files import write_text
from spear.system.markdown import markdown_table

Row = tuple[str, str, str]
Folds = list[dict[str, Any]]

ASR_RUNS = {"finetuned": "ASR fine-tuned from the export", "scratch": "ASR from scratch"}
FOLDS = "{run}/fold{fold}/evaluation/summary.json"
MEASURES = {
    "mAP %": "mean_average_precision",
    "accuracy %": "accuracy",
    "mean ROC area %": "mean_roc_area",
}


def read_summary(path: Path) -> Any:
    """Reads a JSON file; None where there is none.

    Raises:
        DataError: The file is no JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); remove it, run again") from error


def read_grid(exp: Path, pattern: str) -> Iterator[tuple[dict[str, str], Any]]:
    """Yields the JSON files whose paths fit a pattern, sorted, each after the fields of its path.

    Args:
        exp: Folder that the pattern begins in.
        pattern: Such as `FOLDS`; a field in braces is a part of a name.

    Raises:
        DataError: A file is no JSON.
    """
    parts = re.split(r"\{(\w+)\}", pattern)
    names = [f"(?P<{part}>[^/]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts)]
    for path in sorted(exp.glob(re.sub(r"\{\w+\}", "*", pattern))):
        found = re.fullmatch("".join(names), path.relative_to(exp).as_posix())
        if found:
            yield found.groupdict(), read_summary(path)


def mean_and_spread(values: Sequence[float]) -> str:
    """Returns "mean ± standard deviation" of one; empty without values."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def quantizer_rows(folder: Path) -> Iterator[Row]:
    """Yields error on held-out frames and usage of the least evenly used codebook."""
    for fields, found in read_grid(folder, "{name}/summary.json"):
        name = f"quantiser {fields['name']} ({found['num_codebooks']} x {found['codebook_size']})"
        yield name, "relative error", f"{found['relative_error']:.3f}"
        yield name, "entropy of its codes (1: uniform)", f"{found['usage_entropy']:.3f}"


def pretrain_rows(folder: Path) -> Iterator[Row]:
    """Yields masked accuracy and baseline per teacher."""
    for name, found in (read_summary(folder / "summary.json") or {}).items():
        stage = f"pre-training, {name} tokens"
        yield stage, "masked accuracy", f"{found['masked_accuracy']:.2%}"
        yield stage, "most frequent token (baseline)", f"{found['baseline_accuracy']:.2%}"


def asr_rows(exp: Path) -> Iterator[Row]:
    """Yields the word error rates of both recognisers, split by split."""
    for run, stage in ASR_RUNS.items():
        found = read_summary(exp / f"asr_{run}" / "decode" / "summary.json") or {"splits": {}}
        for split, scores in found["splits"].items():
            errors = ", ".join(f"{scores[key]} {key}" for key in ("ins", "del", "sub"))
            rate = "no reference words" if scores["wer"] is None else f"{scores['wer']:.2f}%"
            yield stage, f"WER on {split}", f"{rate} ({errors})"


def make_table(exp: Path) -> str:
    """Returns the table of a recipe.

    Raises:
        DataError: No result at all is there, or one is broken.
    """
    groups = {
        "quantisers": list(quantizer_rows(exp / "quantizers")),
        "pre-training": list(pretrain_rows(exp / "pretrain")),
        "ASR": list(asr_rows(exp)),
    }
    rows = [row for group in groups.values() for row in group]
    if not rows:
        raise DataError(f"{exp}: no results yet; run the earlier stages")
    blocks = [markdown_table(("what", "measure", "value"), rows)]
    missing = [name for name, group in groups.items() if not group]
    if missing:
        blocks.append(f"No results of: {', '.join(missing)}.")
    if (exp / "model").is_dir():
        blocks.append(f"Exported model: `{exp / 'model'}`")
    return "\n\n".join(blocks) + "\n"


def make_fold_tables(exp: Path) -> str:
    """Returns the table of cross-validated taggers, and that of all classes.

    Raises:
        DataError: There is none, one is broken, or runs differ in their folds or classes.
    """
    runs: dict[str, Folds] = {}
    for fields, summary in read_grid(exp, FOLDS):
        runs.setdefault(fields["run"], []).append(summary)
    if not runs:
        raise DataError(f"{exp}: no evaluations of folds; train first")
    if len({len(folds) for folds in runs.values()}) > 1:
        counts = ", ".join(f"{name} {len(folds)}" for name, folds in runs.items())
        raise DataError(f"{exp}: unequal numbers of folds ({counts}); train those that are missing")
    if len({tuple(fold.get("classes", ())) for folds in runs.values() for fold in folds}) > 1:
        raise DataError(f"{exp}: the folds have not all the same classes; evaluate them again")
    rows = [
        (
            name,
            str(len(folds)),
            *(_percent([fold[key] for fold in folds]) for key in MEASURES.values()),
        )
        for name, folds in runs.items()
    ]
    table = markdown_table(("run", "folds", *MEASURES), rows, "lrrrr")
    return f"{table}\n\n{_class_table(runs)}\n"


def _class_table(runs: dict[str, Folds]) -> str:
    """Returns the table of classes: average precision over folds, by run."""
    first = next(iter(runs.values()))
    rows = []
    for label in first[0]["classes"]:
        clips = sum(fold["classes"][label]["clips"] for fold in first)
        chance = 100 * clips / sum(fold["num_clips"] for fold in first)
        precisions = [
            _percent([fold["classes"][label]["average_precision"] for fold in folds])
            for folds in runs.values()
        ]
        rows.append((f"`{label}`", str(clips), f"{chance:.1f}", *precisions))
    header = ("class", "clips", "chance %", *(f"{name}: average precision %" for name in runs))
    return markdown_table(header, rows, "l" + "r" * (len(header) - 1))


def _percent(values: list[float | None]) -> str:
    """Returns mean and spread in percent; empty where a fold has no value."""
    known = [100 * value for value in values if value is not None]
    return mean_and_spread(known) if len(known) == len(values) else ""


def write_table(exp: Path, name: str, make: Callable[[Path], str]) -> int:
    """Prints a table of a folder and writes it there; returns 2 after a user's error."""
    try:
        text = make(exp)
        write_text(exp / name, text)
    except SpearError as error:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: error: {error}\n")
        return 2
    sys.stdout.write(text)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Writes the table that is asked for; 2 after a user's error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--exp-dir", type=Path, required=True, help="folder exp/ of a recipe")
    parser.add_argument("--folds", action="store_true", help="of cross-validated taggers")
    args = parser.parse_args(argv)
    if args.folds:
        return write_table(args.exp_dir, "folds.md", make_fold_tables)
    return write_table(args.exp_dir, "summary.md", make_table)


if __name__ == "__main__":
    sys.exit(main())
