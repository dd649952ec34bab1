"""Ray clusters of several nodes on this machine, and what is left on them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from trainers import scratch

RAY_FOLDER = f"/tmp/chaos{os.getpid()}"
"""Where clusters of this process keep their sockets and logs: a path must be short for sockets."""


@contextmanager
def cluster(*, head_cpus: int) -> Iterator[Any]:
    """A head in processes of its own, which outlive drivers; this process is connected to it."""
    Path("/tmp/ray").mkdir(exist_ok=True)  # the helper notes its address there, wherever the session lies
    nodes = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": head_cpus,
            "include_dashboard": False,
            "object_store_memory": 100 * 2**20,
            "temp_dir": RAY_FOLDER,
        },
    )
    try:
        ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR, namespace="chaos")
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()  # type: ignore[no-untyped-call]


def live_actors() -> list[str]:
    """Names of the classes of actors that live on the connected cluster, but for the one that Ray Train keeps for all
    of its runs.
    """
    living = [actor["ActorClassName"] for actor in ray._private.state.actors().values() if actor["State"] != "DEAD"]
    return [name for name in living if name != "_AutoscalingCoordinatorActor"]


def live_placement_groups() -> int:
    return sum(group["state"] != "REMOVED" for group in ray.util.placement_group_table().values())


def cpus_taken() -> float:
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return total.get("CPU", 0.0) - free.get("CPU", 0.0)


def processes_with(text: str) -> list[int]:
    """Pids of processes whose command line has `text` in it."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text in file.read_bytes().decode(errors="replace") and int(file.parent.name) != os.getpid():
                found.append(int(file.parent.name))
        except OSError:
            continue
    return found


def session_of(sweep: Path) -> Path | None:
    """The private folder of the local cluster that runs the sweep in this folder, or ran it when its driver was
    killed.
    """
    for note in Path("/tmp").glob(f"{scratch.PREFIX}*/logs"):
        if Path(note.read_text()) == sweep / "logs" / "ray":
            return note.parent
    return None


def wait_until(condition: Callable[[], bool], bound_s: float) -> bool:
    deadline = time.monotonic() + bound_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)
    return condition()


def wait_for_the_end_of(session: Path, bound_s: float = 60.0) -> int:
    """Waits for the processes of the Ray session in this folder; how many are left."""
    wait_until(lambda: not processes_with(str(session)), bound_s)
    return len(processes_with(str(session)))
