"""A sweep of limited hours, on a clock of its own: what is begun, what ends, and by how much it overruns."""

from __future__ import annotations

import heapq
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pretune import sweep
from pretune.core import landing, points, results, retention
from pretune.core.conductor import Conductor
from pretune.core.experiment import Experiment, StoppingConfig
from pretune.core.history import History, TrialHistory
from pretune.core.journal import Journal, read
from pretune.core.landing import Landing
from pretune.core.records import Asked, Ended, Epoch, Opened, Record, Resumed, Started
from pretune.core.rows import Handout
from pretune.display import tables
from tests import toys
from tests.toys import row, space
from trainers import storage
from trainers.config import TrialConfig
from trainers.report import Checkpoint

BASE = toys.BASE.model_copy(update={"epochs": 5})
HOUR = 3600.0
Seconds = Callable[[int, int, int], float]
"""What an epoch of a trial takes while so many run."""


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def experiment(max_hours: float | None, **changes: Any) -> Experiment:
    settings: dict[str, Any] = {"name": "s", "space": "mine", "base": BASE, "trials": 100, "sampler": "random"}
    settings |= {"stopping": StoppingConfig(enabled=False), "max_hours": max_hours}
    return Experiment(**(settings | changes))


def begin(folder: Path, made: Experiment, clock: Clock) -> Conductor:
    journal = Journal(folder, new=True, clock=clock)
    journal.append(Opened(experiment=made))
    return Conductor(journal, points.proposer(made, space))


def fly(conductor: Conductor, clock: Clock, *, slots: int, seconds: Seconds, start_s: float = 30.0) -> float:
    """Runs the sweep to its end on `slots` slots, each of which takes `start_s` once; returns when it ended."""
    events: list[tuple[float, int, int, Handout]] = []
    fresh = slots

    def fill() -> None:
        nonlocal fresh
        while conductor.live < slots and (handout := conductor.next()) is not None:
            conductor.started(handout.number)
            epoch = handout.resume.epoch + 1 if handout.resume else 1
            start, fresh = (start_s, fresh - 1) if fresh else (0.0, 0)
            ends = clock.now + start + seconds(handout.number, epoch, conductor.live)
            heapq.heappush(events, (ends, handout.number, epoch, handout))

    fill()
    while events:
        clock.now, number, epoch, handout = heapq.heappop(events)
        if conductor.reported(row(handout, epoch)):
            if epoch == TrialConfig.model_validate(handout.config).epochs:
                conductor.ended(row(handout, epoch, outcome="complete"))
            else:
                ends = clock.now + seconds(number, epoch + 1, conductor.live)
                heapq.heappush(events, (ends, number, epoch + 1, handout))
        fill()
    assert conductor.finished
    return clock.now


def test_only_trials_that_will_finish_are_begun_and_the_hours_are_used(tmp_path: Path) -> None:
    clock = Clock()
    conductor = begin(tmp_path, experiment(1.0), clock)
    ended = fly(conductor, clock, slots=2, seconds=lambda number, epoch, running: 60.0)
    trials = conductor.history.trials
    # Two slots for 3,600 s, 30 s to start; five minutes each.
    assert [trial.state for trial in trials] == ["COMPLETE"] * 22
    assert ended == 1000.0 + 30.0 + 11 * 300.0
    assert conductor.out_of_time
    conductor.close("out_of_time", "of 1 h")
    conductor._journal.close()
    assert tables.status(results.read(tmp_path)) == "finished, out of time"


def test_a_sweep_that_has_all_its_trials_in_time_is_finished_as_ever(tmp_path: Path) -> None:
    clock = Clock()
    conductor = begin(tmp_path, experiment(10.0, trials=4), clock)
    fly(conductor, clock, slots=2, seconds=lambda number, epoch, running: 60.0)
    assert len(conductor.history.trials) == 4
    assert not conductor.out_of_time


