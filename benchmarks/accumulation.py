"""What a batch in parts saves of memory, and costs of time: the real step, at growing `accumulate`.

    python benchmarks/accumulation.py [--recipe mocov3_vit_tiny …] [--batch-size 256] [--parts 1 2 4 8] [--runs 5]

Each case is a process of its own: a recipe's model with layer norm, its objective and its optimizer, on noise. `memory`
is what the process (on a GPU: torch's allocator) held at most beyond what it held before its first step. Times are the
best of `--runs` steps; the ratio is over one part.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from search_spaces import RECIPES
from trainers import memory, optim
from trainers.changes import with_changes
from trainers.model import build_model
from trainers.objective import Objective
from trainers.train import TrainingStep

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def measure(recipe: str, batch_size: int, parts: int, runs: int) -> tuple[float, float, float]:
    """Bytes beyond those before the first step, seconds of the best step, and the first step's loss."""
    torch.set_num_threads(1)
    changes = {"batch_size": batch_size, "accumulate": parts, "model.norm": "layer", "precision": "float32"}
    config = with_changes(RECIPES[recipe](), changes)
    model = build_model(config).to(DEVICE).to(memory_format=torch.channels_last).train()
    optimizer = optim.build_optimizer(model, config.optimizer)
    step = TrainingStep(config, model, Objective(config.objective), optimizer)
    generator = torch.Generator().manual_seed(0)
    views = tuple(
        torch.randn(batch_size, 3, view.size, view.size, generator=generator)
        .to(DEVICE)
        .contiguous(memory_format=torch.channels_last)
        for view in config.views
    )
    ids = torch.arange(batch_size, device=DEVICE)
    memory.reset_peaks(DEVICE)
    key = "memory/gpu_peak_bytes" if DEVICE.type == "cuda" else "memory/host_peak_bytes"
    before, losses, seconds = memory.peaks(DEVICE)[key], [], []
    for number in range(runs):
        started = time.perf_counter()
        losses.append(float(step.gradients(views, ids, number).loss.detach()))
        step.update(0.0, number, runs)
        seconds.append(time.perf_counter() - started)
    return memory.peaks(DEVICE)[key] - before, min(seconds), losses[0]


def case(recipe: str, batch_size: int, parts: int, runs: int) -> tuple[float, float, float]:
    """`measure` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure, recipe, batch_size, parts, runs).result()


def rows(runs: int = 5) -> Iterator[tuple[str, list[float], list[float], str]]:
    """For the table: a batch in eight parts against the whole of it, in memory and in time."""
    found: dict[int, list[tuple[float, float, float]]] = {8: [], 1: []}
    for _ in range(runs):
        for parts, cases in found.items():
            cases.append(case("sfrik_tiny", 256, parts, 3))
    for place, name in enumerate(("accumulation, memory", "accumulation, time")):
        ours, theirs = ([one[place] for one in cases] for cases in found.values())
        yield name, ours, theirs, "`sfrik_tiny`, batch 256, 1 thread"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", default=["sfrik_tiny", "dilemma_mocov3_tiny"], choices=sorted(RECIPES))
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    print("| recipe, layer norm | parts | memory, MB | of one part's | step, ms | of one part's | loss |")
    print("|:--|--:|--:|--:|--:|--:|--:|")
    for recipe in arguments.recipe:
        first: tuple[float, float, float] | None = None
        for parts in arguments.parts:
            found = case(recipe, arguments.batch_size, parts, arguments.runs)
            first = first or found
            print(
                f"| `{recipe}` | {parts} | {found[0] / 1e6:.0f} | {found[0] / first[0]:.2f} | {1e3 * found[1]:.0f} "
                f"| {found[1] / first[1]:.2f} | {found[2]:.6f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
