"""What a sweep will take, from what was measured of a few shapes; measuring itself is replaced here."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from pretune.analysis import measurements, plan
from pretune.core import retention
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.points import unvaried
from pretune.execution.measuring import Measurement, NotFittingError, NotMeasuredError
from pretune.request import request
from search_spaces import RECIPES
from tests.pretune.found import MEASURED
from trainers.changes import with_changes
from trainers.config import TrialConfig

pytestmark = pytest.mark.usefixtures("own_cache")

Measure = Callable[..., Measurement]


def sized(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    return base.model_copy(update={"batch_size": trial.suggest_categorical("batch_size", [32, 64, 128])})


def asked(here: Path, **changes: Any) -> Experiment:
    base = with_changes(RECIPES["sfrik_tiny"](), changes.pop("base", {"epochs": 4, "batch_size": 64}))
    bound, _ = request.with_data(base, "digits", root=here / "data")
    settings = {"name": "s", "space": "mine", "base": bound, "trials": 6, "storage": str(here / "sweeps")}
    return Experiment.model_validate({**settings, **changes})


def planned(experiment: Experiment, *, measure: Measure, space: Any = sized, slots: int = 1) -> plan.Plan:
    def measured(config: TrialConfig, **given: Any) -> Measurement:
        return measure(config)

    configs = plan.configs_of(experiment, space)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "measure", measured)
        found = []
        for one in plan.measured(
            experiment, configs, slots=slots, gpus_per_worker=0.0, clock=itertools.count().__next__, tell=print
        ):
            plan.check_fits(experiment, one, slots=slots)
            found.append(one)
    return plan.plan(experiment, configs, found, slots=slots)


def test_each_seed_of_an_ablation_counts(here: Path) -> None:
    points = tuple({"seed": seed, **change} for seed in range(3) for change in ({}, {"epochs": 2}))
    experiment = asked(here, points=points, trials=6, stopping={"enabled": False})
    found = planned(experiment, measure=lambda config: MEASURED, space=unvaried).forecast
    assert (found.trials, found.epochs) == (6, 3 * (4 + 2))


def test_an_ablation_takes_the_sum_of_its_trials(here: Path) -> None:
    points = tuple({"seed": seed, "epochs": epochs} for seed, epochs in enumerate((2, 3, 4)))
    experiment = asked(here, points=points, trials=3, stopping={"enabled": False})
    found = planned(experiment, measure=lambda config: MEASURED, space=unvaried)
    said, steps = found.forecast, found.images // 64
    assert (said.trials, said.epochs, said.expected_epochs, found.distinct) == (3, 9, None, 1)
    trials = 3 * (0.1 + plan.TURNOVER_S + 1.0 * 0 + 2.0) + 9 * (steps * 0.5 + 0.2 + 0.1 + plan.REPORT_S + 1.0)
    assert said.seconds == pytest.approx(20.0 * (1.0 + plan.SLOTS_RATIO) + 5.0 + trials)
    assert said.host_bytes == 1.5e9
    assert said.most_disk_bytes is not None
    assert said.disk_bytes is not None
    assert retention.bound(3_000_000, trials=3, slots=1) < said.most_disk_bytes
    assert 3 * 2 * 3e6 < said.disk_bytes < said.most_disk_bytes


def test_weak_trials_are_counted_as_stopped(here: Path) -> None:
    said = planned(
        asked(here, trials=40, base={"epochs": 10, "batch_size": 64}), measure=lambda config: MEASURED
    ).forecast
    assert said.epochs == 400
    assert said.expected_epochs is not None
    assert 80 < said.expected_epochs < 350
    assert said.curves == "a model of curves"


def test_a_budget_of_seconds_is_not_played_where_no_time_is_known(here: Path) -> None:
    def unmeasured(config: TrialConfig) -> Measurement:
        raise NotMeasuredError("rank 0 raised ValueError: no")

    found = planned(asked(here, budget="seconds"), measure=unmeasured)
    assert (found.forecast.expected_epochs, found.forecast.seconds, found.forecast.host_bytes) == (None, None, None)
    assert {one.problem for one in found.shapes} == {"rank 0 raised ValueError: no"}
    assert found.forecast.disk_bytes is None


def test_what_was_measured_is_not_measured_again(here: Path) -> None:
    sizes: list[int] = []

    def measure(config: TrialConfig) -> Measurement:
        sizes.append(config.batch_size)
        return MEASURED

    experiment = asked(here)
    first = planned(experiment, measure=measure)
    assert sorted(sizes) == [32, 64, 128]
    again = planned(experiment, measure=measure)
    assert len(sizes) == 3
    assert again.forecast == first.forecast
    assert all(one.known for one in again.shapes)
    known = plan.remembered(experiment, plan.glanced(experiment, sized), slots=1, gpus_per_worker=0.0)
    assert sum(one.share for one in known) == pytest.approx(1.0)
    assert plan.plan(experiment, plan.glanced(experiment, sized), known, slots=1, quick=True).forecast.seconds
    assert plan.remembered(experiment, plan.glanced(experiment, sized), slots=2, gpus_per_worker=0.0) == []


def test_at_most_six_shapes_are_measured_and_the_others_are_like_the_nearest(here: Path) -> None:
    def wide(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        return base.model_copy(update={"batch_size": trial.suggest_int("batch_size", 16, 256)})

    count = 0

    def measure(config: TrialConfig) -> Measurement:
        nonlocal count
        count += 1
        return MEASURED.model_copy(
            update={"step_s": config.batch_size / 100, "host_bytes": 1e9 + 4e6 * config.batch_size}
        )

    found = planned(asked(here), measure=measure, space=wide)
    assert count == plan.MOST_SHAPES < found.distinct
    assert found.forecast.host_bytes == pytest.approx(1e9 + 4e6 * 256)
    assert sum(one.share for one in found.shapes) == pytest.approx(1.0)


def test_what_a_worker_holds_anyway_does_not_grow_with_the_batch(here: Path) -> None:
    def measure(config: TrialConfig) -> Measurement:
        if config.batch_size != 32:
            raise NotMeasuredError("another one")
        return MEASURED.model_copy(update={"host_bytes": 1.2e9})

    assert planned(asked(here), measure=measure).forecast.host_bytes == pytest.approx(1.1e9 + 0.1e9 * 128 / 32)


def test_each_trial_leaves_checkpoints_of_its_own_size(here: Path) -> None:
    points = tuple({"seed": seed, "batch_size": size} for seed in range(3) for size in (32, 64))

    def measure(config: TrialConfig) -> Measurement:
        return MEASURED.model_copy(update={"checkpoint_bytes": 1e8 if config.batch_size == 32 else 9e8})

    experiment = asked(here, points=points, trials=6, stopping={"enabled": False})
    said = planned(experiment, measure=measure, space=unvaried).forecast
    assert said.disk_bytes == pytest.approx(6 * 2.4 * 5e8, rel=0.01)
    assert said.most_disk_bytes is not None
    assert said.most_disk_bytes > 6 * 3 * 9e8, "at most it is the largest, as which ones are stopped is not known"


def test_no_shape_is_begun_when_the_time_is_over(here: Path) -> None:
    ticks = iter([0.0, 0.0, 200.0, 200.0, 200.0, 200.0, 200.0])
    experiment = asked(here)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "measure", lambda *_, **__: MEASURED)
        found = list(
            plan.measured(
                experiment,
                plan.configs_of(experiment, sized),
                slots=1,
                gpus_per_worker=0.0,
                clock=ticks.__next__,
                tell=print,
            )
        )
    assert [one.found is not None for one in found] == [True, False, False]
    assert "not measured" in found[1].problem


def test_a_shape_that_does_not_fit_is_refused_with_what_would(here: Path) -> None:
    def large(config: TrialConfig) -> Measurement:
        return MEASURED.model_copy(update={"host_bytes": 1e15 if config.batch_size == 128 else 1e9})

    with pytest.raises(RequestError, match=r"shape batch_size=128 do not fit into memory: 1 slot\(s\).*batch_size=32"):
        planned(asked(here), measure=large)

    def killed(config: TrialConfig) -> Measurement:
        raise NotFittingError("can't allocate memory: you tried to allocate 1 TB")

    with pytest.raises(RequestError, match="do not fit into memory: can't allocate memory"):
        planned(asked(here, trials=7), measure=killed, slots=2)


def test_too_many_slots_are_refused_with_how_many_fit(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "machine_bytes", lambda: 8e9)
    with pytest.raises(RequestError, match="--slots 3, or smaller ones"):
        planned(asked(here, slots=6), measure=lambda config: MEASURED, slots=6)
    mapped = MEASURED.model_copy(update={"host_bytes": 9e9, "mapped_bytes": 8.5e9})
    assert planned(asked(here, trials=8), measure=lambda config: mapped).forecast.host_bytes == 9e9


def test_slots_on_this_machine_are_those_that_its_processors_hold(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(measurements, "gpus", list)
    assert plan.slots_here(asked(here), auto_gpus=True) == (6, 0.0)  # as many as trials
    assert plan.slots_here(asked(here, trials=99), auto_gpus=True) == (8, 0.0)
    assert plan.slots_here(asked(here, trials=99, workers_per_trial=2), auto_gpus=True) == (4, 0.0)
    assert plan.slots_here(asked(here, slots=2), auto_gpus=False) == (2, 0.0)
    monkeypatch.setattr(measurements, "gpus", lambda: ["H100", "H100"])
    assert plan.slots_here(asked(here, trials=99), auto_gpus=True) == (2, 1.0)
    assert plan.slots_here(asked(here, trials=99, gpus_per_worker=0.5), auto_gpus=False) == (4, 0.5)


def test_a_broken_cache_is_no_cache(here: Path, tmp_path: Path) -> None:
    experiment = asked(here)
    planned(experiment, measure=lambda config: MEASURED)
    files = list(measurements.folder().iterdir())
    assert len(files) == 3
    for file in files:
        file.write_text("{")
    assert plan.remembered(experiment, plan.glanced(experiment, sized), slots=1, gpus_per_worker=0.0) == []
