"""What a sweep of many trials costs beside its training: to show it, to decide, to take it up again, to keep study.log.

For each size a sweep is written by the program's own recording code (conductor, stopping rule, journal; toy epochs, a
third of the trials goes on at each rung, some diverge). Then, on that journal:

* show: `pretune show SWEEP` in a process of its own, from its start to its end, with the most memory it held;
* a decision: what a free slot waits for, from its question to the trial it is given, written to the journal;
* a report: what a slot waits for after an epoch, the stopping rule included, written to the journal;
* resume: from the file to the first decision, in a process that has imported everything;
* study.log: the whole of Optuna's journal for optuna-dashboard, written anew;
* Optuna itself, for comparison: a study of the same trials in its own journal storage, taken up by `load_study`, and
  the time of one `ask`, all parameters suggested, and `tell`, with the settings of TPE that the sweep has.

All are seconds of the processor, as machines are shared, but for the first of show's, and the disk is not waited for: a
journal's line costs one flush, which is the disk's affair, whatever the sweep's size (it is printed as well).

Run: python benchmarks/scale.py [--trials 100 1000 10000] [--decisions 200] [--samplers tpe random cmaes grid]
Targets at 10,000 trials: show 2 s and 200 MB, a decision 5 ms in the median and 50 ms at most, resume 3 s, study.log
1 s.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from pretune.__main__ import COLLECTED_AFTER
from pretune.core import study_log
from pretune.core.conductor import Conductor
from pretune.core.experiment import Experiment
from pretune.core.journal import Journal
from pretune.core.records import Opened, Resumed
from pretune.core.rows import Handout, Row
from pretune.core.search import Search, Space
from trainers.config import TrialConfig
from trainers.report import METRICS, Checkpoint
from trainers.terms import Alignment, KernelMMD

EPOCHS = 20
BASE = TrialConfig(objective={"alignment": Alignment(weight=0.1), "mmd": KernelMMD()}, epochs=EPOCHS, batch_size=64)
TOLD = [name for name in METRICS if "<" not in name and name not in ("epoch", "probe/linear")]


def branching(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    """Ten parameters or so, on four branches."""
    kernel = trial.suggest_categorical("kernel", ["rbf", "energy", "imq", "laplace"])
    if kernel in ("rbf", "laplace"):
        trial.suggest_float("gamma", 0.3, 20.0, log=True)
    if kernel == "energy":
        trial.suggest_float("exponent", 0.25, 1.75)
    if kernel == "imq":
        trial.suggest_float("offset", 0.1, 3.0, log=True)
    trial.suggest_int("width", 32, 512, log=True)
    trial.suggest_float("crop", 0.1, 1.0, step=0.1)
    return _numbers(trial, base, 6)


def numbers(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    return _numbers(trial, base, 9)


def _numbers(trial: optuna.Trial, base: TrialConfig, count: int) -> TrialConfig:
    for number in range(count):
        trial.suggest_float(f"number_{number}", 0.0, 1.0)
    rate = trial.suggest_float("rate", 1e-4, 1.0, log=True)
    return base.model_copy(update={"optimizer": base.optimizer.model_copy(update={"learning_rate": rate})})


def finite(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    point = [trial.suggest_int(f"digit_{number}", 0, 3) for number in range(9)]
    seed = sum(digit * 4**place for place, digit in enumerate(point)) + 4**9 * trial.suggest_int("seed", 0, 2)
    return base.model_copy(update={"seed": seed})


SPACES: dict[str, Space] = {"tpe": branching, "random": branching, "cmaes": numbers, "grid": finite}


class Slots:
    """Toy slots that train nothing; whose epoch comes next, what it is worth and who diverges is drawn."""

    def __init__(self, conductor: Conductor, count: int = 8) -> None:
        self._conductor, self._count, self._rng = conductor, count, random.Random(0)
        self._running: dict[int, tuple[Handout, int]] = {}
        self.asks: list[float] = []
        self.reports: list[float] = []

    def run(self) -> None:
        while self.fill():
            self.step()

    def fill(self) -> bool:
        """Gives each free slot a trial; False where nothing runs any more."""
        while self._conductor.live < self._count:
            begin = time.process_time()
            handout = self._conductor.next()
            taken = time.process_time() - begin
            if handout is None:  # nothing was decided
                break
            self.asks.append(taken)
            self._conductor.started(handout.number)
            self._running[handout.number] = (handout, 0 if handout.resume is None else handout.resume.epoch)
        return bool(self._running)

    def step(self) -> None:
        number = self._rng.choice(list(self._running))
        handout, epoch = self._running.pop(number)
        row = self._row(handout, epoch + 1)
        if self._rng.random() < 0.005:
            self._conductor.ended(Row(number, epoch, outcome="diverged", reason="loss/total is nan"))
            return
        begin = time.process_time()
        goes_on = self._conductor.reported(row)
        self.reports.append(time.process_time() - begin)
        if goes_on and row.epoch == EPOCHS:
            self._conductor.ended(Row(number, EPOCHS, outcome="complete", metrics=row.metrics))
        elif goes_on:
            self._running[number] = (handout, row.epoch)

    def _row(self, handout: Handout, epoch: int) -> Row:
        worth = 0.9 - 0.1 * sum((float(handout.params.get(f"number_{one}", 0.3)) - 0.3) ** 2 for one in range(9))
        metrics = {name: self._rng.random() for name in (*TOLD, "loss/alignment", "loss/mmd")}
        metrics["probe/linear"] = worth * (1.0 - math.exp(-0.3 * epoch)) + self._rng.gauss(0.0, 0.01)
        folder = self._conductor.experiment.folder / "trials" / handout.folder / "checkpoints"
        path = str(folder / f"epoch-{epoch:04d}.pt")
        return Row(
            handout.number, epoch, metrics=metrics, checkpoint=Checkpoint(path=path, sha256="0" * 64, epoch=epoch)
        )


def written(folder: Path, sampler: str, trials: int) -> Experiment:
    """A sweep of `trials` in `folder`. Its parameters are drawn at random, or from the grid: other samplers get to see
    the same trials.
    """
    made = Experiment(
        name=folder.name,
        space="scale",
        base=BASE,
        trials=trials,
        sampler="grid" if sampler == "grid" else "random",
        storage=str(folder.parent),
    )
    with Journal(folder, new=True) as journal:
        journal.append(Opened(experiment=made, versions={"pretune": "benchmark"}, host={"node": "node"}))
        Slots(Conductor(journal, Search(made, SPACES[sampler]))).run()
    return made


def shown(folder: Path) -> tuple[float, float, float]:
    """Seconds of `pretune show` by the clock and of the processor, and the most memory it held, in MB."""
    command = [sys.executable, "-m", "pretune", "show", folder.name, "--storage", str(folder.parent)]
    # A process begins with the memory of the one that starts it: that is a small one here.
    code = (
        "import resource, subprocess, sys, time\n"
        "begin = time.perf_counter()\n"
        f"subprocess.run({command!r}, check=True, stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    clock, processor, memory = map(float, told.split())
    return clock, processor, memory


def flushed(folder: Path) -> float:
    """Seconds by the clock of one line to the disk, in the median."""
    times: list[float] = []
    with (folder / "line").open("wb", buffering=0) as file:
        for _ in range(20):
            begin = time.perf_counter()
            file.write(b"x" * 1000)
            os.fsync(file.fileno())
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


@contextmanager
def resumed(folder: Path, sampler: str, trials: int) -> Iterator[Conductor]:
    """The sweep, asked for more trials, with another sampler than the one that wrote it."""
    with Journal(folder, new=False) as journal:
        opened = journal.records[0]
        assert isinstance(opened, Opened)
        made = opened.experiment.model_copy(update={"sampler": sampler})
        journal.records[0] = opened.model_copy(update={"experiment": made})
        conductor = Conductor(journal, Search(made, SPACES[sampler]))
        conductor.record(Resumed(trials=trials))
        yield conductor


def decision_times(folder: Path, sampler: str, trials: int, count: int) -> tuple[float, list[float], list[float]]:
    """Seconds of resume, and of each of so many decisions and of the reports between them, after `trials` trials."""
    begin = time.process_time()
    with resumed(folder, sampler, trials + count) as conductor:
        slots = Slots(conductor)
        slots.fill()
        taken_up = time.process_time() - begin
        slots.run()
    return taken_up, slots.asks[1:], slots.reports  # the first ask is part of taking up


def decided(folder: Path, sampler: str, trials: int, count: int) -> list[str]:
    """Of so many decisions after `trials` trials: resume, a decision in the median and at most, a report alike."""
    taken_up, asks, reports = decision_times(folder, sampler, trials, count)
    return [
        f"{taken_up:.2f} s",
        *map(_ms, (statistics.median(asks), max(asks))),
        *map(_ms, (statistics.median(reports), max(reports))),
    ]


def logged(folder: Path, trials: int) -> float:
    with resumed(folder, "random", trials) as conductor:
        begin = time.process_time()
        study_log.write(conductor.experiment, conductor.history.trials, folder / study_log.FILE)
        return time.process_time() - begin


def optunas(folder: Path, startup: int, count: int = 5) -> tuple[float, float]:
    """Seconds of `load_study` on `study.log`, and of one ask and tell in the median."""
    begin = time.process_time()
    theirs = optuna.load_study(
        study_name=folder.name, storage=JournalStorage(JournalFileBackend(str(folder / study_log.FILE)))
    )
    loaded = time.process_time() - begin
    times: list[float] = []
    for number in range(count):
        with warnings.catch_warnings(action="ignore"):
            theirs.sampler = optuna.samplers.TPESampler(
                seed=number, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True
            )
        begin = time.process_time()
        trial = theirs.ask()
        branching(trial, BASE)
        theirs.tell(trial, 0.5)
        times.append(time.process_time() - begin)
    return loaded, statistics.median(times)


def rows(trials: int = 2000, runs: int = 5) -> Iterator[tuple[str, list[float], list[float], str]]:
    """For the table: TPE's decision against Optuna's, in seconds of the processor; a run is the median of 27 decisions,
    and of three of Optuna's."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as temporary, mock.patch("os.fsync"):
        folder = Path(temporary) / "scale"
        made = written(folder, "tpe", trials)
        logged(folder, trials)
        for run in range(runs):
            again = Path(shutil.copytree(folder, folder.with_name(f"run-{run}")))
            ours.append(statistics.median(decision_times(again, "tpe", trials, 20)[1]))
            theirs.append(optunas(folder, made.random_trials, count=3)[1])
    yield "a decision of TPE", ours, theirs, f"after {trials:,} trials"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"


