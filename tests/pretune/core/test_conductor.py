"""The sweep's mind, driven by a toy executor without Ray: what a kill at any record leaves must decide the same."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any

import optuna
import pytest

from pretune import sweep
from pretune.core import results, retention
from pretune.core.errors import RequestError, SweepFailedError
from pretune.core.experiment import Experiment, StoppingConfig
from pretune.core.journal import FILE, read
from pretune.core.records import Attempt, Ended, Record, Started
from pretune.core.rows import Handout
from pretune.core.search import Space
from pretune.display import tables
from tests import toys
from tests.pretune.core.decisions import optuna_study
from tests.toys import Executor, again, begin, branching, decisions, follow, row, space
from trainers import storage
from trainers.config import TrialConfig
from trainers.report import Checkpoint

BASE = toys.BASE.model_copy(update={"epochs": 9})


def grid(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    rate = trial.suggest_int("width", 1, 4) * trial.suggest_categorical("rate", [0.001, 0.01, 0.1])
    return base.model_copy(update={"optimizer": base.optimizer.model_copy(update={"learning_rate": rate})})


def repeating(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    """Seven configs under endlessly many parameters."""
    trial.suggest_float("of no use", 0.0, 1.0)
    rate = 10.0 ** trial.suggest_int("exponent", -5, 1)
    return base.model_copy(update={"optimizer": base.optimizer.model_copy(update={"learning_rate": rate})})


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is test_journal's business; here thousands of records are written."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def experiment(**changes: Any) -> Experiment:
    settings = {"name": "s", "space": "mine", "base": BASE, "trials": 12, "startup_trials": 4, "max_failures": 1}
    return Experiment(**(settings | changes))


@pytest.mark.parametrize(
    ("sampler", "how", "every"),
    [
        ("tpe", branching, 3),
        ("random", space, 9),
        ("grid", grid, 9),
        ("cmaes", space, 9),
        ("tpe", repeating, 2),
        ("random", repeating, 4),
    ],
)
def test_killed_after_any_record_the_next_driver_asks_and_stops_the_same(
    tmp_path: Path, sampler: str, how: Space, every: int
) -> None:
    first = begin(tmp_path / "whole", experiment(sampler=sampler), how)
    Executor(first, slots=3, seed=1).run()
    whole = decisions(tmp_path / "whole")
    assert {record.state for record in whole if isinstance(record, Ended)} >= {"COMPLETE", "PRUNED"}
    records = read(tmp_path / "whole")
    for cut in range(1, len(records), every):
        folder = toys.cut_after(tmp_path / "whole", cut)
        follow(again(folder, how), records[cut:])
        assert decisions(folder) == whole, f"killed after record {cut} ({records[cut - 1].kind})"


@pytest.mark.parametrize("seed", range(4))
def test_a_sweep_killed_at_random_ends_with_the_asked_number_of_trials(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    Executor(begin(tmp_path / "whole", experiment(), space), slots=1, seed=0).run()
    lines = (tmp_path / "whole" / FILE).read_bytes().splitlines(keepends=True)
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / FILE).write_bytes(b"".join(lines[: rng.randrange(1, 20)]))
    for _ in range(4):
        conductor = again(folder, space)
        conductor.settle()
        Executor(conductor, slots=1, seed=0).run()
        conductor._journal.close()
        content = (folder / FILE).read_bytes().splitlines(keepends=True)
        (folder / FILE).write_bytes(b"".join(content[: rng.randrange(len(content) // 2, len(content))]))
    conductor = again(folder, space)
    conductor.settle()
    Executor(conductor, slots=1, seed=0).run()
    # With one slot the order of arrival is the same, so everything is.
    assert decisions(folder) == decisions(tmp_path / "whole")


def test_a_stop_that_the_killed_driver_could_not_write_is_written_by_the_next(tmp_path: Path) -> None:
    first = begin(tmp_path / "a", experiment(), space)
    Executor(first, slots=2, seed=0).run()
    records = read(tmp_path / "a")
    stop = next(position for position, record in enumerate(records) if getattr(record, "state", "") == "PRUNED")
    lines = (tmp_path / "a" / FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / FILE).write_bytes(b"".join(lines[:stop]))
    second = again(tmp_path / "b", space)
    second.settle()
    assert read(tmp_path / "b")[-1] == records[stop]


def test_unfinished_trials_come_first_with_checkpoint_and_attempt(tmp_path: Path) -> None:
    first = begin(tmp_path, experiment(), space)
    handouts = [first.next(), first.next(), first.next()]
    assert [(one.resume, one.attempt) for one in handouts if one is not None] == [(None, 0)] * 3
    for number in (0, 1):
        first.started(number)
    assert handouts[1] is not None
    first.reported(row(handouts[1], 1))
    first.reported(row(handouts[1], 2))
    first._journal.close()
    second = again(tmp_path, space)
    numbers = [second.next() for _ in range(4)]
    assert [handout.number for handout in numbers if handout] == [0, 1, 2, 3]
    assert numbers[1] is not None
    assert numbers[1].resume == Checkpoint(path="/1/2", sha256="x", epoch=2)
    assert [handout.attempt for handout in numbers if handout] == [1, 1, 0, 0]


def test_each_record_is_on_the_disk_before_the_listener_or_the_caller_hears_of_it(tmp_path: Path) -> None:
    heard: list[str] = []

    class Ear:
        def on_event(self, record: Record) -> None:
            assert read(tmp_path)[-1] == record
            heard.append(record.kind)

    conductor = begin(tmp_path, experiment(), space)
    conductor.listener = Ear()
    handout = conductor.next()
    assert handout is not None
    conductor.started(0)
    conductor.reported(row(handout, 1))
    conductor.ended(row(handout, 1, outcome="complete"))
    conductor.close("interrupted")
    assert heard == ["asked", "started", "epoch", "ended", "closed"]


@pytest.mark.parametrize(
    ("outcome", "reason", "state", "told"),
    [
        ("complete", "", "COMPLETE", ""),
        ("diverged", "loss/mmd is nan at step 3", "INFEASIBLE", "diverged: loss/mmd is nan at step 3"),
        ("collapsed", "", "INFEASIBLE", "collapsed"),
        ("out_of_memory", "needs 90 GB", "INFEASIBLE", "out_of_memory: needs 90 GB"),
        ("failed", "failure 2, given up: KeyError", "FAIL", "failure 2, given up: KeyError"),
    ],
)
def test_each_outcome_has_its_honest_end(tmp_path: Path, outcome: str, reason: str, state: str, told: str) -> None:
    conductor = begin(tmp_path, experiment(), space)
    handout = conductor.next()
    assert handout is not None
    for epoch in (1, 2):
        conductor.reported(row(handout, epoch))
    conductor.ended(row(handout, 2, outcome=outcome, reason=reason))
    trial = conductor.history.trials[0]
    assert (trial.state, trial.reason) == (state, told)
    assert trial.value == (trial.epochs[2]["probe/linear"] if state == "COMPLETE" else None)
    assert conductor.live == 0


def test_a_complete_trial_without_a_usable_metric_is_not_complete(tmp_path: Path) -> None:
    conductor = begin(tmp_path, experiment(metric="probe/knn"), space)
    first, second = conductor.next(), conductor.next()
    assert first is not None
    assert second is not None
    conductor.reported(row(first, 1))
    conductor.ended(row(first, 1, outcome="complete"))
    conductor.reported(row(second, 1, metrics={"probe/knn": math.nan}))
    conductor.ended(row(second, 1, outcome="complete", metrics={"probe/knn": math.nan}))
    ends = [(trial.state, trial.reason) for trial in conductor.history.trials]
    assert ends == [
        ("FAIL", "the metric 'probe/knn' was never reported"),
        ("INFEASIBLE", "the metric 'probe/knn' is nan"),
    ]


def test_a_lost_slot_gives_its_trial_back_until_it_has_failed_too_often(tmp_path: Path) -> None:
    conductor = begin(tmp_path, experiment(max_failures=1), space)
    handout = conductor.next()
    assert handout is not None
    conductor.started(0)
    conductor.reported(row(handout, 3))
    conductor.lost(0, "node gone")
    assert not conductor.finished
    back = conductor.next()
    assert back is not None
    assert (back.number, back.attempt, back.resume and back.resume.epoch) == (0, 1, 3)
    conductor.lost(0, "node gone again")
    assert (conductor.history.trials[0].state, conductor.history.trials[0].reason) == ("FAIL", "node gone again")
    assert conductor.history.trials[0].failures == 2
    after = conductor.next()
    assert after is not None
    assert after.number == 1


def test_a_trial_that_found_no_room_is_handed_out_again_however_often(tmp_path: Path) -> None:
    conductor = begin(tmp_path, experiment(max_failures=0), space)
    first = conductor.next()
    assert first is not None
    for _ in range(5):
        conductor.ended(row(first, 0, outcome="no_room", reason="no worker group within 4 s"))
        assert conductor.live == 0
        assert not conductor.finished
        assert conductor.next() == first
    assert conductor.history.trials[0].failures == 0


def test_a_full_disk_ends_the_sweep_and_leaves_the_trial_to_be_gone_on_with(tmp_path: Path) -> None:
    conductor = begin(tmp_path, experiment(), space)
    handout = conductor.next()
    assert handout is not None
    conductor.started(0)
    conductor.reported(row(handout, 1))
    with pytest.raises(SweepFailedError, match="needs 4 MB"):
        conductor.ended(row(handout, 1, outcome="disk_full", reason="the disk is full: needs 4 MB"))
    conductor._journal.close()
    after = again(tmp_path, space)
    assert (after.history.trials[0].state, after.history.trials[0].failures) == ("RUNNING", 0)
    back = after.next()
    assert back is not None
    assert (back.number, back.resume and back.resume.epoch) == (0, 1)


def test_finished_trials_train_longer_from_before_their_decay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = begin(tmp_path, experiment(trials=6), space)
    Executor(first, slots=2, seed=0).run()
    first._journal.close()
    monkeypatch.setattr(storage, "exists", lambda place: True)
    conductor = again(tmp_path, space)
    before = [(trial.number, trial.state, trial.value) for trial in conductor.history.trials]
    complete = [number for number, state, _ in before if state == "COMPLETE"]
    with pytest.raises(RequestError, match="--epochs must be above 9, the length of the finished trials, but is 9"):
        sweep.longer(conductor.history, 9)
    extensions = sweep.longer(conductor.history, 15)
    # A fifth of the nine epochs is the decay: the last checkpoint before it is of epoch 7.
    assert [(one.number, one.checkpoint.epoch, one.config["epochs"]) for one in extensions] == [
        (number, 7, 15) for number in complete
    ]
    for one in extensions:
        conductor.extend(one)
    assert not conductor.finished
    handout = conductor.next()
    assert handout is not None
    assert (handout.number, handout.folder) == (complete[0], f"{complete[0]:04d}-epochs-15")
    assert (handout.resume and handout.resume.epoch, handout.config["epochs"]) == (7, 15)
    conductor._journal.close()
    # Killed now, the next driver knows of it; no rung ends what was asked for.
    conductor = again(tmp_path, space)
    Executor(conductor, slots=2, seed=0).run()
    after = [(trial.number, trial.state) for trial in conductor.history.trials]
    assert after == [(number, state) for number, state, _ in before]
    for number in complete:
        trial = conductor.history.trials[number]
        assert (trial.last_epoch, sorted(trial.epochs)) == (15, list(range(1, 16)))
        assert trial.value == trial.epochs[15]["probe/linear"]


def test_of_a_stopped_trial_the_best_checkpoint_stays(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "s", experiment(trials=2), space)
    heard: list[str] = []

    class Ear:
        def on_event(self, record: Record) -> None:
            heard.append(record.kind)

    conductor.listener = retention.Trimming(conductor, Ear())
    handout = conductor.next()
    assert handout is not None
    files = [tmp_path / f"epoch-{epoch}" for epoch in (1, 2, 3)]
    for epoch, (file, value) in enumerate(zip(files, (0.2, 0.7, 0.5), strict=True), start=1):
        file.touch()
        Path(f"{file}.json").touch()
        pointer = Checkpoint(path=str(file), sha256="x", epoch=epoch)
        conductor.reported(row(handout, epoch, metrics={"probe/linear": value}, checkpoint=pointer))
    assert all(file.exists() for file in files)
    conductor.ended(row(handout, 3, outcome="collapsed", reason="flat"))
    assert sorted(path.name for path in tmp_path.glob("epoch-*")) == ["epoch-2", "epoch-2.json"]
    assert heard[-1] == "ended"
    # What a killed driver left is removed by the next.
    files[0].touch()
    conductor._journal.close()
    retention.Trimming(again(tmp_path / "s", space), None)
    assert not files[0].exists()


def test_failures_that_a_slot_healed_are_written_once_each(tmp_path: Path) -> None:
    conductor = begin(tmp_path, experiment(max_failures=5), space)
    handout = conductor.next()
    assert handout is not None
    conductor.reported(row(handout, 1))
    conductor.reported(row(handout, 2, failures=1, reason="rank 1 was lost"))
    conductor.reported(row(handout, 3, failures=1))
    conductor.lost(0, "slot gone")
    conductor.next()
    conductor.reported(row(handout, 4, failures=1, reason="rank 0 was lost"))
    told = [(record.failures, record.reason) for record in read(tmp_path) if isinstance(record, Attempt)]
    assert told == [(1, "rank 1 was lost"), (2, "slot gone"), (3, "rank 0 was lost")]


def test_epochs_that_are_run_again_after_a_failure_are_told_once(tmp_path: Path) -> None:
    conductor = begin(tmp_path, experiment(), space)
    handout = conductor.next()
    assert handout is not None
    for epoch in (1, 2, 3, 2, 3, 4):
        assert conductor.reported(row(handout, epoch))
    assert list(conductor.history.trials[0].epochs) == [1, 2, 3, 4]


def test_a_trial_that_tune_lets_go_of_while_it_runs_is_handed_out_again(tmp_path: Path) -> None:
    conductor = begin(tmp_path, experiment(), space)
    handout = conductor.next()
    assert handout is not None
    conductor.ended(row(handout, 1))
    assert conductor.next() == handout


def test_parameters_that_the_space_refuses_are_infeasible_trials_and_the_next_are_asked(tmp_path: Path) -> None:
    def picky(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        if trial.suggest_categorical("good", [True, False]):
            return space(trial, base)
        raise optuna.TrialPruned

    conductor = begin(tmp_path, experiment(sampler="random", trials=20), picky)
    Executor(conductor, slots=2, seed=0).run()
    trials = conductor.history.trials
    assert len(trials) == 20
    refused = [trial for trial in trials if not trial.params["good"]]
    assert 4 <= len(refused) <= 16
    assert all(trial.state == "INFEASIBLE" and trial.config is None for trial in refused)
    assert refused[0].reason == "space 'mine' refuses {'good': False}: TrialPruned"


def test_a_refusal_that_a_killed_driver_did_not_write_is_told_in_the_same_words(tmp_path: Path) -> None:
    conductor = begin(tmp_path / "whole", experiment(sampler="random", trials=30), branching)
    Executor(conductor, slots=1, seed=0).run()
    records = read(tmp_path / "whole")
    lines = (tmp_path / "whole" / FILE).read_bytes().splitlines(keepends=True)
    refused = [trial.number for trial in conductor.history.trials if trial.config is None]
    assert refused
    for number in refused:
        position = next(place for place, one in enumerate(records) if isinstance(one, Ended) and one.number == number)
        folder = tmp_path / f"refused-{number}"
        folder.mkdir()
        (folder / FILE).write_bytes(b"".join(lines[:position]))
        again(folder, branching).settle()
        assert read(folder)[-1] == records[position]


def test_a_space_that_refuses_everything_ends_the_sweep_with_its_name(tmp_path: Path) -> None:
    def hopeless(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        trial.suggest_float("x", 0.0, 1.0)
        raise ValueError("never")

    conductor = begin(tmp_path, experiment(trials=100), hopeless)
    with pytest.raises(RequestError, match=r"space 'mine' refuses .*: never; that is refusal number 50 in a row"):
        conductor.next()


def test_a_grid_that_has_no_more_points_ends_the_sweep(tmp_path: Path) -> None:
    conductor = begin(tmp_path, experiment(sampler="grid", trials=99, stopping=StoppingConfig(enabled=False)), grid)
    Executor(conductor, slots=3, seed=0).run()
    assert conductor.exhausted
    assert len(conductor.history.trials) == 12
    assert {trial.state for trial in conductor.history.trials} == {"COMPLETE"}


@pytest.mark.parametrize(("max_failed", "failures"), [(0.0, 1), (0.25, 3), (1 / 3, 3), (0.5, 5)])
def test_a_sweep_ends_early_when_a_greater_share_than_was_allowed_has_failed(
    tmp_path: Path, max_failed: float, failures: int
) -> None:
    conductor = begin(tmp_path, experiment(trials=8, max_failed=max_failed), space)
    for number in range(failures):
        handout = conductor.next()
        assert handout is not None
        conductor.reported(row(handout, 1))  # so that it is not the rule for trials that never begin
        failed = row(handout, 1, outcome="failed", reason="no such layer")
        if number < failures - 1:
            conductor.ended(failed)
    with pytest.raises(SweepFailedError, match=rf"^{failures} of 8 trials failed, .*--max-failed .* no such layer"):
        conductor.ended(failed)


def test_a_sweep_whose_trials_all_fail_before_their_first_epoch_ends_early_with_the_reason(tmp_path: Path) -> None:
    conductor = begin(tmp_path, experiment(), space)
    for number in range(3):
        handout = conductor.next()
        assert handout is not None
        failed = row(handout, 0, outcome="failed", reason="no such data set")
        if number < 2:
            conductor.ended(failed)
    with pytest.raises(SweepFailedError, match=r"3 trials in a row failed before any epoch .* no such data set"):
        conductor.ended(failed)


def test_failures_between_trials_that_train_do_not_end_the_sweep(tmp_path: Path) -> None:
    conductor = begin(tmp_path, experiment(max_failed=1.0), space)
    for _ in range(6):
        handout = conductor.next()
        assert handout is not None
        conductor.reported(row(handout, 1))
        conductor.ended(row(handout, 1, outcome="failed", reason="bad luck"))
    assert [trial.state for trial in conductor.history.trials] == ["FAIL"] * 6


def test_without_stopping_every_trial_runs_to_its_end(tmp_path: Path) -> None:
    conductor = begin(tmp_path, experiment(stopping=StoppingConfig(enabled=False)), space)
    Executor(conductor, slots=2, seed=0).run()
    assert {trial.state for trial in conductor.history.trials} <= {"COMPLETE", "INFEASIBLE"}


# ---- a config that was run already -----------------------------------------------------------------------------------


def alone(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    """One config, whatever is drawn."""
    trial.suggest_float("of no use", 0.0, 1.0)
    return base


def test_a_config_that_was_run_is_not_run_again_its_result_is_told_and_the_sweep_says_so(tmp_path: Path) -> None:
    conductor = begin(tmp_path, experiment(trials=20), repeating)
    Executor(conductor, slots=1, seed=0).run()
    started = [record.number for record in conductor._journal.records if isinstance(record, Started)]
    trials = conductor.history.trials
    assert len(trials) == 20
    configs = [trials[number].config for number in started]
    assert all(configs.count(config) == 1 for config in configs), "each config was run once"
    assert len(started) < 20
    for trial in trials:
        if trial.number in started:
            assert trial.result_of is None
            continue
        assert trial.result_of in started
        twin = trials[trial.result_of]
        assert twin.config == trial.config
        assert (trial.state, trial.value, trial.epochs, trial.rung) == (twin.state, twin.value, twin.epochs, twin.rung)
        assert trial.reason.startswith(f"same config as trial {twin.number}, not run again")
    told = optuna_study(conductor.experiment, trials).trials
    assert [one.value for one in told] == [trial.value for trial in trials], "Optuna is told of each of them"
    conductor._journal.close()
    shown = results.read(tmp_path)
    assert shown.best in started, "of two equal values the one that was run is the best"
    assert f"{20 - len(started)} not run again" in str(tables.summary(shown))


def test_what_runs_right_now_is_waited_for_by_trials_of_an_equal_config(tmp_path: Path) -> None:
    conductor = begin(tmp_path, experiment(trials=3), alone)
    handout = conductor.next()
    assert handout is not None
    assert conductor.next() is None, "two more were asked for, and are held"
    assert len(conductor.history.trials) == 3
    assert conductor.held == [1, 2]
    assert not conductor.finished
    conductor.started(0)
    conductor.ended(row(handout, 1, outcome="complete"))
    assert conductor.finished
    assert [trial.state for trial in conductor.history.trials] == ["COMPLETE"] * 3
    assert [trial.result_of for trial in conductor.history.trials] == [None, 0, 0]


def test_a_config_that_failed_is_tried_again_and_one_that_diverged_is_not(tmp_path: Path) -> None:
    for outcome, state, again_wanted in (("failed", "FAIL", True), ("diverged", "INFEASIBLE", False)):
        conductor = begin(tmp_path / state, experiment(trials=3, max_failures=0), alone)
        handout = conductor.next()
        assert handout is not None
        assert conductor.next() is None
        conductor.started(0)
        conductor.ended(row(handout, 1, outcome=outcome, reason="why"))
        assert conductor.history.trials[0].state == state
        second = conductor.next()
        assert (second is not None) == again_wanted
        if second is not None:
            assert second.number == 1
            assert conductor.held == [2], "the third waits for the second"
            conductor.started(1)
            conductor.ended(row(second, 1, outcome="complete"))
        ends = [trial.state for trial in conductor.history.trials]
        assert ends == (["FAIL", "COMPLETE", "COMPLETE"] if again_wanted else ["INFEASIBLE"] * 3)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_fails_no_trial_of_an_equal_config_is_left_waiting(tmp_path: Path, seed: int) -> None:
    class Failing(Executor):
        def step(self, number: int, handout: Handout, epoch: int) -> bool:
            if self.rng.random() < 0.2:
                if self.rng.random() < 0.5:
                    self.conductor.lost(number, "its slot was lost")
                else:
                    self.conductor.ended(row(handout, max(1, epoch - 1), outcome="failed", reason="why"))
                return False
            return super().step(number, handout, epoch)

    conductor = begin(tmp_path, experiment(trials=30, max_failures=0, max_failed=1.0), repeating)
    executor = Failing(conductor, slots=1 + seed % 3, seed=seed)
    executor.run()
    states = [trial.state for trial in conductor.history.trials]
    assert len(states) == 30
    assert not set(states) & {"WAITING", "RUNNING"}
    assert {"FAIL", "COMPLETE"} <= set(states)
    assert not conductor.held


def test_another_seed_is_another_config(tmp_path: Path) -> None:
    def seeds(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        return base.model_copy(update={"seed": trial.suggest_int("seed", 0, 4)})

    conductor = begin(tmp_path, experiment(trials=5, sampler="grid"), seeds)
    Executor(conductor, slots=1, seed=0).run()
    assert [trial.result_of for trial in conductor.history.trials] == [None] * 5


def test_a_trial_that_was_not_run_is_not_trained_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "exists", lambda path: True)
    conductor = begin(tmp_path, experiment(trials=3), alone)
    Executor(conductor, slots=1, seed=0).run()
    assert [one.number for one in sweep.longer(conductor.history, 20)] == [0]
    for extension in sweep.longer(conductor.history, 20):
        conductor.extend(extension)
    Executor(conductor, slots=1, seed=0).run()
    assert [trial.result_of for trial in conductor.history.trials] == [None, 0, 0]
    assert conductor.history.trials[0].last_epoch == 20
    assert conductor.history.trials[1].last_epoch == BASE.epochs


# ---- the other direction ---------------------------------------------------------------------------------------------


def test_a_loss_is_minimized_by_sampler_rungs_and_result_alike(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"metric": "loss/total", "maximize": False, "trials": 24}

    class Lossy(Executor):
        def step(self, number: int, handout: Any, epoch: int) -> bool:
            config = TrialConfig.model_validate(handout.config)
            loss = {"loss/total": 2.0 - toys.score(config, min(epoch, config.epochs))}
            if epoch > config.epochs:
                self.conductor.ended(row(handout, epoch - 1, outcome="complete", metrics=loss))
                return False
            self.running[number] = (handout, epoch)
            return self.conductor.reported(row(handout, epoch, metrics=loss))

    conductor = begin(tmp_path, experiment(**changes), space)
    Lossy(conductor, slots=1, seed=0).run()
    conductor._journal.close()
    found = results.read(tmp_path)
    best = found.best_trial
    assert best is not None
    assert best.value == min(trial.value for trial in found.trials if trial.value is not None)
    assert found.ranked()[0].id == best.id
    stopped = [trial.last_metrics["loss/total"] for trial in found.trials if trial.state == "PRUNED"]
    assert stopped
    assert min(stopped) > best.value
    assert found.to_json()["direction"] == "minimize"
    study = optuna_study(conductor.experiment, conductor.history.trials)
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    assert study.best_trial.number == best.id
