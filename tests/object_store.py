"""An S3 to test against (moto's server in a process of its own), and a file system that fails on a seeded schedule."""

from __future__ import annotations

import importlib.util
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest

from trainers import storage

BUCKET = "bucket"
START_S = 60.0


@contextmanager
def server() -> Iterator[str]:
    """The address of a running server that has one empty bucket."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        pytest.skip("moto[server] is not installed: pip install 'moto[server]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(address, process)
        with urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT"), timeout=10):
            yield address
    finally:
        process.terminate()
        process.wait(timeout=10)


def uri(address: str, prefix: str) -> str:
    return f"s3://{BUCKET}/{prefix}?endpoint_override={quote(address, safe='')}&region=us-east-1"


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    since = time.monotonic()
    while True:
        try:
            with urllib.request.urlopen(f"{address}/moto-api/", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() - since > START_S:
                raise
            time.sleep(0.1)


class Faulty:
    """Wraps pyarrow's file systems: each call fails with probability `failing`, and is late by up to `delay_s`.

    `calls` counts all calls, `failures` those that failed.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, seed: int, failing: float, delay_s: float = 0.0) -> None:
        self.calls = self.failures = 0
        self._draws = random.Random(seed)
        self._failing = failing
        self._delay_s = delay_s
        real = storage.locate

        def locate(uri: str) -> tuple[Any, str]:
            system, path = real(uri)
            return _Proxy(system, self), path

        monkeypatch.setattr(storage, "locate", locate)

    def happens(self, name: str) -> None:
        self.calls += 1
        time.sleep(self._delay_s * self._draws.random())
        if self._draws.random() < self._failing:
            self.failures += 1
            raise OSError(f"injected: {name} failed")


class _Proxy:
    def __init__(self, system: Any, faults: Faulty) -> None:
        self._system = system
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._system, name)

        def call(*arguments: Any, **settings: Any) -> Any:
            self._faults.happens(name)
            return method(*arguments, **settings)

        return call
