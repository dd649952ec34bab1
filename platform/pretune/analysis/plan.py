"""What a sweep will take, worked out before it starts: how many epochs, how long, how much memory, how much disk.

Costs come from measurements of a few shapes of its space (`core.shape`). A shape that was not measured takes what the
measured one takes that is most like it: its steps' time, and the memory above what a process holds that does nothing,
in proportion to the image rows of a step. A space without any measurement gets no hours and no memory.
"""

from __future__ import annotations

import math
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pretune.analysis import curves, measurements
from pretune.core import corners, design, points, retention
from pretune.core import shape as shapes
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.forecast import Forecast
from pretune.core.search import Space
from pretune.core.shape import Shape
from pretune.execution.measuring import (
    MOST_COPIES,
    Measurement,
    NotFittingError,
    NotMeasuredError,
    machine_bytes,
    measure,
)
from pretune.execution.settings import SLOT_MEMORY
from trainers.config import TrialConfig
from trainers.data import data_cache
from trainers.settings import DataConfig

IDLE_BYTES = 1.1e9
"""What a worker holds whatever its batches: Python, torch, Ray, compiled code. `sfrik_tiny` takes 1.14 GB at a batch of
8 and 1.27 GB at 256; with a GPU it is more, so that what grows with a batch is rather taken for too much.
"""
TURNOVER_S = 0.35
"""From a trial's end to the start of the next one in its slot (benchmarks/README.md, turnover.py)."""
SLOTS_RATIO = 0.85
"""Over a worker group's start, what Tune and the slots' processes take before it (benchmarks/README.md)."""
REPORT_S = 0.05
"""From the end of an epoch to the start of the next one: the report's way through slot, Tune and journal, and back."""
CURVES_S = 10.0
"""To look for earlier curves."""
GLANCES, GLANCE_S = 32, 0.2
"""Draws of a space, and seconds for earlier curves, where a sweep is about to start."""
KEPT = 2.4
"""Checkpoints of a complete trial in the mean, of at most `retention.FINISHED`: its newest is often its best."""
MOST_SHAPES = 6
MEASURING_S = 120.0
"""No other shape is begun after so long."""
LOG_BYTES, PACKED_BYTES, TRIAL_BYTES, CURVE_BYTES = 2e6, 1e5, 12e3, 1.2e3
"""On the disk: Ray's logs of a slot while it runs, and packed at the end; of a trial its config, log, `asked` record
and `study.log`; of an epoch its points for TensorBoard, over its line in the journal.
"""


@dataclass(frozen=True)
class Measured:
    """One shape that was measured, or was not. `share` is of the trials that are of this shape, or like it."""

    shape: Shape
    words: str
    share: float
    found: Measurement | None
    problem: str = ""
    known: bool = False
    """It had been measured before."""


@dataclass(frozen=True)
class Plan:
    """A forecast and what it rests on."""

    experiment: Experiment
    forecast: Forecast
    shapes: tuple[Measured, ...]
    distinct: int
    """Shapes that the space was seen to have."""
    cold_s: float
    """Of `forecast.seconds`, until the first trial's first step."""
    images: int
    """To pretrain on."""


