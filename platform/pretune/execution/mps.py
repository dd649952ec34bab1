"""NVIDIA's Multi-Process Service for the time of a block: kernels of several processes run on a GPU side by side, where
they would take turns.

Its control daemon is ours alone: it talks over pipes in a private folder, and whoever has that folder in the
environment uses it (see nvidia-cuda-mps-control(1)). A watching shell starts and ends it. The shell waits at a pipe
that only this process holds open, so the daemon goes however this process ends, also where it is killed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pretune.execution.environment import environment
from trainers import scratch

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
START_S, STOP_S = 10.0, 30.0
ASK_S = 5.0
GRACE = 25
"""Fifths of a second that the daemon has to end, each time it is told to."""
_WATCH = f"""
{CONTROL} -f </dev/null >/dev/null 2>&1 &
daemon=$!
cat >/dev/null
echo quit | timeout 5 {CONTROL} >/dev/null 2>&1
for signal in TERM KILL; do
    for moment in $(seq $1); do
        kill -0 $daemon 2>/dev/null || exit 0
        sleep 0.2
    done
    kill -s $signal $daemon 2>/dev/null
done
"""
"""It asks the daemon to end, then tells it to, then makes it."""


class NotServedError(RuntimeError):
    """The service is not there, or may not be started here."""


@contextmanager
def serving() -> Iterator[None]:
    """Processes that are started in the block share GPUs by a service of their own. NotServedError where there is none,
    or where somebody else's serves this process already: that one stays as it is, and is used without asking.
    """
    if shutil.which(CONTROL) is None:
        raise NotServedError(f"{CONTROL} is not installed")
    if asked(os.environ) is not None:
        raise NotServedError("a service that was there before is used already")
    if PIPES in os.environ:
        raise NotServedError(f"{PIPES} is {os.environ[PIPES]}, where no service answers; start it there, or unset that")
    # The names of sockets in it may be 107 characters long.
    with scratch.folder(place=Path("/tmp")) as folder:
        variables = {PIPES: str(folder / "pipes"), LOGS: str(folder / "logs")}
        for name in variables.values():
            Path(name).mkdir()
        with environment(variables), _daemon():
            yield


def used() -> bool:
    """Whether the service of this block has served a process: one that cannot reach it goes on without, and says
    nothing.
    """
    return bool((asked(os.environ) or "").strip())


@contextmanager
def _daemon() -> Iterator[None]:
    watch = subprocess.Popen(
        ["sh", "-c", _WATCH, "sh", str(GRACE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for this process: what uses the service ends first
    )
    assert watch.stdin is not None
    try:
        deadline = time.monotonic() + START_S
        while asked(os.environ) is None:
            if time.monotonic() > deadline:
                raise NotServedError(_why_not(Path(os.environ[LOGS])))
            time.sleep(0.1)
        yield
    finally:
        watch.stdin.close()
        watch.wait(STOP_S)


def asked(variables: Mapping[str, str]) -> str | None:
    """The servers that a daemon has, which it starts for its first client; None where no daemon answers."""
    try:
        done = subprocess.run(
            [CONTROL],
            input="get_server_list\n",
            env=dict(variables),
            capture_output=True,
            text=True,
            timeout=ASK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _why_not(logs: Path) -> str:
    """The daemon's own last words, where it had any."""
    log = logs / "control.log"
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"its daemon did not answer within {START_S:.0f} s{f': {said}' if said else ''}"
