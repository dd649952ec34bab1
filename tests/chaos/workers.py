"""Workers of warm slots are killed with SIGKILL while their trials train: every trial must finish.

Sweeps of two slots of two workers, one after the other, until so many workers were killed. What it costs is counted:
a trial may repeat one checkpoint interval, here one epoch, for each kill.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from pretune.core import results
from pretune.execution.processes import process_started
from tests.chaos import driver
from tests.chaos.counts import Counts
from tests.toys import epochs_run

SETTINGS = {
    "trials": 12,
    "epochs": 20,
    "slots": 2,
    "workers_per_trial": 2,
    "max_failures": 100,
    "stopping": {"enabled": False},
}


def run(folder: Path, seed: int, count: int) -> Counts:
    counts, rng, killed, number = Counts(), random.Random(seed), 0, 0
    while killed < count:
        sweep = folder / f"sweep-{number}"
        process = driver.start(sweep, SETTINGS | {"seed": rng.randrange(1000)}, epoch_s=0.4, cpus=4)
        while process.poll() is None:
            time.sleep(rng.uniform(1.0, 6.0))
            pids = training(sweep)
            if pids and killed < count and process.poll() is None:
                os.kill(rng.choice(pids), signal.SIGKILL)
                killed += 1
                counts.add("workers killed")
        assert process.returncode == 0, (folder / f"sweep-{number}.driver.txt").read_text()[-3000:]
        judge(counts, sweep)
        number += 1
    return counts


def judge(counts: Counts, sweep: Path) -> None:
    """What must hold of a sweep whose workers or nodes died."""
    result = results.read(sweep)
    begun = epochs_run(sweep)
    counts.add("sweeps")
    counts.add("trials", len(result.trials))
    counts.add("failures told", sum(trial.failures for trial in result.trials))
    unfinished = [trial for trial in result.trials if trial.state not in ("COMPLETE", "PRUNED", "INFEASIBLE")]
    counts.must_be_zero("trials that did not finish", result.asked - len(result.trials) + len(unfinished))
    again = {number: len(epochs) - len(set(epochs)) for number, epochs in begun.items()}
    counts.add("epochs begun again", sum(again.values()))
    taken_away = {
        int(log.parent.name): log.read_text().count("its machine was taken away")
        for log in sweep.glob("trials/*/log.txt")
    }
    counts.add("losses told before, no failures", sum(taken_away.values()))
    losses = {trial.id: trial.failures + taken_away.get(trial.id, 0) for trial in result.trials}
    too_many = sum(max(0, again[number] - losses[number]) for number in again)
    counts.must_be_zero("epochs repeated beyond one per loss", too_many)


def parent(pid: int) -> int | None:
    """The pid of a process's parent; None where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def training(sweep: Path) -> list[int]:
    """Pids of workers that train a trial that has not ended."""
    if not (sweep / "journal.jsonl").exists() or not (sweep / "journal.jsonl").stat().st_size:
        return []
    running = {trial.id for trial in results.read(sweep).trials if trial.state == "RUNNING"}
    pids = []
    for file in sweep.glob("trials/*/processes.rank-*.txt"):
        if int(file.parent.name) in running and (lines := file.read_text().split()):
            pids.append(int(lines[-1]))
    return sorted(pid for pid in pids if process_started(pid) is not None)
