"""A sweep as a report tells it: each trial's curve, what it all cost, what it was made with, where its rungs lie.

One pass through the journal, each epoch read once, so that ten thousand trials take seconds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from pretune.analysis import evaluated, finalize, importance, measured
from pretune.analysis.evaluated import Evaluated
from pretune.analysis.forecast import AgainstFact, against_fact
from pretune.analysis.importance import Importance
from pretune.core import journal
from pretune.core.experiment import Experiment
from pretune.core.history import History, TrialHistory
from pretune.core.records import Attempt, Ended, Opened, Resumed, Started
from pretune.core.results import SweepResult
from trainers.config import TrialConfig

MEMORY = {
    "memory/host_peak_bytes": "peak of a worker's memory",
    "memory/gpu_peak_bytes": "peak of a GPU's memory",
    "memory/slot_bytes": "a slot's memory beside its workers",
}
"""What may be measured of memory, by metric, and in words."""
_TIMES = ("time/epoch_s", "time/probe_s", "time/group_start_s")


@dataclass(frozen=True)
class Curve:
    """The searched metric of one trial, by epoch."""

    trial: int
    epochs: tuple[int, ...]
    values: tuple[float, ...]
    stderr: float | None
    """Standard error of the last value."""


@dataclass(frozen=True)
class Cost:
    """Seconds, summed over all trials; `wall` over all drivers. `slots` is the most trials that ran at once.

    `other` is the rest of slots x wall: waiting for a trial, for other workers, and for storage.
    """

    wall: float
    slots: int
    training: float
    probing: float
    starting: float
    memory: Mapping[str, float]
    """The most of each kind of `MEMORY` that was measured, in bytes."""

    @property
    def whole(self) -> float:
        """Slot-seconds."""
        return max(self.wall * self.slots, self.training + self.probing + self.starting)

    @property
    def other(self) -> float:
        return self.whole - self.training - self.probing - self.starting


class Setting(NamedTuple):
    """One setting of a config, where two or more differ; `values` in their order, None where one lacks it."""

    path: str
    values: tuple[Any, ...]


class Axis(NamedTuple):
    """Where the values of one parameter lie: a range, the widest of all trials, or choices as text."""

    low: float
    high: float
    logarithmic: bool
    choices: tuple[str, ...] = ()

    def place(self, value: Any) -> float:
        """From 0 to 1, in the axis' own scale."""
        if self.choices:
            return self.choices.index(as_text(value)) / max(1, len(self.choices) - 1)
        low, high, at = (math.log(one) if self.logarithmic else float(one) for one in (self.low, self.high, value))
        return 0.5 if high == low else (at - low) / (high - low)

    def value(self, place: float) -> float:
        """The number at a place of a range."""
        if not self.logarithmic:
            return self.low + place * (self.high - self.low)
        return math.exp(math.log(self.low) + place * (math.log(self.high) - math.log(self.low)))


@dataclass(frozen=True)
class Account:
    """What a report says of one sweep."""

    result: SweepResult
    curves: Mapping[int, Curve]
    ended: tuple[int, ...]
    """Trials in the order in which they ended, without those that were not run again."""
    rungs: tuple[float, ...]
    """Epochs at which weak trials are stopped; none where the budget is not in epochs or nothing is stopped."""
    cost: Cost
    importance: Importance
    axes: Mapping[str, Axis]
    """What each parameter was drawn from, over all trials."""
    command: str | None
    versions: Mapping[str, str]
    sources: Mapping[str, str]
    machine: str
    journal_sha256: str
    begun: float | None
    """Unix seconds of the first record; None in journals without times."""
    changed: tuple[Setting, ...]
    """Where the winner's config differs from the base: (path, (base, winner))."""
    final: Mapping[str, float]
    """What `pretune finalize` first read of the report split; empty before."""
    forecast: AgainstFact | None
    """What it was said to take, and what it took; None where nothing was said."""
    evaluations: tuple[Evaluated, ...] = ()
    """What protocols say of its checkpoints."""


def of(result: SweepResult, *, seed: int = 0) -> Account:
    """Reads the journal of `result` once more, epochs and times too. RequestError where it is damaged."""
    history, opened = History(), None
    running: set[int] = set()
    ended: dict[int, None] = {}
    slots = 0
    with journal.reading(result.folder, remote=result.remote) as records:
        for record in records:
            if isinstance(record, Opened | Resumed):
                running.clear()
                opened = record if isinstance(record, Opened) else opened
            if isinstance(record, Started):
                running.add(record.number)
                slots = max(slots, len(running))
            elif isinstance(record, Ended | Attempt):
                running.discard(record.number)
            if isinstance(record, Ended) and record.result_of is None:
                ended.pop(record.number, None)  # one that was made longer ends again
                ended[record.number] = None
            # What contradicts the others was told or refused when the result was read.
            with suppress(ValueError):
                history.apply(record)
        assert opened is not None, "the result was read from it"
        wanted = {result.metric, f"{result.metric}_stderr", *_TIMES, *MEMORY}
        epochs = {
            trial.number: {epoch: _only(wanted, trial.epochs[epoch]) for epoch in sorted(trial.epochs)}
            for trial in history.trials
        }
        for trial in history.trials:  # from here on nothing is on the disk
            trial.epochs = dict(epochs[trial.number])
    experiment = result.experiment
    curves = {number: _curve(number, of_trial, result.metric) for number, of_trial in epochs.items()}
    winner = result.winner
    return Account(
        result=result,
        curves={number: curve for number, curve in curves.items() if curve.epochs},
        ended=tuple(number for number in ended if number < len(result.trials)),  # others came since it was read
        rungs=_rungs(experiment),
        cost=_cost(history.trials, epochs, history.seconds, slots),
        importance=importance.evaluate(experiment, [] if experiment.points else history.trials, seed=seed),
        axes={} if experiment.points else _axes(history.trials),
        command=measured.command(result.folder),
        versions=opened.versions,
        sources=opened.sources,
        machine=", ".join(opened.host[name] for name in ("system", "machine") if name in opened.host),
        journal_sha256=hashlib.sha256((result.folder / journal.FILE).read_bytes()).hexdigest(),
        begun=opened.time or None,
        changed=()
        if winner is None or winner.config is None
        else differences([experiment.base.model_dump(mode="json"), as_today(winner.config)]),
        final=_final(result),
        forecast=against_fact(result),
        evaluations=evaluated.of(result),
    )


