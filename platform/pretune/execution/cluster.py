"""The Ray cluster under a sweep: a quiet local one or a running one, and how many trials fit on it at once."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import secrets
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
import yaml

from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.execution import ray_private
from pretune.execution.environment import environment
from pretune.execution.logfile import LogFile
from pretune.execution.settings import SLOT_MEMORY
from trainers import scratch

Node = Mapping[str, float]
"""What one node offers: resource name to amount."""

START_TRIES = 3
_NO_TASKS = {"RAY_prestart_worker_first_driver": "0"}
"""A process for each CPU, which Ray starts before anybody asks for one, serves tasks alone: ours are actors."""
_LEAVING_S, _SHUTDOWN_S = 1.0, 4.0
"""What the driver may take to leave its local cluster before that is ended, and then to see that it has ended."""
_LOGS = "logs"
"""A file of a session's folder: where the session's logs go when it is over."""
_OBJECT_STORE_BYTES = 200 * 2**20
"""Checkpoints never pass through Ray and reports are small; Ray's default would reserve 30 % of the memory."""


@contextmanager
def connected(address: str | None, *, cpus: int | None = None, logs: Path) -> Iterator[Path | None]:
    """A Ray cluster for the time of the block. Ray's own lines go to `logs`/ray.txt, not to the terminal.

    With `address` that cluster is joined, and left at the end. Without, a local one with `cpus` CPUs (all of the
    machine's if None) is started and always shut down; its logs then move to `logs`/ray/. It listens on the loopback
    interface alone, and the block is given its private folder. Where Ray is initialized already, it is used as it is.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with _quiet(logs / "ray.txt"):
        if ray.is_initialized():
            yield None
        elif address is not None:
            with environment({"RAY_USAGE_STATS_ENABLED": "0"}), ray_private.keeping_signals():
                ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
            try:
                yield None
            finally:
                ray.shutdown()
        else:
            with _local(cpus, logs) as folder:
                yield folder


def slots(experiment: Experiment, nodes: Iterable[Node] | None, *, head_bytes: float = math.inf) -> int:
    """How many trials run at once: as asked, or as many as `nodes` hold; never more than there are trials, nor than the
    head has memory for.

    `nodes` are those of the cluster at its configured maximum, None where that is not known. `head_bytes` is the head's
    memory for slots, which all live there.

    Raises:
        RequestError: nodes or head do not hold what is asked, or not even one trial; or nothing is known and nothing
            asked.
    """
    room = int(min(head_bytes / SLOT_MEMORY, experiment.trials))
    wanted = min(experiment.slots or 1, experiment.trials)
    if wanted > room:
        raise RequestError(
            f"{wanted} slots must fit into the head's memory at {SLOT_MEMORY / 2**20:.0f} MiB each, but it has "
            f"{head_bytes / 2**20:.0f} MiB for them; lower --slots, or use a larger head"
        )
    if nodes is None:
        if experiment.slots is None:
            raise RequestError(
                "the cluster scales by itself and its configured maximum cannot be read from here; say with --slots "
                "how many trials may run at once"
            )
        return wanted
    nodes = list(nodes)
    workers = sum(_fit(node, experiment) for node in nodes)
    held = workers // experiment.workers_per_trial
    wanted = experiment.slots or max(1, held)
    if wanted > held:
        total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
        raise RequestError(
            f"{wanted} x {experiment.workers_per_trial} workers (--slots x --workers-per-trial) of "
            f"{experiment.cpus_per_worker:g} CPU and {experiment.gpus_per_worker:g} GPU do not fit: the cluster "
            f"({len(nodes)} nodes, {total['CPU']:g} CPU and {total['GPU']:g} GPU at most) holds {workers} such "
            f"workers; lower --slots or --workers-per-trial"
        )
    return min(wanted, room)


def head_bytes() -> float:
    """The memory that the connected cluster's head offers, in bytes."""
    present = ray.nodes()  # type: ignore[no-untyped-call]
    heads = [node["Resources"] for node in present if node["Alive"] and ray_private.HEAD in node["Resources"]]
    return float(heads[0].get("memory", math.inf)) if heads else math.inf


def nodes(address: str | None) -> list[Node] | None:
    """The connected cluster's nodes at its configured maximum. None where it autoscales and that cannot be read."""
    # ray.nodes() has no type annotations.
    present: list[Node] = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if address is None:
        return present
    config = _autoscaling_config(ray.get_runtime_context().gcs_address)
    if config is not None:
        return configured_nodes(config)
    return None if _autoscales() else present


def has_gpus(address: str | None) -> bool:
    """Whether the connected cluster has a GPU, or would start a node that has, as far as its maximum can be read."""
    known = nodes(address)
    present: list[Node] = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return any(node.get("GPU", 0.0) > 0.0 for node in [*present, *(known or [])])


def configured_nodes(config: Mapping[str, Any]) -> list[Node] | None:
    """All nodes that an autoscaler with `config` (the YAML of `ray up`) would start at most, the head included.

    None where a node type does not say what it offers. Where `max_workers` of the whole is the tighter bound, the
    larger types are counted first.
    """
    types = dict(config.get("available_node_types", {}))
    head = types.get(config.get("head_node_type", ""), {})
    workers: list[Node] = []
    total = int(config.get("max_workers", 2))
    for kind in types.values():
        count = int(kind.get("max_workers", 0 if kind is head else total))
        if count and not kind.get("resources"):
            return None
        workers += [dict(kind["resources"])] * count if count else []
    workers.sort(key=lambda node: (node.get("GPU", 0.0), node.get("CPU", 0.0)), reverse=True)
    return [dict(head.get("resources", {})), *workers[:total]]


