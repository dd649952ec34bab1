"""A script in the place of NVIDIA's control program of its Multi-Process Service."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pretune.execution import mps

PROGRAM = """#!/bin/sh
# As nvidia-cuda-mps-control: a daemon with -f, else commands for it on the standard input.
place=${CUDA_MPS_PIPE_DIRECTORY:-%(default)s}
if [ "$1" = -f ]; then
    [ "$FAKE_MPS" = refused ] && { echo "not allowed here" > "$CUDA_MPS_LOG_DIRECTORY/control.log"; exit 1; }
    [ "$FAKE_MPS" = stubborn ] && trap "" TERM
    echo $$ > "$place/daemon.pid"
    echo $$ >> %(begun)s
    while :; do sleep 0.05; done
fi
kill -0 "$(cat "$place/daemon.pid" 2>/dev/null)" 2>/dev/null || { echo "Cannot find a daemon" >&2; exit 1; }
while read -r command; do
    case $command in
        get_server_list) cat "$place/servers" 2>/dev/null ;;
        quit) case $FAKE_MPS in deaf | stubborn) ;; *) kill "$(cat "$place/daemon.pid")" ;; esac ;;
    esac
done
exit 0
"""

Daemons = Callable[[], list[int]]


def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Daemons:
    """The program is on the path; gives the daemons that it has begun."""
    program, begun, default = tmp_path / "bin" / mps.CONTROL, tmp_path / "begun", tmp_path / "default"
    program.parent.mkdir()
    default.mkdir()
    begun.touch()
    program.write_text(PROGRAM % {"default": default, "begun": begun})
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    for name in (mps.PIPES, mps.LOGS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(mps, "GRACE", 2)
    return lambda: [int(line) for line in begun.read_text().split()]


def lives(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def goes(pid: int, *, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not lives(pid)
