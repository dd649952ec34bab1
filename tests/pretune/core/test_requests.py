"""Stopping a trial and handing one in: journaled before anything is done, and the same after a kill at any record."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from pretune.core import journal, requests, results, study_log
from pretune.core.alike import Alike
from pretune.core.conductor import Conductor
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment, Objective, StoppingConfig, WarmStart
from pretune.core.history import History
from pretune.core.journal import Journal, read
from pretune.core.landing import Landing
from pretune.core.lines import line_of
from pretune.core.records import Asked, Ended, Enqueued, Opened, Record, StopRequested
from pretune.core.rows import Handout
from pretune.core.search import Search
from tests.toys import BASE, Executor, again, begin, branching, experiment, row, space


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def stop(number: int, reason: str = "") -> StopRequested:
    return StopRequested(request=requests.new_id(), number=number, reason=reason)


def enqueued(rate: float, *, inside: bool = True) -> Enqueued:
    """A point of `toys.space`, or the same beside it."""
    changed = BASE.model_copy(update={"optimizer": BASE.optimizer.model_copy(update={"learning_rate": rate})})
    drawn = optuna.distributions.FloatDistribution(1e-3, 10.0, log=True)
    return Enqueued(
        request=requests.new_id(),
        config=changed.completed().model_dump(mode="json"),
        params={"rate": rate} if inside else {},
        distributions={"rate": optuna.distributions.distribution_to_json(drawn)} if inside else {},
    )


def stopped_after_one_epoch(folder: Path) -> tuple[Conductor, Handout]:
    """A trial that runs, and that somebody wants to end."""
    conductor = begin(folder / "s", experiment(folder), space)
    handout = conductor.next()
    assert handout is not None
    conductor.started(0)
    assert conductor.reported(row(handout, 1))
    conductor.request(stop(0, "no hope"))
    return conductor, handout


def test_a_running_trial_that_is_stopped_ends_at_its_next_report_and_keeps_its_last_value(tmp_path: Path) -> None:
    conductor, handout = stopped_after_one_epoch(tmp_path)
    assert conductor.history.trials[0].state == "RUNNING"
    assert conductor.live == 1, "its slot is not free yet"
    assert not conductor.reported(row(handout, 2))
    trial = conductor.history.trials[0]
    assert (trial.state, trial.reason, trial.last_epoch) == ("PRUNED", "stopped by hand: no hope", 2)
    assert trial.last("probe/linear") is not None
    assert conductor.live == 0


def test_a_trial_that_is_stopped_in_its_last_epoch_is_complete_also_after_a_kill(tmp_path: Path) -> None:
    conductor, handout = stopped_after_one_epoch(tmp_path)
    last = row(handout, handout.config["epochs"])
    assert conductor.reported(last), "it ends by itself"
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "s", killed)
    conductor.ended(replace(last, outcome="complete"))
    assert (conductor.history.trials[0].state, conductor.history.trials[0].reason) == ("COMPLETE", "")
    assert again(killed, space).history.trials[0].state == "RUNNING", "its end follows from its last checkpoint"


def test_a_trial_that_waits_ends_at_once(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path), space)
    handout = conductor.next()
    assert handout is not None
    conductor.lost(0, "node gone")
    conductor.request(stop(0))
    assert (conductor.history.trials[0].state, conductor.history.trials[0].reason) == ("PRUNED", "stopped by hand")
    following = conductor.next()
    assert following is not None
    assert following.number == 1


def test_a_stopped_trial_whose_slot_is_lost_is_not_tried_again(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path), space)
    assert conductor.next() is not None
    conductor.request(stop(0))
    conductor.lost(0, "node gone")
    assert conductor.history.trials[0].state == "PRUNED"


def test_what_cannot_be_stopped_is_refused_with_the_reason(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path), space)
    with pytest.raises(RequestError, match=r"asked for \(none so far\), but is 0"):
        conductor.request(stop(0))
    handout = conductor.next()
    assert handout is not None
    with pytest.raises(RequestError, match=r"asked for \(0 to 0\), but is 7"):
        conductor.request(stop(7))
    conductor.request(stop(0))
    with pytest.raises(RequestError, match="was told to end before"):
        conductor.request(stop(0))
    conductor.reported(row(handout, 1))
    with pytest.raises(RequestError, match=r"has ended already \(PRUNED: stopped by hand\)"):
        conductor.request(stop(0))


def test_what_is_handed_in_comes_next_and_is_one_trial_more(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path, trials=3), space)
    assert conductor.next() is not None
    wanted = enqueued(0.25)
    conductor.request(wanted)
    conductor.request(wanted)  # a driver that was killed before it had put the request away
    assert conductor.history.target == 4
    handout = conductor.next()
    assert handout is not None
    assert handout.params == {"rate": 0.25}
    assert [conductor.next() is not None for _ in range(3)] == [True, True, False]
    assert [trial.enqueued for trial in conductor.history.trials] == [False, True, False, False]


def test_it_is_tried_although_the_space_is_exhausted_or_all_trials_were_asked_for(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path, trials=1), space)
    Executor(conductor, slots=1, seed=0).run()
    conductor.exhausted = True
    assert conductor.all_handed_out
    conductor.request(enqueued(0.3, inside=False))
    assert not conductor.all_handed_out
    Executor(conductor, slots=1, seed=0).run()
    assert [trial.state for trial in conductor.history.trials] == ["COMPLETE", "COMPLETE"]


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_sampler_learns_from_points_of_its_space_alone(tmp_path: Path, sampler: str, inside: bool) -> None:
    made = experiment(tmp_path, trials=12, sampler=sampler, stopping={"enabled": False})
    conductor = begin(tmp_path / "s", made, space)
    executor = Executor(conductor, slots=1, seed=0)
    executor.fill()
    conductor.request(enqueued(0.2, inside=inside))
    executor.run()
    trials = conductor.history.trials
    assert [trial.number for trial in trials if trial.enqueued] == [1]
    search = Search(conductor.experiment, space)
    search.ask(trials)
    known = search._known
    seen = inside and sampler != "cmaes"
    assert (known.first_with({"rate": 0.2}) == 1) == seen
    if sampler == "tpe":
        assert (
            known.observations.finished == sum(trial.state != "FAIL" for trial in trials if not trial.enqueued) + seen
        )
        _, others = known.observations.split()
        good, _ = known.observations.split()
        assert (1 in [*good, *others]) == seen
    if sampler == "cmaes":
        assert all(one.number != 1 for one in known.seen())


def test_nothing_is_exhausted_by_a_configuration_beside_a_finite_space(tmp_path: Path) -> None:
    def finite(trial: optuna.Trial, base: Any) -> Any:
        rate = trial.suggest_categorical("rate", [0.1, 0.2, 0.3])
        return base.model_copy(update={"optimizer": base.optimizer.model_copy(update={"learning_rate": rate})})

    for sampler in ("tpe", "grid", "random"):
        conductor = begin(tmp_path / sampler, experiment(tmp_path, trials=9, sampler=sampler), finite)
        conductor.request(enqueued(0.7, inside=False))
        Executor(conductor, slots=1, seed=0).run()
        rates = {trial.params["rate"] for trial in conductor.history.trials if trial.params}
        assert rates == {0.1, 0.2, 0.3}, sampler
        assert conductor.exhausted


def test_tpe_with_several_objectives_learns_nothing_from_a_configuration_beside_its_space(tmp_path: Path) -> None:
    made = experiment(tmp_path, trials=8, beside=(Objective(metric="cost", maximize=False),))
    for inside in (True, False):
        conductor = begin(tmp_path / str(inside), made, space)
        conductor.request(enqueued(0.2, inside=inside))
        while (handout := conductor.next()) is not None:
            conductor.started(handout.number)
            conductor.ended(row(handout, 1, metrics={"cost": 1.0 + handout.number}, outcome="complete"))
        trials = conductor.history.trials
        assert len(trials) == 9
        search = Search(made, space)
        search.ask(trials)
        told = search._known.seen()
        assert [one.number for one in told] == list(range(9))
        assert (told[0].state == optuna.trial.TrialState.COMPLETE) == inside
        assert told[0].params == ({"rate": 0.2} if inside else {})


def test_the_points_of_a_warm_start_are_all_tried_beside_what_is_handed_in(tmp_path: Path) -> None:
    points = ({"rate": 0.1}, {"rate": 0.2})
    made = experiment(tmp_path, trials=3, warm_start=(WarmStart(source="other", points=points, prior=()),))
    conductor = begin(tmp_path / "s", made, space)
    conductor.request(enqueued(0.9, inside=False))
    Executor(conductor, slots=1, seed=0).run()
    trials = conductor.history.trials
    assert [trial.enqueued for trial in trials] == [True, False, False, False]
    assert [trial.params["rate"] for trial in trials[1:3]] == [0.1, 0.2]


def test_a_trial_that_lives_on_for_the_audit_is_stopped_by_hand_all_the_same(tmp_path: Path) -> None:
    made = experiment(tmp_path, trials=12, stopping=StoppingConfig(audit=1.0))
    conductor = begin(tmp_path / "s", made, space)
    executor = Executor(conductor, slots=3, seed=2)
    executor.fill()
    while not any(trial.condemned is not None and not trial.ended for trial in conductor.history.trials):
        number = executor.rng.choice(sorted(executor.running))
        handout, epoch = executor.running[number]
        if not executor.step(number, handout, epoch + 1):
            del executor.running[number]
        executor.fill()
    condemned = next(trial for trial in conductor.history.trials if trial.condemned is not None and not trial.ended)
    conductor.request(stop(condemned.number, "seen enough"))
    handout, epoch = executor.running[condemned.number]
    assert not executor.step(condemned.number, handout, epoch + 1)
    assert (condemned.state, condemned.reason, condemned.rung) == ("PRUNED", "stopped by hand: seen enough", None)


def test_what_is_asked_while_no_driver_runs_takes_none_of_the_sweeps_hours(tmp_path: Path) -> None:
    clock = [1000.0]
    conductor = begin(tmp_path / "s", experiment(tmp_path, trials=4, max_hours=1.0), space, lambda: clock[0])
    Executor(conductor, slots=2, seed=0).fill()
    clock[0] += 600.0
    conductor.lost(0, "node gone")
    conductor._journal.close()  # killed
    requests.hand_in(results.read(tmp_path / "s"), stop(0))  # at the time of this machine, years later
    requests.hand_in(results.read(tmp_path / "s"), enqueued(0.3))
    records, history = read(tmp_path / "s"), History()
    landing = Landing(history)
    assert records[-1].time - records[0].time > 1e6
    for record in records:
        history.apply(record)
        landing.see(record)
    assert (history.seconds, landing.used_s) == (600.0, 600.0)


def test_what_is_handed_in_is_not_begun_where_no_trial_would_finish_in_the_sweeps_hours(tmp_path: Path) -> None:
    clock = [0.0]
    conductor = begin(tmp_path / "s", experiment(tmp_path, trials=1, max_hours=1.0), space, lambda: clock[0])
    handout = conductor.next()
    assert handout is not None
    conductor.started(0)
    conductor.ended(row(handout, 1, outcome="complete"))
    conductor.request(enqueued(0.3))
    assert not conductor.all_handed_out
    clock[0] = 3700.0
    conductor.request(enqueued(0.4))
    assert conductor.next() is None
    assert conductor.finished
    conductor.close_finished()
    assert results.read(tmp_path / "s").closed == "out_of_time"


def test_a_configs_hash_is_the_same_while_the_sweep_runs_and_in_whoever_reads_it_later(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path, trials=3), space)
    Executor(conductor, slots=1, seed=0).run()
    conductor.request(enqueued(0.3, inside=False))
    Executor(conductor, slots=1, seed=0).run()
    conductor._journal.close()
    trials = History(read(tmp_path / "s")).trials
    hashes = [conductor.alike.hash_of(trial) for trial in conductor.history.trials]
    assert len(set(hashes)) == 4
    assert [Alike().hash_of(trial) for trial in trials] == hashes
    reordered = dict(reversed((trials[0].config or {}).items()))
    assert conductor.alike.first(reordered) == 0
    study_log.write(conductor.experiment, trials, tmp_path / "study.log")
    assert all(one in (tmp_path / "study.log").read_text() for one in hashes)


def _live(folder: Path, made: Experiment) -> list[Record]:
    """A sweep with two stops and two configurations handed in, at points that are drawn."""
    conductor, rng = begin(folder, made, branching), random.Random(3)
    wants: list[Callable[[], Any]] = [
        lambda: conductor.request(enqueued(0.11)),
        lambda: conductor.request(enqueued(0.12, inside=False)),
    ]

    class Asking(Executor):
        def step(self, *arguments: Any) -> bool:
            if rng.random() < 0.2 and wants:
                wants.pop()()
            elif rng.random() < 0.1:
                running = [one for one in conductor.history.trials if not one.ended and one.stop_requested is None]
                conductor.request(stop(rng.choice(running).number))
            return super().step(*arguments)

    Asking(conductor, slots=3, seed=1).run()
    conductor._journal.close()
    return read(folder)


def test_a_kill_at_any_record_leaves_a_journal_that_decides_the_same(tmp_path: Path) -> None:
    whole = _live(tmp_path / "whole", experiment(tmp_path, trials=10))
    assert sum(isinstance(record, StopRequested) for record in whole) >= 2
    assert sum(isinstance(record, Asked) and record.enqueued is not None for record in whole) == 2
    for cut in range(1, len(whole)):
        following = whole[cut]
        if not isinstance(following, Asked | Ended):
            continue  # what is told, not decided
        folder = tmp_path / f"cut-{cut}"
        with Journal(folder, new=True, clock=lambda: 0.0) as part:
            for record in whole[:cut]:
                part.append(record)
        conductor = again(folder, branching)
        conductor.settle()
        told = [record for record in conductor._journal.records[cut:] if isinstance(record, Ended)]
        if isinstance(following, Ended) and following.reason.startswith(("stopped by hand", "probe/linear")):
            assert following.model_copy(update={"time": 0.0}) in told, cut
        conductor._journal.close()
        if isinstance(following, Asked) and not told:
            conductor = again(folder, branching)
            conductor._waiting.clear()
            conductor._live.clear()
            conductor.next()
            assert following.model_copy(update={"time": 0.0}) in conductor._journal.records[cut:], cut
            conductor._journal.close()


def test_the_driver_takes_requests_from_the_folder_in_their_order_and_answers_what_it_refuses(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path), space)
    assert conductor.next() is not None
    place = tmp_path / "s" / requests.FOLDER
    place.mkdir()
    wanted: list[StopRequested | Enqueued] = [stop(0, "first"), enqueued(0.5), stop(44)]
    for one in wanted:
        (place / f"{one.request}.json").write_text(one.model_dump_json())
    (place / "0-broken.json").write_text("{")
    (place / "readme.txt").write_text("not a request")
    clock = iter([0.0, 1.0, 1.0, 1.1, 9.0, 9.0])
    inbox = requests.Inbox(tmp_path / "s", conductor, clock=lambda: next(clock))
    inbox.look()
    assert [record.kind for record in conductor._journal.records[-2:]] == ["stop", "enqueued"]
    assert conductor.history.trials[0].stop_requested == "first"
    assert sorted(path.name for path in place.iterdir()) == sorted(
        ["0-broken.refused", f"{wanted[2].request}.refused", "readme.txt"]
    )
    assert "asked for (0 to 0), but is 44" in (place / f"{wanted[2].request}.refused").read_text()
    late = enqueued(0.6)
    (place / f"{late.request}.json").write_text(late.model_dump_json())
    inbox.look()
    assert late.request not in conductor.history.requests, "it has looked just now"
    inbox.look()
    assert late.request in conductor.history.requests


def test_a_request_that_a_killed_driver_had_taken_is_taken_in_once(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path), space)
    place = tmp_path / "s" / requests.FOLDER
    place.mkdir()
    wanted = enqueued(0.5)
    conductor.request(wanted)
    (place / f"{wanted.request}.taken").write_text(wanted.model_dump_json())
    requests.Inbox(tmp_path / "s", conductor, clock=lambda: 0.0).look()
    assert len(conductor.history.enqueued) == 1
    assert list(place.iterdir()) == []


def test_who_asks_a_running_sweep_hears_once_it_is_in_the_journal(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path), space)
    assert conductor.next() is not None
    ended = threading.Event()
    inbox = requests.Inbox(tmp_path / "s", conductor)

    def drive() -> None:
        while not ended.wait(0.02):
            inbox._next = 0.0
            inbox.look()

    driver = threading.Thread(target=drive)
    driver.start()
    try:
        result = results.read(tmp_path / "s")
        assert requests.hand_in(result, stop(0, "enough"))
        assert results.read(tmp_path / "s").trials[0].stop_requested == "enough"
        with pytest.raises(RequestError, match="was told to end before"):
            requests.hand_in(result, stop(0))
    finally:
        ended.set()
        driver.join()
    assert list((tmp_path / "s" / requests.FOLDER).iterdir()) == []


def test_a_request_that_no_driver_takes_in_time_is_withdrawn(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path), space)
    assert conductor.next() is not None
    result = results.read(tmp_path / "s")
    with pytest.raises(requests.UnansweredError, match="withdrawn and nothing has changed"):
        requests.hand_in(result, stop(0), wait_s=0.3)
    assert list((tmp_path / "s" / requests.FOLDER).iterdir()) == []


def test_where_no_driver_runs_the_journal_itself_is_written(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path, trials=2), space)
    Executor(conductor, slots=2, seed=0).fill()
    conductor.close("interrupted")
    conductor._journal.close()
    result = results.read(tmp_path / "s")
    assert not requests.hand_in(result, stop(0, "mine"))
    now = results.read(tmp_path / "s")
    assert (now.trials[0].state, now.trials[0].reason) == ("PRUNED", "stopped by hand: mine")
    assert now.closed == "interrupted"
    requests.hand_in(result, enqueued(0.4))
    assert (results.read(tmp_path / "s").asked, results.read(tmp_path / "s").enqueued) == (3, 1)
    requests.hand_in(result, stop(1))
    assert results.read(tmp_path / "s").closed == "interrupted", "one is to be tried yet"
    following = again(tmp_path / "s", space)
    handout = following.next()
    assert handout is not None
    assert handout.params == {"rate": 0.4}


def test_a_stop_that_was_due_survives_a_stop_by_hand_of_another_trial(tmp_path: Path) -> None:
    """A driver is killed between an epoch and the end that the rungs had decided; then somebody stops another trial."""
    made = experiment(tmp_path, trials=6)
    conductor = begin(tmp_path / "s", made, space)
    Executor(conductor, slots=3, seed=2).run()
    conductor._journal.close()
    whole = read(tmp_path / "s")
    cut, number = next(
        (place, record.number)
        for place, record in enumerate(whole)
        if isinstance(record, Ended) and record.rung is not None and place > 6
    )
    with Journal(tmp_path / "killed", new=True, clock=lambda: 0.0) as part:
        for record in whole[:cut]:
            part.append(record)
    result = results.read(tmp_path / "killed")
    other = next((one.id for one in result.trials if one.state == "RUNNING" and one.id != number), None)
    assert other is not None
    requests.hand_in(result, stop(other))
    resumed = again(tmp_path / "killed", space)
    resumed.settle()
    assert resumed.history.trials[number].rung is not None


def test_a_journal_of_an_older_format_is_not_written_to(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path), space)
    conductor._journal.close()
    path = tmp_path / "s" / journal.FILE
    opened = read(tmp_path / "s")[0]
    assert isinstance(opened, Opened)
    line, _ = line_of(opened.model_copy(update={"format": 2}).model_dump_json().encode(), 0)
    path.write_bytes(line)
    with pytest.raises(RequestError, match="has format 2, an older one: `pretune resume`"):
        requests.hand_in(results.read(tmp_path / "s"), enqueued(0.1))
    assert path.read_bytes() == line


def test_a_sweep_that_runs_on_another_machine_is_refused_with_where_to_type_it(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path), space)
    conductor._journal.close()
    result = replace(results.read(tmp_path / "s"), live=True)
    with pytest.raises(RequestError, match="runs on another machine"):
        requests.hand_in(result, stop(0))