def _fit(node: Node, experiment: Experiment) -> int:
    """How many workers fit on one node; Ray never splits a worker over two."""
    wanted = {"CPU": experiment.cpus_per_worker, "GPU": experiment.gpus_per_worker}
    return int(min(node.get(name, 0.0) / amount + 1e-9 for name, amount in wanted.items() if amount))


_PASSING = ("timed out during startup", "Failed to start GCS")
"""What Ray says where another try may succeed. It gives a node 30 seconds to start, which a machine that does other
work may not keep; and it looks for a free port before it takes it, which another Ray may do in between.
"""


@contextmanager
def _local(cpus: int | None, logs: Path) -> Iterator[Path]:
    with _own_token(), ray_private.on_loopback():
        for tries_left in reversed(range(START_TRIES)):
            with ExitStack() as stack:
                folder = stack.enter_context(_session_folder(logs))
                stack.callback(_shut_down, folder)
                try:
                    with environment(_NO_TASKS), ray_private.few_processes(), ray_private.keeping_signals():
                        ray.init(
                            address="local",
                            num_cpus=cpus,
                            include_dashboard=False,
                            log_to_driver=False,
                            logging_level=logging.WARNING,
                            object_store_memory=_OBJECT_STORE_BYTES,
                            # One level down: Ray opens its own folder to everybody.
                            _temp_dir=str(folder / "ray"),
                            # Ray starts workers by a shell, to which it hands the program's path as it is: with a
                            # space in it they never start, and are tried again for ever.
                            runtime_env={"py_executable": shlex.quote(sys.executable)},
                        )
                except Exception as error:  # Ray raises no class of its own
                    if tries_left == 0 or not any(text in str(error) for text in _PASSING):
                        raise
                    logging.getLogger("ray").warning("%s Trying again.", error)
                    continue
                yield folder
                return


@contextmanager
def _session_folder(logs: Path) -> Iterator[Path]:
    """A private folder for a Ray session. What is left of the session goes with it, but for the logs: they go to
    `logs`/ray, and to where `logs` was for sessions that a killed driver has left behind.
    """
    # Not below the sweep's folder: Ray's sockets lie in it, and their paths may be 107 characters long.
    with scratch.folder(place=Path("/tmp"), before_removal=_put_away) as folder:
        (folder / _LOGS).write_text(str((logs / "ray").absolute()), encoding="utf-8")
        try:
            yield folder
        finally:
            _put_away(folder)


def _put_away(folder: Path) -> None:
    """Ends what still runs of the Ray session in `folder`, and brings its logs to the sweep."""
    _end_processes(folder)
    note = folder / _LOGS
    target = Path(note.read_text(encoding="utf-8")) if note.is_file() else None
    if target is None or not target.parent.is_dir():  # no session's folder, or the sweep has been moved
        return
    for session in (folder / "ray").glob("session_2*/logs"):
        for file in session.rglob("*"):
            if file.is_file() and not file.is_symlink():
                copy = target / file.relative_to(session)
                with suppress(OSError):  # a full disk must not keep the session from ending
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, copy)  # of its own mode, as Ray's folders are open to everybody


def _shut_down(folder: Path) -> None:
    """`ray.shutdown`, which waits for what does not end by itself, a second for each process, and a minute for what no
    longer lives.
    """
    thread = threading.Thread(target=ray.shutdown, daemon=True)
    thread.start()
    thread.join(_LEAVING_S)
    _end_processes(folder)
    thread.join(_SHUTDOWN_S)


def _end_processes(folder: Path) -> None:
    """Kills what is left of a session: processes with its folder in their command line."""
    found_none = 0
    while found_none < 2:  # one that is only just starting has no command line yet, and each may have started another
        found_none += 1
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            pid = int(file.parent.name)
            with suppress(OSError):  # it has ended, or belongs to somebody else
                if pid != os.getpid() and str(folder) in file.read_bytes().decode(errors="replace"):
                    os.kill(pid, signal.SIGKILL)
                    found_none = 0
        time.sleep(0.1)


@contextmanager
def _own_token() -> Iterator[None]:
    """A token that lives as long as the cluster.

    Ray switches token authentication on for a local cluster by itself and saves its token in the home folder, where the
    next `ray start` finds it and demands it of all its nodes.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    with environment({"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_TOKEN": secrets.token_hex(32)}):
        ray_private.forget_token()  # of an earlier cluster of this process
        try:
            yield
        finally:
            if mode is None:  # Ray has set it, and would take it for the user's wish with the next cluster
                os.environ.pop("RAY_AUTH_MODE", None)
    ray_private.forget_token()


@contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Ray's and Tune's log lines and Python's warnings go to `path` instead of the terminal."""
    handler = LogFile(path)
    # Importing Ray puts a handler on the logger "ray", and ray.init another one: replaced before, held off during.
    loggers = [logging.getLogger("ray"), logging.getLogger("py.warnings")]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        handler.close()


def _autoscaling_config(gcs_address: str) -> dict[str, Any] | None:
    """The configuration of the cluster's autoscaler, where that runs on this machine (the head)."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # the process has ended, or belongs to somebody else
        options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if options.get("--gcs-address") == gcs_address and "--autoscaling-config" in options:
            config: dict[str, Any] = yaml.safe_load(
                Path(options["--autoscaling-config"]).expanduser().read_text(encoding="utf-8")
            )
            return config
    return None


def _autoscales() -> bool:
    """Whether an autoscaler with node types of its own runs: one that only watches calls each node's type node_<id>."""
    status = ray_private.autoscaler_status()
    # A cluster that has just started has no status yet, then one without a report.
    report = json.loads(status).get("autoscaler_report") if status else None
    types = report["active_nodes"] if report else {}
    return any(not re.fullmatch(r"node_[0-9a-f]{56}", name) for name in types)
