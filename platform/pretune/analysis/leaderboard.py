"""The best trials of all sweeps on one data set: the same images by their manifest's hash, and the same metric."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pretune.core.results import SweepResult, TrialResult
from trainers import storage


@dataclass(frozen=True)
class Entry:
    """One trial. `report` is the metric on `report` where it was read for this very trial, with its standard error."""

    result: SweepResult
    trial: TrialResult
    report: float | None
    report_stderr: float | None

    def as_json(self) -> dict[str, Any]:
        metric = self.result.metric
        return {
            "sweep": self.result.name,
            "folder": str(self.result.folder),
            "trial": self.trial.id,
            "recipe": self.result.experiment.recipe,
            "space": self.result.space,
            "epochs": self.trial.epochs,
            "value": self.trial.value,
            "stderr": self.trial.last_metrics.get(f"{metric}_stderr"),
            "report": self.report,
            "report_stderr": self.report_stderr,
            "params": self.trial.params,
        }


@dataclass(frozen=True)
class Board:
    """All of one data set and one metric, the best first."""

    data: str
    manifest: str
    metric: str
    maximize: bool
    entries: tuple[Entry, ...]

    def as_json(self) -> dict[str, Any]:
        """One object of `pretune leaderboard --json`."""
        return {
            "data": self.data,
            "manifest": self.manifest,
            "metric": self.metric,
            "direction": "maximize" if self.maximize else "minimize",
            "entries": [entry.as_json() for entry in self.entries],
        }


def boards(
    results: Sequence[SweepResult],
    *,
    manifest: str | None = None,
    metric: str | None = None,
    each: int = 1,
    ask_storage: bool = False,
) -> list[Board]:
    """A board for each data set and metric, only that of `manifest` and `metric` where they are given; of each sweep
    its `each` best complete trials. The board with most entries comes first. `ask_storage`: what was read of the report
    split is asked of the sweeps' storage, where they have one, and not of their working copies here.
    """
    groups: dict[tuple[str, str, bool], list[SweepResult]] = {}
    for result in results:
        asked = result.experiment
        found = asked.base.data.manifest or ""
        if manifest not in (None, found) or metric not in (None, asked.metric):
            continue
        groups.setdefault((found, asked.metric, asked.maximize), []).append(result)
    made = []
    for (found, searched, maximize), members in groups.items():
        entries = [entry for result in members for entry in _entries(result, each, ask_storage=ask_storage)]
        sign = -1.0 if maximize else 1.0
        entries.sort(key=lambda entry: (sign * (entry.trial.value or 0.0), entry.result.name, entry.trial.id))
        if entries:
            named = members[0].experiment
            made.append(Board(named.data or named.base.data.path, found, searched, maximize, tuple(entries)))
    return sorted(made, key=lambda board: -len(board.entries))


def _entries(result: SweepResult, each: int, *, ask_storage: bool) -> list[Entry]:
    complete = [trial for trial in result.ranked() if trial.state == "COMPLETE" and trial.value is not None]
    read = _report(result, ask_storage=ask_storage)
    return [Entry(result, trial, *read.get(trial.id, (None, None))) for trial in complete[:each]]


def _report(result: SweepResult, *, ask_storage: bool) -> dict[int, tuple[float | None, float | None]]:
    """By trial, what its first read of the report split found; that is not read here."""
    name = f"report/{result.metric.removeprefix('probe/')}"
    found: dict[int, tuple[float | None, float | None]] = {}
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        for read in json.loads(_written(result, ask_storage=ask_storage))["reads"]:
            metrics = read["metrics"]
            if name in metrics:
                found.setdefault(read["trial"], (float(metrics[name]), metrics.get(f"{name}_stderr")))
    return found


def _written(result: SweepResult, *, ask_storage: bool) -> bytes:
    if ask_storage and result.remote is not None:
        return storage.read(storage.join(result.remote, result.reads_file.name))
    return result.reads_file.read_bytes()
