"""Which setting matters? One recipe with one factor changed at a time, or a grid, under the same seeds at each level.

An ablation is a sweep that samples nothing: `Experiment.points` holds the changes of each trial, and warm slots,
journal and resume are a sweep's. Trials of one seed see the same images in the same order, the same views and the same
initial weights, so a level is compared with the base seed by seed: the spread that seeds share cancels.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pretune import figures, overrides
from pretune.messages import RequestError
from pretune.results import SweepResult, TrialResult
from trainers import storage
from trainers.changes import value_at, with_changes
from trainers.config import TrialConfig

if TYPE_CHECKING:
    import optuna

SPACE = "ablation"
"""What `Experiment.space` says of a sweep that samples nothing."""
SEED = "seed"
FILES = ("ablation.md", "ablation.json")
LEGEND = (
    "spread: standard deviation over seeds. to base: mean difference over pairs of equal seeds (same order, views and "
    "initial weights) ± its standard error. No trial is stopped early."
)

Factors = Mapping[str, Sequence[Any]]
Point = dict[str, Any]


def unvaried(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    """The space of an ablation."""
    return base


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
        if path == SEED:
            raise RequestError("--factor seed is no factor: each level is run with the same seeds; use --seeds N")
        values = _values(listed)
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
        _checked(base, change)
    return tuple({SEED: base.seed + index, **change} for index in range(seeds) for change in changes)


class Level(BaseModel):
    """One row: `settings` hold the value of each factor, `values` the metric of each seed that was completed."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    settings: dict[str, Any]
    values: dict[int, float]
    seeds: int
    mean: float | None
    spread: float | None
    """Standard deviation over seeds; None below two."""
    difference: float | None
    """To the base: mean over the seeds that both have completed. None for the base."""
    difference_stderr: float | None
    """Standard error of that mean, from the spread of the paired differences; None below two pairs."""
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
                spread=_spread(list(values.values())),
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


def table(ablation: Ablation) -> RenderableType:
    """The levels for a terminal: mean, spread over seeds, paired difference to the base."""
    head, rows = _cells(ablation)
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in head:
        shown.add_column(name, justify="left" if name == "level" else "right", overflow="fold", no_wrap=name != "level")
    for position, row in enumerate(rows):
        shown.add_row(*row, style="bold" if position == 0 else "")
    parts: list[RenderableType] = [shown, Text(LEGEND, style="dim")]
    parts += [Text(line, style="yellow") for line in _remarks(ablation)]
    return Group(*parts)


def markdown(ablation: Ablation) -> str:
    """The same table in Markdown, for a paper's draft or an issue."""
    head, rows = _cells(ablation)
    lines = [f"# {ablation.name}", "", f"Recipe: {ablation.recipe}", ""]
    lines += [_markdown_row(head), _markdown_row([":--", *["--:"] * (len(head) - 1)]), *map(_markdown_row, rows)]
    lines += ["", LEGEND]
    lines += ["", *(f"* {line}" for line in _remarks(ablation))] if _remarks(ablation) else []
    return "\n".join(lines) + "\n"


def files(result: SweepResult) -> list[Path]:
    """Where the table lies, as Markdown and as JSON, once a driver has left the ablation in order."""
    return [result.folder / name for name in FILES]


def write(result: SweepResult) -> None:
    """Writes the `files`, each aside and renamed; with a storage URI there as well."""
    found = collect(result)
    contents = (markdown(found), found.model_dump_json(indent=2) + "\n")
    for path, content in zip(files(result), contents, strict=True):
        aside = path.with_suffix(path.suffix + ".part")
        with aside.open("w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        if result.remote is not None:
            storage.write(storage.join(result.remote, path.name), content.encode())


# --- parts ------------------------------------------------------------------------------------------------------------


def _values(listed: str) -> list[Any]:
    """`0,0.1` or `rbf,energy` or `[8,16],[32]`: a JSON list's items where it is one, else split at the commas."""
    try:
        return list(json.loads(f"[{listed}]"))
    except json.JSONDecodeError:
        return [overrides.value(text.strip()) for text in listed.split(",")]


def _checked(base: TrialConfig, change: Point) -> TrialConfig:
    try:
        return overrides.apply(base, change)
    except RequestError as error:
        told = ", ".join(f"{path}={value}" for path, value in change.items())
        raise RequestError(f"--factor {told}: {str(error).removeprefix('--set ')}") from error


def _has(base: TrialConfig, path: str, value: Any) -> bool:
    """Whether `base` with this value is `base`: 1 and 1.0 are one value to a config."""
    return _checked(base, {path: value}) == base


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _stderr(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _cells(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    head = ["level", "seeds", ablation.metric, "spread", "to base", "pairs"]
    rows: list[list[str]] = []
    for position, level in enumerate(ablation.levels):
        done = str(level.seeds) if len(level.values) == level.seeds else f"{len(level.values)} of {level.seeds}"
        rows.append(
            [
                _name(ablation, level),
                done,
                "–" if level.mean is None else f"{level.mean:.3f}",
                "–" if level.spread is None else f"{level.spread:.3f}",
                "" if position == 0 else _difference(level),
                "" if position == 0 else str(level.pairs),
            ]
        )
    return head, rows


def _name(ablation: Ablation, level: Level) -> str:
    """`brownian.weight=0`: what differs from the base; of the base, its values of all factors."""
    base = ablation.levels[0]
    names = figures.short_names(base.settings)
    if level is base:
        return f"base: {figures.parameters(base.settings, names)}"
    changed = {path: value for path, value in level.settings.items() if value != base.settings[path]}
    return " ".join(f"{names[path]}={figures.number(value)}" for path, value in changed.items())


def _difference(level: Level) -> str:
    if level.difference is None:
        return "–"
    error = "" if level.difference_stderr is None else f" ± {level.difference_stderr:.3f}"
    return f"{level.difference:+.3f}{error}"


def _remarks(ablation: Ablation) -> list[str]:
    return [
        f"{_name(ablation, level)}, seed {seed}, is not counted: {reason}"
        for level in ablation.levels
        for seed, reason in level.reasons.items()
    ]


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
