"""The sections beside the runs: error rates, quantisers, data and tokens, versions."""

import base64
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from spear import __version__
from spear.data.formats.tokens import TokenSidecar, find_teachers, sidecar_name
from spear.errors import TokenError, one_line
from spear.report.compute import Process
from spear.report.markup import Html, details, element, join, table
from spear.report.series import is_number
from spear.report.sources import Reader, title_of

_MAX_PICTURE_BYTES = 2_000_000


def error_rates(decodings: Sequence[Path], folder: Path, reader: Reader) -> list[tuple[str, ...]]:
    """Returns a row for each recogniser and split: names, WER and counts."""
    rows = []
    for path in decodings:
        summary = reader.json_object(path / "summary.json")
        splits = summary.get("splits")
        for split, scores in splits.items() if isinstance(splits, dict) else ():
            if isinstance(scores, dict):
                name = title_of(path, folder).removesuffix("/decode")
                rows.append((name, str(split), str(summary.get("weights", "")), *_counts(scores)))
    return rows


def error_section(rows: Sequence[Sequence[str]]) -> Html:
    """Returns the table of word error rates."""
    header = ("recogniser", "split", "weights", "WER %", "CER %", "words", "ins", "del", "sub")
    return table(header, rows, "lllrrrrrr")


def quantizer_section(quantizers: Sequence[Path], folder: Path, reader: Reader) -> Html:
    """Returns a table of quantisers, and their pictures."""
    rows, pictures = [], []
    for path in quantizers:
        found = reader.json_object(path / "summary.json")
        sizes = f"{_number(found, 'num_codebooks')} x {_number(found, 'codebook_size')}"
        measures = (
            _number(found, name)
            for name in ("bits_per_frame", "relative_error", "usage_entropy", "unused_codes")
        )
        name = title_of(path, folder)
        rows.append((name, str(found.get("id", "")), sizes, *measures))
        pictures += _pictures(name, sorted(path.glob("*.png")), reader)
    header = ("quantiser", "id", "codebooks", "bits a frame", "relative error", "entropy", "unused")
    if not rows:
        return Html()
    return join(
        [
            table(header, rows, "lllrrrr"),
            _remark(
                "Relative error: on held-out frames. Entropy: of the least evenly used codebook; "
                "1 means that all codes are used equally often. Unused: codes of all codebooks."
            ),
            _folded(pictures),
        ]
    )


def data_section(shards: Sequence[Path], folder: Path, reader: Reader) -> Html:
    """Returns a table of shard folders with their teachers' tokens, and of their verification."""
    rows: list[tuple[str, ...]] = []
    pictures: list[Html] = []
    for path in shards:
        content = reader.json_object(path / "shards.json")
        duration_s = content.get("duration_s")
        hours = f"{duration_s / 3600:,.3f}" if is_number(duration_s) else ""
        count, verified = _number(content, "num_cuts"), _verified(path, reader)
        facts = (title_of(path, folder), count, hours, verified)
        tokens = [_tokens(path, teacher, reader) for teacher in find_teachers(path)]
        rows += [(*facts, *one) for one in tokens or [("none", "", "", "")]]
        pictures += _pictures(facts[0], sorted(path.glob("*_tokens.png")), reader)
    header = ("shards", "cuts", "hours", "verified", "tokens of", "codes", "frames", "quantiser")
    return join([table(header, rows, "lrrlllr"), _folded(pictures)])


def version_section(processes: Iterable[Process]) -> Html:
    """Returns what made the page, and what made the results where a ledger tells."""
    made = sorted({one.spear_version for one in processes if one.spear_version})
    rows = [
        ("spear, of this page", __version__),
        ("Python, of this page", platform.python_version()),
        ("torch, of this page", torch.__version__),
    ]
    if made:
        rows.append(("spear, of the stages", ", ".join(made)))
    return table(("", ""), rows)


def _counts(scores: Mapping[str, Any]) -> tuple[str, ...]:
    rates = (f"{scores[key]:.2f}" if is_number(scores.get(key)) else "" for key in ("wer", "cer"))
    return (*rates, *(_number(scores, key) for key in ("num_words", "ins", "del", "sub")))


def _number(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    if not is_number(value):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _verified(folder: Path, reader: Reader) -> str:
    """Returns what `verify.md` says in a word or two."""
    text = reader.text(folder / "verify.md")
    if not text:
        return "no"
    return "no problems" if "\nNo problems." in text else "problems: see verify.md"


def _tokens(folder: Path, teacher: str, reader: Reader) -> tuple[str, ...]:
    """Returns teacher, size of a frame, frames and quantiser of the tokens in a folder."""
    try:
        sidecar = TokenSidecar.load(folder / sidecar_name(teacher))
    except TokenError as error:
        reader.problems.append(one_line(error))
        return (teacher, "", "", "not readable")
    num_frames = sum(shard.num_frames for shard in sidecar.shards.values())
    codes = f"{sidecar.num_codebooks} x {sidecar.codebook_size}, {sidecar.frame_rate_hz:g} Hz"
    return (teacher, codes, f"{num_frames:,}", sidecar.quantizer_id)


def _pictures(name: str, paths: Iterable[Path], reader: Reader) -> list[Html]:
    """Returns PNG files as parts of the page, apart from very large ones."""
    found = []
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            reader.problems.append(f"{path} cannot be read: {one_line(error)}")
            continue
        if len(content) <= _MAX_PICTURE_BYTES:
            source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
            caption = f"{name}: {path.stem}"
            image = element("img", src=source, alt=caption)
            found.append(element("figure", element("figcaption", caption, class_="unit"), image))
    return found


def _folded(pictures: Sequence[Html]) -> Html:
    whole = element("div", *pictures, class_="pictures")
    return details("Pictures", whole) if pictures else Html()


def _remark(text: str) -> Html:
    return element("p", text, class_="remark")
