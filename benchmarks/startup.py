"""How long a command takes to answer where nothing is trained: medians of five, beside `python -c "import torch"`.

    python benchmarks/startup.py [--repeats 5]

What is typed most must not wait for what it does not need. Each command is a process of its own, as a shell starts it,
in a folder with the built-in data and one sweep of sixteen trials; one run to warm the caches is not counted. Commands
take turns, so that all see the same machine. `import pretune` and `import trainers` are times above an empty Python.

Targets: each command under 1 s; `import pretune` under 0.1 s.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("import pretune", "import trainers")
COMMANDS = {
    "pretune --version": ["--version"],
    "pretune --help": ["--help"],
    "pretune sweep --help": ["sweep", "--help"],
    "pretune list": ["list"],
    "pretune show": ["show"],
    "pretune show known": ["show", "known"],
    "pretune sweep kernel (refused)": ["sweep", "kernel"],
    "pretune sweep kernels --subset 100000 (refused)": ["sweep", "kernels", "--subset", "100000"],
    "pretune show <TAB>": ["show", ""],
    "pretune sweep <TAB>": ["sweep", ""],
}
LIMIT_S, IMPORT_LIMIT_S = 1.0, 0.1


def prepare(folder: Path) -> None:
    """The built-in data and a sweep, as its journal tells it."""
    from pretune.core.experiment import Experiment
    from pretune.core.journal import Journal
    from pretune.core.records import Asked, Closed, Ended, Epoch, Opened, Started
    from search_spaces import RECIPES
    from trainers.data import datasets

    datasets.ensure_builtin("digits", folder / "data")
    base = RECIPES["sfrik_tiny"]()
    experiment = Experiment(name="known", space="kernels", base=base, storage=str(folder / "sweeps"))
    with Journal(experiment.folder, new=True) as journal:
        journal.append(Opened(experiment=experiment))
        for number in range(experiment.trials):
            params = {"objective.mmd.kernel": "rbf", "optimizer.learning_rate": 0.01 * (number + 1)}
            journal.append(Asked(number=number, params=params, distributions={}, config=base.model_dump(mode="json")))
            journal.append(Started(number=number, attempt=0, epoch=0))
            for epoch in range(1, base.epochs + 1):
                metrics = {"probe/linear": 0.5 + 0.01 * number, "probe/linear_stderr": 0.01, "loss/total": 1 / epoch}
                journal.append(Epoch(number=number, epoch=epoch, metrics=metrics))
            journal.append(Ended(number=number, state="COMPLETE", value=0.5 + 0.01 * number))
        journal.append(Closed(reason="finished"))


class Spent(NamedTuple):
    """By one process."""

    wall_s: float
    cpu_s: float
    """What a machine that does nothing else would need, roughly."""


def spent(command: list[str], folder: Path, *, code: int, **environment: str) -> Spent:
    """From start to end. RuntimeError where it ends with another code."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    taken, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != code:
        raise RuntimeError(f"{command} must end with {code}, but ended with {done.returncode}: {done.stderr}")
    return Spent(taken, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def run(name: str, folder: Path) -> Spent:
    """One run of what `name` stands for."""
    if name not in COMMANDS:
        return spent([sys.executable, "-c", name], folder, code=0)
    pretune = [sys.executable, "-m", "pretune"]
    if "<TAB>" in name:
        words = ["pretune", *COMMANDS[name]]
        asked = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
        return spent(pretune, folder, code=0, _PRETUNE_COMPLETE="complete_bash", **asked)
    return spent([*pretune, *COMMANDS[name]], folder, code=2 if "(refused)" in name else 0)


def measure(repeats: int) -> dict[str, list[Spent]]:
    """Of each command and import, in turns."""
    names = ["pass", "import torch", *PACKAGES, *COMMANDS]
    taken: dict[str, list[Spent]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="startup-") as aside:
        prepare(Path(aside))
        for repeat in range(repeats + 1):
            for name in names:
                once = run(name, Path(aside))
                if repeat:
                    taken[name].append(once)
    return taken


def rows() -> Iterator[tuple[str, list[float], list[float], str]]:
    """For the table: the slowest command against `import torch`."""
    seconds = {name: [one.wall_s for one in times] for name, times in measure(5).items()}
    slowest = max(COMMANDS, key=lambda name: statistics.median(seconds[name]))
    yield (
        "start of a command",
        seconds[slowest],
        seconds["import torch"],
        f"the slowest of {len(COMMANDS)}: `{slowest}`",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    taken = measure(arguments.repeats)
    medians = {name: Spent(*map(statistics.median, zip(*times, strict=True))) for name, times in taken.items()}
    empty, torch = medians["pass"], medians["import torch"]
    print(f"medians of {arguments.repeats}; load of this machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    print("| | s | of CPU, s | over `import torch` | target, s |")
    print("|:--|--:|--:|--:|--:|")
    print(f"| `import torch` | {torch.wall_s:.3f} | {torch.cpu_s:.3f} | 1.00 | |")
    slow = []
    for name in (*PACKAGES, *COMMANDS):
        package = name in PACKAGES
        shown = Spent(*(a - b * package for a, b in zip(medians[name], empty, strict=True)))
        limit = IMPORT_LIMIT_S if package else LIMIT_S
        print(f"| `{name}` | {shown.wall_s:.3f} | {shown.cpu_s:.3f} | {shown.wall_s / torch.wall_s:.2f} | {limit:g} |")
        slow += [name] if shown.wall_s > limit else []
    if slow:
        print(f"above the target: {', '.join(slow)}")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
