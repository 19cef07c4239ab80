"""HTML that is escaped by construction: plain text becomes markup only through `element`.

`Html` is text that is markup already. Everything else that goes into an element or an attribute is
escaped, so an id with `<script>` in it is shown, not run.
"""

import html
from collections.abc import Iterable, Sequence


class Html(str):
    """Text that is markup already, and is not escaped again."""

    __slots__ = ()


_VOID = frozenset({"meta", "line", "rect", "circle", "path", "input", "img", "br"})
"""Elements without content; those of SVG among them are closed, as XML wants it."""


def element(name: str, /, *children: object, **attributes: object) -> Html:
    """Returns an element.

    Args:
        name: E.g. "td".
        children: `Html` stays as it is, anything else is escaped text.
        attributes: `_` in a name becomes `-`, at its end it is dropped (`class_`); those that are
            None or False are left out, True stands without a value.
    """
    start = f"<{name}{''.join(map(_attribute, attributes, attributes.values()))}"
    if name in _VOID:
        return Html(f"{start}/>")
    return Html(f"{start}>{join(children)}</{name}>")


def join(parts: Iterable[object]) -> Html:
    """Returns parts one after the other, plain ones escaped."""
    texts = (part if isinstance(part, Html) else html.escape(str(part)) for part in parts)
    return Html("".join(texts))


def table(header: Sequence[object], rows: Iterable[Sequence[object]], align: str = "") -> Html:
    """Returns a table that scrolls sideways where it is too wide; nothing without rows.

    Args:
        header: Names of the columns; empty ones for a table of facts.
        rows: The cells.
        align: A letter for each column, "r" for right; columns without a letter are on the left.
    """
    sides = ["right" if side == "r" else None for side in align.ljust(len(header), "l")]

    def row(cells: Sequence[object], cell_name: str) -> Html:
        pairs = zip(cells, sides, strict=True)
        return element("tr", *(element(cell_name, cell, class_=side) for cell, side in pairs))

    body = [row(cells, "td") for cells in rows]
    if not body:
        return Html()
    head = element("thead", row(header, "th")) if any(header) else ""
    whole = element("table", head, element("tbody", *body))
    return element("div", whole, class_="scroll", tabindex=0)


def details(title: str, *content: object) -> Html:
    """Returns content that a click unfolds."""
    return element("details", element("summary", title), *content)


def _attribute(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'
