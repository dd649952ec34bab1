"""What the end of an epoch waits for its checkpoint: written directly, and by a thread beside the probe.

    python benchmarks/boundary.py [--repeats 7] [--recipe sfrik_tiny sfrik_cifar10] [--folder DIR]

For each recipe its whole state after a step on noise: network, momenta, counters. Direct is what an epoch's end waits
where it writes the state itself; in the place of that it now waits for the copy, and after the probe for the name and
the manifest (the probe stands here as a wait that is as long as the direct write: where it is shorter, the rest of the
write is waited for as well). `--folder` is on the disk that is asked about; the system's temporary folder by default.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from search_spaces import RECIPES
from trainers import checkpoint, optim
from trainers.model import build_model
from trainers.saving import Saver


def state_of(recipe: str) -> dict[str, Any]:
    """Of a run of `recipe`: weights, and moments as they are after a step."""
    config = RECIPES[recipe]()
    model = build_model(config).to(memory_format=torch.channels_last)
    optimizer = optim.build_optimizer(model, config.optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    return {"config": config.model_dump(mode="json"), "model": model.state_dict(), "optimizer": optimizer.state_dict()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--recipe", nargs="+", default=["sfrik_tiny", "sfrik_cifar10"])
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    print("milliseconds: median (least to most)")
    print("| recipe | checkpoint | written directly | copy | name and manifest | waited for, of direct |")
    print("|:--|--:|--:|--:|--:|--:|")
    for recipe in arguments.recipe:
        state = state_of(recipe)
        taken: dict[str, list[float]] = {"direct": [], "copy": [], "rest": []}
        with tempfile.TemporaryDirectory(prefix="boundary-", dir=arguments.folder) as aside:
            for repeat in range(arguments.repeats + 1):
                started = time.perf_counter()
                saved = checkpoint.save(Path(aside) / "direct", state, epoch=1)
                direct = time.perf_counter() - started
                with Saver(Path(aside) / "thread") as saver:
                    started = time.perf_counter()
                    saver.begin(state, epoch=1)
                    copied = time.perf_counter() - started
                    time.sleep(1.5 * direct)
                    started = time.perf_counter()
                    saver.finish(0.5)
                    rest = time.perf_counter() - started
                if repeat:  # the first one warms up
                    for name, took in (("direct", direct), ("copy", copied), ("rest", rest)):
                        taken[name].append(1000 * took)
            size = Path(saved.path).stat().st_size
        told = {name: f"{statistics.median(of):.1f} ({min(of):.1f} to {max(of):.1f})" for name, of in taken.items()}
        waited = statistics.median(taken["copy"]) + statistics.median(taken["rest"])
        share = f"{waited / statistics.median(taken['direct']):.0%}"
        print(f"| `{recipe}` | {size / 1e6:.1f} MB | {told['direct']} | {told['copy']} | {told['rest']} | {share} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
