"""A report as a list of sections, written as one HTML file that opens from disk without a network, or as Markdown.

Names, reasons and settings come from users: in HTML everything is escaped, in Markdown what would be read as markup.
"""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.util import find_spec
from typing import Any

from pretune.core.errors import RequestError

MARK = "made by pretune report"
"""What tells a report from a file of the user's own; it stands near the beginning of both kinds."""


@dataclass(frozen=True)
class Text:
    """A paragraph. `tone`: "" as usual, "note" for what qualifies the rest, "warning" for what must not be missed."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Text in cells. `right` are the columns of numbers; `folded` is the text behind which the table is folded away."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[int] = ()
    folded: str = ""
    strong: Sequence[int] = ()
    """Rows to look at first."""


@dataclass(frozen=True)
class Code:
    """Something to copy, or a file's content; `folded` as for a table."""

    text: str
    folded: str = ""


@dataclass(frozen=True)
class Figure:
    """One of plotly's, as JSON. `says` is the sentence that says what it shows and what to see; `alt` what is read out
    in its place. Colors that begin with two dashes are names of the page's own, which follow light and dark.
    """

    title: str
    says: str
    alt: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int = 360


@dataclass(frozen=True)
class Figures:
    """Several that stand side by side where there is room."""

    items: Sequence[Figure]


Block = Text | Points | Facts | Table | Code | Figure | Figures


@dataclass(frozen=True)
class Section:
    """A heading and what comes below it; `level` 2 or 3."""

    title: str
    blocks: Sequence[Block]
    level: int = 2


@dataclass(frozen=True)
class Document:
    """`lead` is the answer in a sentence or two, `made` when and by what it was written."""

    title: str
    lead: Sequence[str]
    made: str
    warnings: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=tuple)


def check_installed() -> None:
    """RequestError where what a page is made with is not there."""
    missing = [name for name in ("plotly", "jinja2") if find_spec(name) is None]
    if missing:
        raise RequestError(
            f"a report needs {' and '.join(missing)}, not installed here; install what reports take: "
            "pip install 'pretune[report]'"
        )


def as_html(document: Document) -> str:
    """One file with everything in it. RequestError where plotly or jinja2 are not installed."""
    check_installed()
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters["prose"] = _prose
    environment.filters["kind"] = lambda block: type(block).__name__
    figures = [figure for section in document.sections for block in section.blocks for figure in _figures(block)]
    folder = resources.files("pretune.display") / "page"
    return environment.from_string((folder / "report.html.jinja").read_text(encoding="utf-8")).render(
        document=document,
        mark=MARK,
        numbers={id(figure): number for number, figure in enumerate(figures)},
        figures=[{"data": figure.data, "layout": figure.layout} for figure in figures],
        style=_trusted((folder / "report.css").read_text(encoding="utf-8")),
        script=_trusted((folder / "report.js").read_text(encoding="utf-8")),
        plotly=_trusted(get_plotlyjs() if figures else ""),
        id=id,
    )


def as_markdown(document: Document) -> str:
    """The same without its figures: of each, what it shows."""
    lines = [f"<!-- {MARK} -->", "", f"# {_inline(document.title)}", ""]
    lines += [line for paragraph in document.lead for line in (_inline(paragraph), "")]
    lines += [line for warning in document.warnings for line in (f"> **{_inline(warning)}**", "")]
    for section in document.sections:
        lines += [f"{'#' * section.level} {_inline(section.title)}", ""]
        for block in section.blocks:
            lines += [*_as_lines(block), ""]
    lines += [f"*{_inline(document.made)}*"]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def label(text: str) -> str:
    """Text for a figure: plotly reads tags in it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _figures(block: Block) -> Sequence[Figure]:
    if isinstance(block, Figures):
        return block.items
    return [block] if isinstance(block, Figure) else []


_WORDS = re.compile(r"`([\w./ -]+)`")
"""What is typed or named, within a text."""


def _prose(text: str) -> Any:
    """Text for the page, with what is typed or named in it set apart."""
    return _trusted(_WORDS.sub(r"<code>\1</code>", html.escape(text)))


def _trusted(text: str) -> Any:
    """Our own code, not to be escaped."""
    import markupsafe

    return markupsafe.Markup(text)


def _as_lines(block: Block) -> list[str]:
    match block:
        case Text():
            return [f"{'> ' if block.tone else ''}{_inline(block.text)}"]
        case Points():
            return [f"* {_inline(item)}" for item in block.items]
        case Facts():
            return [f"* **{_inline(name)}**: {_inline(value)}" for name, value in block.items]
        case Table():
            alignment = ["--:" if column in block.right else ":--" for column in range(len(block.head))]
            folded = [f"{_inline(block.folded)}:", ""] if block.folded else []
            return [*folded, _row(block.head), f"| {' | '.join(alignment)} |", *map(_row, block.rows)]
        case Code():
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", block.text)), default=0))
            folded = [f"{_inline(block.folded)}:", ""] if block.folded else []
            return [*folded, fence, block.text, fence]
        case Figure():
            return [f"*{_inline(block.title)}.* {_inline(block.alt)}"]
        case Figures():
            return [f"* *{_inline(figure.title)}.* {_inline(figure.alt)}" for figure in block.items]


def _inline(text: str) -> str:
    """Text that Markdown takes for text: a tag, a link or a rule in a user's name is shown as it is."""
    parts = _WORDS.split(html.escape(" ".join(text.split()), quote=False))
    plain = [re.sub(r"([\\`*\[\]#|])", r"\\\1", part) for part in parts[::2]]
    typed = [f"`{word}`" for word in parts[1::2]]
    return "".join(part for pair in itertools.zip_longest(plain, typed, fillvalue="") for part in pair)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_inline, cells))} |"
