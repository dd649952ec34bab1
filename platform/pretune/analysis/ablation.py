"""Which setting matters? One recipe with one factor changed at a time, or a grid, under the same seeds at each level.

An ablation is a sweep that samples nothing: `Experiment.points` holds the changes of each trial, and warm slots,
journal and resume are a sweep's. Trials of one seed see the same images in the same order, the same views and the same
initial weights, so a level is compared with the base seed by seed: what seeds share cancels.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pretune.core.errors import RequestError
from pretune.core.results import SweepResult, TrialResult
from pretune.request import json_text, overrides
from pretune.request.request import with_own_parts
from pretune.request.usercode import checked, with_absolute_kinds
from trainers.changes import value_at, with_changes
from trainers.config import TrialConfig

SPACE = "ablation"
"""What `Experiment.space` says of a sweep that samples nothing."""
SEED = "seed"
Factors = Mapping[str, Sequence[Any]]
Point = dict[str, Any]


def parse(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`["a.b=0,0.1,1"]` as `{"a.b": [0, 0.1, 1]}`; a value is JSON where it parses as JSON, and a string otherwise.

    RequestError where there is no `=`, a path or a value comes twice, or a path is the seed's.
    """
    factors: dict[str, list[Any]] = {}
    for text in texts:
        path, equals, listed = text.partition("=")
        path = path.strip()
        if not equals or not listed.strip() or not path or not all(path.split(".")):
            raise RequestError(
                f"--factor {text!r} must have the form a.b=v1,v2, for example objective.brownian.weight=0,0.1"
            )
        if path in factors:
            raise RequestError(f"--factor {path} is given twice; list all its values behind one '='")
        overrides.check_path(path, spelled="--factor")
        if path == SEED:
            raise RequestError("--factor seed is no factor: each level is run with the same seeds; use --seeds N")
        values = _values(listed, path)
        for position, value in enumerate(values):
            if value in values[:position]:
                raise RequestError(f"--factor {path} has the value {value!r} twice; keep one")
        factors[path] = values
    if not factors:
        raise RequestError("an ablation needs a factor; give one, for example --factor objective.brownian.weight=0,0.1")
    return factors


def points(base: TrialConfig, factors: Factors, *, grid: bool, seeds: int) -> tuple[Point, ...]:
    """The changes of each trial: for each of `seeds` seeds, counted from the base's own, the base and then each level.

    One factor at a time, or with `grid` all combinations. What the base has already is no change, so the base itself
    is run once per seed, listed as a level or not. Seeds come outermost: a part of the ablation compares already.

    RequestError where a path leads nowhere, or a level is no valid config.
    """
    levels = {path: [value for value in values if not _has(base, path, value)] for path, values in factors.items()}
    if grid:
        choices: list[list[Point]] = []
        for path, values in levels.items():
            unchanged: list[Point] = [{}] if len(values) < len(factors[path]) else []
            choices.append(unchanged + [{path: value} for value in values])
        changes = [dict(itertools.chain(*map(dict.items, chosen))) for chosen in itertools.product(*choices)]
    else:
        changes = [{path: value} for path, values in levels.items() for value in values]
    changes = [{}, *(change for change in changes if change)]
    if len(changes) == 1:
        raise RequestError(f"nothing would change: {', '.join(factors)} have these values in the recipe; list others")
    for change in changes:
        _checked(base, change, tried=True)
    return tuple({SEED: base.seed + index, **change} for index in range(seeds) for change in changes)


class Level(BaseModel):
    """One row: `settings` hold the value of each factor, `values` the metric of each seed that was completed."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    settings: dict[str, Any]
    values: dict[int, float]
    seeds: int
    mean: float | None
    std: float | None
    """Standard deviation over seeds; None below two."""
    difference: float | None
    """To the base: mean over the seeds that both have completed. None for the base."""
    difference_stderr: float | None
    """Standard error of that mean, from the std of the paired differences; None below two pairs."""
    pairs: int
    reasons: dict[int, str]
    """Of seeds that ended otherwise: how, and why."""


class Ablation(BaseModel):
    """All levels, the base first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    recipe: str
    metric: str
    levels: tuple[Level, ...]


def collect(result: SweepResult) -> Ablation:
    """The table of an ablation, finished or not, from its trials."""
    wanted = result.experiment.points
    factors = list(dict.fromkeys(path for point in wanted for path in point if path != SEED))
    groups: dict[str, list[tuple[Point, TrialResult | None]]] = {}
    for number, point in enumerate(wanted):
        change = {path: value for path, value in point.items() if path != SEED}
        trial = result.trials[number] if number < len(result.trials) else None
        groups.setdefault(json.dumps(change, sort_keys=True), []).append((point, trial))
    base: dict[int, float] = {}
    levels: list[Level] = []
    for position, members in enumerate(groups.values()):
        values = {
            int(point[SEED]): trial.value for point, trial in members if trial is not None and trial.value is not None
        }
        base = values if position == 0 else base
        config = with_changes(result.experiment.base, members[0][0])
        differences = [value - base[seed] for seed, value in values.items() if seed in base] if position else []
        levels.append(
            Level(
                settings={path: value_at(config, path) for path in factors},
                values=values,
                seeds=len(members),
                mean=statistics.fmean(values.values()) if values else None,
                std=_std(list(values.values())),
                difference=statistics.fmean(differences) if differences else None,
                difference_stderr=_stderr(differences),
                pairs=len(differences),
                reasons={
                    int(point[SEED]): f"{trial.state}: {trial.reason}"
                    for point, trial in members
                    if trial is not None and trial.state not in ("COMPLETE", "WAITING", "RUNNING")
                },
            )
        )
    experiment = result.experiment
    return Ablation(name=result.name, recipe=experiment.recipe, metric=result.metric, levels=tuple(levels))


# --- parts ------------------------------------------------------------------------------------------------------------


def _values(listed: str, path: str) -> list[Any]:
    """`0,0.1` or `rbf,energy` or `[8,16],[32]`: a JSON list's items where it is one, else split at the commas."""
    try:
        return [with_absolute_kinds(path, item, Path.cwd()) for item in json_text.parsed(f"[{listed}]")]
    except json_text.NoJSONError:
        return [overrides.value(text.strip(), path) for text in listed.split(",")]


def _checked(base: TrialConfig, change: Point, *, tried: bool = False) -> TrialConfig:
    """The base with these changes; parts of one's own in it are also `tried` on a few random rows."""
    try:
        config = checked(overrides.apply(base, change), Path.cwd())
        return with_own_parts(config) if tried else config
    except RequestError as error:
        told = ", ".join(f"{path}={value}" for path, value in change.items())
        raise RequestError(f"--factor {told}: {str(error).removeprefix('--set ')}") from error


def _has(base: TrialConfig, path: str, value: Any) -> bool:
    """Whether `base` with this value is `base`: 1 and 1.0 are one value to a config."""
    return _checked(base, {path: value}) == base


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _stderr(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
