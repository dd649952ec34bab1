"""What came out of a sweep, from its journal alone: a table, the best trial, and its config as JSON that `pretune
train` replays.

Imports neither Ray, torch nor Optuna, so that `pretune show` answers at once, also while the sweep runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretune.core import journal
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.forecast import Forecast
from pretune.core.history import History, State, TrialHistory
from pretune.core.packing import Packing
from pretune.core.reader import StoredEpoch
from pretune.core.records import Condemned, Later, NotUnderstood
from trainers import storage
from trainers.files import write_whole
from trainers.report import Checkpoint

BEST = "best.json"


@dataclass(frozen=True)
class TrialResult:
    """One trial. `value` is the searched metric's last value for a COMPLETE trial, None for any other."""

    id: int
    state: State
    epochs: int
    value: float | None
    params: dict[str, Any]
    reason: str
    config: dict[str, Any] | None
    last_metrics: dict[str, float]
    checkpoint: Checkpoint | None
    attempts: int
    failures: int
    duplicate_of: int | None
    extended: bool = False
    """Made longer after its end, with `pretune resume --epochs`."""
    result_of: int | None = None
    """The trial of an equal config whose result this is; it was not run again."""
    rung: int | None = None
    """Where the stopping rule stopped it."""
    condemned: Condemned | None = None
    """Where the rule would have stopped it; it lived on, to judge the rule."""
    values: tuple[float, ...] = ()
    """Of a COMPLETE trial, its last value of each objective."""
    enqueued: bool = False
    """Handed in by `pretune enqueue`."""
    stop_requested: str | None = None
    """Why somebody wants it to end (`pretune stop`), empty where they did not say; None where nobody does."""


