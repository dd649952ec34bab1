"""Three sweeps at once on one cluster that holds two thirds of what they ask for, with random early stops.

Eight CPUs; each sweep asks for two slots of two workers. Nobody may wait for ever, and nothing may be left.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

from pretune.core import results
from tests.chaos import clusters, driver
from tests.chaos.counts import Counts
from tests.toys import epochs_run

SWEEPS, CPUS, SLOTS, WORKERS, EPOCH_S, BOUND_S = 3, 8, 2, 2, 0.3, 840.0
START_TIMEOUT_S = 60.0
"""Short, so that slots find no room and give their trials back."""


def run(folder: Path, seed: int, count: int) -> Counts:
    counts, rng = Counts(), random.Random(seed)
    sizes = [count // SWEEPS + (number < count % SWEEPS) for number in range(SWEEPS)]
    with clusters.cluster(head_cpus=CPUS) as cluster:
        started = time.monotonic()
        processes = [
            driver.start(
                folder / f"sweep-{number}",
                {"trials": size, "slots": SLOTS, "workers_per_trial": WORKERS, "seed": rng.randrange(1000)},
                epoch_s=EPOCH_S,
                address=cluster.address,
                start_timeout_s=START_TIMEOUT_S,
            )
            for number, size in enumerate(sizes)
        ]
        taken: list[float] = []
        while any(process.poll() is None for process in processes) and time.monotonic() - started < BOUND_S:
            taken.append(clusters.cpus_taken())
            time.sleep(1.0)
        wall_s = time.monotonic() - started
        dead_locked = [process for process in processes if process.poll() is None]
        counts.must_be_zero("sweeps that did not end", len(dead_locked))
        for process in dead_locked:
            process.kill()
        clusters.wait_until(lambda: not clusters.live_actors() and not clusters.live_placement_groups(), 60.0)
        counts.must_be_zero("actors left", len(clusters.live_actors()))
        counts.must_be_zero("placement groups left", clusters.live_placement_groups())
        counts.must_be_zero("CPUs not given back", clusters.cpus_taken())
    epochs = 0
    for number, process in enumerate(processes):
        sweep = folder / f"sweep-{number}"
        counts.must_be_zero("sweeps that failed", process.returncode != 0)
        found = results.read(sweep).trials
        counts.add("trials", len(found))
        counts.add("trials stopped early", sum(trial.state != "COMPLETE" for trial in found))
        ended = sum(trial.state in ("COMPLETE", "PRUNED", "INFEASIBLE") for trial in found)
        counts.must_be_zero("trials that did not finish", sizes[number] - ended)
        counts.must_be_zero("failures told", sum(trial.failures for trial in found))
        epochs += sum(map(len, epochs_run(sweep).values()))
    counts.add("wall seconds", round(wall_s))
    counts.add("CPUs held on average, %", round(100 * sum(taken) / len(taken) / CPUS))
    counts.add("CPUs in an epoch, %", round(100 * epochs * EPOCH_S * WORKERS / (wall_s * CPUS)))
    return counts
