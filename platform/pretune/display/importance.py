"""Which parameters matter, for a terminal."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from pretune.analysis.importance import Importance, Interval
from pretune.display.screen import Rows


def table(found: Importance) -> list[RenderableType]:
    """The parameters, what to do about them, and what it rests on; the reason where nothing can be said."""
    counted = (
        f"of {found.looked_at:,} trials, {found.complete:,} completed and {found.stopped:,} stopped early; left out: "
        f"{found.infeasible:,} infeasible, {found.failed:,} failed, {found.reused:,} not run again"
    )
    if found.problem:
        return [Text(found.problem, style="yellow"), Text(counted, style="dim")]
    numbers = ["PED-ANOVA", "fANOVA"]
    rows = Rows(["parameter", *numbers, "trials that have it"], right=[*numbers, "trials that have it"])
    for one in found.parameters:
        rows.add(
            one.name,
            _interval(one.ped_anova),
            "–" if one.fanova is None else _interval(one.fanova),
            f"{one.trials:,} of {one.of:,}",
        )
    how = (
        f"PED-ANOVA: what sets the best {found.best_share:.0%} apart from all; fANOVA: the share of the variance of "
        "ranks that a parameter makes alone; 95 % intervals"
    )
    return [rows, *(Text(line) for line in found.advice), Text(f"{counted}\n{how}", style="dim")]


def _interval(found: Interval) -> str:
    return f"{found.value:.0%} [{found.low:.0%}, {found.high:.0%}]"
