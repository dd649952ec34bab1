"""The points of a finite space: which were tried, which are left, and a sampler that tries each one once.

A space is a tree: each node asks for a parameter, each value of it leads on. `Tree` grows with the trials of a sweep
and knows at each node how many ways on are left, so that an ask costs what its own path costs. `Grid` decides as
Optuna's `BruteForceSampler` does with the same seed, which makes the whole tree anew at each draw.
"""

from __future__ import annotations

import decimal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from pretune.core.errors import RequestError

Drawn = Mapping[str, BaseDistribution]
_Values = tuple[float, ...]


@dataclass(slots=True)
class _Node:
    """A parameter with a branch for each of its values, None where none was taken. Without `branches` nobody has gone
    on from here: a trial that `running` counts is here, or a trial ended here (`over`).
    """

    name: str | None = None
    branches: dict[float, _Node | None] | None = None
    running: int = 0
    over: bool = False
    left: int = 1
    """How many ways on are left below: branches that nobody took. What runs is none."""

    def count(self) -> None:
        """Brings `left` up to date after a change below."""
        if self.branches is not None:
            self.left = sum(1 if branch is None else branch.left for branch in self.branches.values())
        else:
            self.left = int(not self.over and not self.running)


class Tree:
    """The points that the trials of a sweep have tried, by their parameters in the order in which they were asked for.

    `problem` says where two trials contradict each other: from the same values on they asked for other things.
    """

    def __init__(self) -> None:
        self._root = _Node()
        self.problem: str | None = None

    def add(self, params: Mapping[str, Any], drawn: Drawn) -> None:
        """A trial that runs."""
        self._change(params, drawn, over=False)

    def end(self, params: Mapping[str, Any], drawn: Drawn) -> None:
        """It is over, however it ended."""
        self._change(params, drawn, over=True)

    def branches(
        self, params: Mapping[str, Any], drawn: Drawn, name: str, values: _Values
    ) -> dict[float, tuple[int, bool]]:
        """Where a trial that has drawn `params` asks for `name`: by value how many ways on are left behind it, and
        whether a trial runs right there.

        ValueError where that contradicts what earlier trials asked for.
        """
        if self.problem is not None:
            raise ValueError(self.problem)
        node: _Node | None = self._root
        for earlier, distribution in drawn.items():
            node = (
                None
                if node is None or node.branches is None
                else node.branches.get(_value(distribution, params[earlier]))
            )
        if node is None or (node.branches is None and not node.over):
            return dict.fromkeys(values, (1, False))
        _check(node, name, values)
        assert node.branches is not None
        return {
            value: (1, False) if branch is None else (branch.left, branch.running > 0)
            for value, branch in node.branches.items()
        }

    def _change(self, params: Mapping[str, Any], drawn: Drawn, *, over: bool) -> None:
        if self.problem is not None:
            return
        path = [self._root]
        try:
            if self._walk(path, params, drawn):
                path[-1].running += -1 if over else 1
                if over:
                    _check(path[-1], None, ())
                    path[-1].over = True
        except ValueError as error:
            self.problem = str(error)
        for node in reversed(path):
            node.count()

    def _walk(self, path: list[_Node], params: Mapping[str, Any], drawn: Drawn) -> bool:
        """Goes the trial's way from the root, `path` taking down each node; False where it leaves the grid, as a value
        that was not drawn from it does.
        """
        for name, distribution in drawn.items():
            node, values = path[-1], candidates(distribution)
            if node.branches is None and not node.over:
                node.name, node.branches = name, dict.fromkeys(values)
            _check(node, name, values)
            assert node.branches is not None
            value = _value(distribution, params[name])
            if value not in node.branches:
                return False
            path.append(node.branches[value] or _Node())
            node.branches[value] = path[-1]
        return True


class Grid(BaseSampler):
    """One ask's sampler over `tree`: a point that was neither tried nor runs, if one is left. The study that it is
    asked for is not looked at.
    """

    def __init__(self, tree: Tree, *, seed: int) -> None:
        self._tree = tree
        self._rng = np.random.RandomState(seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        refuse_continuous(param_name, param_distribution)
        try:
            values = candidates(param_distribution)
            branches = self._tree.branches(trial.params, trial.distributions, param_name, values)
        except ValueError as error:
            raise RequestError(
                f"sampler 'grid' needs a space that asks for the same parameters, from the same values, wherever those "
                f"before have the same values, but {param_name!r} does not ({error}); make it a function of the trial"
            ) from error
        return param_distribution.to_external_repr(self._choose(branches))

    def _choose(self, branches: Mapping[float, tuple[int, bool]]) -> float:
        """Half by how much is left behind each value, half evenly, so that no narrow branch starves."""
        left = np.array([count for count, _ in branches.values()], dtype=float)
        if not left.any():
            return float(self._rng.choice(list(branches)))
        even = np.where(left > 0, 1.0, 0.0)
        weights = 0.5 * (left / left.sum()) + 0.5 * (even / even.sum())
        running = np.array([here for _, here in branches.values()])
        if (weights[~running] > 0).any():
            weights[running] = 0.0
        weights /= weights.sum()
        return float(self._rng.choice(list(branches), p=weights))


@lru_cache(maxsize=1024)
def candidates(distribution: BaseDistribution) -> _Values:
    """All values of a distribution, as Optuna's internal numbers. ValueError where there is no end of them."""
    if isinstance(distribution, CategoricalDistribution):
        return tuple(range(len(distribution.choices)))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if isinstance(distribution, IntDistribution):
        return tuple(range(distribution.low, distribution.high + 1, distribution.step))
    if distribution.single():
        return (distribution.low,)
    if distribution.step is None:
        raise ValueError(f"it is continuous, from {distribution.low:g} to {distribution.high:g}")
    # In decimals: 0.1 three times is 0.3.
    value, high, step = (decimal.Decimal(str(one)) for one in (distribution.low, distribution.high, distribution.step))
    found: list[float] = []
    while value <= high:
        found.append(float(value))
        value += step
    return tuple(found)


def refuse_continuous(name: str, distribution: BaseDistribution) -> None:
    """RequestError, with the parameter's name, where a distribution has no end of values."""
    if isinstance(distribution, FloatDistribution) and distribution.step is None and not distribution.single():
        raise RequestError(
            f"sampler 'grid' needs finitely many points, but parameter {name!r} is continuous "
            f"({distribution.low:g} to {distribution.high:g} without a step); give it a step, or choose from a list of "
            f"values, or use --sampler tpe"
        )


def _value(distribution: BaseDistribution, external: Any) -> float:
    return distribution.to_internal_repr(external)


def _check(node: _Node, name: str | None, values: Sequence[float]) -> None:
    before = tuple(node.branches or ())
    if node.name != name:
        raise ValueError(f"{_asked(node.name)} before, {_asked(name)} now")
    if before != tuple(values):
        raise ValueError(f"{name!r} was one of {list(before)} before, and is one of {list(values)} now")


def _asked(name: str | None) -> str:
    return "nothing was asked for" if name is None else f"{name!r} was asked for"
