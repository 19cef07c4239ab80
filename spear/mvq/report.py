"""The report of a quantiser: `report.md` with its pictures, and what `spear info` prints.

The same quantiser and frames give the same report.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from spear.mvq.evaluation import Evaluation
from spear.mvq.interpretation import HOW_TO_READ, find_unusual
from spear.mvq.pictures import draw_codebooks, draw_history, draw_usage
from spear.mvq.quantizers.codebooks import CodebookQuantizer
from spear.mvq.quantizers.quantizer import Quantizer
from spear.system.files import write_json
from spear.system.markdown import embed_picture, markdown_table, write_markdown

_NUM_PAIRS = 5


def describe(quantizer: CodebookQuantizer) -> str:
    """Returns a table of what a quantiser is, as `spear info` prints it."""
    scaled = (quantizer.channel_scale != 1).any() or (quantizer.channel_mean != 0).any()
    rows = {
        "kind": quantizer.kind,
        "id": quantizer.id,
        "codebooks": str(quantizer.num_codebooks),
        "codebook size": str(quantizer.codebook_size),
        "frame width": str(quantizer.dim),
        "bits per frame": _rate(quantizer, bits_per_frame(quantizer)),
        "channels normalised": "yes" if scaled else "no",
    }
    if isinstance(quantizer, Quantizer):
        rows["first guess"] = "linear classifiers" if quantizer.has_classifiers else "undecided"
    rows |= {f"teacher {key}": str(value) for key, value in quantizer.teacher().items()}
    apart = ("teacher", "history")  # the second is for the picture
    rows |= {key: value for key, value in sorted(quantizer.metadata.items()) if key not in apart}
    width = max(len(key) for key in rows)
    return "\n".join(f"{key.ljust(width)}  {value}" for key, value in rows.items())


def bits_per_frame(quantizer: CodebookQuantizer) -> float:
    """Returns N * log2 K: what the tokens of one frame can say at most."""
    return quantizer.num_codebooks * math.log2(quantizer.codebook_size)


def evaluation_blocks(
    quantizer: CodebookQuantizer, found: Mapping[str, Evaluation], pictures: Path | None = None
) -> list[str]:
    """Returns what frames say about a quantiser, as blocks of Markdown.

    Args:
        quantizer: What was evaluated.
        found: Evaluations by the name of their frames. Use of codes is that of the first,
            correlations are those of the last.
        pictures: Folder of `usage.png`, `codebooks.png` and `training.png`, those that there is
            something for; None to draw nothing. Nor is anything drawn without matplotlib.
    """
    evaluations = list(found.values())
    first, last = evaluations[0], evaluations[-1]
    unusual = "\n".join(f"- {sentence}" for sentence in find_unusual(first, last))
    blocks = [
        _error_table(quantizer, found),
        f"## What stands out\n\n{unusual or 'Nothing.'}",
        "## Codebooks",
        _codebook_table(found),
        _pair_table(last),
    ]
    if pictures is None:
        return blocks
    usage, books, course = (pictures / f"{n}.png" for n in ("usage", "codebooks", "training"))
    if draw_usage(usage, first):
        blocks.append(embed_picture(usage, "Use of codes, most frequent first"))
    if draw_codebooks(books, found):
        blocks.append(embed_picture(books, "Correlation of codebooks, and the error without each"))
    if draw_history(course, json.loads(quantizer.metadata.get("history", "[]"))):
        blocks.append(embed_picture(course, "Rounds of training"))
    return blocks


def write_report(
    folder: Path, quantizer: CodebookQuantizer, train: Evaluation, held_out: Evaluation
) -> None:
    """Writes the report of a trained quantiser into a folder.

    That is `report.md` with its pictures, and at last `summary.json`, the few numbers that a
    recipe's table shows.

    Args:
        folder: Made if missing.
        quantizer: What was trained.
        train: On (some of) the frames that it was trained on.
        held_out: On frames that it has not seen.
    """
    found = {"train": train, "held out": held_out}
    blocks = ["# Quantiser", f"```\n{describe(quantizer)}\n```"]
    blocks += evaluation_blocks(quantizer, found, folder)
    write_markdown(folder / "report.md", [*blocks, f"## How to read this\n\n{HOW_TO_READ}"])
    summary = {
        "id": quantizer.id,
        "num_codebooks": quantizer.num_codebooks,
        "codebook_size": quantizer.codebook_size,
        "bits_per_frame": bits_per_frame(quantizer),
        "relative_error": held_out.relative_error,
        "train_relative_error": train.relative_error,
        "usage_entropy": min(train.entropies),
        "unused_codes": sum(train.num_unused),
    }
    write_json(folder / "summary.json", summary)


def _error_table(quantizer: CodebookQuantizer, found: Mapping[str, Evaluation]) -> str:
    rows = [
        (
            name,
            f"{part.num_frames:,}",
            f"{part.relative_error:.4f}",
            "" if part.first_guess_error is None else f"{part.first_guess_error:.4f}",
            _rate(quantizer, part.used_bits),
            f"{min(part.entropies):.3f}",
            f"{sum(part.num_unused):,} of {part.usage.numel():,}",
        )
        for name, part in found.items()
    ]
    header = ("frames", "count", "relative error", "first guess", "bits used per frame")
    return markdown_table((*header, "least entropy / log K", "unused codes"), rows, "lrrrrrr")


def _codebook_table(found: Mapping[str, Evaluation]) -> str:
    """A row for each codebook; entropies and unused codes of the first set of frames."""
    first = next(iter(found.values()))
    columns = [map(str, range(len(first.entropies))), (f"{one:.3f}" for one in first.entropies)]
    columns += [map(str, first.num_unused)]
    columns += [(f"{one:.4f}" for one in part.errors_without) for part in found.values()]
    header = ["codebook", "entropy / log K", "unused codes"]
    header += [f"error without it ({name})" for name in found]
    return markdown_table(header, list(zip(*columns, strict=True)), "r" * len(header))


def _pair_table(found: Evaluation) -> str:
    pairs = found.strongest_pairs(_NUM_PAIRS)
    rows = [(f"{b} and {a}", f"{value:+.3f}") for a, b, value in pairs]
    return markdown_table(("most correlated codebooks", "correlation"), rows, "lr") if rows else ""


def _rate(quantizer: CodebookQuantizer, bits: float) -> str:
    """Returns bits a frame, and a second where the teacher's frame rate is known."""
    rate = quantizer.teacher().get("frame_rate_hz")
    text = f"{round(bits, 1):.10g}"
    if not isinstance(rate, (int, float)):
        return text
    return f"{text} ({round(bits * rate, 1):.10g} bits/s)"
