"""What a run takes: its loader alone, its step alone, both together, and what lies around them.

Real training is `trainers.train.train` itself, on few of the images: an epoch is cut to about `Extent.window_s` seconds
where it is longer. What lies in the midst of an epoch is told apart from what its beginning takes, so that both hold
for epochs of any length. The first run of anything is not counted, each number is the median of several windows, and on
a GPU each window ends when the device is done. All ranks of a process group call `measure` with equal values.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from trainers import dist
from trainers.config import TrialConfig
from trainers.data.datasets import Dataset
from trainers.data.loader import Batch, Loaders, pretrain_ids, steps_per_epoch
from trainers.profiling import peak
from trainers.profiling.figures import Figures, Spread, StepCost, TermCost
from trainers.profiling.short import PROBED, calm, left_out_bytes, probed, shortened
from trainers.profiling.step import StepAlone, finish, in_turns, slowest, windows
from trainers.profiling.trace import Recorder
from trainers.report import EpochReport, Outcome
from trainers.train import configure_torch, train

COLD_STEPS, LEAST_STEPS, MOST_STEPS = 4, 4, 200
MOST_PASSES = 50
"""Epochs in one window at most, where they are short."""
TRACED_FROM = 3
"""Steps of the recorded run before those that are recorded."""


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    windows: int = 5
    window_s: float = 2.0
    """About so long is one window."""
    turns: int = 15
    """Of the step and its parts."""
    bound_s: float = 60.0
    """Beyond so long a measurement has three windows or turns."""
    traced: int = 5
    """Steps that are recorded."""
    matrix_side: int | None = None
    """Of the products that say what the device can do; None is what it takes for that."""

    def count(self, wanted: int, each_s: float) -> int:
        """How many windows or turns of about so many seconds."""
        return wanted if wanted * each_s <= self.bound_s else min(wanted, 3)


class EndedEarlyError(RuntimeError):
    """A run that was to be measured ended by itself. `outcome` says how."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"the run {outcome.state.replace('_', ' ')}: {outcome.reason}")
        self.outcome = outcome


def measure(
    config: TrialConfig,
    *,
    dataset: Dataset,
    loaders: Loaders,
    folder: Path,
    device: torch.device,
    tell: Callable[[int], object],
    startup_s: Mapping[str, float] | None = None,
    trace: Path | None = None,
    extent: Extent | None = None,
) -> Figures:
    """All figures of `config` on `dataset`. `folder` gets what the runs write, `trace` a few recorded steps. `tell`
    hears at least once a step of the number of the stage (`figures.STAGES`). `startup_s` is what start-up took before.

    EndedEarlyError where a run ends by itself, by running out of memory for example. ValueError as of `train`.
    """
    work = _Work(config, dataset, loaders, folder, device, tell, extent or Extent())
    configure_torch(config, device)
    startup = dict(startup_s or {}) | work.start()
    training = work.training()
    loader_s, first_batch_s = work.loader(training)
    alone = StepAlone(work.calm(epochs=1, sentinel=True), device)
    synthetic_s = work.synthetic(alone, training)
    step = work.parts(alone, synthetic_s)
    if config.compile != "off":  # into whose code the counter does not see
        del alone
        plain = config.model_copy(update={"compile": "off"})
        alone = StepAlone(calm(plain, dataset, epochs=1), device)
    with FlopCounterMode(display=False) as counter:
        alone.step()
    flops = sum(dist.gather_objects(counter.get_total_flops()))
    dist.barrier()
    fastest = sum(
        dist.gather_objects(peak.measured(config, device, repeats=work.extent.windows, side=work.extent.matrix_side))
    )
    del alone
    if trace is not None or dist.world_size() > 1:
        recorder = work.recorded()
        step = step.model_copy(
            update={"collectives": slowest([recorder.collectives_s()])[0] if dist.world_size() > 1 else None}
        )
        if trace is not None:
            recorder.write(trace)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    stated = peak.published(card, config.precision)
    waits = training.waits(first_batch_s)
    return Figures(
        device=card,
        cores=len(os.sched_getaffinity(0)),
        workers=dist.world_size(),
        threads=config.threads,
        precision=config.precision,
        compile=config.compile,
        batch_size=config.batch_size,
        views=len(config.views),
        images=len(pretrain_ids(dataset, config.data)),
        steps=steps_per_epoch(dataset, config),
        epochs=config.epochs,
        loader_s=loader_s,
        first_batch_s=first_batch_s,
        synthetic_s=synthetic_s,
        real_s=training.step_s,
        wait_s=waits,
        step=step,
        boundary_s=training.boundary_s,
        probe_every=config.probe.every,
        checkpoint_every=config.checkpoint_every,
        **work.beside(training),
        startup_s=startup,
        flops=float(flops),
        measured_peak=fastest,
        published_peak=None if stated is None else stated * dist.world_size(),
    )


