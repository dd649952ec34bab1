"""What a journal's records add up to: the state of each trial. Sampler, rungs and results are rebuilt from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pretune.core import records
from pretune.core.experiment import Experiment
from pretune.core.packing import Packing
from pretune.core.reader import StoredEpoch
from trainers.report import Checkpoint

State = Literal["WAITING", "RUNNING", "COMPLETE", "PRUNED", "INFEASIBLE", "FAIL"]
_UNFINISHED = ("WAITING", "RUNNING")
_EPOCHS = (StoredEpoch, records.Epoch)
_Turn = records.Started | records.Attempt | records.Condemned | records.Ended | records.Extended
"""What happens to a trial but for its epochs, which are many and told apart first."""


class Checkpoints(MutableMapping[int, Checkpoint]):
    """By epoch. Those of epochs that stay on the disk are read when they are asked for."""

    __slots__ = ("_found",)

    def __init__(self, found: Mapping[int, Checkpoint] | None = None) -> None:
        self._found: dict[int, Checkpoint | StoredEpoch] = dict(found or {})

    def leave(self, epoch: StoredEpoch) -> None:
        """Adds the one of an epoch that has one, and leaves it where it is."""
        self._found[epoch.epoch] = epoch

    @property
    def newest(self) -> Checkpoint | StoredEpoch | None:
        """The newest one, or the epoch with which it stays on the disk."""
        return self._found[max(self._found)] if self._found else None

    def __getitem__(self, epoch: int) -> Checkpoint:
        found = self._found[epoch]
        return found.read_checkpoint() if isinstance(found, StoredEpoch) else found

    def __setitem__(self, epoch: int, checkpoint: Checkpoint) -> None:
        self._found[epoch] = checkpoint

    def __delitem__(self, epoch: int) -> None:
        del self._found[epoch]

    def __iter__(self) -> Iterator[int]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


@dataclass
class TrialHistory:
    """One trial, as the journal tells it. `asked_at` and `ended_at` (its first end) are positions of records: they
    order events, which the clocks of several machines do not. `epochs` are in their order; `checkpoints` are those that
    were written, by epoch: retention may have removed older ones. `extended`: it was made longer after its end.
    `result_of`: the trial of an equal config whose result and epochs this one has; it was not run again. `condemned`:
    the stopping rule would have ended it, but it was let live. `stop_requested` is why somebody wants it to end (None:
    nobody does); `enqueued`: somebody handed it in. `asked_s`, `started_s` (the first time) and `ended_s` (the last)
    are Unix seconds, for who looks at it.
    """

    number: int
    params: dict[str, Any]
    distributions: dict[str, str]
    config: dict[str, Any] | None
    duplicate_of: int | None
    asked_at: int
    ended_at: int | None = None
    state: State = "WAITING"
    attempts: int = 0
    failures: int = 0
    epochs: dict[int, Mapping[str, float]] = field(default_factory=dict)
    checkpoints: Checkpoints = field(default_factory=lambda: Checkpoints())
    extended: bool = False
    value: float | None = None
    reason: str = ""
    rung: int | None = None
    result_of: int | None = None
    condemned: records.Condemned | None = None
    stop_requested: str | None = None
    enqueued: bool = False
    asked_s: float = 0.0
    started_s: float | None = None
    ended_s: float | None = None

    @property
    def ended(self) -> bool:
        return self.state not in _UNFINISHED

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The newest one, where the trial goes on from."""
        return self.checkpoints[max(self.checkpoints)] if self.checkpoints else None

    @property
    def last_epoch(self) -> int:
        """Epochs finished, 0 before the first."""
        return next(reversed(self.epochs), 0)

    def last(self, metric: str) -> float | None:
        """The newest value of `metric`, None where it was never measured. The best over epochs would reward luck."""
        for epoch in reversed(self.epochs):
            if metric in self.epochs[epoch]:
                return self.epochs[epoch][metric]
        return None


