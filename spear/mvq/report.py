"""The report of a quantiser: `report.md` with its pictures, and what `spear info` prints.

Everything that depends on the machine stands in `search.md`, so that the same quantiser and frames
give the same `report.md`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from spear.mvq.evaluation import (
    Evaluation,
    FrameQuantizer,
    SearchPoint,
    bits_per_frame,
    evaluate,
    frame_rate_hz,
    sweep_search,
    teacher_identity,
)
from spear.mvq.pictures import draw_codebooks, draw_history, draw_usage
from spear.mvq.quantizers.codebooks import CodebookQuantizer
from spear.mvq.quantizers.quantizer import BEAM_WIDTH, NUM_PASSES, Quantizer
from spear.mvq.remarks import HOW_TO_READ, remarks
from spear.system.files import write_json
from spear.system.markdown import embed_picture, markdown_table, write_markdown

__all__ = [
    "Evaluation",
    "bits_per_frame",
    "describe",
    "describe_evaluation",
    "draw_pictures",
    "evaluate",
    "write_report",
]

_NUM_PAIRS = 5


def describe(quantizer: FrameQuantizer) -> str:
    """Returns a table of what a quantiser is, as `spear info` prints it."""
    rows = {
        "id": quantizer.id,
        "codebooks": str(quantizer.num_codebooks),
        "codebook size": str(quantizer.codebook_size),
        "frame width": str(quantizer.dim),
        "bits per frame": _rate(quantizer, bits_per_frame(quantizer)),
    }
    if isinstance(quantizer, CodebookQuantizer):
        scaled = (quantizer.channel_scale != 1).any() or (quantizer.channel_mean != 0).any()
        rows = {"kind": quantizer.kind, **rows, "channels normalised": "yes" if scaled else "no"}
    if isinstance(quantizer, Quantizer):
        rows["first guess"] = "linear classifiers" if quantizer.has_classifiers else "undecided"
    teacher = teacher_identity(quantizer.metadata)
    rows |= {f"teacher {key}": str(value) for key, value in teacher.items()}
    apart = ("teacher", "history")  # the second is for the picture
    rows |= {key: value for key, value in sorted(quantizer.metadata.items()) if key not in apart}
    return _aligned(rows)


def describe_evaluation(quantizer: FrameQuantizer, found: Evaluation) -> str:
    """Returns what a set of frames says about a quantiser, as `spear info --frames` prints it.

    The search is timed here and now.
    """
    guess = found.first_guess_error
    rows = {
        "frames": f"{found.num_frames:,}",
        "relative error": f"{found.relative_error:.4f}",
        "error of the first guess": "none" if guess is None else f"{guess:.4f}",
        "bits used per frame": _rate(quantizer, found.used_bits),
        "least entropy / log K": f"{min(found.entropies):.3f}",
        "unused codes": f"{sum(found.num_unused):,} of {found.usage.numel():,}",
    }
    tables = [_codebook_table({"": found}), _pair_table(found)]
    points = sweep_search(quantizer, found.sample)
    tables.append(_search_table(points) if points else "")
    return "\n\n".join([_aligned(rows), *filter(None, tables)])


def write_report(
    folder: Path,
    quantizer: FrameQuantizer,
    train: Evaluation,
    held_out: Evaluation,
) -> None:
    """Writes the report of a trained quantiser into a folder.

    That is `report.md`; with matplotlib `usage.png`, `codebooks.png` and `training.png`; for
    quantisers with a search `search.md`, timed here and now; at last `summary.json`.

    Args:
        folder: Made if missing.
        quantizer: What was trained.
        train: On (some of) the frames that it was trained on.
        held_out: On frames that it has not seen.
    """
    folder = Path(folder)
    points = sweep_search(quantizer, held_out.sample)
    if points:
        write_markdown(folder / "search.md", _search_blocks(points, len(held_out.sample)))
    blocks = [
        *_blocks(quantizer, train, held_out),
        *draw_pictures(folder, quantizer, {"train": train, "held out": held_out}),
        "What other settings of the search give, and how fast they are on the machine that made "
        "this\nreport: [search.md](search.md)."
        if points
        else "",
        f"## How to read this\n\n{HOW_TO_READ}",
    ]
    write_markdown(folder / "report.md", blocks)
    write_json(folder / "summary.json", _summary(quantizer, train, held_out))


def draw_pictures(
    folder: Path, quantizer: FrameQuantizer, found: Mapping[str, Evaluation]
) -> list[str]:
    """Draws `usage.png`, `codebooks.png` and `training.png`, those that there is something for.

    Args:
        folder: Where they go.
        quantizer: Whose metadata know the history of its training, or not.
        found: Evaluations by the name of their frames. Use is that of the first, correlations
            those of the last.

    Returns:
        The Markdown that shows them; nothing without matplotlib.
    """
    usage, books, course = (folder / f"{n}.png" for n in ("usage", "codebooks", "training"))
    blocks = []
    if draw_usage(usage, next(iter(found.values()))):
        blocks.append(embed_picture(usage, "Use of codes, most frequent first"))
    if draw_codebooks(books, found):
        blocks.append(embed_picture(books, "Correlation of codebooks, and the error without each"))
    if draw_history(course, json.loads(quantizer.metadata.get("history", "[]"))):
        blocks.append(embed_picture(course, "Rounds of training"))
    return blocks


def _summary(
    quantizer: FrameQuantizer, train: Evaluation, held_out: Evaluation
) -> dict[str, object]:
    """The few numbers that a recipe's table shows; the error is that of held-out frames."""
    return {
        "id": quantizer.id,
        "num_codebooks": quantizer.num_codebooks,
        "codebook_size": quantizer.codebook_size,
        "bits_per_frame": bits_per_frame(quantizer),
        "relative_error": held_out.relative_error,
        "train_relative_error": train.relative_error,
        "usage_entropy": min(train.entropies),
        "unused_codes": sum(train.num_unused),
    }