class _Clock:
    """When the first and the last step of each epoch ended, and when it was told of."""

    def __init__(self, device: torch.device, steps: int, tell: Callable[[], object], *, stopped: bool = False) -> None:
        self._device, self._tell, self._stopped = device, tell, stopped
        self.steps = steps
        self.marks: dict[int, list[float]] = {}
        self.reports: list[EpochReport] = []
        self.told: list[float] = []

    def progress(self, epoch: int, step: int) -> bool:
        if step % self.steps in (0, 1 % self.steps):  # waiting after each step would hide what overlaps
            finish(self._device)
            self.marks.setdefault(epoch, []).append(time.perf_counter())
        self._tell()
        return False

    def report(self, epoch_report: EpochReport) -> bool:
        self.reports.append(epoch_report)
        self.told.append(time.perf_counter())
        return not self._stopped

    def step_s(self, epoch: int) -> float:
        """Of one step in the midst of that epoch, counted from 0; where it has a single one, of all of it."""
        if self.steps == 1:
            return self.reports[epoch].metrics["time/epoch_s"]
        first, last = self.marks[epoch]
        return (last - first) / (self.steps - 1)


@dataclass
class _Training:
    """What several epochs of real training took, by windows of so many."""

    clock: _Clock
    each: int
    """Epochs in a window. The first epoch of all is in none, nor is the last."""
    step_s: Spread = field(init=False)
    boundary_s: Spread = field(init=False)

    def __post_init__(self) -> None:
        self.step_s = self._windows(self.clock.step_s)
        self.boundary_s = self._windows(self._boundary)

    def waits(self, first_batch_s: Spread) -> Spread:
        """Seconds that a step in the midst of an epoch waits: all waits but that for the epoch's first batch."""

        def wait(epoch: int) -> float:
            told = self.clock.reports[epoch].metrics
            waited, steps = told["time/wait_share"] * told["time/epoch_s"], self.clock.steps
            return waited if steps == 1 else max(0.0, waited - first_batch_s.median) / (steps - 1)

        return self._windows(wait)

    def _boundary(self, epoch: int) -> float:
        told = self.clock.reports[epoch].metrics
        return max(0.0, told["time/epoch_s"] - self.clock.steps * self.clock.step_s(epoch))

    def _windows(self, of_epoch: Callable[[int], float]) -> Spread:
        counted = range(1, len(self.clock.reports) - 1)
        found = [
            statistics.fmean(of_epoch(epoch) for epoch in counted[start : start + self.each])
            for start in range(0, len(counted), self.each)
        ]
        return Spread.of(slowest(found))


