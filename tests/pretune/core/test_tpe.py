"""TPE without a study decides as Optuna's with one, and beyond a bound looks at the best and the newest trials."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import TPESampler

from pretune.core import tpe
from pretune.core.history import State, TrialHistory
from pretune.core.journal import Asked, Ended, Extended
from pretune.core.search import Search
from pretune.core.tpe import Observations
from tests.pretune.core import decisions
from tests.pretune.core.decisions import BASE, METRIC, branching, experiment, optuna_study
from trainers.report import Checkpoint

STATES: tuple[State, ...] = ("COMPLETE", "COMPLETE", "PRUNED", "PRUNED", "INFEASIBLE", "FAIL", "RUNNING")


def ended(trial: TrialHistory, rng: random.Random) -> None:
    """An end of any kind: with ties, without epochs, with a value that is no number."""
    trial.state = rng.choice(STATES)
    values = [rng.choice([0.1, 0.2, 0.3, rng.random(), float("nan")]) for _ in range(rng.randint(0, 4))]
    trial.epochs = {epoch: {METRIC: value} for epoch, value in enumerate(values, start=1)}
    if trial.state == "COMPLETE":
        trial.value = rng.choice([0.1, 0.2, rng.random()])
    if trial.ended:
        trial.ended_at = trial.asked_at + 1


def params_of(trial: optuna.Trial) -> dict[str, Any]:
    """What the space gets, refused or not."""
    try:
        branching(trial, BASE)
    except ValueError:
        pass
    return trial.params


@pytest.mark.parametrize("seed", range(4))
def test_it_decides_as_optunas_sampler_over_a_study_of_all_trials(seed: int) -> None:
    made = experiment("tpe", seed=seed, startup_trials=6, maximize=seed % 2 == 0)
    search, rng, trials = Search(made, branching), random.Random(seed), list[TrialHistory]()
    for number in range(60):
        proposal = search.ask(trials)
        assert proposal is not None
        trials.append(
            TrialHistory(number, proposal.params, proposal.distributions, None, proposal.duplicate_of, 2 * number)
        )
        ended(trials[-1], rng)
        # A trial that was running may end later than those after it, and one that has ended may be made longer.
        late = rng.choice(trials)
        if late.state == "RUNNING":
            ended(late, rng)
        elif late.state == "COMPLETE" and rng.random() < 0.2:
            late.state, late.value = "WAITING", None
        if number % 5 == 4:
            sampler = search._sampler(number + 1)
            with warnings.catch_warnings(action="ignore"):
                theirs = TPESampler(
                    seed=_seed_of(made, number + 1),
                    n_startup_trials=6,
                    multivariate=True,
                    group=True,
                    constant_liar=True,
                )
            slow = optuna_study(made, trials, theirs)
            search._known.after(trials)
            ours = search._asked(sampler)[0]
            told = params_of(ours)
            expected = params_of(decisions_trial(slow, trials))
            assert told == pytest.approx(expected, rel=1e-9)
