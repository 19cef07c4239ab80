"""Collects the recognisers of the digits recipe into one Markdown table: `exp/summary.md`.

Reads what `spear decode` left in `exp/asr/{head}-{start}-{seconds}s-{seed}/decode/{search}/`. A
cell is the mean over seeds with the standard deviation of one run; the last column tells how many
of the errors from scratch the pre-trained model makes. A run that is not there is left out.
"""

import argparse
import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spear.errors import DataError, SpearError
from spear.system.files import write_text
from spear.system.markdown import markdown_table

RUN = re.compile(r"(ctc|transducer)-(finetuned|scratch)-(\d+)s-(\d+)")
SPLITS = {"test": "test", "test_speaker": "held-out speaker"}
SEARCHES = ("greedy", "beam", "ctc_head")
STARTS = {"scratch": "from scratch", "finetuned": "pre-trained"}


@dataclass(frozen=True, order=True)
class Cell:
    """What one number of the table is about; several seeds give several numbers."""

    seconds: int
    head: str
    search: str
    split: str
    start: str


def read_rates(exp: Path) -> dict[Cell, list[float]]:
    """Returns the word error rates in percent, one of each seed.

    Raises:
        DataError: There is none, or a file is broken.
    """
    rates: dict[Cell, list[float]] = defaultdict(list)
    for path in sorted(exp.glob("asr/*/decode/*/summary.json")):
        found = RUN.fullmatch(path.parents[2].name)
        if found is None:
            continue
        head, start, seconds, _ = found.groups()
        try:
            splits = json.loads(path.read_text("utf-8"))["splits"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: not what `spear decode` writes ({error!r})") from error
        for split in SPLITS:
            cell = Cell(int(seconds), head, path.parent.name, split, start)
            rates[cell].append(float(splits[split]["wer"]))
    if not rates:
        raise DataError(f"{exp}: no decoded recognisers; run the earlier stages")
    return rates


def make_table(rates: Mapping[Cell, Sequence[float]]) -> str:
    """Returns a row for every amount of speech, head, search and test set."""
    keys = {(cell.seconds, cell.head, cell.search, cell.split) for cell in rates}
    order = sorted(keys, key=lambda key: (-key[0], key[1], SEARCHES.index(key[2]), key[3]))
    rows = []
    for seconds, head, search, split in order:
        pair = [rates.get(Cell(seconds, head, search, split, start), ()) for start in STARTS]
        name = "CTC" if head == "ctc" else "transducer"
        how = "its CTC head, greedy" if search == "ctc_head" else search
        rates_of = map(mean_and_spread, pair)
        runs = str(max(map(len, pair)))
        rows.append((amount(seconds), name, how, SPLITS[split], runs, *rates_of, ratio(*pair)))
    header = ("transcribed", "head", "search", "test set", "seeds", *STARTS.values(), "errors left")
    return markdown_table(header, rows, "llllrrrr")


def amount(seconds: int) -> str:
    """Returns "10 min" or "30 s"."""
    return f"{seconds // 60} min" if seconds % 60 == 0 else f"{seconds} s"


def mean_and_spread(rates: Sequence[float]) -> str:
    """Returns "mean ± standard deviation"; empty where there is no run."""
    if not rates:
        return ""
    spread = f" ± {statistics.stdev(rates):.1f}" if len(rates) > 1 else ""
    return f"{statistics.mean(rates):.1f}{spread}"


def ratio(scratch: Sequence[float], finetuned: Sequence[float]) -> str:
    """Returns the share of the errors from scratch that the pre-trained models make."""
    if not scratch or not finetuned or statistics.mean(scratch) == 0:
        return ""
    return f"{statistics.mean(finetuned) / statistics.mean(scratch):.2f}"


def main(argv: list[str] | None = None) -> int:
    """Prints the table and writes it; 2 after a user's error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--exp-dir", type=Path, required=True, help="folder exp/ of the recipe")
    args = parser.parse_args(argv)
    try:
        rates = read_rates(args.exp_dir)
    except SpearError as error:
        sys.stderr.write(f"summarize.py: error: {error}\n")
        return 2
    text = f"{make_table(rates)}\n\nWER in percent, mean over seeds ± standard deviation of one.\n"
    write_text(args.exp_dir / "summary.md", text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
