"""A real sweep from the command line, and whoever runs it sends signals to its whole process group: SIGTERM (a batch
system, a service manager, `timeout`), SIGKILL, SIGINT and SIGHUP, at any moment from the first line typed on.

Each time the user does what the program says: asks `pretune show`, goes on with `pretune resume`, or types the same
command again where nothing had begun.
"""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from pretune.core import journal
from pretune.core.records import Asked, Closed, Ended, Record
from tests.chaos.counts import Counts
from tests.chaos.driver import ROOT
from trainers import scratch

NAME = "real"
SWEEP = ["sweep", "kernels", "--slots", "1", "--epochs", "3", "--name", NAME]
KINDS = (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGHUP)
CODES = {signal.SIGTERM: 143, signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGHUP: 130}
WITHIN_S = 15.0
LATEST_S = 40.0
"""After so long on a machine with two cores trials run, as a rule."""
TRIAL_S = 180.0
"""How long at most is waited for a trial to end, however busy the machine is."""


def run(folder: Path, seed: int, count: int) -> Counts:
    counts, rng = Counts(), random.Random(seed)
    for number in (signal.SIGINT, signal.SIGHUP):  # of a job in the background they are ignored, and so by its children
        signal.signal(number, signal.SIG_DFL)
    ended: dict[int, Ended] = {}
    options = [*SWEEP, "--trials", str(max(8, count)), "--set", f"seed={seed}"]
    for _ in range(count):
        if _over(folder):
            break
        process = _start(folder, options)
        # As often in the seconds in which it checks and starts Ray as in those in which trials run, or have ended.
        wait_s = rng.choice([rng.uniform(0.0, 12.0), rng.uniform(0.0, LATEST_S), math.inf])
        try:
            if wait_s == math.inf:
                _until_another_ended(folder, process, len(ended))
                wait_s = rng.uniform(0.0, 8.0)
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            _signal(process, rng.choice(KINDS), counts)
        else:
            counts.must_be_zero("commands that were refused or failed", process.returncode != 0)
        counts.must_be_zero("journals that cannot be shown", _begun(folder) and _shown(folder) != 0)
        now = {record.number: record for record in _records(folder) if isinstance(record, Ended)}
        counts.must_be_zero("finished trials lost", sum(now.get(number) != end for number, end in ended.items()))
        ended = now
    counts.add("trials that had ended under the signals", len(ended))
    if not _over(folder):
        asked = sum(isinstance(record, Asked) for record in _records(folder))
        last = _start(folder, [*options, "--trials", "3"], trials=asked + 2)
        counts.must_be_zero("last runs that failed", last.wait(1800) != 0 or not _over(folder))
    ends = [record.number for record in _records(folder) if isinstance(record, Ended)]
    counts.add("trials", len(set(ends)))
    counts.must_be_zero("finished trials lost", sum(number not in ends for number in ended))
    counts.must_be_zero("finished trials repeated", len(ends) - len(set(ends)))
    left = [path for path in Path("/tmp").glob(f"{scratch.PREFIX}*") if _says(path / "logs", folder)]
    counts.must_be_zero("temporary folders left", len(left))
    return counts


def _signal(process: subprocess.Popen[bytes], number: signal.Signals, counts: Counts) -> None:
    os.killpg(process.pid, number)
    counts.add(f"{number.name} to the process group")
    sent = time.monotonic()
    try:
        code = process.wait(60.0)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    # Before Python has set its handlers, the system's own end the process: the shell calls that the same.
    expected = {CODES[number], -int(number)}
    counts.must_be_zero(f"drivers that took more than {WITHIN_S:g} s to end", time.monotonic() - sent > WITHIN_S)
    counts.must_be_zero("other exit codes", code not in expected)
    if code not in expected:
        print(f"{number.name} ended with {code}", flush=True)


def _until_another_ended(folder: Path, process: subprocess.Popen[bytes], before: int) -> None:
    """Waits until one more trial has ended than `before`, or the process."""
    deadline = time.monotonic() + TRIAL_S
    while process.poll() is None and time.monotonic() < deadline:
        if sum(isinstance(record, Ended) for record in _records(folder)) > before:
            return
        time.sleep(0.5)


def _start(folder: Path, options: list[str], *, trials: int | None = None) -> subprocess.Popen[bytes]:
    """The command as a user goes on: `resume` where it has begun, for so many `trials` in all."""
    more = [] if trials is None else ["--trials", str(trials)]
    arguments = ["resume", NAME, *more] if _begun(folder) else options
    with (folder / "out.txt").open("ab") as out:
        return subprocess.Popen(
            _command(arguments), cwd=folder, stdout=out, stderr=out, start_new_session=True, env=_ENV
        )


def _shown(folder: Path) -> int:
    return subprocess.run(_command(["show", NAME, "--json"]), cwd=folder, capture_output=True, env=_ENV).returncode


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "pretune", *arguments]


_ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "platform")))}


def _records(folder: Path) -> list[Record]:
    return journal.read(folder / "sweeps" / NAME) if _begun(folder) else []


def _begun(folder: Path) -> bool:
    path = folder / "sweeps" / NAME / journal.FILE
    return path.exists() and b"\n" in path.read_bytes()


def _over(folder: Path) -> bool:
    return any(isinstance(record, Closed) and record.reason == "finished" for record in _records(folder)[-1:])


def _says(note: Path, folder: Path) -> bool:
    return note.is_file() and str(folder) in note.read_text()
