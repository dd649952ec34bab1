"""An ablation's trials: points that are known beforehand, in their order. Nothing is sampled.

`Experiment.points` holds them. What else a sweep does (slots, journal, resume) is the same, so that whoever runs one
takes a `Proposer`; `proposer` is where they part.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution

from pretune.core import evidence
from pretune.core.design import Design, key
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.history import TrialHistory
from pretune.core.messages import in_words
from pretune.core.outcomes import Outcomes, Places
from pretune.core.parameters import flat, written
from pretune.core.search import Proposal, Proposer, Search, Space, Wait, completed
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.usercode import ChangedError


def proposer(experiment: Experiment, space: Space) -> Proposer:
    """What proposes the trials of `experiment`: its points where it has some, else its sampler over `space`."""
    if not experiment.points:
        return Search(experiment, space)
    if experiment.design is not None and experiment.design.max_seeds is not None:
        return UndecidedPoints(experiment, experiment.design)
    return FixedPoints(experiment)


def unvaried(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    """The space of an ablation."""
    return base


class FixedPoints:
    """Proposes `experiment.points` one after another, each as changes of the experiment's base."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._levels: dict[str, list[Any]] = {}

    def check(self) -> list[TrialConfig]:
        found: list[TrialConfig] = []
        for point in distinct(self.experiment.points):
            config, refusal = self._config(point)
            if config is None:
                raise RequestError(refusal)
            found.append(config)
        return found

    def ask(self, trials: Sequence[TrialHistory]) -> Proposal | Wait | None:
        number = len(trials)
        return self._proposal(number, number) if number < len(self.experiment.points) else None

    def refusal(self, params: dict[str, Any]) -> str:
        _, refusal = self._config(params)
        return refusal or f"{params} was refused"

    def _proposal(self, number: int, position: int) -> Proposal:
        """Trial `number`, which is to be the point at `position`."""
        point = self.experiment.points[position]
        config, refusal = self._config(point)
        return Proposal(
            number=number,
            params=point,
            distributions={path: _among(self._levels_of(path)) for path in point},
            config=config,
            refusal=refusal,
        )

    def _config(self, point: dict[str, Any]) -> tuple[TrialConfig | None, str]:
        """The base with the point's changes, or None and why that cannot run with this sweep's workers."""
        try:
            config = completed(with_changes(self.experiment.base, point), self.experiment)
        except ChangedError as error:  # no fault of the point: each one from now on would be refused
            raise RequestError(str(error)) from error
        except ValueError as error:
            return None, f"{point}: {in_words(error)}"
        return config, ""

    def _levels_of(self, path: str) -> list[Any]:
        """All values that any point gives to `path`, in the order of the points."""
        if path not in self._levels:
            values = {json.dumps(point[path]): point[path] for point in self.experiment.points if path in point}
            self._levels[path] = list(values.values())
        return self._levels[path]


class UndecidedPoints(FixedPoints):
    """Of `experiment.points`, proposes those of the first seeds, and then of more seeds where a comparison is undecided
    (`evidence`). Which those are follows from the trials that have ended, whoever asks.
    """

    def __init__(self, experiment: Experiment, design: Design) -> None:
        super().__init__(experiment)
        self._design = design
        self._places = Places(design)
        self._all = [self._places.of(point) for point in experiment.points]
        self._known: list[tuple[dict[str, Any], tuple[int, int]]] = []
        """The parameters of each trial that was seen, with its level and seed: found out once."""

    def ask(self, trials: Sequence[TrialHistory]) -> Proposal | Wait | None:
        asked = [self._place(trial) for trial in trials]
        ended = {place: one.value for place, one in zip(asked, trials, strict=True) if one.ended}
        first = self.experiment.base.seed
        outcomes = Outcomes(self._design, first, ended)
        wanted = evidence.seeds_wanted(outcomes, metric=self.experiment.metric, maximize=self.experiment.maximize)
        taken = set(asked)
        for position, (level, seed) in enumerate(self._all):
            if seed - first < wanted[level] and (level, seed) not in taken:
                return self._proposal(len(trials), position)
        return Wait.FOR_TRIALS if len(ended) < len(trials) else None

    def _place(self, trial: TrialHistory) -> tuple[int, int]:
        if trial.number == len(self._known):
            self._known.append((trial.params, self._places.of(trial.params)))
        params, place = self._known[trial.number]
        return place if params is trial.params else self._places.of(trial.params)


def distinct(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points whose configs differ in more than the seed, and the last one, which has the highest seed: a check of
    these is one of all.
    """
    by_changes: dict[str, dict[str, Any]] = {}
    for point in points:
        by_changes.setdefault(key(point), point)
    return [*by_changes.values(), *(point for point in points[-1:] if point not in by_changes.values())]


def _among(levels: Sequence[Any]) -> str:
    """The distribution of a factor's levels, as the journal has it."""
    return written(CategoricalDistribution([flat(level) for level in levels]), levels)
