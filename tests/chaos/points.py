"""The driver is killed at random points of small sweeps: the real journal, search and stopping code, a toy executor.

A process writes a sweep's journal and is ended with SIGKILL right after a random record was written, or with half of
it written. Then the next process goes on, up to three times per sweep. Afterwards the journal must tell the same
decisions, in the same order, as that of the sweep that nobody killed: reports arrive in the order that one recorded.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from pathlib import Path

import optuna

from pretune.core.conductor import Conductor
from pretune.core.experiment import Experiment, StoppingConfig
from pretune.core.journal import read
from pretune.core.records import Ended, Record
from tests.chaos.counts import Counts
from tests.toys import BASE, Executor, again, begin, branching, decisions, experiment, follow, space

POINTS_PER_SWEEP = 3


def run(folder: Path, seed: int, count: int) -> Counts:
    counts, rng, number = Counts(), random.Random(seed), 0
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Children of a process without threads of its own, which has imported what each of them needs.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    while number < count:
        sweep = folder / f"sweep-{number}"
        made = experiment(
            sweep,
            trials=rng.randint(8, 16),
            sampler=rng.choice(["tpe", "tpe", "random", "cmaes"]),
            seed=rng.randrange(1000),
            base=BASE.model_copy(update={"epochs": 9}),
            stopping=StoppingConfig(
                kind=rng.choice(["asha", "asha", "hyperband", "median"]), min_trials=2, audit=rng.choice([0.0, 0.3])
            ),
        )
        how = space if made.sampler == "cmaes" else branching
        unkilled = begin(sweep / "whole", made, how)
        Executor(unkilled, slots=rng.randint(1, 4), seed=rng.randrange(1000)).run()
        unkilled._journal.close()
        whole, records = decisions(sweep / "whole"), read(sweep / "whole")
        killed = sweep / "killed"
        points = sorted(rng.sample(range(2, len(whole)), min(POINTS_PER_SWEEP, count - number)))
        for point in points:
            torn = rng.random() < 0.5
            # A child of its own: what it held in memory is gone, as after any kill.
            child = context.Process(target=_drive, args=(killed, made, records, point, torn))
            child.start()
            child.join(120)
            counts.must_be_zero("drivers that were not killed", child.exitcode != -signal.SIGKILL)
            counts.add("kill points, half a line written" if torn else "kill points, after a line")
            number += 1
        conductor = _opened(killed, made)
        follow(conductor, _rest(conductor, records))
        conductor._journal.close()
        after = decisions(killed)
        ends = [record.number for record in after if isinstance(record, Ended)]
        counts.add("sweeps")
        counts.add("trials", len(ends))
        counts.add(
            "trials stopped early", sum(record.state == "PRUNED" for record in whole if isinstance(record, Ended))
        )
        asked = [record.number for record in whole if isinstance(record, Ended)]
        counts.must_be_zero("finished trials lost", len(set(asked) - set(ends)))
        counts.must_be_zero("finished trials repeated", len(ends) - len(set(ends)))
        counts.must_be_zero("sweeps that decided otherwise than unkilled", after != whole)
    return counts


def _drive(folder: Path, made: Experiment, records: list[Record], point: int, torn: bool) -> None:
    """Goes on with the sweep until decision number `point` is in the journal, and no further."""
    conductor = _opened(folder, made)
    journal = conductor._journal
    written = len(journal.records)
    append = journal.append

    def append_and_die(record: Record) -> Record:
        nonlocal written
        written += 1
        if written == point and torn:
            end = journal.path.stat().st_size
            append(record)
            whole = journal.path.stat().st_size
            os.truncate(journal.path, (end + whole) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        told = append(record)
        if written >= point:
            os.kill(os.getpid(), signal.SIGKILL)
        return told

    journal.append = append_and_die  # type: ignore[method-assign]
    follow(conductor, _rest(conductor, records))


def _opened(folder: Path, made: Experiment) -> Conductor:
    how = space if made.sampler == "cmaes" else branching
    return again(folder, how) if folder.exists() else begin(folder, made, how)


def _rest(conductor: Conductor, records: list[Record]) -> list[Record]:
    """What the unkilled sweep told after what `conductor` knows. The two journals differ in who took a trial when."""
    known = [record for record in conductor._journal.records if record.kind != "started"]
    count = 0
    for position, record in enumerate(records):
        if count == len(known):
            return records[position:]
        count += record.kind != "started"
    return []
