"""A sweep that begins with what others have found: their points first, their trials known to TPE, all journaled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from pretune.core import results
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment, Objective, PriorTrial, StoppingConfig
from pretune.core.journal import read
from pretune.core.parameters import Names, SpaceTrial, fits, parsed
from pretune.core.results import SweepResult
from pretune.core.search import Search, Space, _seed
from pretune.core.tpe import Observations, Tpe
from pretune.request import request
from tests import toys
from tests.toys import Executor, again, begin, space
from trainers.config import TrialConfig


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def wider(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    """As `space`, with a narrower range and a choice that it does not have."""
    rate = trial.suggest_float("rate", 0.01, 0.2, log=True)
    trial.suggest_categorical("kernel", ["rbf", "energy"])
    return base.model_copy(update={"optimizer": base.optimizer.model_copy(update={"learning_rate": rate})})


@pytest.fixture
def source(tmp_path: Path) -> SweepResult:
    return ran(tmp_path, name="source", trials=20, stopping=StoppingConfig(enabled=False))


def ran(storage: Path, how: Space = space, **changes: Any) -> SweepResult:
    made = toys.experiment(storage, **changes)
    conductor = begin(made.folder, made, how)
    Executor(conductor, slots=1, seed=0).run()
    conductor._journal.close()
    return results.read(made.folder)


def warmed(storage: Path, *sweeps: str, how: Space = space, **changes: Any) -> tuple[Experiment, list[str]]:
    made = toys.experiment(storage, **({"name": "new", "startup_trials": 4} | changes))
    return request.warmed(made, how, sweeps)


def test_its_best_points_come_first_and_its_trials_are_known_to_tpe(tmp_path: Path, source: SweepResult) -> None:
    made, notes = warmed(tmp_path, "source")
    best = [trial.params for trial in source.ranked()[:5]]
    assert made.warm_points == best
    complete = [trial for trial in source.trials if trial.state == "COMPLETE"]
    assert [prior.value for prior in made.prior] == [trial.value for trial in complete]
    assert notes == [
        f"warm start from 'source': 5 points come first, {len(complete)} of its {len(complete)} trials are known to TPE"
    ]
    conductor = begin(made.folder, made, space)
    Executor(conductor, slots=1, seed=0).run()
    assert [trial.params for trial in conductor.history.trials[:5]] == best
    assert [trial.distributions for trial in conductor.history.trials[:5]] == [
        trial.distributions for trial in conductor.history.trials[5:10]
    ], "they are drawn from what the space says, whatever they are"


def test_tpe_models_from_the_first_draw_as_if_the_other_trials_were_its_own(
    tmp_path: Path, source: SweepResult
) -> None:
    made, _ = warmed(tmp_path, "source", seed=7)
    without_points = made.model_copy(
        update={"warm_start": tuple(warm.model_copy(update={"points": ()}) for warm in made.warm_start)}
    )
    search = Search(without_points, space)
    asked = search.ask([])
    cold = Search(toys.experiment(tmp_path, name="cold", seed=7, startup_trials=4), space).ask([])
    assert asked is not None
    assert cold is not None
    assert asked.params != cold.params, "a cold one draws at random"
    assert search._known.observations.finished == len(made.prior)
    # The same trials, had the sweep run them itself.
    own = Observations("probe/linear", maximize=True)
    for prior in made.prior:
        own.told(prior.params, {name: parsed(text) for name, text in prior.distributions.items()}, prior.value)
    sampler = Tpe(own, seed=_seed(7, 0), startup_trials=4)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    assert study.ask().suggest_float("rate", 1e-3, 10.0, log=True) == asked.params["rate"]


def test_it_goes_on_the_same_after_a_kill_and_without_the_other_sweep(tmp_path: Path, source: SweepResult) -> None:
    made, _ = warmed(tmp_path, "source", trials=14)
    Executor(begin(tmp_path / "whole", made, space), slots=1, seed=0).run()
    shutil.rmtree(source.folder)
    for cut in (2, 30, len(read(tmp_path / "whole")) - 12):
        folder = toys.cut_after(tmp_path / "whole", cut)
        conductor = again(folder, space)
        conductor.settle()
        Executor(conductor, slots=1, seed=0).run()
        assert toys.decisions(folder) == toys.decisions(tmp_path / "whole")


def test_in_another_space_a_point_has_what_fits_and_the_values_are_not_used(
    tmp_path: Path, source: SweepResult
) -> None:
    made, notes = warmed(tmp_path, "source", how=wider)
    fitting = [trial.params for trial in source.ranked() if 0.01 <= trial.params["rate"] <= 0.2][:5]
    assert made.warm_points == fitting
    assert fitting
    assert made.prior == []
    assert "0 of its" in notes[0]
    assert "(the others draw a parameter from another range, or one that this space does not have)" in notes[0]
    conductor = begin(made.folder, made, wider)
    handout = conductor.next()
    assert handout is not None
    assert handout.params["rate"] == fitting[0]["rate"]
    assert handout.params["kernel"] in ("rbf", "energy"), "the rest is drawn"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"metric": "probe/knn"}, "another metric"),
        ({"metric": "loss/total", "maximize": False}, "another metric and direction"),
        ({"base": toys.BASE.model_copy(update={"epochs": 7})}, "another number of epochs"),
        (
            {"base": toys.BASE.model_copy(update={"data": toys.BASE.data.model_copy(update={"manifest": "0" * 64})})},
            "another data",
        ),
        ({"sampler": "random"}, "sampler 'random' has no use for them"),
        ({"beside": (Objective(metric="time/images_per_s"),)}, "there are several objectives"),
    ],
)
def test_where_values_do_not_compare_only_points_are_taken_and_that_is_said(
    tmp_path: Path, source: SweepResult, changes: dict[str, Any], why: str
) -> None:
    made, notes = warmed(tmp_path, "source", **changes)
    assert len(made.warm_points) == 5
    assert made.prior == []
    assert notes == [f"warm start from 'source': 5 points come first, their values are not used: {why}"]


def test_several_sweeps_are_taken_one_after_another_and_no_point_twice(tmp_path: Path, source: SweepResult) -> None:
    other = ran(tmp_path, name="other", seed=5, trials=8)
    made, notes = warmed(tmp_path, "source", "other", "source")
    assert [warm.source for warm in made.warm_start] == ["source", "other"]
    assert len(notes) == 2
    points = made.warm_points
    assert all(point not in points[:position] for position, point in enumerate(points))
    assert len(made.prior) == sum(trial.state == "COMPLETE" for result in (source, other) for trial in result.trials)


def test_what_cannot_be_used_is_refused(tmp_path: Path, source: SweepResult) -> None:
    with pytest.raises(RequestError, match="there is no sweep 'sauce'"):
        warmed(tmp_path, "sauce")
    for sampler in ("grid", "cmaes"):
        with pytest.raises(
            RequestError, match=f"--warm-start takes --sampler tpe or random, but the sampler is {sampler}"
        ):
            warmed(tmp_path, "source", sampler=sampler)
    made = toys.experiment(tmp_path, name="empty")
    conductor = begin(made.folder, made, space)
    conductor.next()
    conductor._journal.close()
    with pytest.raises(RequestError, match="--warm-start empty: no trial of it is complete"):
        warmed(tmp_path, "empty")


Suggest = Callable[[optuna.Trial], Any]


@pytest.mark.parametrize(
    ("suggest", "label", "wanted"),
    [
        (lambda trial: trial.suggest_float("x", 0.0, 1.0), 0.25, 0.25),
        (lambda trial: trial.suggest_float("x", 0.0, 1.0, step=0.25), 0.75, 0.75),
        (lambda trial: trial.suggest_float("x", 0.001, 1.0, log=True), 1, 1.0),
        (lambda trial: trial.suggest_int("x", 2, 10, step=2), 8, 8),
        (lambda trial: trial.suggest_int("x", 1, 64, log=True), 7.0, 7),
        (lambda trial: trial.suggest_categorical("x", [(32, 32), (64,), None]), [64], (64,)),
        (lambda trial: trial.suggest_categorical("x", ["a", None]), None, None),
        (lambda trial: trial.suggest_categorical("x", [True, False]), False, False),
    ],
)
def test_a_wanted_value_is_had_where_the_parameter_can_have_it(suggest: Suggest, label: Any, wanted: Any) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = SpaceTrial(study.ask(), Names(), {"x": label})
    for _ in range(2):
        found = suggest(trial)
        assert found == wanted
        assert type(found) is type(wanted)
    assert trial.told == {"x": label}


@pytest.mark.parametrize(
    ("suggest", "label"),
    [
        (lambda trial: trial.suggest_float("x", 0.0, 1.0), 1.5),
        (lambda trial: trial.suggest_float("x", 0.0, 1.0), "much"),
        (lambda trial: trial.suggest_float("x", 0.0, 1.0), True),
        (lambda trial: trial.suggest_float("x", 0.0, 1.0), None),
        (lambda trial: trial.suggest_float("x", 0.0, 1.0, step=0.25), 0.3),
        (lambda trial: trial.suggest_int("x", 2, 10, step=2), 7),
        (lambda trial: trial.suggest_int("x", 2, 10), 2.5),
        (lambda trial: trial.suggest_categorical("x", [0, 1]), True),
        (lambda trial: trial.suggest_categorical("x", ["a", "b"]), "c"),
        (lambda trial: trial.suggest_categorical("x", ["a", "b"]), None),
    ],
)
def test_one_that_it_cannot_have_is_drawn(suggest: Suggest, label: Any) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = SpaceTrial(study.ask(), Names(), {"x": label})
    suggest(trial)
    assert type(trial.told["x"]) is not type(label) or trial.told["x"] != label
    (distribution,) = trial.distributions.values()
    assert not fits(distribution, label)
    assert fits(distribution, trial.told["x"])


def test_it_travels_as_json(tmp_path: Path, source: SweepResult) -> None:
    made, _ = warmed(tmp_path, "source")
    assert isinstance(made.prior[0], PriorTrial)
    assert Experiment.model_validate_json(made.model_dump_json()) == made
