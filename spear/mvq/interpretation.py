"""What a quantiser's numbers mean and which of them are unusual, for who reads a first report.

The limits are rules of thumb, from quantisers of log-mel, WavLM-like and Dasheng-like frames: a
reason to look, not a verdict.
"""

from collections.abc import Iterable
from statistics import median

from spear.mvq.evaluation import Evaluation

HOW_TO_READ = """\
- **Relative error** is |x - x_hat|^2 / |x - mean|^2, after the channel normalisation: 1 is what one
  mean vector would reach, 0.1 keeps 90% of the variance. *Held out* near *train* is good; a much
  higher one means too few frames for so many codes.
- **Error without** a codebook is that with its mean in its place. There is no order among
  codebooks, so all should cost about the same: a student weighs all of them alike. One that costs
  nothing is wasted; one that costs most of the signal makes the others fine detail.
- **Entropy** 1 means that all codes of a codebook are used equally often, and its bits are all
  used; below about 0.9 fewer codes would have done. **Unused** codes waste room. Look at those of
  the training frames: a few held-out ones cannot show that a code is unused.
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
_MAX_NAMED = 8


def find_unusual(train: Evaluation, held_out: Evaluation) -> list[str]:
    """Returns sentences about what is unusual; empty when nothing is."""
    error = held_out.relative_error
    ratio = error / max(train.relative_error, 1e-6)
    num_codes, codebook_size = train.usage.numel(), train.usage.shape[1]
    frames_per_code = train.num_frames / codebook_size
    is_counted = frames_per_code >= _FEW_FRAMES_PER_CODE
    num_unused = sum(train.num_unused)
    low = [n for n, entropy in enumerate(train.entropies) if entropy < _LOW_ENTROPY]
    gains = [one - error for one in held_out.errors_without]
    usual = median(gains)
    limits = (usual / _UNEVEN_RATIO, usual * _UNEVEN_RATIO)
    uneven = [n for n, gain in enumerate(gains) if not limits[0] <= gain <= limits[1]]
    pairs = [pair for pair in held_out.strongest_pairs(3) if abs(pair[2]) > _STRONG_CORRELATION]
    sentences = {
        f"The held-out error is {ratio:.2f} times the training error: embed more frames, or take "
        "fewer or smaller codebooks.": ratio > _OVERFIT_RATIO,
        f"{error:.0%} of the variance is lost: more codebooks would keep more; if the training "
        "error is as high, look at the frames.": error > _POOR_ERROR,
        f"Use was counted on {train.num_frames:,} frames only, {frames_per_code:.1f} for every "
        "code: entropies come out too low, and some codes look unused.": not is_counted,
        f"{num_unused:,} of {num_codes:,} codes are unused: take smaller codebooks.": is_counted
        and num_unused > _UNUSED_SHARE * num_codes,
        f"The entropy is below {_LOW_ENTROPY} in codebook {_few(low)}: a handful of codes do most "
        "of the work, perhaps that of silence.": is_counted and low,
        f"Codebook {_few(uneven)} does more than {_UNEVEN_RATIO:g} times or less than "
        f"1/{_UNEVEN_RATIO:g} of the usual share of the work: codebooks have an order, as those of "
        "a residual quantiser do.": uneven,
        f"Codebooks {_few(f'{b} and {a} ({value:+.2f})' for a, b, value in pairs)} do each "
        "other's work.": pairs,
    }
    return [sentence for sentence, is_so in sentences.items() if is_so]


def _few(names: Iterable[object]) -> str:
    listed = list(map(str, names))
    more = f" and {len(listed) - _MAX_NAMED} more" if len(listed) > _MAX_NAMED else ""
    return ", ".join(listed[:_MAX_NAMED]) + more
