"""What a shape costs, measured: two short trials of it in fresh processes, by the loop, loader and probes of a sweep.

As many processes run at once as the sweep has slots, since they share the machine's memory and caches. The first trial
is the cold one of a process. The second has two epochs; its steps are timed one by one, and the second epoch ends with
the full probes. Both see few images: the time of steps and probes is in proportion to theirs. Where it is asked how
fast all of them are together, the processes wait for each other between the two, and train for a few seconds at once.

Here are no torch and no Ray; the processes have both, as a slot's workers do.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from pydantic import BaseModel, ConfigDict

from pretune.execution import family, launch
from trainers import scratch
from trainers.config import TrialConfig
from trainers.data.data_cache import SEARCH_FILES, open_anywhere
from trainers.data.datasets import Dataset, verify
from trainers.report import EpochReport, Outcome

if TYPE_CHECKING:
    import torch

    from pretune.execution.worker import Given, Train

MOST_COPIES = 8
"""Worker groups that run at once, however many slots there are."""
COLD_STEPS, LEAST_STEPS, MOST_STEPS = 3, 5, 40
STEPS_S = 3.0
"""About so long an epoch of the second trial's steps takes, between those bounds."""
START_RATIO = 2.0
"""A worker group's start over that of one process: slot and workers come one after the other."""
SILENT_S, BOUND_S = 90.0, 240.0
"""Without a sign of life, and in all: then a measurement is given up."""
TOGETHER_S, MARK_S = 4.0, 0.2
"""How long processes train at once, and between two looks at how far they are: waiting for a GPU after each step would
take from one alone what several overlap."""
MOST_TURNS = 1_000
"""Epochs of training at once, where a data set is small."""
_MARKS, _GIVEN_UP = "marks.json", "given-up"


class Measurement(BaseModel):
    """What one shape takes on one machine; seconds and bytes. Memory is of one worker, the largest over the ranks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start_s: float | None
    """Of a slot, until its worker group could take its first trial; None where no group was started."""
    cold_s: float | None
    """Of a group's first trial, from its start to its first step; None likewise."""
    warm_s: float
    """Of a later one."""
    step_s: float
    epoch_s: float
    """Of an epoch, beside its steps."""
    probe_s: float
    full_probe_s: float
    """The last epoch's, beside the ordinary one's."""
    save_s: float
    """Writing a checkpoint, and telling of the epoch."""
    host_bytes: float
    mapped_bytes: float | None = None
    """Of `host_bytes`, pages of the data set's file, which processes share and the system takes back. None where whole
    trials ran, so that nobody asks whether they fit.
    """
    gpu_bytes: float | None = None
    checkpoint_bytes: float | None = None
    report_bytes: float
    """An epoch's line in the journal."""
    gpu_room_bytes: float | None = None
    """What the GPU had free when the process had begun, and before the trial did; of one that ran alone."""
    images_per_s: float | None = None
    """Of all processes that ran at once, while each of them trained; None where that was not measured."""


class NotFittingError(RuntimeError):
    """The memory of this machine, or of its GPU, does not suffice."""


class NotMeasuredError(RuntimeError):
    """The trial raised, hung, died, or took too long."""


def measure(
    config: TrialConfig,
    *,
    workers: int,
    gpus_per_worker: float,
    copies: int,
    host_bytes: float,
    together: bool = False,
) -> Measurement:
    """Trains `config` shortly, in `copies` groups of so many workers at once, which share `host_bytes` of memory. With
    `together`, which takes one worker in each, also how fast all are at once.

    NotFittingError and NotMeasuredError with the reason.
    """
    with scratch.folder() as folder, ThreadPoolExecutor(copies) as pool:
        share = host_bytes / (copies * workers)
        gate = _Gate(folder, copies) if together else None
        runs = [
            pool.submit(_run, config, folder / str(copy), workers, gpus_per_worker, share, gate)
            for copy in range(copies)
        ]
        try:
            found = _found(runs)
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():  # or the pool waits for them
                process.kill()
            raise
        rate = None if gate is None else at_once(gate.marks()) * config.batch_size
    means = {name: statistics.fmean(getattr(one, name) for one in found) for name in _NUMBERS}
    most = {name: max(getattr(one, name) for one in found) for name in ("host_bytes", "mapped_bytes")}
    if found[0].gpu_bytes is not None:
        most["gpu_bytes"] = max(one.gpu_bytes or 0.0 for one in found)
    return found[0].model_copy(update=means | most | {"images_per_s": rate})