def as_today(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config with today's names and defaults, so that it compares with another; as it is where it is none of
    this version's.
    """
    try:
        return TrialConfig.model_validate(config).model_dump(mode="json")
    except ValueError:
        return dict(config)


def config_sha256(config: Mapping[str, Any]) -> str:
    """Of the config as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def differences(configs: Sequence[Mapping[str, Any]]) -> tuple[Setting, ...]:
    """Where `configs` are not all equal, by dotted path, in their own order."""
    flat = [dict(_leaves(config, "")) for config in configs]
    paths = dict.fromkeys(path for one in flat for path in one)
    found = [Setting(path, tuple(one.get(path) for one in flat)) for path in paths]
    return tuple(setting for setting in found if any(value != setting.values[0] for value in setting.values[1:]))


def interval(value: float, stderr: float | None) -> tuple[float, float] | None:
    """The 95 % interval of a value by its standard error, None without one."""
    if stderr is None or not math.isfinite(stderr):
        return None
    return value - 1.96 * stderr, value + 1.96 * stderr


# --- parts ------------------------------------------------------------------------------------------------------------


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Lists of plain values are leaves: a list of widths is one setting."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for position, item in enumerate(value):
            yield from _leaves(item, f"{path}.{position}")
    else:
        yield path, value


def _final(result: SweepResult) -> Mapping[str, float]:
    path = result.reads_file
    if not path.is_file():
        return {}
    try:
        reads = finalize.ReportReads.model_validate_json(path.read_bytes()).reads
    except ValueError:  # of another version, or damaged: `pretune finalize` says which
        return {}
    return reads[0].metrics if reads else {}


def _only(wanted: Collection[str], metrics: Mapping[str, float]) -> dict[str, float]:
    """Of one epoch; of ten thousand trials all numbers would not fit."""
    return {name: value for name, value in metrics.items() if name in wanted}


def _curve(number: int, epochs: Mapping[int, Mapping[str, float]], metric: str) -> Curve:
    told = {epoch: metrics for epoch, metrics in epochs.items() if metric in metrics}
    last = told[max(told)] if told else {}
    return Curve(
        trial=number,
        epochs=tuple(told),
        values=tuple(metrics[metric] for metrics in told.values()),
        stderr=last.get(f"{metric}_stderr"),
    )


def _rungs(experiment: Experiment) -> tuple[float, ...]:
    rule = experiment.stopping
    if experiment.points or not rule.enabled or rule.kind != "asha" or experiment.budget != "epochs":
        return ()
    level = rule.grace or float(experiment.grace_epochs)
    last = experiment.base.schedule.last_epoch_before_decay(experiment.base.epochs)
    found = []
    while level <= last:
        found.append(level)
        level *= rule.reduction_factor
    return tuple(found)


def _cost(
    trials: Sequence[TrialHistory], epochs: Mapping[int, Mapping[int, Mapping[str, float]]], wall: float, slots: int
) -> Cost:
    own = [
        metrics for trial in trials if trial.result_of is None for metrics in epochs[trial.number].values()
    ]  # a result that was taken over cost nothing

    def total(name: str) -> float:
        return sum(metrics.get(name, 0.0) for metrics in own)

    return Cost(
        wall=wall,
        slots=slots,
        training=total("time/epoch_s"),
        probing=total("time/probe_s"),
        starting=total("time/group_start_s"),
        memory={
            name: most
            for name in MEMORY
            if (most := max((metrics[name] for metrics in own if name in metrics), default=None)) is not None
        },
    )


def as_text(value: Any) -> str:
    """One choice."""
    return value if isinstance(value, str) else json.dumps(value)


def _axes(trials: Sequence[TrialHistory]) -> dict[str, Axis]:
    """One for each parameter. One whose kinds differ from trial to trial has its values as choices."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    from pretune.core import study

    kinds: dict[str, dict[Any, None]] = {}
    values: dict[str, dict[str, None]] = {}
    for trial in trials:
        for name, distribution in study.distributions(trial).items():
            kinds.setdefault(name, {})[distribution] = None
            values.setdefault(name, {})[as_text(trial.params[name])] = None
    found = {}
    for name, met in kinds.items():
        ranges = [one for one in met if isinstance(one, FloatDistribution | IntDistribution)]
        if len(ranges) == len(met):
            low, high = min(float(one.low) for one in ranges), max(float(one.high) for one in ranges)
            found[name] = Axis(low, high, all(one.log for one in ranges))
        else:
            listed = [
                as_text(choice) for one in met if isinstance(one, CategoricalDistribution) for choice in one.choices
            ]
            found[name] = Axis(0.0, 1.0, False, tuple(dict.fromkeys([*listed, *values[name]])))
    return found
