"""Which setting matters? One recipe with one factor changed at a time, or a grid, under the same seeds at each level.

An ablation is a sweep that samples nothing: `Experiment.points` holds the changes of each trial, and warm slots,
journal and resume are a sweep's. Trials of one seed see the same images in the same order, the same views and the same
initial weights, so a level is compared with the base seed by seed: what seeds share cancels.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from pretune.analysis.statistics import bootstrap as resampled
from pretune.analysis.statistics import contrasts, more_seeds
from pretune.core import evidence
from pretune.core.choices import Direction
from pretune.core.design import Design, derived
from pretune.core.evidence import Standing
from pretune.core.outcomes import Outcomes, Places
from pretune.core.results import SweepResult, TrialResult
from trainers.changes import value_at, with_changes
from trainers.config import TrialConfig

SPACE = "ablation"
"""What `Experiment.space` says of a sweep that samples nothing."""
BUDGETS = ("budget/views", "budget/seconds")

Interval = tuple[float, float]


class Level(BaseModel):
    """One row: `settings` hold the value of each factor, `values` the metric of each seed that was completed."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    name: str = ""
    """As it was typed; empty where the settings say it all."""
    settings: dict[str, Any]
    cell: dict[str, str] = {}
    """In a grid, its level of each factor."""
    values: dict[int, float]
    seeds: int
    """So many trials it has, or will have."""
    mean: float | None
    std: float | None
    """Standard deviation over seeds; None below two."""
    mean_interval: Interval | None = None
    """95 %, Student's, over seeds."""
    difference: float | None
    """To the base: mean over the seeds that both have completed. None for the base."""
    difference_stderr: float | None
    """Standard error of that mean, from the std of the paired differences; None below two pairs."""
    pairs: int
    interval: Interval | None = None
    """95 % of the difference, Student's; None where the differences have no spread."""
    bootstrap: Interval | None = None
    """95 % of the difference, bootstrapped over pairs; None below three, and where it was not asked for."""
    p: float | None = None
    """Of the difference at the last look, adjusted for looks and for the number of comparisons."""
    finding: evidence.Finding | None = None
    """None for the base and for what cannot be compared."""
    more_seeds: int | None = None
    """About so many would decide."""
    budget: dict[str, float] = {}
    """Mean views and seconds of training of a completed trial."""
    reasons: dict[int, str]
    """Of seeds that ended otherwise: how, and why."""
    refused: str = ""
    """Why it could not be built at all."""

    @property
    def verdict(self) -> str:
        """In words; empty where there is nothing to compare."""
        if self.finding is None:
            return ""
        return self.finding + (f" (about {self.more_seeds} more)" if self.more_seeds is not None else "")


class Effect(BaseModel):
    """A main effect of a grid, or an interaction of two: by how much, over seeds that all cells have completed."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    levels: dict[str, str]
    against: dict[str, str]
    difference: float
    interval: Interval | None
    p: float | None
    """Adjusted for looks and for the number of effects."""
    seeds: int


class Ablation(BaseModel):
    """All levels, the base first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    recipe: str
    metric: str
    direction: Direction = "maximize"
    levels: tuple[Level, ...]
    effects: tuple[Effect, ...] = ()
    smallest_effect: float | None = None
    """The smallest difference worth having; None where it is not known yet."""
    looks: tuple[int, ...] = ()
    """After how many seeds a comparison is judged."""
    notes: tuple[str, ...] = ()
    """What keeps it from saying more."""


def collect(result: SweepResult, *, bootstrap: bool = False) -> Ablation:
    """The table of an ablation, finished or not, from its trials; `bootstrap` intervals take a second."""
    experiment = result.experiment
    design = experiment.design or derived(experiment.points)
    trials = _by_place(result, design)
    outcomes = Outcomes(
        design, experiment.base.seed, {place: one.value for place, one in trials.items() if _has_ended(one)}
    )
    judged = evidence.standings(outcomes, metric=result.metric, maximize=experiment.maximize)
    worth = evidence.smallest_effect(outcomes, result.metric)
    effects, notes = _effects(outcomes)
    if not outcomes.values(0) and outcomes.has_ended(0, design.seeds):
        notes = ["the base has no value with any seed: there is nothing to compare with", *notes]
    return Ablation(
        name=result.name,
        recipe=experiment.recipe,
        metric=result.metric,
        direction=experiment.direction,
        levels=tuple(
            _level(at, outcomes, trials, experiment.base, judged.get(at), worth, bootstrap=bootstrap)
            for at in range(len(design.levels))
        ),
        effects=tuple(effects),
        smallest_effect=worth,
        looks=design.looks,
        notes=tuple(notes),
    )


# --- parts ------------------------------------------------------------------------------------------------------------


