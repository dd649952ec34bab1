"""Configs from all over a space, its corners included: what has to be looked at to say what its trials may cost."""

from __future__ import annotations

from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from pretune.core.experiment import Experiment
from pretune.core.search import Search, Space
from trainers.config import TrialConfig

DRAWS = 256


def draws(experiment: Experiment, space: Space, *, count: int = DRAWS) -> list[TrialConfig]:
    """What the space gives for random parameters, as its trials will have, and as many for such of which each number is
    the least or the greatest. What it refuses is left out. RequestError where it raises something else.
    """
    at_bounds = Search(experiment, space).drawn(_Bounds(seed=experiment.seed), count // 2)
    return [*random_draws(experiment, space, count=count - count // 2), *at_bounds]


def random_draws(experiment: Experiment, space: Space, *, count: int = DRAWS) -> list[TrialConfig]:
    """The same for random parameters alone: each as common as among the trials."""
    return Search(experiment, space).drawn(RandomSampler(seed=experiment.seed), count)


class _Bounds(RandomSampler):
    """Of each number one of its bounds, of choices any one."""

    def __init__(self, *, seed: int) -> None:
        super().__init__(seed=seed)
        self._coin = np.random.default_rng(seed)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if isinstance(param_distribution, CategoricalDistribution):
            return super().sample_independent(study, trial, param_name, param_distribution)
        assert isinstance(param_distribution, FloatDistribution | IntDistribution)
        return (param_distribution.low, param_distribution.high)[int(self._coin.integers(2))]
