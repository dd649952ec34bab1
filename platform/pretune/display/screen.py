"""Where a command prints, and tables in which no word is cut: a number, a name or a path is whole, however narrow the
terminal is. What goes to a file or a pipe has the width of its content.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

_UNBOUNDED = 100_000
"""Columns of a file, which has no edge."""
_GAP = 2
"""Columns between two cells, and before what stands on a line of its own below its row."""
_NARROW = 24
"""A last column with less room goes below its row, if the row is not one line anyway."""


def console() -> Console:
    """Standard output: as wide as the terminal, or as the content where it is none."""
    found = Console()
    return found if found.is_terminal else Console(width=_UNBOUNDED)


def show(console: Console, *parts: RenderableType) -> None:
    """Prints each part; a text breaks between words alone, and a word that is longer than a line sticks out."""
    for part in parts:
        for one in part.renderables if isinstance(part, Group) else [part]:
            if isinstance(one, Group):
                show(console, one)
            elif isinstance(one, Text):
                for line in wrapped(one, console.width):
                    console.print(line, soft_wrap=True)
            else:
                console.print(one, crop=False)


def height(console: Console, *parts: RenderableType) -> int:
    """So many of the terminal's lines `show` would take: a line that is too long for one takes more."""
    with console.capture() as captured:
        show(console, *parts)
    lines = captured.get().split("\n")[:-1]
    return sum(max(1, math.ceil(cell_len(Text.from_ansi(line).plain.rstrip()) / console.width)) for line in lines)


def wrapped(text: Text, width: int) -> list[Text]:
    """The lines of `text`, each at most `width` columns unless it is a single word."""
    lines: list[Text] = []
    for line in text.split("\n", allow_blank=True):
        breaks, begin = [], 0
        for word in re.finditer(r"\S+", line.plain):
            full = cell_len(line.plain[begin : word.end()]) > width
            if full and line.plain[begin : word.start()].strip():
                begin = word.start()
                breaks.append(begin)
        for piece in line.divide(breaks):
            piece.rstrip()
            lines.append(piece)
    return lines


class Rows:
    """A table with a rule below its heads. `right` are the heads of columns of numbers.

    Columns are as wide as their cells, but for the last with `wraps`: it breaks between words. Where they have no room,
    the widest one goes to a line of its own, of each row; the first column to the line above.
    """

    def __init__(self, heads: Sequence[str], *, right: Sequence[str] = (), wraps: bool = False) -> None:
        self._heads, self._right, self._wraps = list(heads), set(right), wraps
        self._rows: list[tuple[list[Text], Text | None, str]] = []

    def add(self, *cells: str | Text, remark: str = "", style: str = "") -> None:
        """A row; its remark stands below its last cell, or below the row where a word of it is longer than that."""
        texts = [cell.copy() if isinstance(cell, Text) else Text(cell) for cell in cells]
        self._rows.append((texts, Text(remark, style="dim") if remark else None, style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        heads = [Text(head) for head in self._heads]
        width = options.max_width
        kept, widths = self._layout(heads, width)
        head = [Text.assemble(line, style="bold") for line in self._lines(heads, None, kept, widths, width)]
        body = [
            Text.assemble(line, style=style)
            for cells, remark, style in self._rows
            for line in self._lines(cells, remark, kept, widths, width)
        ]
        rule = Text("─" * min(max(map(_width, [*head, *body])), width))
        for line in [Text(), *head, rule, *body, Text()]:
            line.rstrip()
            line.no_wrap, line.overflow = True, "ignore"
            yield line

    def _layout(self, heads: Sequence[Text], width: int) -> tuple[list[int], dict[int, int]]:
        """The columns that share a line, and the width of each."""
        columns = list(zip(heads, *(cells for cells, _, _ in self._rows), strict=True))
        widths = {index: max(map(_width, column)) for index, column in enumerate(columns)}
        least, last = dict(widths), len(columns) - 1
        if self._wraps:
            words = max(_longest_word(cell) for cell in columns[last][1:]) if self._rows else 0
            least[last] = min(widths[last], max(words, _NARROW))
        kept = list(widths)
        while len(kept) > 1 and _needed(least[index] for index in kept) > width:
            kept.remove(last if self._wraps and last in kept else max(kept, key=lambda index: least[index]))
        if self._wraps and last in kept:
            left = width - _needed(least[index] for index in kept[:-1]) - _GAP
            widths[last] = max(least[last], min(widths[last], left))
        return kept, widths

    def _lines(
        self, cells: Sequence[Text], remark: Text | None, kept: Sequence[int], widths: dict[int, int], width: int
    ) -> Iterator[Text]:
        if 0 not in kept:
            yield from wrapped(cells[0], width)
        row, indent = Text(), 0 if 0 in kept else _GAP
        row.append(" " * indent)
        for index in kept:
            row.append(" " * _GAP if index != kept[0] else "")
            at = row.cell_len
            if self._wraps and index == len(cells) - 1:
                first, *more = wrapped(cells[index], widths[index])
                row.append_text(first)
                yield row
                for line in more:
                    yield _indented(line, at)
                if remark is not None:
                    inside = _longest_word(remark) <= width - at
                    yield from _beneath(remark, at if inside else _GAP, width)
                return
            padding = " " * (widths[index] - _width(cells[index]))
            row.append(padding if self._heads[index] in self._right else "")
            row.append_text(cells[index])
            row.append("" if self._heads[index] in self._right else padding)
        yield row
        for index in range(1, len(cells)):
            if index not in kept:
                yield from _beneath(cells[index], _GAP, width)
        if remark is not None:
            yield from _beneath(remark, _GAP, width)


def _beneath(text: Text, indent: int, width: int) -> Iterator[Text]:
    for line in wrapped(text, width - indent):
        yield _indented(line, indent)


def _indented(line: Text, columns: int) -> Text:
    return Text.assemble(" " * columns, line)


def _needed(widths: Iterator[int]) -> int:
    found = list(widths)
    return sum(found) + _GAP * (len(found) - 1)


def _width(text: Text) -> int:
    return max(map(cell_len, text.plain.split("\n")))


def _longest_word(text: Text) -> int:
    return max(map(cell_len, text.plain.split()), default=0)
