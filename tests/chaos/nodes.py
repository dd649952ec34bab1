"""Nodes of a cluster die while a sweep runs on it, and others come: every trial must finish.

The head has no CPUs; three nodes have two each, of which two slots of two workers need four. A killed node takes
workers, and perhaps a slot, with it.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

from tests.chaos import clusters, driver
from tests.chaos.counts import Counts
from tests.chaos.workers import SETTINGS, judge, training

NODES = 3


def run(folder: Path, seed: int, count: int) -> Counts:
    counts, rng, killed, number = Counts(), random.Random(seed), 0, 0
    while killed < count:
        sweep = folder / f"sweep-{number}"
        with clusters.cluster(head_cpus=0) as cluster:
            nodes = [cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20) for _ in range(NODES)]
            settings = SETTINGS | {"seed": rng.randrange(1000)}
            process = driver.start(sweep, settings, epoch_s=0.5, address=cluster.address)
            while process.poll() is None:
                time.sleep(rng.uniform(2.0, 8.0))
                if training(sweep) and killed < count and process.poll() is None:
                    cluster.remove_node(nodes.pop(rng.randrange(NODES)), allow_graceful=False)
                    killed += 1
                    counts.add("nodes killed")
                    nodes.append(cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20))
            assert process.returncode == 0, (folder / f"sweep-{number}.driver.txt").read_text()[-3000:]
            clusters.wait_until(lambda: not clusters.live_actors() and not clusters.live_placement_groups(), 60.0)
            counts.must_be_zero("actors left", len(clusters.live_actors()))
            counts.must_be_zero("placement groups left", clusters.live_placement_groups())
        judge(counts, sweep)
        number += 1
    return counts
