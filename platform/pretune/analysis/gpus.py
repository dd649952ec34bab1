"""What the GPUs of this machine are doing, by NVIDIA's own program."""

from __future__ import annotations

import csv
import shutil
import subprocess
import threading
import time
from typing import Any

PROGRAM = "nvidia-smi"
FIELDS = ("index", "name", "utilization.gpu", "memory.used", "memory.total", "temperature.gpu")
EVERY_S = 3.0
TIMEOUT_S = 10.0


class Gpus:
    """Asked now and then, in a thread of its own: a driver that hangs keeps nobody waiting."""

    def __init__(self) -> None:
        self._told: dict[str, Any] | None = None
        self._asked = float("-inf")
        self._lock = threading.Lock()
        self._asking = False

    def now(self) -> dict[str, Any] | None:
        """What was found last, not older than seconds where the program answers: `gpus`, each with `index`, `name`,
        `percent` of the time that it computes, `used` and `total` memory in bytes and `celsius` (None: not told); or
        `absent`, why there are none. None before the first answer.
        """
        with self._lock:
            if not self._asking and time.monotonic() - self._asked >= EVERY_S:
                self._asking, self._asked = True, time.monotonic()
                threading.Thread(target=self._ask, name="gpus", daemon=True).start()
            return self._told

    def _ask(self) -> None:
        told = look()
        with self._lock:
            self._told, self._asking = told, False


def look() -> dict[str, Any]:
    """As `Gpus.now`, asked right now."""
    program = shutil.which(PROGRAM)
    if program is None:
        return {"absent": f"no GPU of NVIDIA's on this machine ({PROGRAM} is not installed)"}
    try:
        done = subprocess.run(
            [program, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"absent": f"{PROGRAM} does not answer ({error})"}
    if done.returncode:
        said = (done.stdout.strip() or done.stderr.strip()).splitlines()
        return {"absent": f"{PROGRAM} says: {said[-1] if said else f'exit code {done.returncode}'}"}
    rows = list(csv.reader(done.stdout.splitlines(), skipinitialspace=True))
    return {"gpus": [_gpu(row) for row in rows if len(row) == len(FIELDS)]}


def _gpu(row: list[str]) -> dict[str, Any]:
    index, name, percent, used, total, celsius = row
    return {
        "index": index,
        "name": name,
        "percent": _number(percent),
        "used": _number(used, 2**20),
        "total": _number(total, 2**20),
        "celsius": _number(celsius),
    }


def _number(text: str, scale: int = 1) -> float | None:
    """A card may say `[N/A]`."""
    try:
        return float(text) * scale
    except ValueError:
        return None
