"""What is measured here, as one table: what, ours, the alternative, their ratio, the target.

    python -m benchmarks [--only NAME …] [--patience N]      or: make benchmarks

Each part is one script's `rows()`, in a process of its own that may take so long and no longer. A row is told as it
ends, on the standard error; the table comes last. A row that could not be measured says why, and the exit code is 1.
About 19 minutes on two cores, which nothing else should use. Sizes are small, and ratios count, not rates: the scripts
alone measure at any size.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from types import FrameType

from benchmarks.bounded import lines_of
from benchmarks.rows import HEAD, Comparison, Target, line, machine

PACKAGES = ("torch", "torchvision", "ray", "ffcv", "optuna", "scikit-learn")
VICREG = "VICReg's variance + covariance"
NESTED = "a Tune function that calls `TorchTrainer.fit()`"


@dataclass(frozen=True)
class Part:
    """A script: how long it may take, and what its `rows()` yields, by name."""

    limit_s: float
    rows: Mapping[str, Comparison]


PARTS: dict[str, Part] = {
    "loader": Part(
        200.0,
        {
            "views at 32 px": Comparison(
                "two augmented views of an image, 32 px from raw pixels",
                "torchvision v2 in a `DataLoader`, its faster form",
                "images/s",
                Target("times", 25.0),
            ),
            "views at 224 px": Comparison(
                "two augmented views of an image, 224 px from JPEG files",
                "torchvision v2 in a `DataLoader`, its faster form",
                "images/s",
                Target("times", 6.0),
            ),
        },
    ),
    "terms": Part(
        200.0,
        {
            "Gram form, time": Comparison(
                "SFRIK's Gram form, forward and backward, time", VICREG, "s", Target("times", 10.0)
            ),
            "Gram form, memory": Comparison(
                "SFRIK's Gram form, forward and backward, memory", VICREG, "bytes", Target("times", 10.0)
            ),
        },
    ),
    "whitening": Part(
        60.0,
        {
            "cw-rgp": Comparison(
                "channel whitening (ZCA) in float32",
                "by eigenvectors",
                "s",
                None,
                "no target: meant for GPUs, which are slow at eigenvectors; not the default",
            ),
            "w-mse": Comparison(
                "batch whitening (Cholesky) in float32",
                "by eigenvectors",
                "s",
                None,
                "no target: meant for GPUs, which are slow at eigenvectors; not the default",
            ),
        },
    ),
    "cost": Part(
        150.0,
        {"a term": Comparison("a term of a recipe's objective", "the recipe's step", "s", Target("share", 0.10))},
    ),
    "accumulation": Part(
        120.0,
        {
            "accumulation, memory": Comparison(
                "memory of a step of a batch in 8 parts",
                "the batch at once",
                "bytes",
                None,
                "no target: what it saves; gradients are equal",
            ),
            "accumulation, time": Comparison(
                "time of a step of a batch in 8 parts",
                "the batch at once",
                "s",
                None,
                "no target: what that costs",
            ),
        },
    ),
    "probe": Part(
        150.0,
        {
            "probe and health": Comparison(
                "probe and health after an epoch", "the epoch's training", "s", Target("share", 0.15)
            )
        },
    ),
    "evaluate": Part(
        200.0,
        {
            "evaluation, L-BFGS": Comparison(
                "`pretune eval --protocol linear`",
                "solo-learn's way: SGD on a frozen encoder, once for each rate",
                "s",
                Target("times", 10.0),
            ),
            "evaluation, SGD": Comparison(
                "the same by SGD, all rates at once",
                "solo-learn's way: SGD on a frozen encoder, once for each rate",
                "s",
                Target("times", 10.0),
                "both pass an image through the network, the usual way once for each of 8 rates: that and the loader "
                "are the bound; L-BFGS, the default, has no such",
            ),
            "evaluation, kNN": Comparison(
                "`pretune eval --protocol knn`", "lightly's way: kNN of a bank", "s", Target("times", 10.0)
            ),
        },
    ),
    "scale": Part(
        120.0,
        {
            "a decision of TPE": Comparison(
                "a decision of TPE, with its line in the journal",
                "Optuna's ask and tell in its journal storage",
                "s",
                Target("seconds", 0.005),
                "nearly 2 ms of it check the space and the config, as with any sampler",
            )
        },
    ),
    "startup": Part(
        150.0,
        {
            "start of a command": Comparison(
                "start and end of a command", "`python -c 'import torch'`", "s", Target("seconds", 1.0)
            )
        },
    ),
    "turnover": Part(
        300.0,
        {"turnover": Comparison("from a trial's end to the next one's first step", NESTED, "s", Target("times", 20.0))},
    ),
    "sweep": Part(
        480.0,
        {
            "a sweep": Comparison("a whole sweep", NESTED, "s", Target("times", 5.0)),
            "outside training": Comparison(
                "of that sweep, a trial: all that is not training",
                "its whole time",
                "s",
                Target("share", 0.10),
                "a sweep of a minute or two pays its start as one of days does, and training here is steps alone",
            ),
        },
    ),
}


def main() -> int:
    """Measure, tell each row as it ends, print the table; 1 where a row failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="NAME", help=f"of {', '.join(PARTS)}")
    parser.add_argument(
        "--patience", type=float, default=1.0, metavar="N", help="each part may take N times as long: on a busy machine"
    )
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        tell(asked.part)
        return 0
    names = asked.only or list(PARTS)
    began = time.monotonic()
    head = [f"{time.strftime('%Y-%m-%d')}, {machine()} at the start", versions(), _typed(asked.only)]
    table, failed = [], False
    for name in names:
        part = replace(PARTS[name], limit_s=PARTS[name].limit_s * asked.patience)
        for cells, measured in rows(part, [sys.executable, "-m", "benchmarks", "--part", name]):
            table.append(cells)
            failed = failed or not measured
            print(line(cells), file=sys.stderr, flush=True)
    print("\n\n".join([*head[:2], f"`{head[2]}`: {(time.monotonic() - began) / 60:.1f} minutes"]))
    print(f"\n{line(HEAD)}\n{line(['---'] * len(HEAD))}")
    for cells in table:
        print(line(cells))
    return 1 if failed else 0


def tell(name: str) -> None:
    """Runs a part in this process, a line of JSON a row; all else that is printed goes to the standard error."""
    rows_out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    script = importlib.import_module(f"benchmarks.{name}")
    for row, ours, theirs, note in script.rows():
        print(json.dumps([row, list(ours), list(theirs), note]), file=rows_out, flush=True)


def rows(part: Part, command: Sequence[str]) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Each row as it ends, and whether it was measured: those of which `command` tells, then those it did not come to,
    with the reason."""
    left, before = dict(part.rows), time.monotonic()
    why = "the script did not tell of it"
    try:
        for told in lines_of(command, limit_s=part.limit_s):
            name, ours, theirs, note = json.loads(told)
            now = time.monotonic()
            yield left.pop(name).cells(ours, theirs, note, now - before), True
            before = now
    except (TimeoutError, RuntimeError) as error:
        why = str(error)
    for comparison in left.values():
        yield comparison.failed(why, time.monotonic() - before), False


def versions() -> str:
    return ", ".join(f"{package} {metadata.version(package)}" for package in PACKAGES)


def _typed(only: Sequence[str] | None) -> str:
    return " ".join(["python -m benchmarks", *(["--only", *only] if only else [])])


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)  # what runs has to end, too
    sys.exit(main())
