"""Word and character error rates, with the alignments behind them, in Kaldi's form.

Takes pairs of reference and hypothesis; gives totals, a table per speaker, and the three files
that Kaldi and icefall users expect: `recogs-` (what was said and recognised), `errs-` (every
alignment, and which words went wrong) and `wer-` (the numbers).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spear.system.files import write_text
from spear.system.optional import require
from spear.system.rng import generator

# No transcript holds this character, so no word of one can be taken for a gap.
GAP = "\0"
NUM_WORST_SHOWN = 50
NUM_RESAMPLES = 1000

Alignment = list[tuple[str, str]]
"""Pairs of reference and hypothesis symbol; GAP on the left is an insertion, right a deletion."""


@dataclass(frozen=True)
class Recognition:
    """One utterance with what was said and what was recognised, both normalised alike."""

    id: str
    """Cut id, or path of a file."""
    ref: str
    """Reference transcript; may be empty."""
    hyp: str
    """Recognised text; may be empty."""
    speaker: str = ""
    """Speaker, where known."""


@dataclass(frozen=True)
class ErrorCounts:
    """Errors of one or more aligned utterances."""

    num_ref: int = 0
    """Symbols in the references."""
    num_ins: int = 0
    """Symbols recognised that nobody said."""
    num_del: int = 0
    """Symbols said that were not recognised."""
    num_sub: int = 0
    """Symbols recognised as others."""

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(
            self.num_ref + other.num_ref,
            self.num_ins + other.num_ins,
            self.num_del + other.num_del,
            self.num_sub + other.num_sub,
        )

    @property
    def num_errors(self) -> int:
        """Insertions, deletions and substitutions."""
        return self.num_ins + self.num_del + self.num_sub

    @property
    def percent(self) -> float:
        """Errors per 100 reference symbols; without any, 0 if there is no error, else infinite."""
        if self.num_ref == 0:
            return math.inf if self.num_errors else 0.0
        return 100.0 * self.num_errors / self.num_ref

    def line(self, name: str = "WER") -> str:
        """Returns Kaldi's line: `%WER 5.43 [ 12 / 221, 2 ins, 3 del, 7 sub ]`."""
        return (
            f"%{name} {self.percent:.2f} [ {self.num_errors} / {self.num_ref}, "
            f"{self.num_ins} ins, {self.num_del} del, {self.num_sub} sub ]"
        )


def align(ref: Sequence[str], hyp: Sequence[str]) -> Alignment:
    """Aligns two symbol sequences with the least number of errors (Levenshtein)."""
    kaldialign = require("kaldialign", "scoring")
    pairs: Alignment = kaldialign.align(list(ref), list(hyp), GAP)
    return pairs


def count_errors(alignment: Alignment) -> ErrorCounts:
    """Counts the errors of one alignment."""
    num_ins = sum(ref == GAP for ref, _ in alignment)
    num_del = sum(hyp == GAP for _, hyp in alignment)
    num_wrong = sum(ref != hyp for ref, hyp in alignment)
    return ErrorCounts(len(alignment) - num_ins, num_ins, num_del, num_wrong - num_ins - num_del)


def word_errors(ref: str, hyp: str) -> ErrorCounts:
    """Errors of one utterance in words, which white space separates."""
    return count_errors(align(ref.split(), hyp.split()))


def character_errors(ref: str, hyp: str) -> ErrorCounts:
    """Errors of one utterance in characters; a space between words is a character too."""
    return count_errors(align(" ".join(ref.split()), " ".join(hyp.split())))


