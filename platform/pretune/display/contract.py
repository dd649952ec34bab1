"""What `pretune check` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pretune.analysis.contract import Asked, Verdict

_WORDS = {
    True: Text("holds", style="green"),
    False: Text("BROKEN", style="bold red"),
    None: Text("not tried", style="dim"),
}


def table(asked: Asked, verdicts: Sequence[Verdict]) -> RenderableType:
    """Each contract, whether it holds, and how well or why not."""
    shown = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, title=f"{asked.kind} {asked.label}", title_justify="left"
    )
    shown.add_column("contract", no_wrap=True)
    shown.add_column("verdict", no_wrap=True)
    shown.add_column("detail", overflow="fold")
    for verdict in verdicts:
        shown.add_row(Text(verdict.contract), _WORDS[verdict.holds], Text(verdict.detail))
    return shown