def _blocks(quantizer: FrameQuantizer, train: Evaluation, held_out: Evaluation) -> list[str]:
    found = {"train": train, "held out": held_out}
    unusual = "\n".join(f"- {remark}" for remark in remarks(train, held_out))
    return [
        "# Quantiser",
        f"```\n{describe(quantizer)}\n```",
        _error_table(quantizer, found),
        f"## What stands out\n\n{unusual or 'Nothing.'}",
        "## Codebooks",
        _codebook_table(found),
        _pair_table(held_out),
    ]


def _error_table(quantizer: FrameQuantizer, found: dict[str, Evaluation]) -> str:
    rows = [
        (
            name,
            f"{part.num_frames:,}",
            f"{part.relative_error:.4f}",
            "" if part.first_guess_error is None else f"{part.first_guess_error:.4f}",
            _rate(quantizer, part.used_bits),
        )
        for name, part in found.items()
    ]
    header = ("frames", "count", "relative error", "first guess", "bits used per frame")
    return markdown_table(header, rows, "lrrrr")


def _codebook_table(found: dict[str, Evaluation]) -> str:
    """A row for each codebook; entropies and unused codes of the first set of frames."""
    first = next(iter(found.values()))
    header = ["codebook", "entropy / log K", "unused codes"]
    header += [f"error without it {name and f'({name})'}".strip() for name in found]
    rows = [
        (
            str(index),
            f"{entropy:.3f}",
            str(first.num_unused[index]),
            *(f"{part.errors_without[index]:.4f}" for part in found.values()),
        )
        for index, entropy in enumerate(first.entropies)
    ]
    return markdown_table(header, rows, "r" * len(header))


def _pair_table(found: Evaluation) -> str:
    pairs = found.strongest_pairs(_NUM_PAIRS)
    rows = [(f"{b} and {a}", f"{value:+.3f}") for a, b, value in pairs]
    return markdown_table(("most correlated codebooks", "correlation"), rows, "lr") if rows else ""


def _search_blocks(points: list[SearchPoint], num_frames: int) -> list[str]:
    return [
        "# Search: error against speed",
        f"`encode` of {num_frames:,} held-out frames, timed once on the machine that made the "
        "report:\nspeeds differ from machine to machine and run to run, errors do not. Extraction "
        f"uses {NUM_PASSES} passes with\na beam of {BEAM_WIDTH}. 0 passes are the first guess.",
        _search_table(points),
    ]


def _search_table(points: list[SearchPoint]) -> str:
    rows = [
        (
            str(point.num_passes),
            str(point.beam_width) if point.num_passes else "",
            f"{point.relative_error:.4f}",
            f"{point.frames_per_s:,.0f}",
        )
        for point in points
    ]
    return markdown_table(("passes", "beam width", "relative error", "frames/s"), rows, "rrrr")


def _rate(quantizer: FrameQuantizer, bits: float) -> str:
    """Returns bits a frame, and a second where the teacher's frame rate is known."""
    rate = frame_rate_hz(quantizer)
    per_second = "" if rate is None else f" ({_tenths(bits * rate)} bits/s)"
    return _tenths(bits) + per_second


def _tenths(value: float) -> str:
    return f"{round(value, 1):.10g}"


def _aligned(rows: dict[str, str]) -> str:
    width = max(len(key) for key in rows)
    return "\n".join(f"{key.ljust(width)}  {value}" for key, value in rows.items())
