"""A sweep's request is complete and checked before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pretune.core.experiment import Experiment, StoppingConfig
from tests.imports import imported
from trainers.config import TrialConfig
from trainers.terms import Alignment

BASE = TrialConfig(objective={"alignment": Alignment()}, epochs=10, batch_size=256)


def experiment(**changes: Any) -> Experiment:
    return Experiment(**({"name": "one", "space": "kernels", "base": BASE} | changes))


def test_defaults_are_complete() -> None:
    made = experiment()
    assert (made.metric, made.maximize, made.budget, made.sampler) == ("probe/linear", True, "epochs", "tpe")
    assert made.folder == Path("sweeps/one").absolute()


def test_it_travels_as_json() -> None:
    made = experiment(stopping=StoppingConfig(grace=2.0), storage="/tmp/x", slots=3)
    assert Experiment.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers_per_trial": 3}, "batch_size must be a multiple of the 3 workers, but is 256"),
        ({"workers_per_trial": 2, "gpus_per_worker": 0.5}, "NCCL refuses two ranks on one GPU"),
        ({"storage": "ftp://host/sweeps"}, "begins with s3://, gs://, file://"),
        ({"storage": "s3:///sweeps"}, "must name a bucket"),
        ({"storage": "file://relative/sweeps"}, "write file:///folder"),
        ({"stopping": StoppingConfig(grace=9.0)}, "stopping.grace must be at most 8, the last epoch before"),
        ({"name": "../up"}, "String should match pattern"),
        ({"trials": 0}, "greater than or equal to 1"),
        ({"sampler": "simplex"}, "'tpe', 'random', 'grid' or 'cmaes'"),
        ({"budget": "dollars"}, "'epochs', 'views' or 'seconds'"),
        ({"slotz": 2}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_request_is_refused_with_the_rule(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment(**changes)


def test_a_grace_that_no_rung_can_use_is_fine_where_stopping_is_off() -> None:
    assert not experiment(stopping=StoppingConfig(enabled=False, grace=9.0)).stopping.enabled


def test_the_random_start_follows_the_trials_but_stays_within_bounds() -> None:
    assert [experiment(trials=trials).random_trials for trials in (1, 12, 20, 100)] == [4, 4, 6, 10]
    assert experiment(startup_trials=2).random_trials == 2


def test_requests_and_results_need_neither_ray_nor_torch_nor_optuna() -> None:
    program = "from pretune.core import experiment, history, journal, results, stopping"
    assert imported(program, "ray torch optuna ffcv") == []
