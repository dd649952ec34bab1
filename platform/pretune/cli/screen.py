"""What is shown of a sweep, at its end and by `pretune show`."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType


def screen(result: Any, compared: Any, *, limit: int | None = None) -> list[RenderableType]:
    """What is shown of a sweep: a line on the whole, the trials, the families, the comparison; or the ablation."""
    from pretune.display import ablation, tables

    if result.experiment.points:
        return [tables.summary(result), ablation.table(result)]
    parts: list[RenderableType] = [tables.summary(result), tables.trials(result, limit=limit)]
    families = tables.families(result)
    if families is not None:
        parts.append(families)
    if compared is not None:
        parts.append(tables.comparison(compared))
    return parts