def slots_here(experiment: Experiment, *, auto_gpus: bool) -> tuple[int, float]:
    """How many trials run at once on this machine alone, and the GPUs of each worker, as a sweep will find them."""
    gpus = len(measurements.gpus())
    each = (1.0 if gpus else 0.0) if auto_gpus else experiment.gpus_per_worker
    if experiment.slots is not None:
        return min(experiment.slots, experiment.trials), each
    held = (os.cpu_count() or 1) / experiment.cpus_per_worker
    held = min(held, gpus / each) if each else held
    return max(1, min(int(held + 1e-9) // experiment.workers_per_trial, experiment.trials)), each


def configs_of(experiment: Experiment, space: Space) -> list[TrialConfig]:
    """What its trials may be: an ablation's points, or draws from all over the space."""
    found = [] if experiment.points else corners.draws(experiment, space)
    return found or glanced(experiment, space)


def glanced(experiment: Experiment, space: Space) -> list[TrialConfig]:
    """The same in a moment: those that were looked at already when the request was checked."""
    found = points.proposer(experiment, space).check()
    if not experiment.points:
        return found[:GLANCES]
    by_changes = dict(zip(map(design.key, points.distinct(experiment.points)), found, strict=True))
    return [by_changes[design.key(point)] for point in experiment.points]


def remembered(
    experiment: Experiment, configs: Sequence[TrialConfig], *, slots: int, gpus_per_worker: float
) -> list[Measured]:
    """What was measured before, on this machine, of the shapes of `configs`."""
    known = measurements.Known(workers=experiment.workers_per_trial, gpus_per_worker=gpus_per_worker, slots=slots)
    counted = Counter(map(shapes.of, configs))
    found = {shape: one for shape in counted if (one := known.of(shape)) is not None}
    return [
        Measured(shape, shapes.in_words(shape, list(found)), counted[shape] / len(configs), one, known=True)
        for shape, one in found.items()
    ]


def measured(
    experiment: Experiment,
    configs: Sequence[TrialConfig],
    *,
    slots: int,
    gpus_per_worker: float,
    clock: Callable[[], float],
    tell: Callable[[str], None],
) -> Iterator[Measured]:
    """Measures what stands for all shapes of `configs`, or remembers it; the most telling first. `tell` hears what is
    measured now.

    RequestError where one does not fit into the memory of this machine.
    """
    by_config = {shapes.of(config): config for config in configs}
    every = [shapes.of(config) for config in configs]
    known = measurements.Known(workers=experiment.workers_per_trial, gpus_per_worker=gpus_per_worker, slots=slots)
    chosen = shapes.chosen(every, count=MOST_SHAPES)
    near = Counter(shapes.nearest(shape, chosen) for shape in every)
    began = clock()
    for shape in chosen:
        share, words = near[shape] / len(every), shapes.in_words(shape, chosen)
        found = known.of(shape)
        if found is not None:
            yield Measured(shape, words, share, found, known=True)
            continue
        if clock() - began > MEASURING_S:
            yield Measured(shape, words, share, None, f"not measured: the others took {clock() - began:.0f} s")
            continue
        tell(words)
        try:
            found = measure(
                by_config[shape],
                workers=experiment.workers_per_trial,
                gpus_per_worker=gpus_per_worker,
                copies=_copies(slots, gpus_per_worker),
                host_bytes=machine_bytes(),
            )
        except NotFittingError as error:
            raise RequestError(_refusal(experiment, words, str(error), slots)) from error
        except NotMeasuredError as error:
            yield Measured(shape, words, share, None, str(error))
            continue
        known.keep(shape, found)
        yield Measured(shape, words, share, found)


def _copies(slots: int, gpus_per_worker: float) -> int:
    """Trials that share a GPU are measured together; those with GPUs of their own are alone there."""
    return min(slots, MOST_COPIES, max(1, int(1.0 / gpus_per_worker + 1e-9)) if gpus_per_worker else slots)


def check_fits(experiment: Experiment, measured: Measured, *, slots: int) -> None:
    """RequestError where so many slots of this shape at once need more memory than this machine has. Pages of the data
    set do not count: the system takes them back.
    """
    found = measured.found
    if found is None or found.mapped_bytes is None:
        return
    total = machine_bytes()
    own = found.host_bytes - found.mapped_bytes
    slot = own * experiment.workers_per_trial + SLOT_MEMORY
    if slots * slot <= total:
        return
    why = (
        f"{slots} slot(s) x {experiment.workers_per_trial} worker(s) of {own / 1e9:.2f} GB, and "
        f"{SLOT_MEMORY / 1e9:.2f} GB beside each slot's, need {slots * slot / 1e9:.1f} GB, and this machine has "
        f"{total / 1e9:.1f} GB"
    )
    raise RequestError(_refusal(experiment, measured.words, why, int(total // slot) or slots))


def _refusal(experiment: Experiment, words: str, why: str, fitting: int) -> str:
    remedy = f"--slots {fitting}, or " if fitting < (experiment.slots or fitting + 1) else ""
    return (
        f"trials of shape {words} do not fit into memory: {why}; choose {remedy}smaller ones, for example with --set "
        f"batch_size={max(2, experiment.base.batch_size // 2)}, or a space without them"
    )


def plan(
    experiment: Experiment,
    configs: Sequence[TrialConfig],
    found: Sequence[Measured],
    *,
    slots: int,
    quick: bool = False,
) -> Plan:
    """What `experiment` takes, of which trials are like `configs` (each one, where it is an ablation), in so many slots
    on this machine. `quick`: in a moment, of few plays.
    """
    costs = {one.shape: one.found for one in found if one.found is not None}
    pretrained = images(experiment.base.data)
    trials = min(experiment.trials, len(experiment.points) or experiment.trials)
    by_shape = [shapes.of(config) for config in configs]
    like = {shape: _of(shape, costs) for shape in dict.fromkeys(by_shape)}
    of_each = [like[shape] for shape in by_shape]
    lengths = [_length(config, pretrained, one) for config, one in zip(configs, of_each, strict=True)]
    longest = max(length.epochs for length in lengths)
    most = sum(length.epochs for length in lengths) if experiment.points else trials * longest
    told, basis = _curves(experiment, longest, GLANCE_S if quick else CURVES_S, known=bool(costs))
    cold_s = _cold(costs)
    played = curves.play(experiment, lengths, told, trials=trials, slots=slots, cold=cold_s or 0.0, quick=quick)
    checkpoint = max((one.checkpoint_bytes or 0.0 for one in costs.values()), default=0.0)
    usual = statistics.fmean(one.checkpoint_bytes if one and one.checkpoint_bytes else checkpoint for one in of_each)
    line = max((one.report_bytes for one in costs.values()), default=0.0)
    written = trials * TRIAL_BYTES
    kept = played.complete * min(KEPT, longest) + (trials - played.complete)
    forecast = Forecast(
        trials=trials,
        epochs=most,
        expected_epochs=played.epochs if told else None,
        curves=basis,
        slots=slots,
        seconds=None if not costs or cold_s is None else min(played.time, 3600.0 * (experiment.max_hours or math.inf)),
        host_bytes=max((one.host_bytes for one in like.values() if one is not None), default=None),
        gpu_bytes=max((one.gpu_bytes for one in like.values() if one is not None and one.gpu_bytes), default=None),
        disk_bytes=usual * kept + slots * PACKED_BYTES + written + played.epochs * (line + CURVE_BYTES)
        if checkpoint
        else None,
        most_disk_bytes=retention.bound(math.ceil(checkpoint), trials=trials, slots=slots)
        + slots * LOG_BYTES
        + written
        + most * (line + CURVE_BYTES)
        if checkpoint
        else None,
        measured=tuple(one.words for one in found if one.found is not None),
    )
    return Plan(experiment, forecast, tuple(found), len(like), cold_s or 0.0, pretrained)


def images(data: DataConfig) -> int:
    """How many a run pretrains on."""
    dataset = data_cache.open_anywhere(data.path, expected_hash=data.manifest)
    if data.images == "unlabeled":
        return dataset.unlabeled_count
    return len(dataset.pretrain_ids(data.subset))


def _curves(experiment: Experiment, epochs: int, seconds: float, *, known: bool) -> tuple[list[curves.Curve], str]:
    """What the stopping rule is played on, and that in words. With a budget of seconds it cannot be played where it is
    not `known` how long an epoch takes.
    """
    if not experiment.stopping.enabled or (experiment.budget == "seconds" and not known):
        return [], ""
    found = curves.earlier(experiment, seconds=seconds)
    if found:
        return found, f"{len(found)} curves of earlier sweeps on this data"
    return curves.modeled(experiment, epochs), "a model of curves"


def _of(shape: Shape, costs: Mapping[Shape, Measurement]) -> Measurement | None:
    """What `shape` takes: as measured, or like the nearest that was."""
    if shape in costs:
        return costs[shape]
    other = shapes.nearest(shape, costs)
    if other is None:
        return None
    found, ratio = costs[other], shape.rows / other.rows
    own = max(0.0, found.host_bytes - IDLE_BYTES)
    return found.model_copy(
        update={
            "step_s": found.step_s * ratio,
            "host_bytes": found.host_bytes - own + own * ratio,
            "gpu_bytes": None if found.gpu_bytes is None else found.gpu_bytes * ratio,
        }
    )


def _cold(costs: Mapping[Shape, Measurement]) -> float | None:
    """Until the first trial's first step in its slot: the least, as the first process of all also compiles."""
    found = [
        (1.0 + SLOTS_RATIO) * one.start_s + one.cold_s
        for one in costs.values()
        if one.start_s is not None and one.cold_s is not None
    ]
    return min(found, default=None)


def _length(config: TrialConfig, images: int, found: Measurement | None) -> curves.Length:
    steps = max(1, images // config.batch_size)
    last = config.schedule.last_epoch_before_decay(config.epochs)
    views = float(steps * config.batch_size * len(config.views))
    if found is None:
        return curves.Length(config.epochs, last, config.probe.every, 0.0, 1.0, 0.0, 0.0, views)
    epoch = steps * found.step_s + found.epoch_s + found.save_s / config.checkpoint_every + REPORT_S
    return curves.Length(
        epochs=config.epochs,
        last_epoch=last,
        probe_every=config.probe.every,
        start=found.warm_s + TURNOVER_S,
        epoch=epoch,
        probe=found.probe_s,
        end=found.full_probe_s,
        views=views,
    )
