"""Nodes of a cluster die while a sweep runs on it, and others come: every trial must finish.

The head has no CPUs; three nodes have two each, of which two slots of two workers need four. A killed node takes
workers with it. In the first sweep nodes vanish; in the second Ray is told some seconds before, as clouds do with spot
machines: that must not count as a failure.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import ray
from ray.core.generated import autoscaler_pb2

from pretune.core import results
from tests.chaos import clusters, driver
from tests.chaos.counts import Counts
from tests.chaos.workers import SETTINGS, judge, parent, training

NODES = 3
NOTICE_S = 6.0


def run(folder: Path, seed: int, count: int) -> Counts:
    counts, rng = Counts(), random.Random(seed)
    _sweep(counts, rng, folder / "without-notice", (count + 1) // 2, notice=False)
    if count > 1:
        told = folder / "with-notice"
        _sweep(counts, rng, told, count // 2, notice=True)
        failures = sum(trial.failures for trial in results.read(told).trials)
        counts.must_be_zero("failures of trials whose node was announced to go", failures)
    return counts


def _sweep(counts: Counts, rng: random.Random, sweep: Path, kills: int, *, notice: bool) -> None:
    settings: dict[str, Any] = SETTINGS | {"seed": rng.randrange(1000), "trials": 12 if kills > 1 else 4}
    killed = 0
    with clusters.cluster(head_cpus=0) as cluster:
        nodes = [_new_node(cluster) for _ in range(NODES)]
        process = driver.start(sweep, settings, epoch_s=0.5, address=cluster.address)
        while process.poll() is None:
            time.sleep(rng.uniform(2.0, 6.0))
            busy = [node for node in nodes if _hosts(node, training(sweep))]
            if not busy or killed == kills or process.poll() is not None:
                continue
            node = rng.choice(busy)
            nodes.remove(node)
            nodes.append(_new_node(cluster))
            if notice:
                _announce(cluster.address, node.node_id)
                time.sleep(NOTICE_S)
            cluster.remove_node(node, allow_graceful=False)
            killed += 1
            counts.add("nodes killed after a notice" if notice else "nodes killed")
        assert process.returncode == 0, sweep.with_name(f"{sweep.name}.driver.txt").read_text()[-3000:]
        counts.must_be_zero("nodes that should have been killed", kills - killed)
        clusters.wait_until(lambda: not clusters.live_actors() and not clusters.live_placement_groups(), 60.0)
        counts.must_be_zero("actors left", len(clusters.live_actors()))
        counts.must_be_zero("placement groups left", clusters.live_placement_groups())
    judge(counts, sweep)


def _new_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)


def _hosts(node: Any, pids: list[int]) -> bool:
    """Whether one of these processes is of this node: a child of its raylet."""
    raylet = node.all_processes["raylet"][0].process.pid
    return any(parent(pid) == raylet for pid in pids)


def _announce(address: str, node: str) -> None:
    """Tell Ray that the machine will be taken away."""
    deadline_ms = int((time.time() + NOTICE_S) * 1000)
    client = ray._raylet.GcsClient(address=address)  # type: ignore[attr-defined]
    reasons = autoscaler_pb2.DrainNodeReason  # type: ignore[attr-defined]
    reason = reasons.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = client.drain_node(node, reason, "chaos", deadline_ms)
    assert accepted, why
