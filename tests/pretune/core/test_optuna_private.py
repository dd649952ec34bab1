"""The names that Optuna does not promise to keep are there, and do what optuna_private.py expects of them."""

from __future__ import annotations

import importlib
import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import CmaEsSampler
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from pretune.core import optuna_private
from pretune.core.density import CANDIDATES, Density, uniforms

VERSIONS = f"optuna_private.py was checked with Optuna {optuna_private.CHECKED_WITH}, installed is {optuna.__version__}"
SPACE: dict[str, BaseDistribution] = {
    "number": FloatDistribution(-1.0, 3.0),
    "rate": FloatDistribution(1e-4, 1.0, log=True),
    "share": FloatDistribution(0.0, 1.0, step=0.25),
    "depth": IntDistribution(1, 5),
    "groups": IntDistribution(1, 64, log=True),
    "kernel": CategoricalDistribution(["rbf", "energy", None]),
}


@pytest.mark.parametrize(
    ("module", "path", "parameters"),
    [
        (
            "_tpe.parzen_estimator",
            "_ParzenEstimator.__init__",
            ["self", "observations", "search_space", "parameters", "predetermined_weights"],
        ),
        ("_tpe.sampler", "default_gamma", ["x"]),
        ("_tpe.sampler", "default_weights", ["x"]),
        ("_tpe._truncnorm", "_log_gauss_mass", ["a", "b"]),
    ],
)
def test_each_function_is_there_and_takes_what_it_is_given(module: str, path: str, parameters: list[str]) -> None:
    value: Any = importlib.import_module(f"optuna.samplers.{module}")
    try:
        for name in path.split("."):
            value = getattr(value, name)
    except AttributeError as error:
        pytest.fail(f"{module}.{path} is gone ({error}); {VERSIONS}")
    assert list(inspect.signature(inspect.unwrap(value)).parameters) == parameters, VERSIONS


def test_the_settings_are_those_that_its_sampler_has_by_default() -> None:
    sampler = optuna.samplers.TPESampler()
    assert sampler._n_ei_candidates == CANDIDATES, VERSIONS


def observed(count: int, seed: int, *, out_of_range: bool = False) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    points = {
        "number": rng.choice([-1.0, 3.0, 0.5, *rng.uniform(-1.0, 3.0, 5)], count),
        "rate": 10.0 ** rng.uniform(-4.0, 0.0, count),
        "share": rng.integers(0, 5, count) * 0.25,
        "depth": rng.integers(1, 6, count).astype(float),
        "groups": rng.integers(1, 65, count).astype(float),
        "kernel": rng.integers(0, 3, count).astype(float),
    }
    if out_of_range:  # of a branch with a wider range
        points["number"][: count // 2] = 40.0
        points["depth"][: count // 2] = 90.0
    return points


@pytest.mark.parametrize("out_of_range", [False, True])
@pytest.mark.parametrize("count", [0, 1, 9, 60])
def test_a_density_draws_what_optunas_draws_and_ranks_it_alike(count: int, out_of_range: bool) -> None:
    parameters = optuna.samplers.TPESampler()._parzen_estimator_parameters
    for seed in range(3):
        points = observed(count, seed, out_of_range=out_of_range)
        theirs = _ParzenEstimator(points, SPACE, parameters)
        ours = Density(points, SPACE)
        one, other = np.random.RandomState(seed), np.random.RandomState(seed)
        drawn, expected = ours.sample(one.random_sample(uniforms(len(SPACE)))), theirs.sample(other, CANDIDATES)
        for name in SPACE:
            np.testing.assert_allclose(drawn[name], expected[name], rtol=1e-12, atol=1e-12, err_msg=VERSIONS)
        assert one.random_sample() == other.random_sample(), "as many numbers were taken from the generator"
        np.testing.assert_allclose(ours.log(drawn), theirs.log_pdf(expected), rtol=1e-9, err_msg=VERSIONS)
        again = np.random.RandomState(seed)
        again.random_sample(uniforms(len(SPACE)))
        again.random_sample()
        assert again.random_sample() == one.random_sample(), VERSIONS


def test_cma_es_notes_its_generation_and_where_one_begins_its_state() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    begun = []
    for number in range(20):
        with warnings.catch_warnings(action="ignore"):
            study.sampler = CmaEsSampler(seed=number, consider_pruned_trials=True, warn_independent_sampling=False)
        trial = study.ask()
        value = sum(trial.suggest_float(name, -1.0, 1.0) ** 2 for name in "ab")
        notes = study.get_trials(deepcopy=False)[number].system_attrs
        if optuna_private.has_state(notes):
            begun.append((number, optuna_private.generation_of(notes)))
        elif number:
            assert notes == optuna_private.notes_of(optuna_private.generation_of(notes) or 0), VERSIONS
        study.tell(trial, value)
    # Of two numbers a generation has 6 trials; the first trial is drawn at random.
    assert begun == [(7, 1), (13, 2), (19, 3)], VERSIONS


def test_optuna_reads_the_lines_of_its_journal(tmp_path: Path) -> None:
    lines = [
        optuna_private.log_study("s", [False]),
        optuna_private.log_trial(
            state=TrialState.WAITING,
            worth=None,
            params={"rate": 0.5},
            distributions={"rate": optuna_private.as_json(SPACE["rate"])},
            values={1: 0.25},
            infeasible=False,
            started_s=None,
            ended_s=None,
            about={"seed": 3},
        ),
        optuna_private.log_start(0, 1_700_000_000.0),
        optuna_private.log_about(0, "reason", "why"),
        optuna_private.log_value(0, 2, 0.75),
        optuna_private.log_constraint(0),
        optuna_private.log_end(0, TrialState.PRUNED, None, 1_700_000_060.0),
        optuna_private.log_trial(
            state=TrialState.COMPLETE,
            worth=[0.125],
            params={},
            distributions={},
            values={},
            infeasible=False,
            started_s=1_700_000_000.0,
            ended_s=1_700_000_030.0,
            about={},
        ),
    ]
    backend = JournalFileBackend(str(tmp_path / "study.log"))
    backend.append_logs(lines)
    study = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(backend))
    first, second = study.trials
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    assert (first.state, first.params, first.intermediate_values) == (
        TrialState.PRUNED,
        {"rate": 0.5},
        {1: 0.25, 2: 0.75},
    )
    assert first.constraints == {"feasible": 1.0}, VERSIONS
    assert first.user_attrs == {"seed": 3, "reason": "why"}, VERSIONS
    assert [trial.duration and trial.duration.total_seconds() for trial in (first, second)] == [60.0, 30.0], VERSIONS
    assert (second.state, second.value) == (TrialState.COMPLETE, 0.125)
    assert first.distributions == {"rate": SPACE["rate"]}
