"""Collects the results of a recipe into one Markdown table: `exp/summary.md`.

Reads what the commands left: the quantisers' reports, the pre-training's and the decodings'
`summary.json`. A stage that was not run, or does not apply, is left out of the table and named in a
line below it.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spear.errors import DataError, SpearError
from spear.system.files import write_text

Row = tuple[str, str, str]

ASR_RUNS = {"finetuned": "ASR fine-tuned from the export", "scratch": "ASR from scratch"}


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


def quantizer_rows(folder: Path) -> Iterator[Row]:
    """Yields error on held-out frames and usage of the least evenly used codebook."""
    for path in sorted(folder.glob("*/summary.json")):
        found = read_summary(path)
        name = f"quantiser {path.parent.name} ({found['num_codebooks']} x {found['codebook_size']})"
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
            yield stage, f"WER on {split}", f"{_percent(scores['wer'])} ({errors})"


def make_table(exp: Path) -> str:
    """Returns the Markdown text.

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
    lines = ["| what | measure | value |", "| --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    missing = [name for name, group in groups.items() if not group]
    if missing:
        lines += ["", f"No results of: {', '.join(missing)}."]
    model = exp / "model"
    if model.is_dir():
        lines += ["", f"Exported model: `{model}`"]
    return "\n".join(lines) + "\n"


def _percent(rate: float | None) -> str:
    return "no reference words" if rate is None else f"{rate:.2f}%"


def main(argv: list[str] | None = None) -> int:
    """Prints the table and writes it; 2 after a user's error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--exp-dir", type=Path, required=True, help="folder exp/ of a recipe")
    args = parser.parse_args(argv)
    try:
        table = make_table(args.exp_dir)
        write_text(args.exp_dir / "summary.md", table)
    except SpearError as error:
        sys.stderr.write(f"summarize.py: error: {error}\n")
        return 2
    sys.stdout.write(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
