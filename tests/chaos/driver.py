"""A driver to kill: runs or resumes a toy sweep on real warm slots in a process of its own.

    python -m tests.chaos.driver SWEEP_FOLDER '{"trials": 8, …}' [--epoch-s 0.3] [--address A] [--cpus N]

The JSON holds settings of the Experiment; where the folder has a journal, the sweep in it is resumed.
"""

from __future__ import annotations

import argparse
import functools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pretune import sweep
from pretune.core import journal
from tests.chaos.counts import Counts
from tests.toys import BASE, experiment, space, warm_slots

ROOT = Path(__file__).parents[2]


def killed_after(process: subprocess.Popen[bytes], counts: Counts, *, after_s: float) -> bool:
    """Whether it could be killed with SIGKILL `after_s` from now; it is counted. False: it was over before."""
    time.sleep(after_s)
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    counts.add("drivers killed")
    return True


def start(
    folder: Path,
    settings: dict[str, Any],
    *,
    epoch_s: float,
    address: str | None = None,
    cpus: int | None = None,
    start_timeout_s: float = 1200.0,
) -> subprocess.Popen[bytes]:
    """That process. What it prints goes to `<name>.driver.txt` beside the sweep's folder."""
    command = [sys.executable, "-m", "tests.chaos.driver", str(folder), json.dumps(settings)]
    command += ["--epoch-s", str(epoch_s), "--start-timeout-s", str(start_timeout_s)]
    command += ["--address", address] if address else []
    command += ["--cpus", str(cpus)] if cpus else []
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.driver.txt").open("ab") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("settings", type=json.loads)
    parser.add_argument("--epoch-s", type=float, default=0.3)
    parser.add_argument("--start-timeout-s", type=float, default=1200.0)
    parser.add_argument("--address")
    parser.add_argument("--cpus", type=int)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    settings = {"name": folder.name, **arguments.settings}
    settings["base"] = BASE.model_copy(update={"epochs": settings.pop("epochs", BASE.epochs)})
    slots = functools.partial(warm_slots, epoch_s=arguments.epoch_s, start_timeout_s=arguments.start_timeout_s)
    options = {"space": space, "address": arguments.address, "cpus": arguments.cpus, "trainable": slots}
    if (folder / journal.FILE).exists():
        result = sweep.resume(folder, **options)
    else:
        result = sweep.run(experiment(folder.parent, **settings), **options)
    print("closed", result.closed, flush=True)


if __name__ == "__main__":
    main()
