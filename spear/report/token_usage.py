"""How often a student says each token, against how often its teacher does: the tables of a run.

`tables.json` holds shares (N, K) by codebook and token. Tokens have no order of their own, so those
of each codebook are put from the most to the least frequent, and codebooks are averaged: a student
that only ever says a few tokens falls off where its teacher does not.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from spear.report.line_chart import Line, line_chart
from spear.report.markup import Html
from spear.report.series import Series

_LOOKS = {"predicted": "valid", "target": "reference"}


def usage_pictures(tables: Mapping[str, Any]) -> dict[str, Html]:
    """Returns a picture by teacher; tables of another form are passed over."""
    found: dict[str, list[Line]] = {}
    for tag, table in tables.items():
        name = tag.removeprefix("valid/")
        for what, look in _LOOKS.items():
            teacher = name.removesuffix(f"_{what}_tokens")
            curve = _ranked(table) if teacher != name else None
            if curve is not None:
                found.setdefault(teacher, []).append(Line(what, curve, look))
    return {
        teacher: line_chart(
            "use of tokens",
            sorted(lines, key=lambda line: line.label),
            "share of frames",
            is_log=True,
            x_name="token, by frequency",
        )
        for teacher, lines in found.items()
    }


def _ranked(table: Any) -> Series | None:
    """Returns the mean share of the most frequent token, the second, ...; never is a gap."""
    rows = table.get("rows") if isinstance(table, dict) else None
    try:
        shares = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError):  # rows of unequal lengths, or no numbers
        return None
    if shares.ndim != 2 or shares.size == 0:
        return None
    mean = np.sort(shares, axis=1)[:, ::-1].mean(axis=0)
    values = [value if value > 0 else math.nan for value in mean.tolist()]
    return Series([float(rank) for rank in range(1, len(values) + 1)], values)
