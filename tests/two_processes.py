"""A pool of two processes in one gloo group, for tests that compare two workers with one.

    def double(x):                                   # in the test's own file; runs on both ranks
        return dist.sum_over_ranks(x)

    def test_…(two_processes):                       # fixture of conftest.py, started once per session
        first, second = two_processes.run(double, torch.ones(3))

Functions are found by file and name in the children, so that they need not be importable by name there. Arguments and
results are pickled: tensors, arrays, plain values, classes of `trainers`, not classes that a test file defines. A
function that raises on a rank, or takes longer than the time-out, ends the pool, whose next use starts a fresh one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import secrets
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

ROOT = str(Path(__file__).resolve().parent.parent)
PROCESSES = 2
TIMEOUT_S = 120.0


class TwoProcesses:
    """`run` calls one function on both ranks of a warm gloo group."""

    def __init__(self) -> None:
        self._children: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def run(
        self, function: Callable[..., T], *arguments: Any, timeout_s: float = TIMEOUT_S, **keywords: Any
    ) -> list[T]:
        """The ranks' results, in rank order. `function` is at its file's top level. RuntimeError quotes a traceback."""
        if not self._children:
            self._start()
        for connection in self._connections:
            # Bytes: `Connection.send` would share tensors through file descriptors, which only works between
            # processes that multiprocessing itself started.
            connection.send_bytes(
                pickle.dumps((function.__code__.co_filename, function.__qualname__, arguments, keywords))
            )
        results: dict[int, T] = {}
        deadline = time.monotonic() + timeout_s
        while waiting := [rank for rank in range(PROCESSES) if rank not in results]:
            ready = wait([self._connections[rank] for rank in waiting], timeout=max(0.0, deadline - time.monotonic()))
            for rank in waiting:
                if not ready:
                    self._fail(function, rank, f"no answer in {timeout_s} s")
                if self._connections[rank] in ready:
                    succeeded, value = _answer(self._connections[rank])
                    if not succeeded:
                        self._fail(function, rank, value)
                    results[rank] = value
        return [results[rank] for rank in range(PROCESSES)]

    def _fail(self, function: Callable[..., Any], rank: int, reason: str) -> NoReturn:
        self.close()  # the other rank may wait in a collective for ever
        raise RuntimeError(f"{function.__qualname__} failed on rank {rank}: {reason}")

    def close(self) -> None:
        """End both processes."""
        for connection in self._connections:
            connection.close()
        for child in self._children:
            child.kill()
            child.wait()
        if self._folder is not None:
            self._folder.cleanup()
        self._children, self._connections, self._folder = [], [], None

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="two-")
        address, key = str(Path(self._folder.name) / "listener"), secrets.token_bytes(16)
        with Listener(address, family="AF_UNIX", authkey=key) as listener:
            for rank in range(PROCESSES):
                command = [sys.executable, "-P", __file__, address, str(rank), str(Path(self._folder.name) / "group")]
                environment = {
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), ROOT]),
                }
                child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)
                assert child.stdin is not None
                child.stdin.write(key)
                child.stdin.close()
                self._children.append(child)
            connections = [listener.accept() for _ in self._children]
        self._connections = sorted(connections, key=lambda connection: int(connection.recv_bytes()))


def _answer(connection: Connection) -> tuple[bool, Any]:
    """What one child sent: (True, result), or (False, the reason in words)."""
    try:
        return pickle.loads(connection.recv_bytes())  # type: ignore[no-any-return]
    except EOFError:
        return False, "its process died"


def _load(file: str, qualified_name: str) -> Callable[..., Any]:
    """The function `qualified_name` of a file, whose module is loaded once per process."""
    name = "loaded_" + str(Path(file).resolve()).replace("/", "_").removesuffix(".py")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    found: Any = sys.modules[name]
    for part in qualified_name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def _serve(address: str, rank: int, group_file: str) -> None:
    """One child: join the group, then answer calls until the parent goes away."""
    import torch
    import torch.distributed

    torch.set_num_threads(1)
    with Client(address, family="AF_UNIX", authkey=sys.stdin.buffer.read()) as connection:
        connection.send_bytes(str(rank).encode())
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{group_file}",
            rank=rank,
            world_size=PROCESSES,
            timeout=timedelta(seconds=TIMEOUT_S),
        )
        with contextlib.suppress(EOFError):  # the parent has closed its end: the session is over
            while True:
                file, qualified_name, arguments, keywords = pickle.loads(connection.recv_bytes())
                try:
                    answer = (True, _load(file, qualified_name)(*arguments, **keywords))
                except Exception:
                    answer = (False, traceback.format_exc())
                connection.send_bytes(pickle.dumps(answer))
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
