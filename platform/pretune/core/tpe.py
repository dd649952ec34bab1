"""TPE over all that a sweep has told, without reading its trials again at each ask.

Optuna's `TPESampler` with the settings `multivariate`, `group` and `constant_liar`, decision by decision: the same good
trials, the same groups of parameters, the same draws from the same seed. What it works out anew from a study each time
is kept here and changed trial by trial: a table of parameters, the ranking, and which parameters come together.

One rule is ours: beside the good trials, 25 at most, the newest `WINDOW` others count. Optuna counts all, each less
than the next newer one; a sweep of up to `WINDOW` trials decides as it does, and a larger one asks no longer.

Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", section 4.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from pretune.core.density import Density, Samples, uniforms
from pretune.core.history import TrialHistory
from pretune.core.optuna_private import good_trials

WINDOW = 300
"""How many of the trials that are not among the good ones count, the newest ones."""

Drawn = Mapping[str, BaseDistribution]
_Rank = tuple[int, float, float, int]


class Observations:
    """What TPE knows of a sweep's trials. `maximize` and `metric` are the sweep's; before its own trials come those
    that it took over from others, which are `told`.
    """

    def __init__(self, metric: str, *, maximize: bool) -> None:
        self._metric, self._sign = metric, -1.0 if maximize else 1.0
        self._earlier = 0
        """Trials of other sweeps."""
        self._table = np.full((64, 8), np.nan)
        """Parameters by trial and column, as Optuna's internal numbers; a trial without a parameter has none there."""
        self._columns: dict[str, int] = {}
        self._counts = np.zeros(64, dtype=bool)
        """By trial, whether it counts: a failed one teaches nothing."""
        self._drawn: list[Drawn] = []
        self._ranks: list[_Rank | None] = []
        self._ranking: list[_Rank] = []
        """Of the finished trials, the best first."""
        self._together: dict[frozenset[str], list[int]] = {}
        """The finished trials by the names of their parameters."""
        self._groups: list[dict[str, BaseDistribution]] | None = None
        self._split: tuple[NDArray[np.intp], NDArray[np.intp]] | None = None
        self._good: dict[tuple[str, ...], tuple[NDArray[np.intp], dict[str, BaseDistribution], Density]] = {}
        """By parameters, the good trials of the last ask, what the parameters were drawn from, and the density."""

    def __len__(self) -> int:
        """How many trials are known."""
        return len(self._drawn)

    @property
    def finished(self) -> int:
        """Trials that are over and did not fail."""
        return len(self._ranking)

    def add(self, params: Mapping[str, Any], drawn: Drawn) -> None:
        """The next trial, which runs: `params` under Optuna's names, and what each was drawn from."""
        number = len(self._drawn)
        self._drawn.append(drawn)
        self._ranks.append(None)
        for name in drawn:
            self._columns.setdefault(name, len(self._columns))
        self._make_room()
        for name, distribution in drawn.items():
            self._table[number, self._columns[name]] = distribution.to_internal_repr(params[name])
        self._counts[number] = True
        self._split = None

    def told(self, params: Mapping[str, Any], drawn: Drawn, value: float) -> None:
        """A complete trial of another sweep."""
        assert len(self) == self._earlier, "they come first"
        self.add(params, drawn)
        self._take_in(self._earlier, (0, self._sign * value, 0.0, self._earlier), counts=True)
        self._earlier += 1

    def skip(self) -> None:
        """The next trial, of which nothing is to be learned."""
        self.add({}, {})
        self._counts[len(self._drawn) - 1] = False

    def change(self, trial: TrialHistory) -> None:
        """A trial that was added has ended, or runs again."""
        number = trial.number + self._earlier
        self._take_in(number, self._rank(trial, number), counts=trial.state != "FAIL")

    def _take_in(self, number: int, now: _Rank | None, *, counts: bool) -> None:
        before = self._ranks[number]
        self._counts[number] = counts
        self._ranks[number] = now
        self._split = None
        if before is not None:
            del self._ranking[bisect_left(self._ranking, before)]
        if now is not None:
            insort(self._ranking, now)
        if (before is None) != (now is None):
            self._finish(number, begun_again=now is None)

    def split(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The good trials, and of the others that count, running ones included, the newest; both oldest first."""
        if self._split is None:
            good = np.array(sorted(rank[-1] for rank in self._ranking[: good_trials(self.finished)]), dtype=np.intp)
            self._split = good, self._newest_but(good)
        return self._split

    def groups(self) -> list[dict[str, BaseDistribution]]:
        """Parameters that each finished trial has all of or none, with what the first one drew them from; such a group
        is modeled as a whole, apart from the others.
        """
        if self._groups is None:
            self._groups = []
            for number in sorted(numbers[0] for numbers in self._together.values() if numbers):
                self._groups = _parted(self._groups, self._drawn[number])
        return self._groups

    def points(self, trials: NDArray[np.intp], space: Iterable[str]) -> Samples:
        """Of those among `trials` that have all parameters of `space`, their values, column by column."""
        names = list(space)
        if not all(name in self._columns for name in names):  # it was never drawn
            return {name: np.empty(0) for name in names}
        values = self._table[trials][:, [self._columns[name] for name in names]]
        values = values[~np.isnan(values).any(axis=1)]
        return {name: values[:, position] for position, name in enumerate(names)}

    def densities(self, space: dict[str, BaseDistribution]) -> tuple[Density, Density]:
        """Those of the good trials and of the others. Where the good ones are as they were, so is their density."""
        good, others = self.split()
        names = tuple(space)
        kept = self._good.get(names)
        if kept is None or not np.array_equal(kept[0], good) or kept[1] != space:
            kept = self._good[names] = good, dict(space), Density(self.points(good, space), space)
        return kept[2], Density(self.points(others, space), space)

    def _rank(self, trial: TrialHistory, number: int) -> _Rank | None:
        """Complete trials by value, stopped ones by how far they got and their last value, infeasible ones last; the
        older of two equals first.
        """
        match trial.state:
            case "COMPLETE":
                assert trial.value is not None
                return 0, self._sign * trial.value, 0.0, number
            case "PRUNED":
                told = [epoch for epoch, metrics in trial.epochs.items() if self._metric in metrics]
                if not told:
                    return 1, 1.0, 0.0, number
                value = trial.epochs[max(told)][self._metric]
                return 1, -float(max(told)), math.inf if math.isnan(value) else self._sign * value, number
            case "INFEASIBLE":
                return 2, 0.0, 0.0, number
        return None

    def _finish(self, number: int, *, begun_again: bool) -> None:
        numbers = self._together.setdefault(frozenset(self._drawn[number]), [])
        first = numbers[:1]
        if begun_again:
            del numbers[bisect_left(numbers, number)]
        else:
            insort(numbers, number)
        if numbers[:1] != first:
            self._groups = None

    def _newest_but(self, good: NDArray[np.intp]) -> NDArray[np.intp]:
        end, width = len(self._drawn), 2 * WINDOW
        while True:  # a few rounds, unless most trials failed
            start = max(0, end - width)
            others = self._counts[start:end].copy()
            others[good[good >= start] - start] = False
            found = np.flatnonzero(others) + start
            if len(found) >= WINDOW or start == 0:
                return found[-WINDOW:]
            width *= 4

    def _make_room(self) -> None:
        rows, columns = self._table.shape
        if len(self._drawn) > rows or len(self._columns) > columns:
            larger = np.full((max(rows, 2 * len(self._drawn)), max(columns, 2 * len(self._columns))), np.nan)
            larger[:rows, :columns] = self._table
            self._table = larger
            self._counts = np.append(self._counts, np.zeros(len(larger) - rows, dtype=bool))


def _parted(groups: Sequence[dict[str, BaseDistribution]], drawn: Drawn) -> list[dict[str, BaseDistribution]]:
    """`groups` after one more trial: each is parted into what the trial has of it and what not; new ones come last."""
    new = {name: distribution for name, distribution in drawn.items() if not any(name in group for group in groups)}
    parts: list[dict[str, BaseDistribution]] = []
    for group in groups:
        parts.append({name: one for name, one in group.items() if name in drawn})
        parts.append({name: one for name, one in group.items() if name not in drawn})
    return [part for part in [*parts, new] if part]


class Tpe(BaseSampler):
    """One ask's sampler over `known`: what is drawn is a function of `known` and `seed`. The study that it is asked for
    is not looked at. Before `startup_trials` are finished it draws at random.
    """

    def __init__(self, known: Observations, *, seed: int, startup_trials: int) -> None:
        self._known = known
        self._rng = np.random.RandomState(seed)
        self._at_random = RandomSampler(seed=seed)
        self._starts = known.finished < startup_trials

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {name: one for group in self._known.groups() for name, one in _free(group).items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        drawn = _Drawn()
        for group in () if self._starts else self._known.groups():
            space = _free(group)
            drawn.defer(space, partial(self._draw, space, self._uniform(space)))
        return drawn

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if self._starts:
            return self._at_random.sample_independent(study, trial, param_name, param_distribution)
        space = {param_name: param_distribution}
        return self._draw(space, self._uniform(space))[param_name]

    def _uniform(self, space: dict[str, BaseDistribution]) -> NDArray[np.float64]:
        """What a draw takes from the generator, whether it will be drawn or not."""
        return self._rng.random_sample(uniforms(len(space)) if space else 0)

    def _draw(self, space: dict[str, BaseDistribution], uniform: NDArray[np.float64]) -> dict[str, Any]:
        """Of some draws from the density of the good trials, the one that is likeliest beside that of the others."""
        if not space:
            return {}
        good, others = self._known.densities(space)
        samples = good.sample(uniform)
        best = np.argmax(good.log(samples) - others.log(samples))
        return {name: one.to_external_repr(samples[name][best].item()) for name, one in space.items()}


class _Drawn(dict[str, Any]):
    """Parameters by group, each group drawn when the first of it is asked for: of most branches of a space none is."""

    def __init__(self) -> None:
        super().__init__()
        self._deferred: dict[str, Callable[[], dict[str, Any]]] = {}

    def defer(self, names: Iterable[str], draw: Callable[[], dict[str, Any]]) -> None:
        self._deferred |= dict.fromkeys(names, draw)

    def __contains__(self, name: object) -> bool:
        return name in self._deferred

    def __missing__(self, name: str) -> Any:
        self.update(self._deferred[name]())
        return self[name]


def _free(group: Drawn) -> dict[str, BaseDistribution]:
    """The parameters of a group that have more than one value, in the order of their names."""
    return {name: group[name] for name in sorted(group) if not group[name].single()}
