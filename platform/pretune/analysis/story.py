"""One trial's whole story, from its sweep's journal and its folder."""

from __future__ import annotations

import shlex
from contextlib import suppress
from typing import Any

from pretune.analysis.differences import differences
from pretune.analysis.log_tail import last_lines
from pretune.analysis.logs import trial_logs
from pretune.analysis.measured import measured
from pretune.core import journal
from pretune.core.errors import RequestError
from pretune.core.history import History
from pretune.core.records import Attempt, Condemned, Ended, Extended, Started, StopRequested
from pretune.core.results import SweepResult

LOG_LINES = 10

Event = Started | Attempt | Condemned | Ended | Extended | StopRequested
UNTOLD = {"number", "config", "checkpoint", "request", "rung", "no_driver"}
"""Of events, what is told elsewhere or says nothing to a reader."""


def of(result: SweepResult, number: int, *, name: str) -> dict[str, Any]:
    """Of trial `number`, as `pretune show SWEEP TRIAL --json` prints it: what `show --json` has of it, and

    * `changes`: its config against the sweep's base, by path; `config` as a whole;
    * `events`: starts, failures, ends, requests and what the audit let live, each with its time (Unix seconds);
    * `enqueued`, `checkpoint`, `logs` (their places) and `log_tail`;
    * `commands`: how it is replayed. `name` is what the sweep was called.

    RequestError where there is no such trial.
    """
    check_number(result, number)
    trial, history, events = result.trials[number], History(), []
    with journal.reading(result.folder, remote=result.remote) as records:
        for record in records:
            # What contradicts the others was told or refused when the result was read.
            with suppress(ValueError):
                history.apply(record)
            if isinstance(record, Event) and record.number == number:
                told = record.model_dump(mode="json", exclude=UNTOLD)
                events.append({key: value for key, value in told.items() if value not in (None, "")})
        told_trial = history.trials[number]
        numbers = measured(told_trial, result.metric)
    base = result.experiment.base.model_dump(mode="json")
    changes = [] if trial.config is None else differences(base, trial.config)
    logs = trial_logs(result, number)
    typed = shlex.quote(name)
    commands = []
    if trial.config is not None and trial.epochs and not trial.extended:
        commands.append(f"pretune replay {typed} {number}")
    if trial.state in ("WAITING", "RUNNING"):
        commands.append(f"pretune stop {typed} {number}")
    [told] = [one for one in result.to_json()["trials"] if one["id"] == number]
    return {
        "sweep": result.name,
        "metric": result.metric,
        **told,
        **numbers,
        "enqueued": trial.enqueued,
        "attempts": trial.attempts,
        "failures": trial.failures,
        "asked": told_trial.asked_s,
        "started": told_trial.started_s,
        "ended": told_trial.ended_s,
        "changes": [one._asdict() for one in changes],
        "events": events,
        "config": trial.config,
        "checkpoint": None if trial.checkpoint is None else trial.checkpoint.path,
        "logs": [str(path) for path in logs],
        "log_tail": last_lines(logs[-1], LOG_LINES) if logs else [],
        "commands": commands,
    }


def check_number(result: SweepResult, number: int) -> None:
    """RequestError where the sweep has no such trial."""
    if not 0 <= number < len(result.trials):
        known = f"0 to {len(result.trials) - 1}" if result.trials else "none yet"
        raise RequestError(f"TRIAL must be one of sweep {result.name!r} ({known}), but is {number}")
