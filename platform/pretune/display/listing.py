"""What `pretune list` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text


def table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Group:
    """The listing for a terminal."""
    parts: list[Any] = []
    for heading, entries in found.items():
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for entry in entries:
            extra = f" (recipe {entry['recipe']})" if entry.get("recipe") else ""
            extra += f" (from {entry['package']})" if entry.get("package") else ""
            extra += f" (built: {entry['folder']})" if entry.get("folder") else ""
            grid.add_row(Text(f"  {entry['name']}", style="cyan"), Text(f"{entry['description']}{extra}"))
        parts += [Text(heading, style="bold"), grid]
    return Group(*parts)
