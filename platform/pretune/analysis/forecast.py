"""What a sweep was said to take, against what it took: for `pretune show` and the report."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pretune.core.results import SweepResult

Unit = Literal["seconds", "epochs", "bytes"]


@dataclass(frozen=True)
class Line:
    """One cost. None: nothing was said of it, or it was not told."""

    name: str
    unit: Unit
    forecast: float | None
    fact: float | None

    @property
    def error(self) -> float | None:
        """How far the forecast was off, as a share of the fact: 0.1 where it said a tenth too much."""
        if self.forecast is None or not self.fact:
            return None
        return self.forecast / self.fact - 1.0


@dataclass(frozen=True)
class AgainstFact:
    """All that was said of a sweep. `over`: it has ended as asked; before that the facts are those so far."""

    lines: tuple[Line, ...]
    over: bool

    def as_json(self) -> dict[str, Any]:
        lines = {line.name: {"unit": line.unit, "forecast": line.forecast, "fact": line.fact} for line in self.lines}
        return {**lines, "over": self.over}


def against_fact(result: SweepResult) -> AgainstFact | None:
    """None where nothing was said of `result` before it began. Trials that were added later are in the facts alone."""
    said = result.forecast
    if said is None:
        return None
    run = [trial for trial in result.trials if trial.result_of is None]
    lines = [
        Line("time", "seconds", said.seconds, result.seconds),
        Line(
            "epochs",
            "epochs",
            float(said.epochs) if said.expected_epochs is None else said.expected_epochs,
            float(sum(trial.epochs for trial in run)),
        ),
        Line("memory of a worker", "bytes", said.host_bytes, _most(result, "memory/host_peak_bytes")),
        Line("GPU memory of a worker", "bytes", said.gpu_bytes, _most(result, "memory/gpu_peak_bytes")),
        # In a bucket lie the checkpoints, which are nearly all of it.
        Line("disk", "bytes", said.disk_bytes, _size(result.folder) if result.remote is None else None),
    ]
    told = tuple(line for line in lines if line.forecast is not None)
    return AgainstFact(told, over=result.closed in ("finished", "exhausted", "out_of_time"))


def _most(result: SweepResult, name: str) -> float | None:
    return max((trial.last_metrics[name] for trial in result.trials if name in trial.last_metrics), default=None)


def _size(folder: Path) -> float:
    """Bytes of all files below `folder`, which may be changing."""
    total, waiting = 0, [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                for entry in found:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:  # removed meanwhile
            continue
    return float(total)
