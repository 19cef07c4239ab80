"""The page around the sections: one file, nothing loaded from anywhere, nothing sent."""

from collections.abc import Sequence
from dataclasses import dataclass

from spear import __version__
from spear.report.markup import Html, element, join
from spear.report.script import page_script
from spear.report.style import CSS

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    content: Html
    kind: str = ""
    """What it is, in soft letters beside the title."""


def render(
    title: str,
    cards: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    problems: Sequence[str],
) -> str:
    """Returns the whole page.

    Args:
        title: What it is about.
        cards: The numbers that one looks for first: value and name.
        sections: In their order; empty ones are left out.
        problems: What could not be read.
    """
    shown = [section for section in sections if section.content]
    body = element(
        "body",
        element("h1", title),
        element("nav", *(element("a", s.title, href=f"#s{i}") for i, s in enumerate(shown))),
        element("div", *(_card(*card) for card in cards), class_="cards") if cards else "",
        *(element("p", problem, class_="remark problem") for problem in problems),
        _smoothing(),
        *(_section(f"s{number}", section) for number, section in enumerate(shown)),
        element("footer", f"Made by spear {__version__} with `spear report`."),
        element("div", id="tip", role="status"),
        element("script", Html(page_script())),
    )
    return "<!doctype html>\n" + element("html", _head(title), body, lang="en") + "\n"


def _head(title: str) -> Html:
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("title", title),
        element("style", Html(CSS)),
    )


def _card(value: str, name: str) -> Html:
    return element("div", element("strong", value), element("span", name))


def _smoothing() -> Html:
    slider = element(
        "input", type="range", id="smoothing", min="0", max="0.98", step="0.02", value="0"
    )
    return element("label", "Smooth training curves", slider, class_="smooth")


def _section(anchor: str, section: Section) -> Html:
    kind = element("small", section.kind) if section.kind else ""
    heading = element("h2", section.title, kind)
    return element("section", join([heading, section.content]), id=anchor)
