"""Pages of one HTML file each: nothing loaded from anywhere, nothing sent.

Python says what there is to see, `templates/` how it looks. Everything is escaped there, so an id
with `<script>` in it is shown, not run. A page with charts has plotly.js in it.
"""

import base64
import math
from pathlib import Path
from typing import Any

from spear import __version__
from spear.system.optional import require
from spear.training.logs.clock import format_duration
from spear.training.logs.curves import is_number


def render(template: str, command: str, has_charts: bool = False, **content: Any) -> str:
    """Returns a page.

    Args:
        template: File in `templates/`.
        command: What makes the page, e.g. "spear view".
        has_charts: Whether plotly.js is wanted.
        content: What the template asks for.

    Raises:
        MissingPackageError: jinja2 is not installed, or plotly, and it is wanted.
    """
    jinja2 = require("jinja2", f"the page of {command}")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spear.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,  # what files do not say is empty
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {one.__name__: one for one in (number, short, hours, duration)}
    charts = require("plotly.offline", f"the charts of {command}") if has_charts else None
    plotly_js = charts.get_plotlyjs() if charts else ""
    page: str = environment.get_template(template).render(
        command=command, version=__version__, plotly_js=plotly_js, **content
    )
    return page


def embedded(path: Path) -> str:
    """Returns a PNG file as the source of an image.

    Raises:
        OSError: It cannot be read.
    """
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def number(value: object, form: str = ",", scale: int = 1) -> str:
    """Returns a number from a file in a form of `format`; nothing for anything else, or NaN."""
    return format(scale * value, form) if is_number(value) and math.isfinite(value) else ""


def short(value: float) -> str:
    """Returns a number of three digits in few characters: 400k, 1.5M, 0.045; nothing for 0."""
    value = float(f"{value:.3g}")
    sizes = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
    size, letter = next((s for s in sizes if value >= max(1e4, s[0])), (1.0, ""))
    return f"{value / size:.4g}{letter}" if value else ""


def hours(seconds: object) -> str:
    """Returns seconds as hours."""
    value = seconds / 3600 if is_number(seconds) else math.nan
    return f"{number(value, ',.0f' if value >= 1000 else '.4g')} h" if math.isfinite(value) else ""


def duration(seconds: object) -> str:
    """Returns seconds as text."""
    return format_duration(seconds) if is_number(seconds) and math.isfinite(seconds) else ""