@pytest.mark.parametrize("seed", range(8))
def test_however_uneven_epochs_are_a_sweep_overruns_by_one_epoch_at_most(tmp_path: Path, seed: int) -> None:
    rng, clock, taken = random.Random(seed), Clock(), list[float]()
    costs = [rng.choice([20.0, 60.0, 200.0]) for _ in range(200)]

    def seconds(number: int, epoch: int, running: int) -> float:
        taken.append(costs[number] * rng.lognormvariate(0.0, 0.3) * (1.0 + 0.2 * running))
        return taken[-1]

    conductor = begin(tmp_path, experiment(0.5, stopping=StoppingConfig(grace=1.0, audit=0.3)), clock)
    slots = rng.randint(1, 4)
    ended = fly(conductor, clock, slots=slots, seconds=seconds)
    assert ended <= 1000.0 + 0.5 * HOUR + max(taken)
    states = {trial.state for trial in conductor.history.trials}
    assert states <= {"COMPLETE", "PRUNED", "INFEASIBLE"}
    assert any(trial.state == "COMPLETE" for trial in conductor.history.trials)
    for trial in conductor.history.trials:
        assert (trial.rung is None) == (trial.state != "PRUNED" or trial.reason.startswith("time: "))


def test_what_cannot_finish_any_more_ends_as_soon_as_that_is_known(tmp_path: Path) -> None:
    clock = Clock()
    conductor = begin(tmp_path, experiment(0.25, base=BASE.model_copy(update={"epochs": 20})), clock)

    def seconds(number: int, epoch: int, running: int) -> float:
        return 10.0 if clock.now < 1700.0 else 30.0

    ended = fly(conductor, clock, slots=1, seconds=seconds)
    assert [trial.state for trial in conductor.history.trials] == ["COMPLETE"] * 3 + ["PRUNED"]
    reason = conductor.history.trials[3].reason
    assert reason.startswith("time: it needs about ")
    assert reason.endswith(" are left")
    assert 1000.0 + 780.0 < ended < 1000.0 + 900.0, "it had its chance, but was not kept until the hours were over"


def test_a_trial_longer_than_the_hours_ends_early_and_no_other_one_is_begun(tmp_path: Path) -> None:
    clock = Clock()
    conductor = begin(tmp_path, experiment(0.1), clock)
    ended = fly(conductor, clock, slots=2, seconds=lambda number, epoch, running: 150.0)
    assert [trial.state for trial in conductor.history.trials] == ["PRUNED"] * 2
    assert ended < 1000.0 + 0.1 * HOUR
    assert conductor.out_of_time


# ---- one decision after another --------------------------------------------------------------------------------------


def landed(hours: float, reports: Sequence[tuple[float, int, int, float]], *, maximize: bool = True) -> Landing:
    """After trials 0, 1 and 2 were begun at 0 s and reported: at which second, which trial, which epoch, its value."""
    history = History()
    landing = Landing(history)
    base = BASE.model_copy(update={"epochs": 10})
    config = base.model_dump(mode="json")
    records: list[Record] = [Opened(experiment=experiment(hours, base=base, maximize=maximize))]
    records += [Asked(number=number, params={}, distributions={}, config=config) for number in range(3)]
    records += [Started(number=number, attempt=0, epoch=0) for number in range(3)]
    records += [
        Epoch(time=at, number=number, epoch=epoch, metrics={"probe/linear": value})
        for at, number, epoch, value in reports
    ]
    for record in records:
        history.apply(record)
        landing.see(record)
    return landing


def short_of_time(best: int = 1, sign: float = 1.0) -> list[tuple[float, int, int, float]]:
    """The best trial's second epoch took 10 s, and the next ones 30: alone it might be faster again."""
    found: list[tuple[float, int, int, float]] = []
    others = [number for number in range(3) if number != best]
    for epoch, at in enumerate((20.0, 30.0, 60.0, 90.0, 120.0), start=1):
        found += [(at, best, epoch, sign * 0.1 * epoch)]
        found += [(at, number, epoch, sign * 0.01 * epoch * (1 + number)) for number in others]
    return found


@pytest.mark.parametrize("maximize", [True, False])
def test_the_weakest_gives_way_to_the_best_that_is_short_of_time(maximize: bool) -> None:
    # 120 s are over; the best one needs five more epochs, 150 s at today's pace and 50 s at its fastest.
    landing = landed(240.0 / HOUR, short_of_time(sign=1.0 if maximize else -1.0), maximize=maximize)
    weakest, best, middle = (landing.judge(number) for number in (0, 1, 2))
    assert best is None
    assert weakest is not None
    assert weakest.rung is None
    assert weakest.reason.startswith("time: it needs about ")
    roomy = landed(300.0 / HOUR, short_of_time(sign=1.0 if maximize else -1.0), maximize=maximize)
    assert [roomy.judge(number) for number in range(3)] == [None] * 3, "all have the time"
    assert middle is not None


