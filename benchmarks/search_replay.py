"""One sweep on a surface of recorded curves, in simulated time: its slots, and what decides in them.

`Ours` is the program's own conductor over a journal on the disk, with its search and stopping rule. `Tune` is Ray
Tune's `ASHAScheduler` and `OptunaSearch`, asked and told through their documented methods in the order of Tune's
controller: a result that stops a trial is not reported to the searcher, the trial's end is, with its last value. Tune's
controller asks its searcher one trial ahead; here it asks when a slot is free, which is in its favor.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

from benchmarks.search_surface import Params, Recording, Surface, Trial
from pretune.core.conductor import Conductor
from pretune.core.experiment import Experiment
from pretune.core.journal import Journal
from pretune.core.records import Opened
from pretune.core.rows import Row
from pretune.core.search import Search, Space
from trainers.config import TrialConfig


class Given(NamedTuple):
    """A trial for a free slot."""

    number: int
    params: Params


class Method(Protocol):
    """What decides: which trial comes next, and which one ends."""

    def next(self) -> Given | None:
        """For a free slot; None where there is none for now."""

    def goes_on(self, number: int, epoch: int, value: float, seconds: float) -> bool:
        """Takes in the report of an epoch that is not the last."""

    def completes(self, number: int, epoch: int, value: float, seconds: float) -> None:
        """Takes in the last one."""

    def close(self) -> None:
        """Lets go of its files."""


@dataclass
class Clock:
    """Simulated, in seconds."""

    now: float = 0.0


class End(NamedTuple):
    """Of one trial: by then so many epochs of all trials, and so many seconds, had been used."""

    epochs: int
    seconds: float
    params: Params
    value: float
    complete: bool


def play(method: Method, surface: Surface, *, slots: int, clock: Clock, epochs: int | None = None) -> Iterator[End]:
    """The ends of its trials in order, until nothing is left or `epochs` are used."""
    running: list[tuple[float, int, int]] = []
    curves: dict[int, Trial] = {}
    used = 0

    def fill() -> None:
        while len(running) < slots and (given := method.next()) is not None:
            curve = curves[given.number] = surface.trial(given.number, given.params)
            heapq.heappush(running, (clock.now + curve.seconds[0], given.number, 1))

    fill()
    while running and (epochs is None or used < epochs):
        clock.now, number, epoch = heapq.heappop(running)
        curve, used = curves[number], used + 1
        value, seconds = curve.values[epoch - 1], sum(curve.seconds[:epoch])
        if complete := epoch == len(curve.values):
            method.completes(number, epoch, value, seconds)
        elif method.goes_on(number, epoch, value, seconds):
            heapq.heappush(running, (clock.now + curve.seconds[epoch], number, epoch + 1))
            continue
        yield End(used, clock.now, curve.params, value, complete)
        del curves[number]
        fill()


class Ours:
    """The conductor of one sweep, its journal in a folder."""

    def __init__(self, experiment: Experiment, space: Space, clock: Clock) -> None:
        experiment.folder.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(experiment.folder, new=True, clock=lambda: clock.now)
        self._journal.append(Opened(experiment=experiment))
        self.conductor = Conductor(self._journal, Search(experiment, space))
        self._metric = experiment.metric

    def next(self) -> Given | None:
        handout = self.conductor.next()
        if handout is None:
            return None
        self.conductor.started(handout.number)
        return Given(handout.number, handout.params)

    def goes_on(self, number: int, epoch: int, value: float, seconds: float) -> bool:
        return self.conductor.reported(self._row(number, epoch, value, seconds))

    def completes(self, number: int, epoch: int, value: float, seconds: float) -> None:
        row = self._row(number, epoch, value, seconds)
        if self.conductor.reported(row):
            self.conductor.ended(Row(number, epoch, outcome="complete", metrics=row.metrics))

    def close(self) -> None:
        self._journal.close()

    def _row(self, number: int, epoch: int, value: float, seconds: float) -> Row:
        return Row(number, epoch, metrics={self._metric: value, "budget/seconds": seconds})


class Tune:
    """Ray Tune's scheduler and searcher, with its own defaults where nothing else is said."""

    def __init__(
        self, recording: Recording, space: Space, base: TrialConfig, *, seed: int, trials: int, **rungs: Any
    ) -> None:
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.optuna import OptunaSearch

        metric = recording.metric

        def suggested(trial: Any) -> None:
            space(trial, base)

        self._metric, self._most = metric, trials
        self._scheduler: Any = ASHAScheduler(metric=metric, mode="max", max_t=recording.epochs, **rungs)
        self._searcher: Any = OptunaSearch(suggested, metric=metric, mode="max", seed=seed)
        self._trials: dict[int, Any] = {}

    def next(self) -> Given | None:
        number = len(self._trials)
        if number == self._most:
            return None
        params = self._searcher.suggest(str(number))
        trial = self._trials[number] = SimpleNamespace(trial_id=str(number))
        self._scheduler.on_trial_add(None, trial)
        return Given(number, params)

    def goes_on(self, number: int, epoch: int, value: float, seconds: float) -> bool:
        return self._takes_in(number, epoch, value)

    def completes(self, number: int, epoch: int, value: float, seconds: float) -> None:
        assert not self._takes_in(number, epoch, value), "max_t is reached"

    def close(self) -> None:
        pass

    def _takes_in(self, number: int, epoch: int, value: float) -> bool:
        from ray.tune.schedulers import TrialScheduler

        trial, result = self._trials[number], {"training_iteration": epoch, self._metric: value}
        if self._scheduler.on_trial_result(None, trial, result) != TrialScheduler.STOP:
            self._searcher.on_trial_result(trial.trial_id, result)
            return True
        self._scheduler.on_trial_complete(None, trial, result)
        self._searcher.on_trial_complete(trial.trial_id, result)
        return False
