"""What `pretune compare` and `pretune leaderboard` print."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from pretune.analysis.compare import Compared
from pretune.analysis.differences import Difference
from pretune.analysis.leaderboard import Board
from pretune.display import format
from pretune.display.screen import Rows


def comparison(found: Compared) -> list[RenderableType]:
    """Values, their difference, and what differs."""
    values = Rows(["", "trial", found.first.result.metric, "chosen among"], right=["trial", "chosen among"])
    for side in (found.first, found.second):
        chosen = "–" if side.chosen_among < 2 else str(side.chosen_among)
        number = "–" if side.trial is None else str(side.trial.id)
        values.add(side.name, number, format.score(side.value, side.stderr), chosen)
    parts: list[RenderableType] = [values]
    if found.difference is not None:
        between = "" if found.low is None else f", 95 % interval {found.low:+.4f} to {found.high:+.4f}"
        parts.append(Text(f"difference {found.difference:+.4f}{between}"))
    parts.append(Text(found.verdict, style="bold"))
    for what, changes in (("asked", found.asked), ("setting", found.changes)):
        if changes:
            parts.append(_table(what, found, changes))
    if not found.asked and not found.changes:
        parts.append(Text("their configs are equal"))
    return parts


def board(found: Board, *, top: int) -> list[RenderableType]:
    """One data set's best trials."""
    reads = any(entry.report is not None for entry in found.entries)
    numbers = ["", "trial", "epochs"]
    heads = ["", "sweep", "trial", found.metric, *(["on report"] if reads else []), "epochs", "recipe", "settings"]
    table = Rows(heads, right=numbers, wraps=True)
    for place, entry in enumerate(found.entries[:top], start=1):
        report = [format.score(entry.report, entry.report_stderr)] if reads else []
        value = format.score(entry.trial.value, entry.trial.last_metrics.get(f"{found.metric}_stderr"))
        asked = entry.result.experiment
        table.add(
            str(place),
            entry.result.name,
            str(entry.trial.id),
            value,
            *report,
            str(entry.trial.epochs),
            asked.recipe,
            format.parameters(entry.trial.params),
            style="bold green" if place == 1 else "",
        )
    way = "" if found.maximize else ", lower is better"
    images = f" ({found.manifest[:12]})" if found.manifest else ""
    head = Text.assemble((found.data, "bold"), f"{images}, {found.metric}{way}")
    left_out = len(found.entries) - top
    return [head, table, *([Text(f"… {left_out:,} more: --top", style="dim")] if left_out > 0 else [])]


def _table(what: str, found: Compared, changes: Sequence[Difference]) -> RenderableType:
    table = Rows([what, found.first.name, found.second.name], wraps=True)
    for change in changes:
        table.add(change.path, format.number(change.first), format.number(change.second))
    return table