def test_one_trial_gives_way_for_each_epoch_of_the_best() -> None:
    # The others are fast enough to finish: only the best one is slow.
    slow_best = [(at, 1, epoch, 0.1 * epoch) for epoch, at in enumerate((20.0, 30.0, 60.0, 90.0, 120.0), start=1)]
    quick = [(20.0 + 10.0 * epoch, 0, epoch, 0.01 * epoch) for epoch in range(1, 7)]
    middle = [(at, 2, epoch, 3.0 * value) for at, _, epoch, value in quick]
    reports = sorted([*slow_best, *quick, *middle])
    landing = landed(240.0 / HOUR, reports)
    stop = landing.judge(0)
    assert stop is not None
    assert stop.reason == "time: it gives way to trial 1, which is better and short of time"
    assert landing.judge(2) is None, "not the weakest"
    ended = Ended(time=121.0, number=0, state="PRUNED", reason=stop.reason)
    landing._history.apply(ended)
    landing.see(ended)
    assert landing.judge(2) is None, "first it is seen whether that was enough"
    report = Epoch(time=150.0, number=1, epoch=6, metrics={"probe/linear": 0.6})
    landing._history.apply(report)
    landing.see(report)
    assert landing.judge(2) is not None, "it was not"


# ---- sessions --------------------------------------------------------------------------------------------------------


def test_hours_are_those_of_all_sessions_and_what_lies_between_does_not_count(tmp_path: Path) -> None:
    clock = Clock()
    conductor = begin(tmp_path, experiment(1.0), clock)
    fly(conductor, clock, slots=2, seconds=lambda number, epoch, running: 60.0)
    used, first = clock.now - 1000.0, len(conductor.history.trials)
    conductor._journal.close()
    clock.now += 50.0 * HOUR
    journal = Journal(tmp_path, new=False, clock=clock)
    again = Conductor(journal, points.proposer(experiment(1.0), space))
    assert again._landing.used_s == used
    again.record(Resumed(trials=100, max_hours=1.5))
    began = clock.now
    ended = fly(again, clock, slots=2, seconds=lambda number, epoch, running: 60.0)
    assert len(again.history.trials) > first
    assert 0.0 <= 1.5 * HOUR - used - (ended - began) < 360.0
    assert {trial.state for trial in again.history.trials} == {"COMPLETE"}


@pytest.mark.parametrize("killed", [False, True])
def test_trials_that_time_ended_go_on_once_there_are_more_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    monkeypatch.setattr(storage, "exists", lambda place: True)
    clock = Clock()
    made = experiment(0.2, base=BASE.model_copy(update={"epochs": 20}), trials=3)
    conductor = begin(tmp_path, made, clock)
    fly(conductor, clock, slots=2, seconds=lambda number, epoch, running: 60.0)
    cut = {trial.number: trial.last_epoch for trial in conductor.history.trials if landing.ended(trial)}
    assert len(cut) == 2
    assert all(epoch > 1 for epoch in cut.values())
    assert sweep.cut_short(read(tmp_path), 0.21) == [], "not enough for any"
    going_on = sweep.cut_short(read(tmp_path), 2.0)
    assert {one.number: one.checkpoint.epoch for one in going_on} == cut
    conductor.record(Resumed(trials=3, max_hours=2.0))
    for one in going_on:
        conductor.extend(one)
    if killed:
        conductor._journal.close()
        conductor = Conductor(Journal(tmp_path, new=False, clock=clock), points.proposer(made, space))
    told = len(read(tmp_path))
    fly(conductor, clock, slots=2, seconds=lambda number, epoch, running: 60.0)
    assert [trial.state for trial in conductor.history.trials] == ["COMPLETE"] * 3
    again = [record for record in read(tmp_path)[told:] if isinstance(record, Epoch)]
    for number, epoch in cut.items():
        assert [one.epoch for one in again if one.number == number] == list(range(epoch + 1, 21)), "none twice"
        assert not conductor.history.trials[number].extended, "the rules go on to hold for it"