_NUMBERS = ("start_s", "cold_s", "warm_s", "step_s", "epoch_s", "probe_s", "full_probe_s", "save_s")


def _found(runs: Sequence[Future[Measurement]]) -> list[Measurement]:
    """What all of them found. That one found no memory tells more than what others said of it, and comes first."""
    errors = [error for run in runs if (error := run.exception()) is not None]
    if errors:
        raise next((error for error in errors if isinstance(error, NotFittingError)), errors[0])
    return [run.result() for run in runs]


Marks = Sequence[tuple[float, int]]
"""Of one process, how many steps it had done by a moment; in order."""


def at_once(marks: Sequence[Marks]) -> float:
    """Steps a second of all processes, from when the last of them had begun until the first one ended. NotMeasuredError
    where they did not train at the same time.
    """
    begin, end = max(one[0][0] for one in marks), min(one[-1][0] for one in marks)
    if end <= begin:
        raise NotMeasuredError(f"{len(marks)} processes did not train at the same time: the machine is too busy")
    return sum(_steps_by(one, end) - _steps_by(one, begin) for one in marks) / (end - begin)


def _steps_by(marks: Marks, moment: float) -> float:
    """Steps that were done by then; between two marks it goes on evenly."""
    after = bisect_right(marks, moment, key=lambda mark: mark[0])
    if after == len(marks):
        return float(marks[-1][1])
    (earlier, done), (later, more) = marks[after - 1], marks[after]
    return done + (more - done) * (moment - earlier) / (later - earlier)


@dataclass(frozen=True)
class _Gate:
    """Where processes wait for each other, and leave how far they were at what time."""

    folder: Path
    copies: int

    def marks(self) -> list[Marks]:
        return [[(at, steps) for at, steps in json.loads(path.read_text())] for path in self.folder.glob(f"*/{_MARKS}")]

    def give_up(self) -> None:
        (self.folder / _GIVEN_UP).touch()

    def wait(self, progress: Callable[[int, int], bool | None]) -> None:
        """Until all copies are here. NotMeasuredError where one will not come."""
        (self.folder / f"ready-{os.getpid()}").touch()
        while len(list(self.folder.glob("ready-*"))) < self.copies:
            if (self.folder / _GIVEN_UP).exists():
                raise NotMeasuredError("another process of the measurement has ended")
            progress(0, 0)  # raises where nobody listens any more
            time.sleep(0.02)


def _run(
    config: TrialConfig, folder: Path, workers: int, gpus_per_worker: float, share: float, gate: _Gate | None
) -> Measurement:
    try:
        return _measured(config, folder, workers, gpus_per_worker, share, gate)
    except BaseException:
        if gate is not None:
            gate.give_up()
        raise


def _measured(
    config: TrialConfig, folder: Path, workers: int, gpus_per_worker: float, share: float, gate: _Gate | None
) -> Measurement:
    started = time.monotonic()
    ready: list[float] = []
    told: list[EpochReport] = []

    def progress(epoch: int, step: int) -> None:
        ready.append(time.monotonic() - started)
        if ready[-1] > BOUND_S:
            raise NotMeasuredError(f"a few steps took longer than {BOUND_S:.0f} s")

    def report(epoch_report: EpochReport) -> bool:
        told.append(epoch_report)
        return True

    try:
        outcome = launch.run(
            config,
            folder=folder,
            workers=workers,
            device="cuda" if gpus_per_worker else "cpu",
            report=report,
            progress=progress,
            make_train=partial(_make, gpus_per_worker, share, gate),
            hang_timeout_s=SILENT_S,
            apart=True,
        )
    except family.HungError as error:
        raise NotMeasuredError(
            f"no step was done in {SILENT_S:.0f} s, too slow to be measured here; plan on the machine that it is for"
        ) from error
    except family.WorkerFailedError as error:
        said = str(error).splitlines()[0]
        if "exit code -9" in said:
            raise NotFittingError("its process was killed, as a system does that runs out of memory") from error
        raise NotMeasuredError(said) from error
    if outcome.state == "out_of_memory":
        raise NotFittingError(outcome.reason)
    if not told:
        raise NotMeasuredError(f"the trial {outcome.state}: {outcome.reason}")
    numbers = told[-1].metrics
    told_of = {name: numbers[name] for name in Measurement.model_fields if name in numbers}
    return Measurement.model_validate({**told_of, "start_s": START_RATIO * ready[0]})


