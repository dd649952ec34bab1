"""What a sweep was said to take: in a line at its start, and afterwards beside what it took."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pretune.analysis.forecast import AgainstFact, Line
from pretune.core.experiment import Experiment
from pretune.core.forecast import Forecast
from pretune.display import format


def short(said: Forecast, experiment: Experiment) -> Text:
    """A line at a sweep's start."""
    parts = [f"at most {said.trials:,} trials and {said.epochs:,} epochs"]
    if said.expected_epochs is not None:
        parts.append(f"about {said.expected_epochs:,.0f} epochs as weak trials are stopped (by {said.curves})")
    if said.seconds is not None:
        parts.append(f"about {format.duration(said.seconds)} in {slots(said, experiment.workers_per_trial)}")
    if said.host_bytes is not None:
        parts.append(f"{format.size(said.host_bytes)} of memory a worker")
    if said.gpu_bytes is not None:
        parts.append(f"{format.size(said.gpu_bytes)} of GPU memory a worker")
    parts.append(f"disk: {disk(said, experiment)}")
    return Text("; ".join(parts), style="dim")


def against(found: AgainstFact) -> RenderableType:
    """A line for each cost."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, said, fact, off in rows(found):
        table.add_row(name, f"forecast {said}", f"{'took' if found.over else 'so far'} {fact}", off)
    return table


def rows(found: AgainstFact) -> list[tuple[str, str, str, str]]:
    """Of each cost its name, forecast and fact, and how far the forecast was off, once that can be said."""
    return [
        (
            line.name,
            _value(line, line.forecast),
            _value(line, line.fact),
            f"{100 * line.error:+.0f} %" if found.over and line.error is not None else "",
        )
        for line in found.lines
    ]


def _value(line: Line, value: float | None) -> str:
    if value is None:
        return "–"
    match line.unit:
        case "seconds":
            return format.duration(value)
        case "bytes":
            return format.size(value)
        case "epochs":
            return f"{value:,.0f}"


def slots(said: Forecast, workers: int) -> str:
    count = f"{said.slots} slot{'' if said.slots == 1 else 's'}"
    return count if workers == 1 else f"{count} of {workers} workers"


def epochs(said: Forecast) -> str:
    if said.expected_epochs is None:
        return f"{said.epochs:,} at most"
    return f"{said.epochs:,} at most, about {said.expected_epochs:,.0f} as weak trials are stopped (by {said.curves})"


def disk(said: Forecast, experiment: Experiment) -> str:
    if said.disk_bytes is None or said.most_disk_bytes is None:
        return "3 checkpoints a trial at most, and 3 more a slot while it runs; their size is not known yet"
    takes = f"about {format.size(said.disk_bytes)}, at most {format.size(said.most_disk_bytes)}"
    if experiment.remote is not None:
        return f"{takes}, nearly all of it in {experiment.storage}"
    folder = experiment.folder
    there = next((path for path in folder.parents if path.is_dir()), Path("/"))
    return f"{takes}; {format.size(shutil.disk_usage(there).free)} are free"
