"""`--log-to`: a sweep told to experiment trackers while it runs: MLflow, Weights & Biases, a CSV file.

A tracker is fed by a thread of its own, so that a slow one delays nothing, and one that fails is named once and
dropped: no sweep ends, and none waits for long, because somebody's view of it does. What is wrong with the request
itself (no such tracker, not installed, not logged in, a file of somebody else's) is refused before anything starts.
Trackers see the records of the driver that logs to them: `resume` goes on in the same runs.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.records import Asked, End, Ended, Epoch, Extended, Opened, Record, Started
from pretune.display import format
from trainers.files import why_not_writable

CLOSE_S = 20.0
"""How long the end of a sweep waits for a tracker."""
MOST_WAITING = 100_000
"""Records that may wait for a tracker; one that falls behind by more is dropped."""
INSTALL = "pip install 'pretune[trackers]'"


@dataclass(frozen=True)
class Sweep:
    """What a tracker is told of a sweep. `key` is its own, whatever its folder is called, and stays on a resume."""

    name: str
    key: str
    metric: str
    folder: Path


class Tracker(Protocol):
    """Where a sweep is logged. Any exception drops it."""

    def begin(self, sweep: Sweep) -> None:
        """Before anything else."""

    def start(self, trial: int, params: Mapping[str, Any], config: Mapping[str, Any], *, again: bool) -> None:
        """A slot takes a trial; `again`: it was taken before."""

    def epoch(self, trial: int, epoch: int, metrics: Mapping[str, float], time_s: float) -> None:
        """Numbers of one epoch, finite ones only, and when (Unix seconds)."""

    def end(self, trial: int, state: End, reason: str, value: float | None) -> None:
        """A trial is over; it may be one that never started."""

    def close(self) -> None:
        """The driver leaves; trials that have not ended may go on with another one."""


def checked(texts: Sequence[str]) -> list[Tracker]:
    """`["mlflow", "wandb:project", "csv:log.csv"]` as trackers, each looked at as far as that goes without the network.

    RequestError where one is unknown, named twice, not installed or cannot be used.
    """
    found: dict[str, Tracker] = {}
    for text in texts:
        kind, _, where = text.partition(":")
        if kind not in TRACKERS:
            raise RequestError(
                f"--log-to must be mlflow[:URI], wandb[:PROJECT] or csv[:FILE], but is {text!r}; choose one of them"
            )
        if text in found:
            raise RequestError(f"--log-to {text} is given twice; keep one")
        found[text] = TRACKERS[kind](where)
    return list(found.values())


class Logged:
    """A listener that tells one tracker, in a thread of its own. `complain` is told once where it is dropped."""

    def __init__(
        self, tracker: Tracker, experiment: Experiment, complain: Callable[[str], None], *, since: float = 0.0
    ) -> None:
        """What was written before `since` (Unix seconds) was logged by the driver that wrote it."""
        self._tracker, self._experiment, self._complain, self._since = tracker, experiment, complain, since
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(MOST_WAITING)
        self._asked: dict[int, Asked] = {}
        self._configs: dict[int, Mapping[str, Any]] = {}
        self._dropped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)
        self._thread.start()

    def on_event(self, record: Record) -> None:
        """Takes in one record of the journal; returns at once."""
        old = record.time < self._since
        match record:
            case Opened():
                told = Sweep(
                    self._experiment.name,
                    f"{record.experiment.name}@{record.time:.0f}",
                    record.experiment.metric,
                    self._experiment.folder,
                )
                self._tell(lambda: self._tracker.begin(told))
            case Asked():
                self._asked[record.number] = record
                self._configs[record.number] = record.config or {}
            case Extended():
                self._configs[record.number] = record.config
            case Started() if not old:
                params, config = self._asked[record.number].params, self._configs[record.number]
                number, again = record.number, record.attempt > 0
                self._tell(lambda: self._tracker.start(number, params, config, again=again))
            case Epoch() if not old:
                finite = {name: value for name, value in record.metrics.items() if math.isfinite(value)}
                self._tell(lambda: self._tracker.epoch(record.number, record.epoch, finite, record.time))
            case Ended() if not old:
                self._tell(lambda: self._tracker.end(record.number, record.state, record.reason, record.value))
            case _:
                pass

    def close(self) -> None:
        """Waits until the tracker has heard all, for `CLOSE_S` at most."""
        self._tell(self._tracker.close)
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._drop(f"it has not answered for {CLOSE_S:.0f} s")

    def _tell(self, act: Callable[[], None]) -> None:
        if self._dropped.is_set():
            return
        try:
            self._waiting.put_nowait(act)
        except queue.Full:
            self._drop(f"it is {MOST_WAITING:,} records behind")

    def _run(self) -> None:
        while (act := self._waiting.get()) is not None:
            if self._dropped.is_set():
                continue
            try:
                act()
            except Exception as error:  # whatever a tracker, or the network, makes of us: the sweep goes on
                self._drop(f"{type(error).__name__}: {error}")

    def _drop(self, why: str) -> None:
        if not self._dropped.is_set():
            self._dropped.set()
            kind = type(self._tracker).__name__
            self._complain(f"{kind} is told nothing more, the sweep goes on without it: {why}")


class Csv:
    """A CSV file with a line for each number: easily read, and appended to whatever a trial reports."""

    HEAD = ("time", "sweep", "trial", "epoch", "kind", "name", "value")

    def __init__(self, where: str) -> None:
        self._path = Path(where).expanduser().absolute() if where else None
        self._sweep = ""
        if self._path is None:
            return
        if why := why_not_writable(self._path.parent):
            raise RequestError(f"--log-to csv:{where} must be in a folder that can be written to, but {why}")
        if self._path.is_dir():
            raise RequestError(f"--log-to csv:{where} must be a file, but is a folder; name a file in it")
        if self._path.is_file() and self._path.stat().st_size and not self._is_ours(self._path):
            raise RequestError(f"--log-to csv:{where} is a file that is no such log; choose another one")

    def begin(self, sweep: Sweep) -> None:
        self._sweep = sweep.name
        self._path = self._path or sweep.folder / "log.csv"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._path.exists() or not self._path.stat().st_size:
            self._add([self.HEAD])

    def start(self, trial: int, params: Mapping[str, Any], config: Mapping[str, Any], *, again: bool) -> None:
        if not again:
            self._add([("", self._sweep, trial, 0, "param", name, _text(value)) for name, value in params.items()])

    def epoch(self, trial: int, epoch: int, metrics: Mapping[str, float], time_s: float) -> None:
        self._add([(time_s, self._sweep, trial, epoch, "metric", name, value) for name, value in metrics.items()])

    def end(self, trial: int, state: End, reason: str, value: float | None) -> None:
        told = {"state": state, "reason": reason, "value": value}
        rows = [("", self._sweep, trial, "", "end", name, one) for name, one in told.items() if one not in ("", None)]
        self._add(rows)

    def close(self) -> None:
        """Each line is written when it is told."""

    def _add(self, rows: Sequence[Sequence[Any]]) -> None:
        assert self._path is not None, "`begin` comes first"
        with self._path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    def _is_ours(self, path: Path) -> bool:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline().rstrip("\n") == ",".join(self.HEAD)


class MLflow:
    """An experiment of the sweep's name, in it a run for each trial: sampled parameters, metrics by our epoch, the
    config as an artifact.
    """

    def __init__(self, where: str) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise RequestError(f"--log-to mlflow needs MLflow ({error}); {INSTALL}") from error
        from mlflow.exceptions import MlflowException

        try:
            self._client: Any = MlflowClient(tracking_uri=where or None)
        except (MlflowException, ImportError, ValueError, OSError) as error:
            raise RequestError(f"--log-to mlflow:{where} cannot be used: {error}") from error
        self._experiment, self._sweep = "", ""
        self._runs: dict[int, str] = {}

    def begin(self, sweep: Sweep) -> None:
        known = self._client.get_experiment_by_name(sweep.name)
        self._experiment = self._client.create_experiment(sweep.name) if known is None else known.experiment_id
        self._sweep = sweep.key

    def start(self, trial: int, params: Mapping[str, Any], config: Mapping[str, Any], *, again: bool) -> None:
        from mlflow.entities import Param

        run = self._found(trial) if again and trial not in self._runs else self._runs.get(trial)
        if run is not None:
            self._runs[trial] = run
            self._client.update_run(run, status="RUNNING")
            return
        made = self._client.create_run(self._experiment, run_name=format.run_name(trial), tags=self._tags(trial))
        run = self._runs[trial] = made.info.run_id
        told = [Param(name, _text(value)) for name, value in params.items()]
        for begin in range(0, len(told), 100):  # so many at once are taken
            self._client.log_batch(run, params=told[begin : begin + 100])
        self._client.log_dict(run, dict(config), "config.json")

    def epoch(self, trial: int, epoch: int, metrics: Mapping[str, float], time_s: float) -> None:
        from mlflow.entities import Metric

        told = [Metric(name, value, int(1000 * time_s), epoch) for name, value in metrics.items()]
        self._client.log_batch(self._runs[trial], metrics=told)

    def end(self, trial: int, state: End, reason: str, value: float | None) -> None:
        run = self._runs.pop(trial, None)
        if run is None:  # no slot took it
            return
        self._client.set_tag(run, "state", state)
        self._client.set_tag(run, "reason", reason)
        status = {"COMPLETE": "FINISHED", "PRUNED": "KILLED"}.get(state, "FAILED")
        self._client.set_terminated(run, status)

    def close(self) -> None:
        for run in self._runs.values():
            self._client.set_terminated(run, "KILLED")

    def _tags(self, trial: int) -> dict[str, str]:
        return {"pretune.sweep": self._sweep, "pretune.trial": str(trial)}

    def _found(self, trial: int) -> str | None:
        """The run of a trial that an earlier driver has logged."""
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in self._tags(trial).items())
        found = self._client.search_runs([self._experiment], wanted, max_results=1)
        return found[0].info.run_id if found else None


class Wandb:
    """A run for each trial in a group of the sweep's name, its files below the sweep's folder. `WANDB_MODE` counts."""

    def __init__(self, where: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise RequestError(f"--log-to wandb needs Weights & Biases ({error}); {INSTALL}") from error
        self._wandb: Any = wandb
        self._project = where or "pretune"
        mode = os.environ.get("WANDB_MODE", "online")
        if mode not in ("offline", "disabled", "dryrun") and not self._wandb.login(prompt=False):
            raise RequestError(
                "--log-to wandb needs a login: run `wandb login`, set WANDB_API_KEY, or log to files with "
                "WANDB_MODE=offline"
            )
        self._sweep: Sweep | None = None
        self._runs: dict[int, Any] = {}

    def begin(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def start(self, trial: int, params: Mapping[str, Any], config: Mapping[str, Any], *, again: bool) -> None:
        assert self._sweep is not None, "`begin` comes first"
        if trial in self._runs:
            return
        key = hashlib.blake2b(self._sweep.key.encode(), digest_size=5).hexdigest()
        self._runs[trial] = self._wandb.init(
            project=self._project,
            group=self._sweep.name,
            name=format.run_name(trial),
            id=f"{key}-{trial:04d}",
            resume="allow",
            reinit="create_new",  # trials run at once
            dir=str(self._sweep.folder),
            config={"params": dict(params), **config},
            settings=self._wandb.Settings(silent=True, console="off"),
        )

    def epoch(self, trial: int, epoch: int, metrics: Mapping[str, float], time_s: float) -> None:
        self._runs[trial].log(dict(metrics), step=epoch)

    def end(self, trial: int, state: End, reason: str, value: float | None) -> None:
        run = self._runs.pop(trial, None)
        if run is None:
            return
        run.summary.update({"state": state, "reason": reason, **({} if value is None else {"value": value})})
        run.finish(exit_code=0 if state in ("COMPLETE", "PRUNED") else 1)

    def close(self) -> None:
        while self._runs:
            _, run = self._runs.popitem()
            run.finish(exit_code=1)


TRACKERS: Mapping[str, Callable[[str], Tracker]] = {"mlflow": MLflow, "wandb": Wandb, "csv": Csv}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
