"""A sweep of limited hours: what is still begun, and what ends so that the best trials finish in time.

All of it is computed from the times of the journal's records, so that a driver that takes a sweep up decides as the one
before it did, whatever its own clock says. The hours are those in which a driver ran: of each session, from its first
record to its last. What lies between two sessions does not count.

* A trial is begun only if one like those before would run to its end in the time that is left: the upper quartile of
  what the newest ones took, or would have taken, is compared.
* A running trial ends (PRUNED, its reason begins with "time") once it can not finish any more, by the median of its
  newest epochs. The best one may go on as long as it would make it at its fastest pace; while it is so short of time,
  the weakest of the others gives way to it, one for each of its epochs: they may share a machine.
* Whatever runs when the hours are over ends with its next report. So a sweep overruns its hours by one epoch of a trial
  at most, or by the start of one, and by the end of its workers.

A trial that is made longer (`pretune resume --epochs`) was asked for by number of epochs: time ends none. A trial that
time has ended goes on from its newest checkpoint once the sweep is given the hours for it.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from functools import reduce

from pretune.core.history import History, TrialHistory
from pretune.core.reader import StoredEpoch
from pretune.core.records import Ended, Enqueued, Epoch, Opened, Record, Resumed, Started, StopRequested
from pretune.core.stopping import Stop
from trainers.config import TrialConfig

NEWEST = 20
"""So many measured trials say what the next one will take."""
EPOCHS = 5
"""So many newest epochs of a trial say what its next ones will take."""
TIME = "time: "
"""How the reason begins of a trial that ends for the sake of time."""


def ended(trial: TrialHistory) -> bool:
    """Whether `trial` has ended for the sake of time, which says nothing of its config."""
    return trial.state == "PRUNED" and trial.rung is None and trial.reason.startswith(TIME)


@dataclass
class _Pace:
    """What a trial took so far, in seconds."""

    since: float
    """When it was taken by a slot, or last reported."""
    position: int
    """Of that record."""
    starts: bool = True
    """Whether the next epoch begins with the start of its workers."""
    first: float | None = None
    """From being taken to its first report."""
    epochs: list[float] = field(default_factory=list)
    """Each that did not begin with a start, the newest of them."""
    fastest: float = math.inf


class Landing:
    """Shown each record once, in the journal's order, after `history` has taken it in."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._spent, self._began, self._now = 0.0, 0.0, 0.0
        self._driven = False
        self._count, self._last_end = 0, -1
        self._paces: dict[int, _Pace] = {}
        self._open: set[int] = set()
        """Trials that have reported and have not ended."""
        self._whole: dict[int, tuple[float, int, list[float]]] = {}
        """By trial, of those newest that say how long they take: the seconds to the first report, how many epochs there
        are in all, and the seconds of some.
        """

    @property
    def used_s(self) -> float:
        """Seconds that the sweep has run, in all sessions, as of the last record."""
        return self._spent + self._now - self._began

    @property
    def left_s(self) -> float | None:
        """Seconds that are left; None where the hours have no limit."""
        hours = self._history.max_hours
        return None if hours is None else 3600.0 * hours - self.used_s

    def see(self, record: Record | StoredEpoch) -> None:
        self._count += 1
        if isinstance(record, StoredEpoch):  # nearly all that an earlier driver wrote: first
            pass
        elif isinstance(record, Opened | Resumed):
            self._spent += self._now - self._began
            self._began, self._now, self._driven = record.time, record.time, True
        elif isinstance(record, Enqueued | StopRequested) and record.no_driver:
            self._driven = False
        if self._driven:
            self._now = max(self._now, record.time)  # a clock that was set back takes no time away
        match record:
            case StoredEpoch() | Epoch():
                self._open.add(record.number)
                self._report(record)
            case Started():
                pace = self._pace(record)
                pace.since, pace.position, pace.starts = record.time, self._count, True
            case Ended():
                self._open.discard(record.number)
                self._last_end = self._count
            case _:
                pass

    def may_begin(self) -> bool:
        """Whether a new trial would have the time to finish."""
        left = self.left_s
        if left is None:
            return True
        needed = self._whole_s()
        return left > 0.0 and (needed is None or needed <= left)

    def may_go_on(self, trial: TrialHistory) -> bool:
        """Whether a trial that waits for a slot would have the time to finish."""
        left = self.left_s
        if left is None or trial.extended:
            return True
        needed = self._rest_s(trial) if trial.epochs else self._whole_s()
        return left > 0.0 and (needed is None or needed <= left)

    def cut_short(self) -> list[TrialHistory]:
        """Trials that time has ended, each of which would now have the time to finish."""
        return [trial for trial in self._history.trials if ended(trial) and self.may_go_on(trial)]

    def judge(self, number: int) -> Stop | None:
        """Whether the trial, which has just reported, ends for the sake of time."""
        left, trial = self.left_s, self._history.trials[number]
        if left is None or trial.extended or _epochs_left(trial) == 0:
            return None
        limit = f"{self._history.max_hours:g} h"
        if left <= 0.0:
            return Stop(None, f"{TIME}the {limit} are over")
        rest = self._rest_s(trial)
        if rest is None:
            return None
        best = self._best()
        if rest > left:
            if best is trial and self._is_short_of_time(trial, left):
                return None
            return Stop(None, f"{TIME}it needs about {_said(rest)} more, and of {limit} {_said(left)} are left")
        if (
            best is not None
            and best is not trial
            and _epochs_left(trial) > 1
            and self._is_short_of_time(best, left)
            and self._paces[best.number].position > self._last_end
            and self._weakest() is trial
        ):
            return Stop(None, f"{TIME}it gives way to trial {best.number}, which is better and short of time")
        return None

    def _pace(self, record: Started | Epoch | StoredEpoch) -> _Pace:
        pace = self._paces.get(record.number)
        if pace is None:
            pace = self._paces[record.number] = _Pace(record.time, self._count)
        return pace

    def _report(self, record: Epoch | StoredEpoch) -> None:
        pace = self._pace(record)
        took = max(0.0, record.time - pace.since)
        if pace.starts:
            pace.first = took if pace.first is None else pace.first
        else:
            pace.epochs = [*pace.epochs[1 - EPOCHS :], took]
            pace.fastest = min(pace.fastest, took)
        pace.since, pace.position, pace.starts = record.time, self._count, False
        epochs = _epochs(self._history.trials[record.number])
        if pace.first is not None and (pace.epochs or epochs == 1):
            self._whole.pop(record.number, None)  # the newest are the last ones
            self._whole[record.number] = pace.first, epochs, pace.epochs
            if len(self._whole) > NEWEST:
                del self._whole[next(iter(self._whole))]

    def _whole_s(self) -> float | None:
        """What a new trial takes, None where no other one says it yet."""
        ordered = sorted(first + (epochs - 1) * _median(each) for first, epochs, each in self._whole.values())
        return ordered[math.ceil(0.75 * len(ordered)) - 1] if ordered else None

    def _rest_s(self, trial: TrialHistory, *, fastest: bool = False) -> float | None:
        """What is left of a trial that has reported, as of its last report; None where it can not be told yet."""
        pace = self._paces.get(trial.number)
        if pace is None or not pace.epochs:
            return None
        return _epochs_left(trial) * (pace.fastest if fastest else _median(pace.epochs))

    def _is_short_of_time(self, trial: TrialHistory, left: float) -> bool:
        """Whether it would finish at its fastest pace, but not at that of its newest epochs."""
        rest, fastest = self._rest_s(trial), self._rest_s(trial, fastest=True)
        if rest is None or fastest is None:
            return False
        gone = self._now - self._paces[trial.number].since
        return rest - gone > left >= fastest - gone

    def _ranked(self) -> list[TrialHistory]:
        return [self._history.trials[number] for number in sorted(self._open)]

    def _best(self) -> TrialHistory | None:
        """Of the running ones."""
        running = [trial for trial in self._ranked() if trial.condemned is None]
        return reduce(lambda one, other: other if self._is_better(other, one) else one, running) if running else None

    def _weakest(self) -> TrialHistory | None:
        """Of the running ones: the first that was condemned, where there is any."""
        running = self._ranked()
        condemned = [trial for trial in running if trial.condemned is not None]
        if condemned or not running:
            return condemned[0] if condemned else None
        return reduce(lambda one, other: other if self._is_better(one, other) else one, running)

    def _is_better(self, one: TrialHistory, other: TrialHistory) -> bool:
        """By what both had at the last epoch that both have finished."""
        assert self._history.opened is not None
        experiment = self._history.opened.experiment
        common = min(one.last_epoch, other.last_epoch)
        first, second = (_value(trial, experiment.metric, common) for trial in (one, other))
        if first is None or second is None:
            return first is not None
        return first > second if experiment.maximize else first < second


def _value(trial: TrialHistory, metric: str, until: int) -> float | None:
    """The newest value by epoch `until`."""
    for epoch in sorted(trial.epochs, reverse=True):
        if epoch <= until and metric in trial.epochs[epoch]:
            value = trial.epochs[epoch][metric]
            return None if math.isnan(value) else value
    return None


def _epochs(trial: TrialHistory) -> int:
    assert trial.config is not None, "what the space refused has no epochs"
    found = trial.config.get("epochs")
    return int(TrialConfig.model_fields["epochs"].default if found is None else found)


def _epochs_left(trial: TrialHistory) -> int:
    return max(0, _epochs(trial) - trial.last_epoch)


def _median(seconds: list[float]) -> float:
    return statistics.median(seconds) if seconds else 0.0


def _said(seconds: float) -> str:
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 5400.0 else f"{seconds / 3600.0:.1f} h"
