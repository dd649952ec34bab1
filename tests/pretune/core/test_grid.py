"""The tree of a finite space: Optuna's decisions, at the cost of one path."""

from __future__ import annotations

import random
import warnings

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.samplers import BruteForceSampler

from pretune.core.errors import RequestError
from pretune.core.grid import Tree, _Node
from pretune.core.history import TrialHistory
from pretune.core.search import Search, Space, _seed
from tests.pretune.core.decisions import experiment, finite, slow_ask
from trainers.config import TrialConfig


def steps(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    trial.suggest_float("share", 0.0, 0.6, step=0.2)
    if trial.suggest_int("depth", 2, 6, step=2) > 2:
        trial.suggest_categorical("kernel", ["rbf", None, 3])
    return base


@pytest.mark.parametrize("space", [finite, steps])
@pytest.mark.parametrize("seed", range(3))
def test_it_decides_as_optunas_sampler_over_a_study_of_all_trials(seed: int, space: Space) -> None:
    made = experiment("grid", seed=seed)
    search, rng, trials = Search(made, space), random.Random(seed), list[TrialHistory]()
    for number in range(24):
        with warnings.catch_warnings(action="ignore"):
            theirs = BruteForceSampler(seed=_seed(seed, number))
        proposal = search.ask(trials)
        assert proposal is not None
        assert proposal.params == slow_ask(made, trials, theirs, space), f"trial {number}"
        trials.append(TrialHistory(number, proposal.params, proposal.distributions, None, None, 2 * number))
        if space is steps and number == 5:  # what TPE rounds is no value of the grid
            trials[-1].params["share"] = 0.4000000000000001
        late = rng.choice(trials)
        late.state = rng.choice(["COMPLETE", "PRUNED", "FAIL"])
        late.value, late.ended_at = (0.5 if late.state == "COMPLETE" else None), late.asked_at + 1


def test_a_trial_changes_its_own_path_and_not_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    visited, count = 0, _Node.count

    def counting(node: _Node) -> None:
        nonlocal visited
        visited += 1
        count(node)

    monkeypatch.setattr(_Node, "count", counting)
    tree, space = Tree(), {f"digit {place}": IntDistribution(0, 3) for place in range(5)}
    for number in range(300):
        point = {name: number // 4**place % 4 for place, name in enumerate(space)}
        visited = 0
        tree.add(point, space)
        tree.end(point, space)
        assert visited == 2 * (1 + len(space)), "from the root to its end, once as it runs and once as it is over"
    left = tree.branches({}, {}, "digit 0", (0, 1, 2, 3))
    assert sum(count for count, _ in left.values()) < 4**5


def test_a_space_that_asks_for_other_things_after_the_same_values_is_refused_by_name() -> None:
    calls = iter(range(100))

    def fickle(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        trial.suggest_int("first", 1, 1)
        trial.suggest_int("second" if next(calls) % 2 else "third", 1, 3)
        return base

    search, trials = Search(experiment("grid"), fickle), list[TrialHistory]()
    proposal = search.ask(trials)
    assert proposal is not None
    trials.append(TrialHistory(0, proposal.params, proposal.distributions, {}, None, 0))
    with pytest.raises(RequestError, match=r"'grid' needs a space that asks for the same parameters"):
        search.ask(trials)