def total_errors(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """Adds counts up."""
    return sum(counts, ErrorCounts())


@dataclass(frozen=True)
class Scores:
    """Totals over a split, as `score` computes them."""

    words: ErrorCounts
    """Errors in words."""
    characters: ErrorCounts
    """Errors in characters."""
    num_utterances: int
    """Utterances scored."""
    num_wrong_utterances: int
    """Utterances with at least one word error."""
    speakers: dict[str, ErrorCounts]
    """Errors in words by speaker, in the order of names."""
    interval: tuple[float, float]
    """Word error rates between which 95% of the bootstrap's lie, in percent."""

    def summary(self) -> dict[str, Any]:
        """Returns the numbers as JSON holds them; an infinite rate is null."""
        wer, cer = (
            None if math.isinf(counts.percent) else round(counts.percent, 4)
            for counts in (self.words, self.characters)
        )
        low, high = (None if math.isinf(rate) else round(rate, 4) for rate in self.interval)
        return {
            "wer": wer,
            "wer_low": low,
            "wer_high": high,
            "cer": cer,
            "ins": self.words.num_ins,
            "del": self.words.num_del,
            "sub": self.words.num_sub,
            "num_words": self.words.num_ref,
            "num_utterances": self.num_utterances,
            "num_wrong_utterances": self.num_wrong_utterances,
        }


def score(recognitions: Sequence[Recognition]) -> Scores:
    """Scores a split."""
    speakers: dict[str, ErrorCounts] = defaultdict(ErrorCounts)
    counts = [word_errors(r.ref, r.hyp) for r in recognitions]
    for recognition, errors in zip(recognitions, counts, strict=True):
        speakers[recognition.speaker or "-"] += errors
    return Scores(
        words=total_errors(counts),
        characters=total_errors(character_errors(r.ref, r.hyp) for r in recognitions),
        num_utterances=len(recognitions),
        num_wrong_utterances=sum(errors.num_errors > 0 for errors in counts),
        speakers=dict(sorted(speakers.items())),
        interval=bootstrap_interval(counts),
    )


def bootstrap_interval(counts: Sequence[ErrorCounts]) -> tuple[float, float]:
    """Returns the 95% confidence interval of a word error rate, in percent.

    Utterances are drawn with replacement, as many as there are, and scored together; the interval
    holds the middle 95% of the rates (Bisani and Ney, ICASSP 2004). Errors within an utterance
    depend on each other, so it is utterances that are drawn and not words. The same counts give
    the same interval.

    Args:
        counts: Errors of each utterance.
    """
    num_utterances, num_ref = len(counts), sum(one.num_ref for one in counts)
    if num_ref == 0:
        rate = total_errors(counts).percent
        return rate, rate
    table = np.array([(one.num_errors, one.num_ref) for one in counts], dtype=np.float64)
    rng = generator(0, "bootstrap", num_utterances)
    draws = (rng.integers(num_utterances, size=num_utterances) for _ in range(NUM_RESAMPLES))
    sums = np.array([table[draw].sum(axis=0) for draw in draws])
    rates = 100.0 * sums[:, 0] / np.maximum(sums[:, 1], 1.0)
    low, high = np.percentile(rates, (2.5, 97.5))
    return float(low), float(high)


def write_score_files(folder: Path, split: str, recognitions: Sequence[Recognition]) -> Scores:
    """Scores a split and writes `recogs-`, `errs-` and `wer-{split}.txt` into a folder."""
    ordered = sorted(recognitions, key=lambda recognition: recognition.id)
    scores = score(ordered)
    write_recognitions(folder, split, ordered)
    write_text(folder / f"errs-{split}.txt", _errors_text(ordered, scores))
    write_text(folder / f"wer-{split}.txt", _rates_text(scores))
    return scores


def write_recognitions(
    folder: Path, split: str, recognitions: Sequence[Recognition], with_refs: bool = True
) -> None:
    """Writes `recogs-{split}.txt`: two tab-separated lines per utterance, `ref=` and `hyp=`."""
    lines = []
    for recognition in recognitions:
        if with_refs:
            lines.append(f"{recognition.id}:\tref={recognition.ref}")
        lines.append(f"{recognition.id}:\thyp={recognition.hyp}")
    write_text(folder / f"recogs-{split}.txt", "".join(f"{line}\n" for line in lines))


def format_alignment(alignment: Alignment) -> str:
    """Writes an alignment on one line: `ONE (TWO->TOO) (THREE->*) (*->FOUR)`."""
    shown = ((ref.replace(GAP, "*"), hyp.replace(GAP, "*")) for ref, hyp in alignment)
    return " ".join(ref if ref == hyp else f"({ref}->{hyp})" for ref, hyp in shown)


def _rates_text(scores: Scores) -> str:
    num_wrong, num_utterances = scores.num_wrong_utterances, scores.num_utterances
    percent = 100.0 * num_wrong / max(1, num_utterances)
    lines = [
        scores.words.line("WER"),
        scores.characters.line("CER"),
        f"%SER {percent:.2f} [ {num_wrong} / {num_utterances} ]",
        "95% interval of the WER (bootstrap over utterances): "
        f"{scores.interval[0]:.2f} to {scores.interval[1]:.2f}",
        "",
        *_speaker_table(scores.speakers),
    ]
    return "".join(f"{line}\n" for line in lines)


def _speaker_table(speakers: dict[str, ErrorCounts]) -> list[str]:
    width = max(map(len, [*speakers, "speaker"]))
    header = f"{'speaker':<{width}} {'words':>7} {'ins':>5} {'del':>5} {'sub':>5} {'WER':>7}"
    return [header] + [
        f"{name:<{width}} {c.num_ref:>7} {c.num_ins:>5} {c.num_del:>5} {c.num_sub:>5} "
        f"{c.percent:>7.2f}"
        for name, c in speakers.items()
    ]


def _errors_text(recognitions: Sequence[Recognition], scores: Scores) -> str:
    """The alignment of every utterance, then which words go wrong most often."""
    lines = [
        scores.words.line("WER"),
        "",
        "ALIGNMENTS: id, errors, then the reference with (reference->recognised), * for nothing",
    ]
    wrong: Counter[tuple[str, str]] = Counter()
    for recognition in recognitions:
        pairs = align(recognition.ref.split(), recognition.hyp.split())
        wrong.update(pair for pair in pairs if pair[0] != pair[1])
        errors = count_errors(pairs).num_errors
        lines.append(f"{recognition.id}\t{errors}\t{format_alignment(pairs)}")
    lines += ["", f"ERRORS: count, reference -> recognised (the {NUM_WORST_SHOWN} most frequent)"]
    ranked = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:NUM_WORST_SHOWN]
    lines += [
        f"{count}\t{ref.replace(GAP, '*')} -> {hyp.replace(GAP, '*')}"
        for (ref, hyp), count in ranked
    ]
    return "".join(f"{line}\n" for line in lines)