def test_of_a_trial_that_time_ended_the_newest_checkpoint_stays(tmp_path: Path) -> None:
    trial = TrialHistory(0, {}, {}, {}, None, 0, state="PRUNED", reason="time: the 1 h are over")
    for epoch, value in ((1, 0.9), (2, 0.5)):
        path = tmp_path / "checkpoints" / f"{epoch}.pt"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        trial.epochs[epoch] = {"probe/linear": value}
        trial.checkpoints[epoch] = Checkpoint(path=str(path), sha256="x", epoch=epoch)
    assert retention.trim(trial, "probe/linear", maximize=True)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2.pt"]


def test_a_trial_that_time_ended_is_run_again_where_its_config_comes_again(tmp_path: Path) -> None:
    clock = Clock()

    def alone(trial: Any, base: TrialConfig) -> TrialConfig:
        trial.suggest_float("of no use", 0.0, 1.0)
        return base

    journal = Journal(tmp_path, new=True, clock=clock)
    made = experiment(0.1)
    journal.append(Opened(experiment=made))
    conductor = Conductor(journal, points.proposer(made, alone))
    fly(conductor, clock, slots=1, seconds=lambda number, epoch, running: 150.0)
    assert conductor.history.trials[0].reason.startswith("time: ")
    conductor.record(Resumed(trials=100, max_hours=2.0))
    handout = conductor.next()
    assert handout is not None
    assert handout.number == 1
    assert handout.config == conductor.history.trials[0].config


def test_killed_after_any_record_the_next_driver_lands_the_same(tmp_path: Path) -> None:
    rng, clock = random.Random(3), Clock()
    base = BASE.model_copy(update={"epochs": 12})
    made = experiment(0.2, base=base, stopping=StoppingConfig(grace=2.0, audit=0.3))
    costs = [rng.choice([5.0, 10.0, 20.0]) for _ in range(100)]
    whole = begin(tmp_path / "whole", made, clock)

    def seconds(number: int, epoch: int, running: int) -> float:
        slow = 1.0 if clock.now < 1400.0 else 2.5
        return slow * costs[number] * (1.0 + 0.3 * running * rng.random())

    fly(whole, clock, slots=3, seconds=seconds)
    records = read(tmp_path / "whole")
    ends = [record for record in records if isinstance(record, Ended)]
    assert {end.state for end in ends} >= {"COMPLETE", "PRUNED"}
    assert any(end.reason.startswith("time: ") for end in ends)
    late = [position for position, record in enumerate(records) if getattr(record, "reason", "").startswith("time: ")]
    for cut in sorted({late[0], late[-1], late[0] + 1, *range(1, len(records), 61)}):
        folder = toys.cut_after(tmp_path / "whole", cut)
        conductor = taken_up(folder, made, clock, records[cut:])
        assert timeless(read(folder)) == timeless(records), f"killed after record {cut} ({records[cut - 1].kind})"
        assert conductor.finished
        assert conductor.out_of_time == whole.out_of_time


def timeless(records: Sequence[Record]) -> list[Record]:
    return [record.model_copy(update={"time": 0.0}) for record in records if not isinstance(record, Started | Opened)]


def taken_up(folder: Path, made: Experiment, clock: Clock, rest: Sequence[Record]) -> Conductor:
    """A sweep whose driver was killed, with the reports of `rest`; everything else it decides by itself."""
    clock.now = rest[0].time
    conductor = Conductor(Journal(folder, new=False, clock=clock), points.proposer(made, space))
    conductor.settle()
    handouts = {trial.number: conductor._hand_out(trial) for trial in conductor.history.trials if not trial.ended}
    conductor._waiting.clear()
    for record in rest:
        clock.now = record.time
        if isinstance(record, Asked) and record.number == len(conductor.history.trials):
            handout = conductor.next()
            assert handout is not None
            handouts[handout.number] = handout
        elif isinstance(record, Started):
            conductor.started(record.number)
        elif isinstance(record, Epoch):
            conductor.reported(row(handouts[record.number], record.epoch))
        elif isinstance(record, Ended) and not conductor.history.trials[record.number].ended:
            epoch = conductor.history.trials[record.number].last_epoch
            conductor.ended(row(handouts[record.number], epoch, outcome="complete"))
    assert conductor.next() is None
    return conductor
