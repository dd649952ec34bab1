"""Ray's real autoscaler with fake nodes: from no worker node up, a node that vanishes in the middle, and back to none.

The head has no CPUs; worker nodes have two, three at most, and go after twelve idle seconds. Trials have two workers.
Prints the number of worker nodes over time.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import ray
import yaml

from tests.chaos import clusters, driver
from tests.chaos.counts import Counts
from tests.chaos.workers import judge, parent, training

SETTINGS = {"trials": 24, "epochs": 10, "workers_per_trial": 2, "max_failures": 20}
NODES = 3
EPOCH_S = 0.5
HEAD_NODE_ID = "f" * 51 + "00000"
BOUND_S = 600.0


def run(folder: Path, seed: int, count: int) -> Counts:
    counts, rng = Counts(), random.Random(seed)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = _start_head(folder, port)
    try:
        ray.init(address=f"127.0.0.1:{port}", log_to_driver=False, logging_level=logging.ERROR, namespace="chaos")
        started, told = time.monotonic(), -1
        sweep = folder / "sweep"
        process: subprocess.Popen[bytes] | None = None
        peak = killed = idle = ended = 0
        while time.monotonic() - started < BOUND_S:
            nodes = _worker_nodes()
            peak = max(peak, len(nodes))
            if len(nodes) != told:
                told = len(nodes)
                print(f"{time.monotonic() - started:6.0f} s  {told} worker nodes", flush=True)
            if process is None:
                counts.must_be_zero("worker nodes before the sweep", len(nodes))
                process = driver.start(sweep, SETTINGS | {"seed": seed}, epoch_s=EPOCH_S, address=f"127.0.0.1:{port}")
            elif process.poll() is None and killed < count and len(nodes) == NODES:
                hosts = {parent(pid) for pid in training(sweep)}
                busy = [raylet for node in nodes if (raylet := _raylet(node)) is not None and raylet in hosts]
                if busy:
                    _kill(rng.choice(busy))
                    killed += 1
                    print(f"{time.monotonic() - started:6.0f} s  a node is killed under a trial", flush=True)
            elif process.poll() is not None:
                if not ended:
                    ended = 1
                    print(f"{time.monotonic() - started:6.0f} s  the sweep's driver has ended", flush=True)
                if not nodes:
                    idle = 1
                    break
            time.sleep(0.5)
        assert process is not None
        if process.poll() is None:
            process.kill()
        counts.must_be_zero("sweeps that did not end", process.wait() != 0)
        counts.add("worker nodes at most", peak)
        counts.add("nodes killed", killed)
        counts.must_be_zero("nodes that should have been killed", count - killed)
        counts.must_be_zero("worker nodes that stayed", len(_worker_nodes()) if not idle else 0)
        counts.must_be_zero("actors left", len(clusters.live_actors()))
        counts.must_be_zero("placement groups left", clusters.live_placement_groups())
        judge(counts, sweep)
    finally:
        ray.shutdown()
        _stop(head)
    return counts


def _start_head(folder: Path, port: int) -> subprocess.Popen[bytes]:
    config = {
        "cluster_name": "chaos",
        "max_workers": NODES,
        "upscaling_speed": 4.0,
        "idle_timeout_minutes": 0.2,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "head_node_id": HEAD_NODE_ID,
            "gcs_address": f"127.0.0.1:{port}",
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "max_workers": 0, "node_config": {}},
            "worker": {"resources": {"CPU": 2}, "min_workers": 0, "max_workers": NODES, "node_config": {}},
        },
        "auth": {},
        "docker": {},
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    }
    path = folder / "autoscaler.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    command += [f"--port={port}", "--num-cpus=0", f"--autoscaling-config={path}", "--include-dashboard=false"]
    command += ["--object-store-memory=100000000", f"--temp-dir={clusters.RAY_FOLDER}"]
    environment = {
        **os.environ,
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_NODE_ID,
    }
    with (folder / "head.txt").open("wb") as log:
        # A group of its own, so that all of it can be ended.
        head = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    up = clusters.wait_until(lambda: "Ray runtime started" in (folder / "head.txt").read_text(), 120.0)
    assert up, (folder / "head.txt").read_text()
    return head


def _stop(head: subprocess.Popen[bytes]) -> None:
    head.terminate()
    try:
        head.wait(60)
    except subprocess.TimeoutExpired:
        head.kill()
    # The fake nodes are the autoscaler's children and have sessions of their own.
    for pid in clusters.processes_with(f"{clusters.RAY_FOLDER}/"):
        os.kill(pid, signal.SIGKILL)


def _worker_nodes() -> list[str]:
    """Ids of living nodes but the head."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["NodeID"] for node in nodes if node["Alive"] and node["NodeID"] != HEAD_NODE_ID]


def _kill(raylet: int) -> None:
    """SIGKILL for a fake node, raylet and all of its workers, as when a machine is taken away."""
    processes = [int(file.parent.name) for file in Path("/proc").glob("[0-9]*/stat")]
    for pid in [raylet, *(pid for pid in processes if parent(pid) == raylet)]:
        os.kill(pid, signal.SIGKILL)


def _raylet(node: str) -> int | None:
    """Pid of a fake node's raylet."""
    for pid in clusters.processes_with("raylet/raylet"):
        if f"RAY_OVERRIDE_NODE_ID_FOR_TESTING={node}" in Path(f"/proc/{pid}/environ").read_bytes().decode():
            return pid
    return None