# ---- in the process --------------------------------------------------------------------------------------------------


def _make(gpus_per_worker: float, host_bytes: float, gate: _Gate | None = None) -> Train:
    """What trains in a process, which may take so much memory."""
    import ray.train  # noqa: F401 - a slot's worker holds it, too

    if gpus_per_worker:
        from pretune.execution.worker import choose_device

        choose_device(gpus_per_worker)
    else:
        limit_memory(host_bytes)
    return partial(_train, gate)


def limit_memory(host_bytes: float) -> None:
    """Where this process asks for more, it is told that there is none, before the system ends one process or another.
    Not for one with a GPU, whose driver reserves more than it takes.
    """
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = int(host_bytes)
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard < 0 else min(most, hard), hard))


def _train(gate: _Gate | None, config: TrialConfig, **given: Unpack[Given]) -> Outcome:
    """Two short trials; one report, of what they took. With a gate, a third beside those of others between."""
    from trainers import memory
    from trainers.data.loader import Loaders
    from trainers.profiling.short import calm, shortened

    room = memory.free_bytes(given["device"])
    dataset = open_anywhere(config.data.path, expected_hash=config.data.manifest)
    verify(dataset, files=SEARCH_FILES, full=False)  # never the report split
    loaders = Loaders()

    def run(clock: _Clock | _Marking, name: str, changed: TrialConfig, steps: int) -> Outcome:
        return train(
            changed,
            dataset=shortened(dataset, config, steps),
            loaders=loaders,
            folder=given["folder"] / name,
            report=clock.report,
            progress=clock.step,
            device=given["device"],
        )

    def trial(name: str, steps: int, *, stopped: bool) -> tuple[_Clock, Outcome]:
        clock = _Clock(given["progress"], given["device"], stopped=stopped)
        return clock, run(clock, name, calm(config, dataset, epochs=2), steps)

    from trainers.train import train

    cold, outcome = trial("cold", COLD_STEPS, stopped=True)
    if outcome.state != "stopped":
        return outcome
    if gate is not None:
        gate.wait(given["progress"])
        marking = _Marking(given["progress"], given["device"])
        unprobed = calm(config, dataset, epochs=MOST_TURNS, probe_every=MOST_TURNS)
        changed = unprobed.model_copy(update={"checkpoint_every": config.checkpoint_every})
        outcome = run(marking, "at-once", changed, math.ceil(TOGETHER_S / max(1e-6, cold.step_s)))
        if outcome.state != "stopped":
            return outcome
        (given["folder"] / _MARKS).write_text(json.dumps(marking.marks))
    steps = int(min(MOST_STEPS, max(LEAST_STEPS, STEPS_S / max(1e-6, cold.step_s))))
    warm, outcome = trial("warm", steps, stopped=False)
    if outcome.state != "complete":
        return outcome
    numbers = _numbers(cold, warm, config, dataset)
    numbers |= {} if room is None else {"gpu_room_bytes": room}
    given["report"](EpochReport(epoch=1, metrics=numbers))
    return outcome


class _Marking:
    """How many steps were done when, from the first one on, until enough time has passed and an epoch is over."""

    def __init__(self, progress: Callable[[int, int], bool | None], device: torch.device) -> None:
        self._progress, self._device = progress, device
        self._steps = 0
        self.marks: list[tuple[float, int]] = []

    def step(self, epoch: int, step: int) -> bool:
        self._steps += 1
        if not self.marks or time.monotonic() - self.marks[-1][0] >= MARK_S:
            _finish(self._device)
            self.marks.append((time.monotonic(), self._steps))
            self._progress(epoch, step)
        return False

    def report(self, epoch_report: EpochReport) -> bool:
        now = time.monotonic()
        if now > self.marks[-1][0]:
            self.marks.append((now, self._steps))
        return now - self.marks[0][0] < TOGETHER_S