@dataclass
class _Work:
    config: TrialConfig
    dataset: Dataset
    loaders: Loaders
    folder: Path
    device: torch.device
    tell: Callable[[int], object]
    extent: Extent
    step_s: float = 0.0
    """About what a step takes."""
    probe_s: float = 0.0
    """About what an epoch's probe takes."""

    def calm(self, *, epochs: int, probe_every: int = 1, sentinel: bool = False) -> TrialConfig:
        found = calm(self.config, self.dataset, epochs=epochs, probe_every=probe_every)
        return found.model_copy(update={"sentinel": self.config.sentinel}) if sentinel else found

    def start(self) -> dict[str, float]:
        """Seconds of the first batch of this process, and of the first step of its first run."""
        self.tell(0)
        started = time.perf_counter()
        short = shortened(self.dataset, self.config, 1)
        for _ in self._epoch(short, 0):
            pass
        first_batch_s = time.perf_counter() - started
        clock = self._run("cold", 0, COLD_STEPS, epochs=2, stopped=True)
        told = clock.reports[0].metrics
        self.step_s, self.probe_s = dist.broadcast_object((clock.step_s(0), told["time/probe_s"]))
        parts = {"the loader's code, first batch": first_batch_s, "model, first step": told["time/first_step_s"]}
        return dict(zip(parts, slowest(list(parts.values())), strict=True))

    def training(self) -> _Training:
        """Real training: a first epoch, then windows, then a last epoch with the full probes."""
        steps = min(MOST_STEPS, max(LEAST_STEPS, round(self.extent.window_s / max(1e-6, self.step_s))))
        steps = min(steps, steps_per_epoch(self.dataset, self.config))
        each = self._passes(steps * self.step_s)
        count = self.extent.count(self.extent.windows, each * steps * self.step_s)
        # Probes that take long are measured once.
        every = each if count * self.probe_s <= self.extent.bound_s / 2 else count * each
        clock = self._run("warm", 1, steps, epochs=1 + count * each + 1, probe_every=every)
        self.step_s = dist.broadcast_object(statistics.median(map(clock.step_s, range(1, len(clock.reports)))))
        return _Training(clock, each)

    def beside(self, training: _Training) -> dict[str, Any]:
        """What training took beside its steps, and the memory that it held."""
        clock = training.clock
        told = [report.metrics for report in clock.reports]
        *ordinary, last = (metrics["time/probe_s"] for metrics in told if "time/probe_s" in metrics)
        short, whole = probed(self.config, self.dataset, most=PROBED), probed(self.config, self.dataset)
        # In `time/epoch_s` and `time/probe_s` is all of an epoch but writing the checkpoint and telling of it.
        saves = [
            max(0.0, after - before - metrics["time/epoch_s"] - metrics.get("time/probe_s", 0.0))
            for (before, after), metrics in zip(pairwise(clock.told), told[1:], strict=True)
        ]
        checkpoint = clock.reports[-1].checkpoint
        assert checkpoint is not None, "the last epoch has one"
        return {
            "probe_s": Spread.of(slowest(ordinary)).times(whole.ordinary / short.ordinary),
            "probed_share": short.ordinary / whole.ordinary,
            "full_probe_s": max(0.0, (last - statistics.median(ordinary)) * whole.full / short.full),
            "checkpoint_s": Spread.of(slowest(saves)),
            "checkpoint_bytes": float(Path(checkpoint.path).stat().st_size),
            "host_peak_bytes": max(metrics["memory/host_peak_bytes"] for metrics in told)
            + left_out_bytes(told[-1], short, whole),
            "gpu_peak_bytes": max(metrics.get("memory/gpu_peak_bytes", 0.0) for metrics in told) or None,
        }

    def loader(self, training: _Training) -> tuple[Spread, Spread]:
        """Seconds for a batch in the midst of an epoch, and for the first one: nobody but the loaders works."""
        short = shortened(self.dataset, self.config, training.clock.steps)
        self._pass(short)
        each = self._passes(dist.broadcast_object(self._pass(short)[1]))
        batches, firsts = [], []
        for _ in range(self.extent.count(self.extent.windows, self.extent.window_s)):
            passes = [self._pass(short) for _ in range(each)]
            first, whole = (statistics.fmean(values) for values in zip(*passes, strict=True))
            steps = training.clock.steps
            firsts.append(first)
            batches.append(whole if steps == 1 else (whole - first) / (steps - 1))
        return Spread.of(slowest(batches)), Spread.of(slowest(firsts))

    def synthetic(self, alone: StepAlone, training: _Training) -> Spread:
        self.tell(3)
        steps = max(1, round(self.extent.window_s / max(1e-6, self.step_s)))
        steps = max(steps, min(LEAST_STEPS, training.clock.steps))
        count = self.extent.count(self.extent.windows, steps * self.step_s)

        def step() -> None:
            alone.step()
            self.tell(3)

        return windows(step, self.device, steps=steps, count=count)

    def parts(self, alone: StepAlone, synthetic_s: Spread) -> StepCost:
        """The step and its parts in turns."""
        terms, look = alone.terms(), alone.look()

        def step() -> None:
            alone.step()
            self.tell(4)

        work: dict[str, Callable[[], None]] = {"step": step, "update": alone.update}
        if look is not None:
            work["look"] = look
        for name, term in terms.items():
            work |= {f"forward {name}": term.forward, f"backward {name}": term.backward}
        turns = self.extent.count(self.extent.turns, 2.0 * synthetic_s.median)
        found = in_turns(work, turns, self.device)
        every = self.config.sentinel.every if self.config.sentinel is not None else 1
        return StepCost(
            whole=found["step"],
            terms={
                name: TermCost(forward=found[f"forward {name}"], backward=found[f"backward {name}"]) for name in terms
            },
            optimizer=found["update"],
            sentinel=found["look"].times(1.0 / every) if look is not None else None,
            collectives=None,
        )

    def recorded(self) -> Recorder:
        """A few steps of real training under PyTorch's profiler."""
        last = TRACED_FROM + self.extent.traced
        steps = min(last, steps_per_epoch(self.dataset, self.config))
        recorder = Recorder(self.device, first=TRACED_FROM, count=self.extent.traced)
        # No probe among the recorded steps: the last epoch, which has one, is not reached.
        epochs = math.ceil(last / steps) + 1
        outcome = train(
            self.calm(epochs=epochs, probe_every=epochs),
            dataset=shortened(self.dataset, self.config, steps),
            loaders=self.loaders,
            folder=self.folder / "recorded",
            report=lambda report: not recorder.done,
            progress=lambda epoch, step: bool(self.tell(5)) or recorder(epoch, step),
            device=self.device,
        )
        if outcome.state != "stopped":
            raise EndedEarlyError(outcome)
        return recorder

    def _passes(self, seconds: float) -> int:
        """How many epochs of so many seconds fill a window."""
        return max(1, min(MOST_PASSES, math.ceil(self.extent.window_s / max(1e-6, seconds) - 0.5)))

    def _run(
        self, name: str, stage: int, steps: int, *, epochs: int, probe_every: int = 1, stopped: bool = False
    ) -> _Clock:
        steps = min(steps, steps_per_epoch(self.dataset, self.config))
        clock = _Clock(self.device, steps, lambda: self.tell(stage), stopped=stopped)
        outcome = train(
            self.calm(epochs=epochs, probe_every=probe_every),
            dataset=shortened(self.dataset, self.config, steps),
            loaders=self.loaders,
            folder=self.folder / name,
            report=clock.report,
            progress=clock.progress,
            device=self.device,
        )
        if outcome.state != ("stopped" if stopped else "complete"):
            raise EndedEarlyError(outcome)
        gc.collect()
        return clock

    def _epoch(self, dataset: Dataset, epoch: int) -> Iterator[Batch]:
        return self.loaders.epoch(
            dataset,
            self.config,
            epoch=epoch,
            rank=dist.rank(),
            world_size=dist.world_size(),
            pinned=self.device.type == "cuda",
        )

    def _pass(self, dataset: Dataset) -> tuple[float, float]:
        """Seconds to the first batch, and to the last one, of an epoch that nobody trains on."""
        self.tell(2)
        dist.barrier()
        started = time.perf_counter()
        first: float | None = None
        for _ in self._epoch(dataset, 0):
            if first is None:
                first = time.perf_counter() - started
        assert first is not None, "an epoch has a batch"
        return first, time.perf_counter() - started
