"""Do recipes of published size run, and what does a step cost? The real loop, the published model, a small batch.

    python benchmarks/steps.py [--data data/cifar10] [--batch-size 32] [--steps 20] [--threads 2] [--set a.b=v] RECIPE …

Each recipe trains in a process of its own on the first images of `--data`, in two halves whose mean losses are printed:
ten steps say that gradients flow through the whole model and that nothing is refused, diverges or collapses, not that a
recipe works. Times are of one process on one machine, whatever else runs there. Without RECIPE: those called *_tiny, on
digits.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from pretune.request import lookup, overrides, request
from search_spaces import RECIPES
from trainers.changes import with_changes
from trainers.data.loader import Loaders
from trainers.model import build_model
from trainers.report import EpochReport
from trainers.train import train


def main() -> None:
    """Print one row per recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE")
    parser.add_argument("--data", help="default: what the recipe says")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20, help="an even number")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="a.b=value")
    arguments = parser.parse_args()
    changes = {"batch_size": arguments.batch_size, "threads": arguments.threads} | overrides.parse(arguments.settings)
    print("| recipe | model | parameters | batch | views | loss, first and second half | s per step | peak memory |")
    print("|:--|:--|--:|--:|:--|:--|--:|--:|")
    for name in arguments.recipes or [name for name in RECIPES if name.endswith("_tiny")]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            print(process.submit(row, name, changes, arguments.data, arguments.steps).result(), flush=True)


def row(name: str, changes: dict[str, object], data: str | None, steps: int) -> str:
    """The table's row for one recipe; raises where a step fails."""
    half = steps // 2
    config = lookup.recipe(name).config
    # Neither probe nor checkpoint within the two halves, whatever the recipe's length.
    rarely = {"data.subset": half * int(str(changes["batch_size"])), "probe.every": config.epochs}
    precision = config.precision if torch.cuda.is_available() else "float32"
    config = with_changes(config, {**rarely, "checkpoint_every": config.epochs, "precision": precision, **changes})
    config, dataset = request.with_data(config, data)
    torch.set_num_threads(config.threads)
    losses: list[float] = []
    marks: list[float] = []

    def report(epoch: EpochReport) -> bool:
        losses.append(epoch.metrics["loss/total"])
        return len(losses) < 2

    with tempfile.TemporaryDirectory() as folder:
        outcome = train(
            config,
            dataset=dataset,
            loaders=Loaders(),
            folder=Path(folder),
            report=report,
            progress=lambda epoch, step: marks.append(time.perf_counter()),
        )
    if outcome.state != "stopped":
        raise SystemExit(f"{name}: {outcome.state}: {outcome.reason}")
    seconds = statistics.median(after - before for before, after in itertools.pairwise(marks))
    parameters = sum(parameter.numel() for parameter in build_model(config).parameters())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    views = " ".join(str(view.size) for view in config.views)
    return (
        f"| `{name}` | {config.model.backbone.kind} | {parameters / 1e6:.1f} M | {config.batch_size} | {views} "
        f"| {losses[0]:.4g}, {losses[1]:.4g} | {seconds:.2f} | {memory:.1f} GB |"
    )


if __name__ == "__main__":
    main()