def _finish(device: torch.device) -> None:
    """Waits until a GPU has done what it was given."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


class _Clock:
    """When each step and each report was."""

    def __init__(self, progress: Callable[[int, int], bool | None], device: torch.device, *, stopped: bool) -> None:
        self._progress, self._device, self._stopped = progress, device, stopped
        self.steps: dict[int, list[float]] = {}
        self.reports: list[EpochReport] = []
        self.told: list[float] = []

    def step(self, epoch: int, step: int) -> bool:
        _finish(self._device)
        self.steps.setdefault(epoch, []).append(time.perf_counter())
        self._progress(epoch, step)
        return False

    def report(self, epoch_report: EpochReport) -> bool:
        self.reports.append(epoch_report)
        self.told.append(time.perf_counter())
        return not self._stopped

    @property
    def step_s(self) -> float:
        """The median between two steps of an epoch; where an epoch has a single one, all of the epoch."""
        gaps = [after - before for at in self.steps.values() for before, after in pairwise(at)]
        return statistics.median(gaps) if gaps else self.reports[-1].metrics["time/epoch_s"]


def _numbers(cold: _Clock, warm: _Clock, config: TrialConfig, dataset: Dataset) -> dict[str, float]:
    from trainers.profiling.short import PROBED, left_out_bytes, probed

    first, last = (told.metrics for told in warm.reports)
    step_s = warm.step_s
    steps = len(warm.steps[1])
    # In `time/epoch_s` and `time/probe_s` is all of an epoch but writing the checkpoint and telling of it.
    save_s = warm.told[1] - warm.told[0] - last["time/epoch_s"] - last["time/probe_s"]
    short, real = probed(config, dataset, most=PROBED), probed(config, dataset)
    probe_s = first["time/probe_s"] * real.ordinary / short.ordinary
    checkpoint = warm.reports[-1].checkpoint
    found = {
        "cold_s": max(0.0, cold.reports[0].metrics["time/first_step_s"] - step_s),
        "warm_s": max(0.0, first["time/first_step_s"] - step_s),
        "step_s": step_s,
        "epoch_s": max(0.0, last["time/epoch_s"] - steps * step_s),
        "probe_s": probe_s,
        "full_probe_s": max(0.0, (last["time/probe_s"] - first["time/probe_s"]) * real.full / short.full),
        "save_s": max(0.0, save_s),
        "host_bytes": max(first["memory/host_peak_bytes"], last["memory/host_peak_bytes"]),
        "mapped_bytes": float(_mapped(dataset.search_file)),
        "report_bytes": float(len(warm.reports[-1].model_dump_json())),
    }
    if "memory/gpu_peak_bytes" in last:
        found["gpu_bytes"] = last["memory/gpu_peak_bytes"]
    found["host_bytes"] += left_out_bytes(last, short, real)
    if checkpoint is not None and Path(checkpoint.path).is_file():
        found["checkpoint_bytes"] = float(Path(checkpoint.path).stat().st_size)
    return found


def _mapped(path: Path) -> int:
    """Bytes of a file's pages that this process holds."""
    held, ours = 0, False
    try:
        lines = Path("/proc/self/smaps").read_text(errors="replace").splitlines()
    except OSError:
        return 0
    for line in lines:
        head, _, rest = line.partition(" ")
        if "-" in head and not head.endswith(":"):
            ours = rest.endswith(str(path.resolve()))
        elif ours and head == "Rss:":
            held += 1024 * int(rest.split()[0])
    return held


def machine_bytes() -> float:
    """The memory of this machine, or of the part of it that this process may take (cgroup v2)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemTotal:"))
    try:
        limit: Any = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return min(total, float(limit))
    except (OSError, ValueError):  # "max", or another layout
        return total
