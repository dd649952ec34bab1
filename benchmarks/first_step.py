"""How long a sweep takes from the command to its first optimizer step, and what takes it.

    python benchmarks/first_step.py [--repeats 5] [--cold-repeats 5] [--source FOLDER]

`pretune sweep kernels --recipe sfrik_tiny --trials 2 --epochs 1` on the built-in data, as a shell starts it; the parts
are those that the sweep prints itself. Warm: machine code is in numba's cache, as on any day but a machine's first.
Cold: that cache is empty, for each run anew. With `--source`, another checkout of pretune takes turns with this one, so
that both see the same machine; one from before 2026-11-28 tells fewer parts, and a total that leaves its checks out.

Target: 15 s on two cores, warm.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
SWEEP = ("sweep", "kernels", "--recipe", "sfrik_tiny", "--trials", "2", "--epochs", "1")
TOLD = re.compile(r"first optimizer step after about ([^:]+): ([^;\n]+)")
PART = re.compile(r"(.+) ((?:\d+ (?:h|min|s) ?)+)$")
UNITS = {"h": 3600.0, "min": 60.0, "s": 1.0}
TARGET_S = 15.0


def seconds(text: str) -> float:
    """`1 min 05 s` -> 65.0."""
    return sum(float(amount) * UNITS[unit] for amount, unit in re.findall(r"(\d+) (h|min|s)", text))


def parts(output: str) -> dict[str, float]:
    """What a sweep says of its start, in seconds; `total` is the whole. ValueError where it says nothing."""
    told = TOLD.search(output)
    if told is None:
        raise ValueError(f"a sweep must tell of its first step, but printed: {output[-2000:]}")
    found: dict[str, float] = {}
    name = ""
    for piece in told[2].split(", "):
        name = f"{name}, {piece}" if name else piece  # a name may have a comma
        if match := PART.match(name):
            found[match[1]], name = seconds(match[2]), ""
    return {**found, "total": seconds(told[1])}


def run(source: Path, folder: Path, name: str, cache: Path | None) -> dict[str, float]:
    """One sweep in `folder` by the checkout `source`, with numba's `cache` where one is given."""
    environment = {**os.environ, "PYTHONPATH": f"{source / 'platform'}:{source}"}
    if cache is not None:
        environment["NUMBA_CACHE_DIR"] = str(cache)
    started = time.perf_counter()
    command = [sys.executable, "-m", "pretune", *SWEEP, "--name", name]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    whole = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr[-2000:]}")
    return {**parts(done.stdout), "the whole sweep": whole}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs with a warm cache")
    parser.add_argument("--cold-repeats", type=int, default=5)
    parser.add_argument("--source", type=Path, action="append", default=[], help="another checkout; again for more")
    arguments = parser.parse_args()
    sources = [HERE, *(place.resolve() for place in arguments.source)]
    taken: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="first-step-") as aside:
        folder = Path(aside)
        for repeat in range(arguments.repeats + 1):  # the first one warms the caches
            for source in sources:
                found = run(source, folder, f"warm-{source.name}-{repeat}", None)
                for part, took in found.items() if repeat else ():
                    taken[source.name, "warm", part].append(took)
        for repeat in range(arguments.cold_repeats):
            for source in sources:
                with tempfile.TemporaryDirectory(prefix="numba-", dir=folder) as cache:
                    found = run(source, folder, f"cold-{source.name}-{repeat}", Path(cache))
                for part, took in found.items():
                    taken[source.name, "cold", part].append(took)
    print(f"seconds; load of this machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    print("| checkout | cache | | median | least | most |")
    print("|:--|:--|:--|--:|--:|--:|")
    for (name, cache_is, part), times in taken.items():
        median, least, most = (f"{value:.1f}" for value in (statistics.median(times), min(times), max(times)))
        print(f"| {name} | {cache_is} | {part} | {median} | {least} | {most} |")
    reached = statistics.median(taken[HERE.name, "warm", "total"]) if arguments.repeats else 0.0
    return 0 if reached <= TARGET_S else 1


if __name__ == "__main__":
    sys.exit(main())
