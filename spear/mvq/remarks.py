"""What stands out in a quantiser's numbers, in words: for those who read their first report.

The limits are rules of thumb, from quantisers of log-mel, WavLM-like and Dasheng-like frames; a
remark is a reason to look, not a verdict.
"""

import statistics

from spear.mvq.evaluation import Evaluation

HOW_TO_READ = """\
- **Relative error** is |x - x_hat|^2 / |x - mean|^2, after the channel normalisation: 1 is what one
  mean vector would reach, 0.1 keeps 90% of the variance. *Held out* near *train* is good; a much
  higher one means too few frames for so many codes.
- **Error without** a codebook is that with its mean in its place. There is no order among
  codebooks, so all should cost about the same: a student weighs all of them alike. One that costs
  nothing is wasted; one that costs most of the signal makes the others fine detail.
- **Entropy** 1 means that all codes of a codebook are used equally often, and its bits are all
  used; below about 0.9 fewer codes would have done. **Unused** codes waste room. Both are of the
  training frames: a few held-out ones cannot show that a code is unused.
- **Correlation** is that of what two codebooks contribute to the decoded frames. Near 0 is good:
  each does work of its own. Positive pairs say in part the same, negative ones take back what the
  other said.
- **First guess** is what the linear classifiers say before the search. A guess far above the
  final error costs passes of the search, not quality."""

_OVERFIT_RATIO = 1.25
_LOW_ENTROPY = 0.85
_UNUSED_SHARE = 0.02
_UNEVEN_RATIO = 4.0
_STRONG_CORRELATION = 0.3
_FEW_FRAMES_PER_CODE = 10
_POOR_ERROR = 0.6


def remarks(train: Evaluation, held_out: Evaluation) -> list[str]:
    """Returns sentences about what is unusual; empty when nothing is."""
    return [
        *_about_errors(train, held_out),
        *_about_use(train),
        *_about_work(held_out),
    ]


def _about_errors(train: Evaluation, held_out: Evaluation) -> list[str]:
    found = []
    if held_out.relative_error > _OVERFIT_RATIO * max(train.relative_error, 1e-6):
        found.append(
            f"The held-out error is {held_out.relative_error / max(train.relative_error, 1e-6):.2f}"
            " times the training error: embed more frames, or take fewer or smaller codebooks."
        )
    if held_out.relative_error > _POOR_ERROR:
        found.append(
            f"{held_out.relative_error:.0%} of the variance is lost: more codebooks would keep "
            "more; if the training error is as high, look at the frames."
        )
    return found


def _about_use(train: Evaluation) -> list[str]:
    num_codes, codebook_size = train.usage.numel(), train.usage.shape[1]
    if train.num_frames < _FEW_FRAMES_PER_CODE * codebook_size:
        return [
            f"Use was counted on {train.num_frames:,} frames only, "
            f"{train.num_frames / codebook_size:.1f} for every code: entropies come out too low, "
            "and some codes look unused."
        ]
    found = []
    num_unused = sum(train.num_unused)
    if num_unused > _UNUSED_SHARE * num_codes:
        found.append(f"{num_unused:,} of {num_codes:,} codes are unused: take smaller codebooks.")
    low = [str(n) for n, entropy in enumerate(train.entropies) if entropy < _LOW_ENTROPY]
    if low:
        found.append(
            f"The entropy is below {_LOW_ENTROPY} in codebook {_few(low)}: a handful of codes do "
            "most of the work, perhaps that of silence."
        )
    return found


def _about_work(held_out: Evaluation) -> list[str]:
    found = []
    gains = [error - held_out.relative_error for error in held_out.errors_without]
    middle = statistics.median(gains) if gains else 0.0
    uneven = [
        str(n)
        for n, gain in enumerate(gains)
        if gain > _UNEVEN_RATIO * middle or gain < middle / _UNEVEN_RATIO
    ]
    if uneven:
        found.append(
            f"Codebook {_few(uneven)} does more than {_UNEVEN_RATIO:g} times or less than "
            f"1/{_UNEVEN_RATIO:g} of the usual share of the work: codebooks have an order, as "
            "those of a residual quantiser do."
        )
    pairs = [p for p in held_out.strongest_pairs(3) if abs(p[2]) > _STRONG_CORRELATION]
    if pairs:
        text = ", ".join(f"{b} and {a} ({value:+.2f})" for a, b, value in pairs)
        found.append(f"Codebooks {text} do each other's work.")
    return found


def _few(names: list[str], count: int = 8) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
