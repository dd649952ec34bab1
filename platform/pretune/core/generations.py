"""CMA-ES over all that a sweep has told: which trials Optuna's sampler has to see at an ask, and what it noted on each.

Optuna's `CmaEsSampler` keeps its state on the trials: on each its generation, and where a generation begins all that
it has learned, pickled. A journal must never have to be unpickled, so that these notes are not in it. They follow from
the journal: when a sweep is taken up, its asks and ends are gone through once, in their order, and where a generation
begins the last one is told again to the state before it, if the next one stands on it.

At an ask the sampler reads no other trials than those of the generation that it is in, the newest state, and one
complete trial for the names and ranges. So it is shown only these, whatever their number is in all.

Hansen and Ostermeier 2001, "Completely Derandomized Self-Adaptation in Evolution Strategies".
"""

from __future__ import annotations

import copy
from bisect import insort
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from pretune.core.history import TrialHistory
from pretune.core.optuna_private import generation_of, has_state, notes_after, notes_of

Notes = Mapping[str, Any]
_NONE: Notes = {}


@dataclass(frozen=True)
class _Beginning:
    """A generation begins: what the sampler noted on trial `number` follows from what it had `seen`, or in short from
    its notes `before` and the trials that were the generation before. Several trials that run at once begin it, and of
    one of them the next generation needs it.
    """

    number: int
    generation: int
    seen: Sequence[FrozenTrial]
    before: Notes
    trials: Sequence[FrozenTrial]


class Generations:
    """The trials of a sweep as CMA-ES has to see them. Shown each ask and each end once, in the journal's order.

    `frozen` makes Optuna's trial of one of ours; `draw` asks the sampler for trial `number` after `seen`, and returns
    what it noted. `maximize` is the sweep's.
    """

    def __init__(
        self,
        frozen: Callable[[TrialHistory], FrozenTrial],
        draw: Callable[[int, Sequence[FrozenTrial]], Notes],
        *,
        maximize: bool,
    ) -> None:
        self._frozen, self._draw, self._maximize = frozen, draw, maximize
        self._notes: dict[int, Notes | _Beginning] = {}
        """Of trials that run, and of the next one."""
        self._complete: FrozenTrial | None = None
        """The first that was told as complete."""
        self._dimensions = 0
        """How many of its parameters have more than one value."""
        self._newest: FrozenTrial | None = None
        """Of the trials with a state that are over, the one that was asked last."""
        self._unread: _Beginning | None = None
        """How its state is found, where it is not noted on it."""
        self._of: dict[int, list[tuple[int, FrozenTrial]]] = {}
        """By generation, its trials that are over, by number."""
        self._begun: tuple[Hashable, _Beginning] | None = None
        """Where a generation began last, and on which trials' account."""

    def note(self, number: int, notes: Notes) -> None:
        """What the sampler noted when it was asked for trial `number`."""
        self._notes[number] = notes

    def asked(self, number: int) -> None:
        """Trial `number` was asked; where nobody noted it, in another process, its notes are found again."""
        if number not in self._notes:
            self._notes[number] = self._drawn_again(number)

    def ended(self, trial: TrialHistory) -> None:
        """A trial is over. One that was stopped counts with its last value: else a generation of trials that all stop
        would never end.
        """
        noted = self._notes.pop(trial.number, _NONE)
        beginning = noted if isinstance(noted, _Beginning) else None
        notes = notes_of(noted.generation) if isinstance(noted, _Beginning) else noted
        frozen = self._frozen(trial)
        if frozen.state == TrialState.COMPLETE and (self._complete is None or trial.number < self._complete.number):
            self._complete = _noted(frozen, trial.number, {})
            self._dimensions = sum(not one.single() for one in frozen.distributions.values())
        if frozen.state == TrialState.PRUNED and frozen.intermediate_values:
            # The sampler would do the same to a copy of it, at each ask.
            frozen.state, frozen.value = TrialState.COMPLETE, max(frozen.intermediate_values.items())[1]
        if frozen.state != TrialState.COMPLETE:
            return
        frozen = _noted(frozen, trial.number, notes)
        generation = generation_of(notes)
        begins = beginning is not None or has_state(notes)
        if begins and (self._newest is None or self._newest.number < trial.number):
            self._newest, self._unread = frozen, beginning
            for earlier in [one for one in self._of if generation is not None and one < generation]:
                del self._of[earlier]
        if generation is not None and generation >= self._generation:
            insort(self._of.setdefault(generation, []), (trial.number, frozen), key=lambda one: one[0])

    def seen(self) -> list[FrozenTrial]:
        """What the sampler needs of all trials that are over, by number; nothing as long as none is complete."""
        if self._complete is None:
            return []
        found = {self._complete.number: self._complete}
        found |= dict(self._of.get(self._generation, ()))
        if self._newest is not None:
            if self._unread is not None:
                self._newest.system_attrs = dict(self._noted_at(self._unread))
                self._unread = None
            found[self._newest.number] = self._newest
        return [found[number] for number in sorted(found)]

    @property
    def _generation(self) -> int:
        found = None if self._newest is None else generation_of(self._newest.system_attrs)
        return found or 0

    def _drawn_again(self, number: int) -> Notes | _Beginning:
        if self._dimensions < 2:
            return self._draw(number, self.seen())
        generation, population = self._generation, _population(self._dimensions)
        members = self._of.get(generation, [])[:population]
        if len(members) < population:
            return notes_of(generation)
        # The state follows from the last one and from these trials alone: those that are asked until the first of them
        # has ended note the same.
        told = (self._newest and self._newest.number, *(member for member, _ in members))
        if self._begun is None or self._begun[0] != told:
            seen = self.seen()
            before = _NONE if self._newest is None else self._newest.system_attrs
            trials = [trial for _, trial in members]
            self._begun = told, _Beginning(number, generation + 1, seen, before, trials)
        return self._begun[1]

    def _noted_at(self, beginning: _Beginning) -> Notes:
        drawn_from = beginning.trials[0].distributions
        if any(trial.distributions != drawn_from for trial in beginning.seen):
            return self._draw(beginning.number, beginning.seen)
        return notes_after(beginning.before, beginning.trials, maximize=self._maximize)


@lru_cache
def _population(dimensions: int) -> int:
    """How many trials make a generation."""
    import cmaes  # with it scipy.stats comes, which takes most of a second

    return int(cmaes.CMA(mean=np.zeros(dimensions), sigma=1.0).population_size)


def _noted(trial: FrozenTrial, number: int, notes: Notes) -> FrozenTrial:
    noted = copy.copy(trial)
    noted.number, noted.system_attrs = number, dict(notes)
    return noted
