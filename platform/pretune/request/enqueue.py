"""A configuration that somebody wants tried next: `path=v …` on top of what a sweep varies, checked completely.

What is named by a parameter of the space is a point of it, if all its parameters are in their ranges; those that are
not named are as in the sweep's base. Then the sampler learns from it. Anything else is a change of the base by path, as
with `--set`: it runs beside the space, and the sampler never sees it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pretune.core import metrics
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.messages import in_words
from pretune.core.parameters import GivenTrial, flat, labels, written
from pretune.core.records import Enqueued
from pretune.core.requests import new_id
from pretune.core.search import Space, called, completed
from pretune.request import overrides, request
from trainers.arrival import arriving
from trainers.changes import value_at
from trainers.config import TrialConfig

DATA = ("data.path", "data.manifest")
"""All trials of a sweep are of one data set."""


@dataclass(frozen=True)
class Checked:
    """What is handed in. `outside` says why it is no point of the space; empty where it is one."""

    record: Enqueued
    config: TrialConfig
    outside: str


def why_not(experiment: Experiment) -> str:
    """Why nothing can be handed in to a sweep; empty where it can."""
    if not experiment.points:
        return ""
    return (
        f"sweep {experiment.name!r} is an ablation, whose trials are levels and seeds that were named beforehand; run "
        "another `pretune ablate`"
    )


def check(experiment: Experiment, space: Space, assignments: Sequence[str]) -> Checked:
    """`assignments` as a configuration that the sweep's workers can run. RequestError where it is none, with what,
    rule, value and remedy.
    """
    try:
        return _checked(experiment, space, assignments)
    except RequestError as error:  # a path is named by itself here
        raise RequestError(str(error).replace("--set ", "")) from error


def _checked(experiment: Experiment, space: Space, assignments: Sequence[str]) -> Checked:
    typed = overrides.parse(assignments)
    for path in DATA:
        if path in typed:
            raise RequestError(f"{path} must stay the sweep's, as its trials would not compare; run another sweep")
    if "compile" in typed:  # somebody wants it so, whatever is fastest
        experiment = experiment.model_copy(update={"fastest": None})
    given = _Given(typed, experiment.base)
    point, outside = _point(experiment, space, given)
    config = point if point is not None else _changed(experiment, typed)
    metrics.check(experiment.metric, [config], spelled="the sweep's metric")
    dataset = request.open_data(config.data.path, expected_hash=config.data.manifest)
    request.check_data(config, dataset)
    record = Enqueued(
        request=new_id(),
        config=config.model_dump(mode="json"),
        params={} if point is None else given.told,
        distributions={} if point is None else given.drawn_from,
    )
    return Checked(record, config, outside)


class _OutsideError(Exception):
    """A parameter has no value that the space would draw."""


class _Given(GivenTrial):
    """The trial that a space asks for what was typed, and for the base's values of what was not."""

    def __init__(self, typed: Mapping[str, Any], base: TrialConfig) -> None:
        super().__init__({})
        self._typed, self._base = typed, base
        self.used: dict[str, str] = {}
        """By each parameter that was typed, what the space draws it from."""
        self.missing: tuple[str, str] | None = None
        self.told: dict[str, Any] = {}
        self.drawn_from: dict[str, str] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return float(self._numeric(name, FloatDistribution(low, high, log=log, step=step)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return int(self._numeric(name, IntDistribution(low, high, log=log, step=step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        choices = tuple(choices)
        told = labels(choices)
        flats = [flat(label) for label in told]
        # The kind too: 1 is not True, and 1.0 is 1.
        known = [(isinstance(one, bool), one) for one in flats]
        value = flat(self._value(name, " | ".join(map(str, flats))))
        if (isinstance(value, bool), value) not in known:
            self._leave(name, value)
        position = known.index((isinstance(value, bool), value))
        self._keep(name, choices[position], told[position], CategoricalDistribution(flats), told)
        return choices[position]

    def _numeric(self, name: str, distribution: FloatDistribution | IntDistribution) -> Any:
        if name in self._asked:
            return self._asked[name]
        step = "" if distribution.step in (None, 1) else f" in steps of {distribution.step:g}"
        value = self._value(name, f"{distribution.low:g} to {distribution.high:g}{step}")
        whole = isinstance(distribution, IntDistribution)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or (whole and value != int(value)) or not distribution._contains(float(value)):
            self._leave(name, value)
        value = int(value) if whole else float(value)
        self._keep(name, value, value, distribution)
        return value

    def _value(self, name: str, described: str) -> Any:
        if name in self._typed:
            self.used[name] = described
            return self._typed[name]
        self.missing = name, described
        try:
            return value_at(self._base, name)
        except ValueError:
            return None

    def _leave(self, name: str, value: Any) -> None:
        if name in self._typed:
            self.missing = None
            raise _OutsideError(f"{name} is {value}, which is not within the space's {self.used[name]}")
        assert self.missing is not None
        raise _OutsideError(
            f"{name} is not named, and what the sweep's base has there is not within the space's {self.missing[1]}"
        )

    def _keep(
        self, name: str, value: Any, label: Any, distribution: BaseDistribution, told: Sequence[Any] = ()
    ) -> None:
        self.missing = None
        self._asked[name], self.told[name] = value, label
        self.drawn_from[name] = written(distribution, told)


def _point(experiment: Experiment, space: Space, given: _Given) -> tuple[TrialConfig | None, str]:
    """The space's config for what was typed; None, and why, where that is no point of it."""
    typed, base = given._typed, experiment.base
    try:
        config = called(space, given, base)
        if not isinstance(config, TrialConfig):
            raise RequestError(f"space {experiment.space!r} must return a TrialConfig, but returned {config!r}")
        foreign = [path for path in typed if path not in given.used]
        if foreign:
            return None, f"{', '.join(foreign)} is not a parameter of space {experiment.space!r}"
        return completed(arriving(config), experiment), ""
    except _OutsideError as error:
        named_otherwise = [name for name in given.used if not _is_path(base, name)]
        if given.missing is not None and given.used:
            name, described = given.missing
            raise RequestError(
                f"space {experiment.space!r} has a parameter {name} beside {', '.join(given.used)}, of which the "
                f"sweep's base has no value in its range; give it, too: {name}=… ({described})"
            ) from error
        if named_otherwise:
            raise RequestError(
                f"{error}; a value outside of it can be given by the path of a setting (`pretune show SWEEP TRIAL` has "
                "them all)"
            ) from error
        return None, str(error)
    except (optuna.TrialPruned, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"space {experiment.space!r} refuses {given.params}: {in_words(error)}") from error


def _is_path(base: TrialConfig, name: str) -> bool:
    try:
        return value_at(base, name) is not None
    except ValueError:
        return False


def _changed(experiment: Experiment, typed: Mapping[str, Any]) -> TrialConfig:
    """The base with these changes, whatever the space is."""
    config = request.with_own_parts(overrides.apply(experiment.base, typed))
    try:
        return completed(config, experiment)
    except ValueError as error:
        raise RequestError(in_words(error)) from error