@dataclass(frozen=True)
class SweepResult:
    """One sweep. `best` is the id of the best COMPLETE trial; a stopped one was judged on fewer epochs and does not
    compare.

    `live`: a process runs it right now. `closed`: how the last driver left it ("finished", "exhausted", "out_of_time",
    "interrupted", "failed"), None while one runs and after one was killed.
    """

    folder: Path
    remote: str | None
    """Where its segments and checkpoints lie, if that is a storage URI."""
    experiment: Experiment
    trials: tuple[TrialResult, ...]
    best: int | None
    asked: int
    """How many trials are wanted in all."""
    live: bool
    closed: str | None
    detail: str
    enqueued: int = 0
    """Configurations that were handed in and wait; they are among those asked for."""
    later: Later | None = None
    """What of its journal is left out here, because a later version wrote it."""
    forecast: Forecast | None = None
    """What it was said to take."""
    packing: Packing | None = None
    """How its trials share a GPU, or a machine without any, where that was asked for."""
    seconds: float = 0.0
    """What it took, as `History.seconds`."""

    @property
    def name(self) -> str:
        """By which it is found here: with a storage URI, of its working copy."""
        return self.experiment.name if self.remote is None else self.folder.name

    @property
    def placed(self) -> Experiment:
        """The experiment, with its trials placed as they are now."""
        return self.experiment if self.packing is None else self.packing.applied(self.experiment)

    @property
    def space(self) -> str:
        return self.experiment.space

    @property
    def metric(self) -> str:
        return self.experiment.metric

    @property
    def best_trial(self) -> TrialResult | None:
        return None if self.best is None else self.trials[self.best]

    @property
    def winner(self) -> TrialResult | None:
        """The best trial, where a best one was looked for: that of an ablation is the luckiest seed of one level."""
        return None if self.experiment.points else self.best_trial

    @property
    def reads_file(self) -> Path:
        """Where `pretune finalize` writes down what it read of the report split."""
        return self.folder / "finalize.json"

    @property
    def front(self) -> list[TrialResult]:
        """Of several objectives, the COMPLETE trials that no other one beats: none is as good in all and better in
        one. Best first by the first one; of equal ones the earlier. Empty where one thing is searched for.
        """
        objectives = self.experiment.objectives
        if len(objectives) == 1:
            return []
        scored = [
            (
                tuple(value if one.maximize else -value for one, value in zip(objectives, trial.values, strict=True)),
                trial,
            )
            for trial in self.trials
            if trial.state == "COMPLETE" and len(trial.values) == len(objectives)
        ]
        # From the best on: what comes later beats nothing that came before.
        scored.sort(key=lambda one: (*(-score for score in one[0]), one[1].id))
        front: list[tuple[tuple[float, ...], TrialResult]] = []
        for scores, trial in scored:
            if not any(all(its >= mine for its, mine in zip(other, scores, strict=True)) for other, _ in front):
                front.append((scores, trial))
        return [trial for _, trial in front]

    def to_json(self) -> dict[str, Any]:
        """The object that `pretune show SWEEP --json` prints. No times, paths or host facts: equal sweeps are equal."""
        return {
            "name": self.name,
            "space": self.space,
            "metric": self.metric,
            **({} if self.experiment.maximize else {"direction": "minimize"}),
            **(
                {
                    "objectives": [
                        {"metric": one.metric, "direction": one.direction} for one in self.experiment.objectives
                    ],
                    "front": [trial.id for trial in self.front],
                }
                if self.experiment.beside
                else {}
            ),
            "best": self.best,
            "trials": [
                {
                    "id": trial.id,
                    "state": trial.state,
                    "epochs": trial.epochs,
                    "value": trial.value,
                    **({"values": list(trial.values)} if self.experiment.beside else {}),
                    "params": trial.params,
                    "reason": trial.reason,
                    **({} if trial.result_of is None else {"result_of": trial.result_of}),
                    **(
                        {}
                        if trial.condemned is None
                        else {"condemned": {"epoch": trial.condemned.epoch, "rung": trial.condemned.rung}}
                    ),
                    **({"enqueued": True} if trial.enqueued else {}),
                }
                for trial in self.trials
            ],
            **({} if self.later is None else {"notices": self.later.notices()}),
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column heads and one row per trial, best first, then by epochs and last value; all as text."""
        names = list(dict.fromkeys(name for trial in self.trials for name in trial.params))
        head = ["trial", "state", "epochs", self.metric, *names, "reason"]
        return head, [self._row(trial, names) for trial in self.ranked()]

    def ranked(self) -> list[TrialResult]:
        """COMPLETE trials by value, then the others by how far they got and their last value."""
        sign = -1.0 if self.experiment.maximize else 1.0

        def key(trial: TrialResult) -> tuple[bool, float, float, int]:
            shown = trial.last_metrics.get(self.metric, math.nan) if trial.value is None else trial.value
            complete = trial.state == "COMPLETE"
            return (
                not complete,
                0.0 if complete else -trial.epochs,
                math.inf if math.isnan(shown) else sign * shown,
                trial.id,
            )

        return sorted(self.trials, key=key)

    def _row(self, trial: TrialResult, names: Sequence[str]) -> list[str]:
        shown = trial.last_metrics.get(self.metric) if trial.value is None else trial.value
        return [
            str(trial.id),
            trial.state,
            str(trial.epochs),
            "" if shown is None else f"{shown:.4f}",
            *(_text(trial.params[name]) if name in trial.params else "" for name in names),
            trial.reason,
        ]


def read(folder: Path, *, remote: str | None = None) -> SweepResult:
    """The sweep in `folder`, running or not; `remote`, if it was found elsewhere than its journal says.

    RequestError where there is none, or its journal is corrupt (the line is named).
    """
    # Asked before the journal is read: a driver that ends in between has then written its last line.
    live = journal.is_locked(folder)
    if not (folder / journal.FILE).exists() and (folder / journal.LOCK).exists():
        raise RequestError(_never_started(folder, live=live))
    history, not_understood, problem = History(), NotUnderstood(), None
    with journal.reading(folder, remote=remote) as records:
        for record in records:
            if not isinstance(record, StoredEpoch):  # it is as this version writes it
                not_understood.see(record)
            try:
                history.apply(record)
            except ValueError as error:
                problem = problem or error
        later = not_understood.later()
        # Where a later version wrote some records, what contradicts the others is left out.
        if problem is not None and (later is None or later.refusal() is None):
            raise problem
        return of(history, folder, remote=remote, live=live, later=later)


def of(
    history: History, folder: Path, *, remote: str | None = None, live: bool = False, later: Later | None = None
) -> SweepResult:
    """The sweep in `folder` whose journal adds up to `history`. RequestError where it has no first record."""
    if history.opened is None:
        raise RequestError(_never_started(folder, live=live))
    experiment = history.opened.experiment
    trials = tuple(_result(trial, experiment) for trial in history.trials)
    return SweepResult(
        folder=folder,
        remote=remote or experiment.remote,
        experiment=experiment,
        trials=trials,
        best=best_of(trials, maximize=experiment.maximize),
        asked=history.target,
        live=live,
        closed=None if history.closed is None else history.closed.reason,
        detail="" if history.closed is None else history.closed.detail,
        enqueued=len(history.enqueued),
        later=later,
        forecast=history.opened.forecast,
        packing=history.packing,
        seconds=history.seconds,
    )


def check_understood(result: SweepResult) -> None:
    """Whether this version may go on with the sweep, or judge it. RequestError, with the version that can."""
    refusal = None if result.later is None else result.later.refusal()
    if refusal is not None:
        raise RequestError(f"sweep {result.name!r}: {refusal}")


@dataclass(frozen=True)
class Unreadable:
    """A folder of a sweep whose journal cannot be read, and why."""

    folder: Path
    problem: str

    @property
    def name(self) -> str:
        return self.folder.name


def sweeps(storage: Path) -> tuple[list[SweepResult], list[Unreadable]]:
    """All sweeps under `storage` that were started, newest first; and those that were not or cannot be read, which hide
    no other one.
    """
    found: list[tuple[float, SweepResult]] = []
    unreadable: list[Unreadable] = []
    for folder in sorted({path.parent for name in (journal.FILE, journal.LOCK) for path in storage.glob(f"*/{name}")}):
        try:
            result = read(folder)
            found.append(((folder / journal.FILE).stat().st_mtime, result))
        except Exception as error:  # whatever a broken file makes of us
            unreadable.append(Unreadable(folder, _problem(error)))
    return [result for _, result in sorted(found, key=lambda one: one[0], reverse=True)], unreadable


def _never_started(folder: Path, *, live: bool) -> str:
    """Of a journal without a first record: what there is, and what to type."""
    if live:
        return f"the sweep in {folder} is just starting and has no record yet; look again in a moment"
    logs = folder / "logs"
    found = f", and what it said is in {logs}" if logs.is_dir() else ""
    return (
        f"the sweep in {folder} was never started: its driver ended before the first record{found}; run its `pretune "
        f"sweep` or `pretune ablate` command again, with --name {folder.name}"
    )


def _problem(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'} cannot be read ({error.strerror or error})"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def how_it_ended(closed: str, experiment: Experiment) -> str:
    """The reason with which a driver left, as people read it."""
    match closed:
        case "exhausted":
            return "finished, all decided" if experiment.points else "finished, no points left"
        case "out_of_time":
            return "finished, out of time"
    return closed


def best_of(trials: Sequence[TrialResult], *, maximize: bool) -> int | None:
    """The id of the COMPLETE trial with the best value; the earlier of two equal ones."""
    complete = [trial for trial in trials if trial.state == "COMPLETE" and trial.value is not None]
    if not complete:
        return None
    sign = -1.0 if maximize else 1.0
    return min(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.id)).id


def best_config_path(folder: Path) -> Path:
    """Where the best trial's config lies, once a driver has left the sweep in order. It is a plain TrialConfig."""
    return folder / BEST


def write_best(result: SweepResult) -> Path | None:
    """Writes the winner's config. None, and nothing is written, where there is no winner."""
    if result.winner is None:
        return None
    path = best_config_path(result.folder)
    text = json.dumps(result.winner.config, indent=2) + "\n"
    write_whole(path, text)
    if result.remote is not None:
        storage.write(storage.join(result.remote, BEST), text.encode())
    return path


def _result(trial: TrialHistory, experiment: Experiment) -> TrialResult:
    newest = trial.epochs.get(trial.last_epoch, {})
    checkpoint: Checkpoint | None
    if isinstance(newest, StoredEpoch) and newest is trial.checkpoints.newest:
        last, checkpoint = newest.read_both()
    else:
        last = newest.read_metrics() if isinstance(newest, StoredEpoch) else dict(newest)
        checkpoint = trial.checkpoint
    # The table shows each objective as of the last epoch that measured it.
    names = [objective.metric for objective in experiment.objectives]
    for metric in names:
        if metric not in last and (measured := trial.last(metric)) is not None:
            last[metric] = measured
    complete = trial.state == "COMPLETE" and trial.value is not None
    return TrialResult(
        id=trial.number,
        state=trial.state,
        epochs=trial.last_epoch,
        value=trial.value,
        params=trial.params,
        reason=trial.reason,
        config=trial.config,
        last_metrics=last,
        checkpoint=checkpoint,
        attempts=trial.attempts,
        failures=trial.failures,
        duplicate_of=trial.duplicate_of,
        extended=trial.extended,
        result_of=trial.result_of,
        rung=trial.rung,
        condemned=trial.condemned,
        values=tuple(last[name] for name in names if name in last) if complete else (),
        enqueued=trial.enqueued,
        stop_requested=trial.stop_requested,
    )


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