def _by_place(result: SweepResult, design: Design) -> dict[tuple[int, int], TrialResult]:
    """The trials by level and seed."""
    places = Places(design)
    if design.max_seeds is None:  # the points in their order
        return {places.of(point): one for point, one in zip(result.experiment.points, result.trials, strict=False)}
    return {places.of(one.params): one for one in result.trials}


def _has_ended(trial: TrialResult) -> bool:
    return trial.state not in ("WAITING", "RUNNING")


def _level(
    at: int,
    outcomes: Outcomes,
    trials: Mapping[tuple[int, int], TrialResult],
    base: TrialConfig,
    standing: Standing | None,
    worth: float | None,
    *,
    bootstrap: bool,
) -> Level:
    design = outcomes.design
    level = design.levels[at]
    own = {seed: one for (level_at, seed), one in trials.items() if level_at == at}
    values = outcomes.values(at)
    found = evidence.paired(list(outcomes.differences(at).values())) if at else None
    over_seeds = evidence.paired(list(values.values()))
    ended = all(map(_has_ended, own.values()))
    compares = standing is not None and not (ended and own and not values) and bool(outcomes.values(0) or not ended)
    paths = dict.fromkeys(path for one in design.levels for path in one.changes)
    more = None
    if compares and standing is not None and standing.finding == "not enough seeds":
        later = [look for look in design.looks if look > standing.look]
        missing = 0
        if not standing.look or (later and len(own) > standing.look):  # the next look is on its way
            missing = later[0] - sum(map(_has_ended, own.values()))
        comparisons = sum(not one.refused for one in design.levels) - 1
        more = max(missing, more_seeds(found, worth=worth, comparisons=comparisons))
    return Level(
        name=level.name,
        settings=_settings(base, level.changes, paths, refused=bool(level.refused)),
        cell=level.cell,
        values=values,
        seeds=0 if level.refused else max(design.seeds, len(own)),
        mean=statistics.fmean(values.values()) if values else None,
        std=statistics.stdev(values.values()) if len(values) > 1 else None,
        mean_interval=None if over_seeds is None else over_seeds.interval,
        difference=None if found is None else found.mean,
        difference_stderr=None if found is None or found.std is None else found.std / found.count**0.5,
        pairs=0 if found is None else found.count,
        interval=None if found is None else found.interval,
        bootstrap=resampled(list(outcomes.differences(at).values())) if bootstrap and at else None,
        p=standing.p if standing is not None and compares else None,
        finding=standing.finding if standing is not None and compares else None,
        more_seeds=more,
        budget=_budget([one for one in own.values() if one.value is not None]),
        reasons={
            seed: f"{one.state}: {one.reason}"
            for seed, one in own.items()
            if _has_ended(one) and one.state != "COMPLETE"
        },
        refused=level.refused,
    )


def _settings(base: TrialConfig, changes: Mapping[str, Any], paths: Iterable[str], *, refused: bool) -> dict[str, Any]:
    """The value of each path that some level changes; of what cannot be built, those that it was to have."""
    config = base if refused else with_changes(base, changes)
    found: dict[str, Any] = {}
    for path in paths:
        try:
            found[path] = changes[path] if refused and path in changes else value_at(config, path)
        except ValueError:  # its kind has nothing there
            found[path] = None
    return found


def _budget(trials: Sequence[TrialResult]) -> dict[str, float]:
    return {
        name: statistics.fmean(one.last_metrics[name] for one in trials)
        for name in BUDGETS
        if trials and all(name in one.last_metrics for one in trials)
    }


def _effects(outcomes: Outcomes) -> tuple[list[Effect], list[str]]:
    """Main effects and interactions of a grid; and why there are none."""
    design = outcomes.design
    cells = {at: level.cell for at, level in enumerate(design.levels) if level.cell}
    if not cells:
        return [], []
    factors: dict[str, list[str]] = {}
    for cell in cells.values():
        for factor, label in cell.items():
            if label not in factors.setdefault(factor, []):
                factors[factor].append(label)

    def after(seeds: int | None) -> list[evidence.Paired | None]:
        values = {tuple(cell.values()): outcomes.values(at, first=seeds) for at, cell in cells.items()}
        return [evidence.paired(one.differences) for one in contrasts(factors, values)]

    now = after(None)
    if not now or now[0] is None:
        return [], ["main effects and interactions need a seed with which every cell of the grid was completed"]
    done = [look for look in design.looks if all(outcomes.has_ended(at, look) for at in cells)]
    seen = [after(look) for look in done]
    adjusted = evidence.holm(
        [
            evidence.sequential([None if (then := one[at]) is None else then.p for one in seen], design.looks)
            for at in range(len(now))
        ]
    )
    every = contrasts(factors, {tuple(cell.values()): {} for cell in cells.values()})
    return [
        Effect(
            levels=dict(one.levels),
            against=dict(one.against),
            difference=found.mean,
            interval=found.interval,
            p=p,
            seeds=found.count,
        )
        for one, found, p in zip(every, now, adjusted, strict=True)
        if found is not None
    ], []
