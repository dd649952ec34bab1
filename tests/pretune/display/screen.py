"""What a terminal of a given width would show."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType

from pretune.display.screen import show


def shown(part: RenderableType, *, width: int = 100) -> str:
    """The text alone, without colors."""
    file = io.StringIO()
    show(Console(file=file, width=width, color_system=None, force_terminal=False), part)
    return file.getvalue()


def words(part: RenderableType, *, width: int = 100) -> list[list[str]]:
    """Its lines, cut at white space."""
    return [line.split() for line in shown(part, width=width).splitlines()]
