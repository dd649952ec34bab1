"""How trials share a GPU, or a machine without any: what was measured, and what was chosen."""

from __future__ import annotations

from collections.abc import Iterator

from rich import table
from rich.console import RenderableType
from rich.text import Text

from pretune.core import packing
from pretune.core.packing import Packing, Together
from pretune.display import format


def whole(found: Packing | None) -> list[RenderableType]:
    """What was measured, and the choice; nothing where nobody asked for it."""
    if found is None:
        return []
    shown = table.Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in head(found):
        shown.add_column(name, justify="right")
    for row in rows(found):
        shown.add_row(*row)
    return [*([shown] if found.tried else []), Text(line(found), style="dim")]


def line(found: Packing) -> str:
    """`3 trials per card, 1.9 times one alone (6 at once are +2 % faster than 3)`."""
    return packing.in_words(found) + (f" ({found.why})" if found.why else "")


def head(found: Packing) -> tuple[str, ...]:
    """Of the columns that `rows` has."""
    memory = "GPU memory each" if found.on == "gpu" else "memory each"
    return ("at once", "images/s together", "times one alone", memory, "")


def rows(found: Packing) -> list[tuple[str, ...]]:
    """A row for each number of copies that was tried."""
    return [
        (
            str(one.copies),
            f"{one.images_per_s:,.0f}",
            f"{one.images_per_s / found.tried[0].images_per_s:.2f}",
            format.size(one.bytes),
            ", ".join(_notes(found, one)),
        )
        for one in found.tried
    ]


def _notes(found: Packing, one: Together) -> Iterator[str]:
    if one.mps:
        yield "MPS"
    if (one.copies, one.mps) == (found.count, found.mps):
        yield "chosen"
