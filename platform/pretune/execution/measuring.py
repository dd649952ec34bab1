"""What a shape costs, measured: two short trials of it in fresh processes, by the loop, loader and probes of a sweep.

As many processes run at once as the sweep has slots, since they share the machine's memory and caches. The first trial
is the cold one of a process. The second has two epochs; its steps are timed one by one, and the second epoch ends with
the full probes. Both see few images: the time of steps and probes is in proportion to theirs.

Here are no torch and no Ray; the processes have both, as a slot's workers do.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


class NotFittingError(RuntimeError):
    """The memory of this machine, or of its GPU, does not suffice."""


class NotMeasuredError(RuntimeError):
    """The trial raised, hung, died, or took too long."""


def measure(
    config: TrialConfig, *, workers: int, gpus_per_worker: float, copies: int, host_bytes: float
) -> Measurement:
    """Trains `config` shortly, in `copies` groups of so many workers at once, which share `host_bytes` of memory.

    NotFittingError and NotMeasuredError with the reason.
    """
    with scratch.folder() as folder, ThreadPoolExecutor(copies) as pool:
        share = host_bytes / (copies * workers)
        runs = [
            pool.submit(_run, config, folder / str(copy), workers, gpus_per_worker, share) for copy in range(copies)
        ]
        try:
            found = [run.result() for run in runs]
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():  # or the pool waits for them
                process.kill()
            raise
    means = {name: statistics.fmean(getattr(one, name) for one in found) for name in _NUMBERS}
    most = {name: max(getattr(one, name) for one in found) for name in ("host_bytes", "mapped_bytes")}
    return found[0].model_copy(update=means | most)


_NUMBERS = ("start_s", "cold_s", "warm_s", "step_s", "epoch_s", "probe_s", "full_probe_s", "save_s")


def _run(config: TrialConfig, folder: Path, workers: int, gpus_per_worker: float, share: float) -> Measurement:
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
            make_train=partial(_make, gpus_per_worker, share),
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


def _make(gpus_per_worker: float, host_bytes: float) -> Train:
    """What trains in a process, which may take so much memory: where it asks for more, it is told that there is none,
    before the system ends one process or another.
    """
    import ray.train  # noqa: F401 - a slot's worker holds it, too

    if gpus_per_worker:
        import torch

        if gpus_per_worker < 1.0:
            torch.cuda.set_per_process_memory_fraction(gpus_per_worker)
    else:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = int(host_bytes)
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard < 0 else min(most, hard), hard))
    return _train


def _train(config: TrialConfig, **given: Unpack[Given]) -> Outcome:
    """Two short trials; one report, of what they took."""
    from trainers.data.loader import Loaders
    from trainers.profiling.short import calm, shortened

    dataset = open_anywhere(config.data.path, expected_hash=config.data.manifest)
    verify(dataset, files=SEARCH_FILES, full=False)  # never the report split
    loaders = Loaders()

    def trial(name: str, steps: int, *, stopped: bool) -> tuple[_Clock, Outcome]:
        clock = _Clock(given["progress"], given["device"], stopped=stopped)
        outcome = train(
            calm(config, dataset, epochs=2),
            dataset=shortened(dataset, config, steps),
            loaders=loaders,
            folder=given["folder"] / name,
            report=clock.report,
            progress=clock.step,
            device=given["device"],
        )
        return clock, outcome

    from trainers.train import train

    cold, outcome = trial("cold", COLD_STEPS, stopped=True)
    if outcome.state != "stopped":
        return outcome
    steps = int(min(MOST_STEPS, max(LEAST_STEPS, STEPS_S / max(1e-6, cold.step_s))))
    warm, outcome = trial("warm", steps, stopped=False)
    if outcome.state != "complete":
        return outcome
    numbers = _numbers(cold, warm, config, dataset)
    given["report"](EpochReport(epoch=1, metrics=numbers))
    return outcome


class _Clock:
    """When each step and each report was."""

    def __init__(self, progress: Callable[[int, int], bool | None], device: torch.device, *, stopped: bool) -> None:
        self._progress, self._device, self._stopped = progress, device, stopped
        self.steps: dict[int, list[float]] = {}
        self.reports: list[EpochReport] = []
        self.told: list[float] = []

    def step(self, epoch: int, step: int) -> bool:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
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
