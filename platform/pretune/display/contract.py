"""What `pretune check` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from pretune.analysis.contract import Asked, Verdict
from pretune.display.screen import Rows

_WORDS = {
    True: Text("holds", style="green"),
    False: Text("BROKEN", style="bold red"),
    None: Text("not tried", style="dim"),
}


def table(asked: Asked, verdicts: Sequence[Verdict]) -> RenderableType:
    """Each contract, whether it holds, and how well or why not."""
    shown = Rows(["contract", "verdict", "detail"], wraps=True)
    for verdict in verdicts:
        shown.add(Text(verdict.contract), _WORDS[verdict.holds], Text(verdict.detail))
    return Group(Text(f"{asked.kind} {asked.label}", style="italic"), shown)
