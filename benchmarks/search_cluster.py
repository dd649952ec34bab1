"""A simulated cluster of 1,000 GPUs and a sweep of 10,000 trials: is the driver the bottleneck?

The slots are simulated, with the curves and epoch times of real runs (`search_surface.py`); what decides is the
program's own: journal on the disk, search, stopping rule. One driver serves all slots, one after the other, as in a
real sweep. Each decision takes the time that it takes on this machine, measured as it is made, and the simulated clock
goes on by it: a slot that asks or reports while the driver is busy waits, so that what waiting costs is seen.

A trial of the recorded runs takes seconds; `--epoch-s` makes an epoch as long as is wanted, each trial's in proportion.
Not in it: Ray Tune's own loop between slots and driver, and the network.

A decision's time is that of the processor, as machines are shared, and for each line of the journal one flush to the
disk, measured before. A larger machine is no help: the driver decides in one thread.

Run: PYTHONPATH=. python benchmarks/search_cluster.py [--slots 1000] [--trials 10000] [--epoch-s 60 5]
"""

from __future__ import annotations

import argparse
import heapq
import math
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from unittest import mock

import optuna

from benchmarks import search_surface
from benchmarks.scale import flushed
from benchmarks.search import Entry, begun
from benchmarks.search_replay import Clock, Method
from benchmarks.search_surface import Process, Surface, Trial
from pretune.core.choices import SamplerName
from search_spaces import RECIPES
from trainers.changes import with_changes

Result = TypeVar("Result")


@dataclass
class Driver:
    """Serves one question at a time. `asks` and `reports` are seconds of each decision, `waits` what a slot waits for,
    from its question to the answer. A flush to the disk takes `flush_s`.
    """

    clock: Clock
    flush_s: float = 0.0
    free_at: float = 0.0
    asks: list[float] = field(default_factory=list)
    reports: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def serve(self, act: Callable[[], Result], kept: list[float]) -> Result:
        """The answer to a question that is put now; the clock goes on to when it is given."""
        asked = self.clock.now
        self.clock.now = max(asked, self.free_at)
        with mock.patch("os.fsync") as flush:
            begin = time.process_time()
            result = act()
            took = time.process_time() - begin + self.flush_s * flush.call_count
        kept.append(took)
        self.clock.now = self.free_at = self.clock.now + took
        self.waits.append(self.free_at - asked)
        return result

    @property
    def busy(self) -> float:
        return sum(self.asks) + sum(self.reports)


@dataclass(frozen=True)
class Simulated:
    """What came of it; times in seconds. `trained` is the slots' time in epochs, `whole` the sweep's."""

    driver: Driver
    slots: int
    trials: int
    trained: float
    whole: float

    @property
    def share(self) -> float:
        """Of the sweep's time, how much the driver is busy."""
        return self.driver.busy / self.whole

    @property
    def use(self) -> float:
        """Of the slots' time, how much they train."""
        return self.trained / (self.slots * self.whole)


def simulated(method: Method, surface: Surface, driver: Driver, *, slots: int, factor: float) -> Simulated:
    """The whole sweep of `method`, an epoch taking `factor` times what was recorded."""
    clock, running, curves = driver.clock, list[tuple[float, int, int]](), dict[int, Trial]()
    trained, ended = 0.0, 0

    def fill() -> None:
        while len(running) < slots:
            given = driver.serve(method.next, driver.asks)
            if given is None:
                driver.asks.pop()
                return
            curve = curves[given.number] = surface.trial(given.number, given.params)
            heapq.heappush(running, (clock.now + factor * curve.seconds[0], given.number, 1))

    fill()
    last = 0.0
    while running:
        clock.now, number, epoch = heapq.heappop(running)
        curve = curves[number]
        trained += factor * curve.seconds[epoch - 1]
        told = partial(_told, method, number, epoch, curve, factor * sum(curve.seconds[:epoch]))
        if driver.serve(told, driver.reports):
            heapq.heappush(running, (clock.now + factor * curve.seconds[epoch], number, epoch + 1))
            continue
        del curves[number]
        ended, last = ended + 1, clock.now
        fill()
    return Simulated(driver, slots, ended, trained, last)


def _told(method: Method, number: int, epoch: int, curve: Trial, seconds: float) -> bool:
    """Whether the trial goes on."""
    value = curve.values[epoch - 1]
    if epoch < len(curve.values):
        return method.goes_on(number, epoch, value, seconds)
    method.completes(number, epoch, value, seconds)
    return False


def run(path: Path, *, slots: int, trials: int, epoch_s: float, sampler: SamplerName = "tpe") -> Simulated:
    """One sweep on the recording in `path`, in which an epoch takes `epoch_s` in the mean."""
    process = Process(search_surface.stored(path))
    recording, clock = process.recording, Clock()
    base = with_changes(RECIPES[recording.recipe](), {"epochs": recording.epochs})
    with TemporaryDirectory() as folder, ExitStack() as stack:
        driver = Driver(clock, flushed(Path(folder)))
        stack.enter_context(mock.patch("os.fsync"))
        method = begun(Entry(sampler), recording, base, seed=0, trials=trials, folder=folder, clock=clock)
        stack.callback(method.close)
        return simulated(method, Surface(process), driver, slots=slots, factor=epoch_s / process.epoch_s)


def rows(found: Simulated) -> list[tuple[str, str]]:
    """What is told of it."""
    driver = found.driver
    decisions = len(driver.asks) + len(driver.reports)
    return [
        ("trials, reports", f"{found.trials:,}, {len(driver.reports):,}"),
        ("the sweep takes", f"{found.whole / 60:.1f} min"),
        ("a line to the disk", f"{1000 * driver.flush_s:.2f} ms"),
        ("decisions per second of the driver", f"{decisions / driver.busy:,.0f}"),
        ("a new trial: median, 99.9 %", _ms(driver.asks)),
        ("a report: median, 99.9 %", _ms(driver.reports)),
        ("a slot waits for an answer: median, 99.9 %", _ms(driver.waits)),
        ("the driver is busy", f"{found.share:.1%} of the time"),
        ("the slots train", f"{found.use:.1%} of the time"),
        ("memory, most", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB"),
    ]


def _ms(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    median, last = (ordered[min(len(ordered) - 1, math.floor(share * len(ordered)))] for share in (0.5, 0.999))
    return f"{1000 * median:.2f}, {1000 * last:.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--epoch-s", type=float, nargs="+", default=[60.0], help="seconds of an epoch, in the mean")
    parser.add_argument("--curves", type=Path, default=search_surface.FILE, help="a recording of search_surface.py")
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(f"{asked.slots:,} slots, {asked.trials:,} trials")
    for epoch_s in asked.epoch_s:
        print(f"\n| an epoch takes {epoch_s:g} s | |\n| :-- | --: |", flush=True)
        for what, cell in rows(run(asked.curves, slots=asked.slots, trials=asked.trials, epoch_s=epoch_s)):
            print(f"| {what} | {cell} |", flush=True)


if __name__ == "__main__":
    main()
