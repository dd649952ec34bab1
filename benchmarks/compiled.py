"""What do compiled passes gain, and bf16? Steps of recipes on this machine, on views that are in memory already.

    python -m benchmarks.compiled [--batch-size 32] [--threads 1] [--precision float32 bf16] [--set a.b=v] RECIPE …

Each recipe and precision has a process of its own, in which each `compile` is timed in three windows of about a second,
plain steps before and after the others. The first step with compiled code is told apart: with an empty cache
(`--cold`), or with what lies in `~/.cache/pretune/compiled`. Where a CPU or GPU lacks a precision its row says so.
Without RECIPE: sfrik_tiny, sfrik_cifar10 and dilemma_mocov3_tiny.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from typing import Any

import torch

from pretune.request import lookup, overrides
from trainers.changes import with_changes
from trainers.profiling.compiled import Compiled, measure
from trainers.train import check_device

RECIPES = ("sfrik_tiny", "sfrik_cifar10", "dilemma_mocov3_tiny")
HEADER = ("recipe", "model", "px", "batch", "precision", "as it is", "compiled", "as CUDA graphs", "first step")


def main() -> None:
    """Print one row per recipe and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", nargs="+", default=["float32", "bf16"], choices=["float32", "bf16"])
    parser.add_argument("--cold", action="store_true", help="nothing in the cache of compiled code")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="a.b=value")
    asked = parser.parse_args()
    changes = {"batch_size": asked.batch_size, "threads": asked.threads} | overrides.parse(asked.settings)
    print("\n".join((line(*HEADER), line(*[":--"] * len(HEADER)))))
    for name in asked.recipes or RECIPES:
        plain: float | None = None
        for precision in asked.precision:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                cells, found = process.submit(row, name, {**changes, "precision": precision}, asked.cold).result()
            plain = found.step_s["off"] if plain is None and found is not None else plain
            print(line(*cells, *([] if found is None else in_words(found, plain))), flush=True)


def row(name: str, changes: dict[str, Any], cold: bool) -> tuple[list[str], Compiled | None]:
    """What the recipe is, and what its steps take; None where this machine lacks the precision."""
    config = with_changes(lookup.recipe(name).config, {"sentinel": None, **changes})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    views = " ".join(str(view.size) for view in config.views)
    cells = [f"`{name}`", config.model.backbone.kind, views, str(config.batch_size), config.precision]
    with ExitStack() as stack:
        if cold:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = stack.enter_context(tempfile.TemporaryDirectory())
        try:
            check_device(config, device)
        except ValueError as error:
            return [*cells, str(error)], None
        return cells, measure(config, device, lambda: None)


def in_words(found: Compiled, plain: float | None) -> list[str]:
    """Milliseconds of each way, with how many times as fast as `plain` seconds it is, and the first steps' seconds."""
    each = {
        way: f"{1e3 * seconds:.1f} ms" + ("" if plain is None else f", {plain / seconds:.2f} times")
        for way, seconds in found.step_s.items()
    }
    first = ", ".join(f"{found.begin_s[way]:.1f} s" for way in found.begin_s if way != "off")
    return [each.get("off", "–"), each.get("on", "–"), each.get("cuda_graphs", "–"), first]


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
