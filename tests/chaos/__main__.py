"""Plugs that are pulled: each part breaks something at random, again and again, and counts what was lost.

    python -m tests.chaos PART [--seed N] [--count N]

Prints the seed and one line per count; ends with 1 where a promise was broken. `make chaos` runs all parts.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import ray

from tests.chaos import clusters

PARTS = {
    "points": 100,
    "kills": 10,
    "plain_tune": 10,
    "workers": 20,
    "nodes": 8,
    "autoscaler": 1,
    "crowd": 200,
    "training": 3,
    "signals": 100,
}
"""By name of the module that has `run(folder, seed, count) -> Counts`, the usual count."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="kills, points, or trials; default: the part's own")
    arguments = parser.parse_args()
    count = PARTS[arguments.part] if arguments.count is None else arguments.count
    # Clusters of tests have no token: Ray would save one in the home folder and demand it of nodes that lack it.
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    started = time.monotonic()
    print(f"== {arguments.part}, seed {arguments.seed}, count {count}", flush=True)
    part = importlib.import_module(f"tests.chaos.{arguments.part}")
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{arguments.part}-", dir="/tmp"))
    # Ray tells of each dead node, with the last lines of its log: that is what is done here all the time.
    ray._private.worker.print_worker_logs = lambda *_: None
    counts = part.run(folder, arguments.seed, count)
    print(counts.text())
    print(f"{time.monotonic() - started:.0f} s", flush=True)
    if counts.broken:
        # As after an exception, the folder stays: journals and logs tell what went wrong.
        print(f"BROKEN: {', '.join(counts.broken)}; look into {folder}", file=sys.stderr)
        raise SystemExit(1)
    for place in (folder, clusters.RAY_FOLDER):
        shutil.rmtree(place, ignore_errors=True)  # parts without a cluster of nodes have no folder of Ray's


if __name__ == "__main__":
    main()