class Trials(list[TrialHistory]):
    """All trials by number. `changes` has the number of a trial each time it is asked, ends, or is to train longer, so
    that whoever follows them for as long as a sweep runs reads each change once and not all trials again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[int] = []


class History:
    """All trials by number; `target` is how many are asked for, `max_hours` in how many hours (None: no limit),
    `closed` how the last driver left (or None). `enqueued` are the configurations that were handed in and wait, by
    request; `requests` are all that were ever taken in. `packing` is how trials share a GPU, where that was asked for.
    """

    def __init__(self, journal: Iterable[records.Record | StoredEpoch] = ()) -> None:
        self.opened: records.Opened | None = None
        self.trials = Trials()
        self.target = 0
        self.max_hours: float | None = None
        self.packing: Packing | None = None
        self.sessions = 0
        self.closed: records.Closed | None = None
        self.enqueued: dict[str, records.Enqueued] = {}
        self.requests: set[str] = set()
        self._count = 0
        self._earlier_s = self._began = self._latest = 0.0
        self._driven = False
        for record in journal:
            self.apply(record)

    @property
    def placed(self) -> Experiment:
        """The experiment, with its trials placed on the cluster as they are now."""
        assert self.opened is not None, "a sweep begins with it"
        return self.opened.experiment if self.packing is None else self.packing.applied(self.opened.experiment)

    def apply(self, record: records.Record | StoredEpoch) -> None:
        """Adds one record. ValueError where it contradicts what came before: edited by hand, or a bug of ours."""
        position, self._count = self._count, self._count + 1
        if isinstance(record, _EPOCHS):  # nearly all are: first
            self._report(self._trial(record, "epoch", position), record, position)
            return
        if isinstance(record, records.Opened | records.Resumed):
            self._earlier_s, self._began, self._driven = self.seconds, record.time, True
        elif isinstance(record, records.Enqueued | records.StopRequested) and record.no_driver:
            self._driven = False
        if self._driven:
            self._latest = record.time
        match record:
            case records.Opened():
                self.opened, self.target, self.sessions = record, record.experiment.trials, 1
                self.max_hours = record.experiment.max_hours
                self.packing = record.packing
            case records.Resumed():
                self.target, self.sessions, self.closed = record.trials, self.sessions + 1, None
                self.max_hours = self.max_hours if record.max_hours is None else record.max_hours
                self.packing = record.packing or self.packing
            case records.Closed():
                self.closed = record
            case records.Asked():
                if record.number != len(self.trials):
                    raise ValueError(
                        f"record {position + 1} asks for trial {record.number}, but {len(self.trials)} comes next"
                    )
                if record.enqueued is not None and self.enqueued.pop(record.enqueued, None) is None:
                    raise ValueError(f"record {position + 1}: nobody has handed in trial {record.number} before it")
                self.trials.append(
                    TrialHistory(
                        record.number,
                        record.params,
                        record.distributions,
                        record.config,
                        record.duplicate_of,
                        position,
                        enqueued=record.enqueued is not None,
                        asked_s=record.time,
                    )
                )
                self.trials.changes.append(record.number)
            case records.Enqueued():
                self.requests.add(record.request)
                self.enqueued[record.request] = record
                self.target += 1
            case records.StopRequested():
                self.requests.add(record.request)
                self._trial(record, record.kind, position).stop_requested = record.reason
            case records.Started() | records.Attempt() | records.Condemned() | records.Ended() | records.Extended():
                self._change(self._trial(record, record.kind, position), record, position)

    @property
    def seconds(self) -> float:
        """Of wall clock, from each driver's first record to its last one that is no epoch."""
        return self._earlier_s + max(0.0, self._latest - self._began)

    def _trial(
        self, record: _Turn | records.Epoch | StoredEpoch | records.StopRequested, kind: str, position: int
    ) -> TrialHistory:
        """The trial that `record` changes."""
        if record.number >= len(self.trials):
            raise ValueError(f"record {position + 1} ({kind}) is about trial {record.number}, which was never asked")
        trial = self.trials[record.number]
        if (trial.state not in _UNFINISHED) != (kind == "extended"):
            state = "has ended" if trial.ended else "has not ended"
            raise ValueError(f"record {position + 1} ({kind}) is about trial {record.number}, which {state}")
        return trial

    def _report(self, trial: TrialHistory, record: records.Epoch | StoredEpoch, position: int) -> None:
        epoch, epochs = record.epoch, trial.epochs
        if epochs and epoch <= trial.last_epoch:
            raise ValueError(f"record {position + 1}: epoch {epoch} of trial {record.number} after {trial.last_epoch}")
        trial.state = "RUNNING"
        if isinstance(record, StoredEpoch):
            epochs[epoch] = record
            if record.has_checkpoint:
                trial.checkpoints.leave(record)
            return
        epochs[epoch] = record.metrics
        if record.checkpoint is not None:
            trial.checkpoints[epoch] = record.checkpoint

    def _change(self, trial: TrialHistory, record: _Turn, position: int) -> None:
        if isinstance(record, records.Ended | records.Extended):
            self.trials.changes.append(record.number)
        match record:
            case records.Started():
                trial.attempts += 1
                trial.started_s = record.time if trial.started_s is None else trial.started_s
                trial.state = "RUNNING"
            case records.Attempt():
                trial.failures = record.failures
            case records.Condemned():
                trial.condemned = record
            case records.Ended():
                trial.state, trial.value, trial.reason = record.state, record.value, record.reason
                trial.rung, trial.ended_s = record.rung, record.time
                if record.result_of is not None:
                    trial.result_of = record.result_of
                    trial.epochs = dict(self._earlier(record.result_of, trial.number, position).epochs)
                trial.ended_at = position if trial.ended_at is None else trial.ended_at
            case records.Extended():
                # What came after the checkpoint is told anew where it is under another schedule.
                kept = record.checkpoint.epoch
                trial.checkpoints = Checkpoints({kept: record.checkpoint})
                if not record.continued:
                    trial.epochs = {epoch: metrics for epoch, metrics in trial.epochs.items() if epoch <= kept}
                    trial.config, trial.extended = record.config, True
                trial.state, trial.value, trial.reason, trial.rung = "WAITING", None, "", None
                trial.stop_requested = trial.ended_s = None

    def _earlier(self, number: int, than: int, position: int) -> TrialHistory:
        if not 0 <= number < than:
            raise ValueError(
                f"record {position + 1}: trial {than} has the result of trial {number}, which is not earlier"
            )
        return self.trials[number]
