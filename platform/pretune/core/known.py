"""What an ask has to know of a sweep's trials, brought up to date with those that have changed since the last ask.

All of it follows from the trials' histories: whoever reads them anew, after a kill, knows the same.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from pretune.core import study
from pretune.core.experiment import Experiment, PriorTrial
from pretune.core.generations import Generations
from pretune.core.grid import Tree
from pretune.core.history import TrialHistory, Trials
from pretune.core.lines import collecting_no_garbage
from pretune.core.parameters import Names, Points, flat, key, size
from pretune.core.tpe import Observations

MOST_VALUES = 10_000
"""A whole number with more values than that is looked at as if it had no end."""


class Known:
    """What is known of a sweep's trials at an ask, brought up to date by `after`. Each part is of use to some samplers;
    what the sweep's own has no use for stays empty.
    """

    def __init__(
        self, experiment: Experiment, draw_again: Callable[[int, Sequence[FrozenTrial]], Mapping[str, Any]]
    ) -> None:
        self._experiment, self._draw_again = experiment, draw_again
        self._forget()

    def _forget(self) -> None:
        sampler = self._experiment.sampler
        self._followed: Trials | None = None
        self._position = 0
        self._trials: Sequence[TrialHistory] = ()
        self._over: list[bool] = []
        """By trial, whether it has ended before."""
        self.proposed = 0
        """How many of the trials were not handed in by somebody."""
        self._kinds: dict[tuple[tuple[str, str], ...], _Kind] = {}
        self._first: dict[Hashable, int] = {}
        self._points: Points | None = None if sampler == "grid" else Points()
        self._tree: Tree | None = None
        self.names = Names()
        """What Optuna calls their parameters."""
        self.small = True
        """Whether no parameter has more than `MOST_VALUES` values."""
        self.configured: list[dict[str, BaseDistribution]] = []
        """What the first trial drew from of which the space has made a config."""
        self.observations = Observations(self._experiment.metric, maximize=self._experiment.maximize)
        self._told: list[FrozenTrial] | None = [] if sampler == "tpe" and self._experiment.beside else None
        """All trials, where Optuna's own sampler reads them: TPE with several objectives."""
        if sampler == "tpe":
            for prior in self._experiment.prior:
                kind = self._kind(prior)
                self.observations.told(kind.told(prior), kind.drawn, prior.value)
        self.generations = Generations(self._frozen, self._draw_again, maximize=self._experiment.maximize)

    @property
    def number(self) -> int:
        """That of the next trial."""
        return len(self._over)

    @property
    def exhausted(self) -> bool:
        """Whether the trials are all that the space can give."""
        return self._points is not None and self._points.exhausted

    @property
    def tree(self) -> Tree:
        """The points of a finite space; made when it is first asked for."""
        if self._tree is None:
            self._tree = Tree()
            for trial, over in zip(self._trials, self._over, strict=True):
                if not self._is_seen(trial):
                    continue
                kind = self._kind(trial)
                self._tree.add(kind.told(trial), kind.drawn)
                if over:
                    self._tree.end(kind.told(trial), kind.drawn)
        return self._tree

    def seen(self) -> Sequence[FrozenTrial]:
        """The trials that the sampler reads by itself."""
        return self.generations.seen() if self._told is None else self._told

    def first_with(self, params: Mapping[str, Any]) -> int | None:
        """The first trial with these parameters."""
        return self._first.get(key(params))

    def after(self, trials: Sequence[TrialHistory]) -> Known:
        """Brought up to date with `trials`. Of a history's own, only those are read that have changed since the last
        time; any other sequence is read as a whole.
        """
        if not isinstance(trials, Trials) or trials is not self._followed:
            self._forget()
        self._trials = trials
        changed: Iterable[int] = range(len(trials))
        if isinstance(trials, Trials):
            changed = dict.fromkeys(trials.changes[self._position :])
            self._followed, self._position = trials, len(trials.changes)
        known = self.number
        events: list[tuple[float, int, Callable[[TrialHistory], None]]] = []
        for number in changed:
            trial = trials[number]
            if number >= known:
                events.append((trial.asked_at, number, self._add))
            if number < known or trial.ended:
                events.append((math.inf if trial.ended_at is None else trial.ended_at, number, self._change))
        with collecting_no_garbage():
            # In the order of the journal: what CMA-ES noted on a trial follows from what had ended before it was asked.
            for _, number, take_in in sorted(events, key=lambda event: event[0]):
                take_in(trials[number])
            if not known and isinstance(trials, Trials):
                gc.freeze()  # it stays as long as the sweep's records, and some decision would have to look through it
        return self

    def _add(self, trial: TrialHistory) -> None:
        """A trial was asked."""
        self._over.append(False)
        self.proposed += not trial.enqueued
        if not self._is_seen(trial):
            if self._told is not None:
                self._told.append(study.untold(trial.number))
            elif self._experiment.sampler == "tpe":
                self.observations.skip()
            return
        kind = self._kind(trial)
        self._first.setdefault(key(trial.params), trial.number)
        if trial.config is not None and not self.configured:
            self.configured.append(study.distributions(trial))
        if self._points is not None:
            self._points.add(trial.params, study.distributions(trial))
        if self._tree is not None:
            self._tree.add(kind.told(trial), kind.drawn)
        match self._experiment.sampler:
            case "tpe" if self._told is not None:
                self._told.append(self._numbered(trial))
            case "tpe":
                self.observations.add(kind.told(trial), kind.drawn)
            case "cmaes":
                self.generations.asked(trial.number)
            case "grid" | "random":
                pass

    def _change(self, trial: TrialHistory) -> None:
        """A trial that is known has ended, or is to train longer."""
        if not self._is_seen(trial):
            return
        if self._told is not None:
            self._told[trial.number] = self._numbered(trial)
        elif self._experiment.sampler == "tpe":
            self.observations.change(trial)
        if self._over[trial.number]:
            return
        self._over[trial.number] = True
        if self._tree is not None:
            kind = self._kind(trial)
            self._tree.end(kind.told(trial), kind.drawn)
        if self._experiment.sampler == "cmaes":
            self.generations.ended(trial)

    def _is_seen(self, trial: TrialHistory) -> bool:
        """Whether the sampler learns from the trial. Of those that somebody handed in it does from the points of its
        space, unless it is CMA-ES, whose generations are those that it drew itself.
        """
        return not trial.enqueued or (bool(trial.params) and self._experiment.sampler != "cmaes")

    def _frozen(self, trial: TrialHistory) -> FrozenTrial:
        return study.frozen(self._experiment, trial, self._kind(trial).aliases)

    def _numbered(self, trial: TrialHistory) -> FrozenTrial:
        found = self._frozen(trial)
        found.number = trial.number
        return found

    def _kind(self, trial: TrialHistory | PriorTrial) -> _Kind:
        """What the trial drew from; one object for all that drew from the same."""
        texts = tuple(trial.distributions.items())
        found = self._kinds.get(texts)
        if found is None:
            drawn = study.distributions(trial)
            aliases = {name: self.names.of(name, one) for name, one in drawn.items()}
            found = self._kinds[texts] = _Kind(aliases, {aliases[name]: one for name, one in drawn.items()})
            self.small = self.small and all(map(_is_small, drawn.values()))
            if any(size(one) is None for one in drawn.values()):
                self._points = None  # such a space has no end
        return found


@dataclass(frozen=True)
class _Kind:
    """What some trials drew from, under Optuna's names; `aliases` are these names by the space's own."""

    aliases: Mapping[str, str]
    drawn: Mapping[str, BaseDistribution]

    def told(self, trial: TrialHistory | PriorTrial) -> dict[str, Any]:
        """The trial's parameters as Optuna is told them."""
        return {alias: flat(trial.params[name]) for name, alias in self.aliases.items()}


def _is_small(distribution: BaseDistribution) -> bool:
    count = size(distribution)
    return count is not None and count <= MOST_VALUES
