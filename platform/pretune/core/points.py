"""An ablation's trials: points that are known beforehand, in their order. Nothing is sampled.

`Experiment.points` holds them. What else a sweep does (slots, journal, resume) is the same, so that whoever runs one
takes a `Proposer`; `proposer` is where the two part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution

from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.history import TrialHistory
from pretune.core.messages import in_words
from pretune.core.parameters import flat, written
from pretune.core.search import Proposal, Proposer, Search, Space, completed
from trainers.changes import with_changes
from trainers.config import TrialConfig


def proposer(experiment: Experiment, space: Space) -> Proposer:
    """What proposes the trials of `experiment`: its points where it has some, else its sampler over `space`."""
    return FixedPoints(experiment) if experiment.points else Search(experiment, space)


def unvaried(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    """The space of an ablation."""
    return base


class FixedPoints:
    """Proposes `experiment.points` one after another, each as changes of the experiment's base."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def check(self) -> list[TrialConfig]:
        found: list[TrialConfig] = []
        for point in self.experiment.points:
            config, refusal = self._config(point)
            if config is None:
                raise RequestError(refusal)
            found.append(config)
        return found

    def ask(self, trials: Sequence[TrialHistory]) -> Proposal | None:
        number = len(trials)
        if number >= len(self.experiment.points):
            return None
        point = self.experiment.points[number]
        config, refusal = self._config(point)
        return Proposal(
            number=number,
            params=point,
            distributions={path: _among(self._levels(path)) for path in point},
            config=config,
            refusal=refusal,
        )

    def refusal(self, params: dict[str, Any]) -> str:
        _, refusal = self._config(params)
        return refusal or f"{params} was refused"

    def _config(self, point: dict[str, Any]) -> tuple[TrialConfig | None, str]:
        """The base with the point's changes, or None and why that cannot run with this sweep's workers."""
        try:
            config = completed(with_changes(self.experiment.base, point), self.experiment)
        except ValueError as error:
            return None, f"{point}: {in_words(error)}"
        return config, ""

    def _levels(self, path: str) -> list[Any]:
        """All values that any point gives to `path`, in the order of the points."""
        levels: list[Any] = []
        for point in self.experiment.points:
            if path in point and point[path] not in levels:
                levels.append(point[path])
        return levels


def _among(levels: Sequence[Any]) -> str:
    """The distribution of a factor's levels, as the journal has it."""
    return written(CategoricalDistribution([flat(level) for level in levels]), levels)
