"""Collects the recognisers of the digits recipe into one Markdown table: `exp/summary.md`.

A cell is the mean over seeds with the standard deviation of one run; the last column tells how many
of the errors from scratch the pre-trained model makes. A run that is not there is left out.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from summarize import mean_and_spread, read_grid, write_table

from spear.errors import DataError
from spear.system.markdown import markdown_table

DECODINGS = "asr/{head}-{start}-{seconds}s-{seed}/decode/{search}/summary.json"
SPLITS = {"test": "test", "test_speaker": "held-out speaker"}
HEADS = {"ctc": "CTC", "transducer": "transducer"}
SEARCHES = {"greedy": "greedy", "beam": "beam", "ctc_head": "its CTC head, greedy"}
STARTS = {"scratch": "from scratch", "finetuned": "pre-trained"}


def make_table(exp: Path) -> str:
    """Returns a row for every amount of speech, head, search and test set.

    Raises:
        DataError: There is no recogniser, or a file is broken.
    """
    rates: dict[tuple[int, str, str, str], dict[str, list[float]]] = {}
    for run, summary in read_grid(exp, DECODINGS):
        if run["head"] not in HEADS or run["start"] not in STARTS:
            continue  # not of this recipe
        for split in SPLITS:
            key = (int(run["seconds"]), run["head"], run["search"], split)
            try:
                rate = float(summary["splits"][split]["wer"])
            except (KeyError, TypeError) as error:
                raise DataError(
                    f"{exp}, {run}: not what `spear decode` writes ({error!r})"
                ) from error
            rates.setdefault(key, defaultdict(list))[run["start"]].append(rate)
    if not rates:
        raise DataError(f"{exp}: no decoded recognisers; run the earlier stages")
    rows = []
    for key in sorted(
        rates, key=lambda key: (-key[0], key[1], list(SEARCHES).index(key[2]), key[3])
    ):
        seconds, head, search, split = key
        pair = [rates[key][start] for start in STARTS]
        names = (amount(seconds), HEADS[head], SEARCHES[search], SPLITS[split])
        seeds = str(max(map(len, pair)))
        rows.append((*names, seeds, *map(mean_and_spread, pair), ratio(*pair)))
    header = ("transcribed", "head", "search", "test set", "seeds", *STARTS.values(), "errors left")
    remark = "WER in percent, mean over seeds ± standard deviation of one."
    return f"{markdown_table(header, rows, 'llllrrrr')}\n\n{remark}\n"


def amount(seconds: int) -> str:
    """Returns "10 min" or "30 s"."""
    return f"{seconds // 60} min" if seconds % 60 == 0 else f"{seconds} s"


def ratio(scratch: Sequence[float], finetuned: Sequence[float]) -> str:
    """Returns the share of the errors from scratch that the pre-trained models make."""
    if not scratch or not finetuned or statistics.mean(scratch) == 0:
        return ""
    return f"{statistics.mean(finetuned) / statistics.mean(scratch):.2f}"


def main(argv: list[str] | None = None) -> int:
    """Prints the table and writes it; 2 after a user's error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--exp-dir", type=Path, required=True, help="folder exp/ of the recipe")
    return write_table(parser.parse_args(argv).exp_dir, "summary.md", make_table)


if __name__ == "__main__":
    sys.exit(main())
