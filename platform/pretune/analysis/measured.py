"""What each trial measured and what it took, epoch by epoch, and what was typed: for `pretune show SWEEP --json`.

Goes through the journal's epochs, which `core.results` leaves on the disk.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pretune.core import journal
from pretune.core.history import History, TrialHistory
from pretune.core.records import Opened, Resumed
from pretune.core.results import SweepResult


def as_json(result: SweepResult) -> dict[str, Any]:
    """`result.to_json()` with `commands`, the command lines of all drivers (none in older journals), and for each trial

    * `last_value` and `last_stderr`: the metric of the last epoch that measured it, in whatever state the trial is;
    * `curve`: `epoch`, `value` and `stderr` (its standard error) of each epoch that measured it;
    * `seconds` of training and `probe_seconds`, over the epochs of the curve; 0 for a trial that was not run again;
    * `slot_bytes`: the most its slot took of the head, beside its workers.

    What was not told is None.
    """
    history, commands = History(), []
    told = result.to_json()
    with journal.reading(result.folder) as records:
        for record in records:
            if isinstance(record, Opened | Resumed) and "command" in record.host:
                commands.append(record.host["command"])
            # What contradicts the others was told or refused when the result was read.
            with suppress(ValueError):
                history.apply(record)
        for trial in told["trials"]:
            trial |= measured(history.trials[trial["id"]], result.metric)
    return {**told, "commands": commands}


def command(folder: Path) -> str | None:
    """What was typed to start the sweep in `folder`, the program without its path; None in older journals."""
    with journal.reading(folder) as records:
        first = next(records, None)
    typed = shlex.split(first.host.get("command", "")) if isinstance(first, Opened) else []
    if len(typed) < 2:  # older versions kept the program alone
        return None
    program = Path(typed[0])
    ours = program.name == "pretune" or (program.name, program.parent.name) == ("__main__.py", "pretune")
    return shlex.join(["pretune" if ours else typed[0], *typed[1:]])


def measured(trial: TrialHistory, metric: str) -> dict[str, Any]:
    """What `as_json` adds to one trial; its epochs must be readable."""
    # By items each is read from the disk once.
    epochs = {epoch: dict(trial.epochs[epoch].items()) for epoch in sorted(trial.epochs)}
    curve = [
        {"epoch": epoch, "value": metrics[metric], "stderr": metrics.get(f"{metric}_stderr")}
        for epoch, metrics in epochs.items()
        if metric in metrics
    ]

    def numbers(name: str) -> Iterator[float]:
        return (metrics[name] for metrics in epochs.values() if name in metrics)

    def seconds(name: str) -> float | None:
        return 0.0 if trial.result_of is not None else sum(found) if (found := list(numbers(name))) else None

    return {
        "last_value": curve[-1]["value"] if curve else None,
        "last_stderr": curve[-1]["stderr"] if curve else None,
        "curve": curve,
        "seconds": seconds("time/epoch_s"),
        "probe_seconds": seconds("time/probe_s"),
        "slot_bytes": None if trial.result_of is not None else max(numbers("memory/slot_bytes"), default=None),
    }
