"""Processes of this machine: whether one still is the one that was started, what memory it takes, its end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def process_started(pid: int) -> float | None:
    """When a process of this machine started, in clock ticks since boot; None if there is none (or only its zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else float(fields[19])


def age_s() -> float:
    """Seconds since this process was started, which is before its first line of Python; 0 where the system does not
    tell.
    """
    started = process_started(os.getpid())
    if started is None:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def proportional_bytes(pid: int) -> int:
    """A process's share of memory (PSS); 0 where there is none, or the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def kill_process(pid: int, started: float) -> bool:
    """SIGKILL, if the pid still is the process that started then. False if it was gone."""
    if process_started(pid) != started:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