def _print(head: list[str], rows: list[list[str]]) -> None:
    print(f"\n| {' | '.join(head)} |\n|{' --: |' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--decisions", type=int, default=200)
    parser.add_argument("--samplers", nargs="+", default=list(SPACES), choices=list(SPACES))
    asked = parser.parse_args()
    gc.set_threshold(COLLECTED_AFTER)  # as the command does
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in ("cmaes", "scipy.special", "scipy.stats"):  # most of a second, once per process and not per sweep
        importlib.import_module(name)
    wholes: list[list[str]] = []
    decisions: list[list[str]] = []
    with tempfile.TemporaryDirectory() as temporary:
        print(f"a line to the disk takes {_ms(flushed(Path(temporary)))}")
    with tempfile.TemporaryDirectory() as temporary, mock.patch("os.fsync"):
        for trials in asked.trials:
            folder = Path(temporary) / f"scale-{trials}"
            made = written(folder, "tpe", trials)
            size = (folder / "journal.jsonl").stat().st_size / 1e6
            clock, seconds, memory = shown(folder)
            log = logged(folder, trials)
            loaded, asking = optunas(folder, made.random_trials)
            wholes.append(
                [
                    f"{trials:,}",
                    f"{size:.1f} MB",
                    f"{clock:.2f} s",
                    f"{seconds:.2f} s",
                    f"{memory:.0f} MB",
                    f"{log:.2f} s",
                ]
            )
            for sampler in asked.samplers:
                mine = folder
                if SPACES[sampler] is not branching:
                    mine = Path(temporary) / f"{sampler}-{trials}"
                    written(mine, sampler, trials)
                else:  # the next sampler gets the sweep without the decisions of this one
                    mine = Path(shutil.copytree(folder, folder.with_name(f"{sampler}-{trials}")))
                decisions.append([f"{trials:,}", sampler, *decided(mine, sampler, trials, asked.decisions)])
            decisions.append([f"{trials:,}", "Optuna's TPE", f"{loaded:.2f} s", _ms(asking), "", "", ""])
    _print(["trials", "journal", "show", "of the processor", "its memory", "study.log"], wholes)
    _print(["trials", "sampler", "resume", "a decision, median", "at most", "a report, median", "at most"], decisions)


if __name__ == "__main__":
    main()
