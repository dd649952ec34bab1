"""What a training step costs at a recipe's own sizes, and each term's share of it.

    python benchmarks/cost.py [--repeats 20] [--threads 1] [--set a.b=v] [--vary a.b=v1,v2] [RECIPE …]

Views of noise through the recipe's model, loss, gradients, clipping and optimizer step: the loop of `trainers.train`
without its loader, whose work a worker does ahead in other threads; with it a share would be smaller. A term alone is
its forward pass on the outputs of that step, and its backward pass down to them; the sentinel looks once in so many
steps. Medians over `--repeats` after three to warm up; term and step take turns, so that both see the same machine.
Without RECIPE: those called *_tiny.

With `--vary`, the step at each value of one setting instead, in turns, over that at the first value: does dropping
tokens really shorten the sequence?
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator

import torch

from pretune.request import levels, overrides
from search_spaces import RECIPES
from trainers.profiling.step import StepAlone, in_turns, times_in_turns

TARGET = 0.10
CPU = torch.device("cpu")
LOOK = "the sentinel's look, shared among its steps"


def main() -> None:
    """Print one row per recipe and term."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="a.b=value")
    parser.add_argument("--vary", metavar="a.b=v1,v2")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    changes = overrides.parse(arguments.settings)
    if arguments.vary:
        ((path, values),) = levels.parse_factors([arguments.vary]).items()
        print(f"| recipe | {path} | step, ms | over the first |")
        print("|:--|--:|--:|--:|")
        for name in arguments.recipes:
            steps = {
                str(value): StepAlone(overrides.apply(RECIPES[name](), {**changes, path: value}), CPU).step
                for value in values
            }
            by_value = in_turns(steps, arguments.repeats, CPU)
            first = by_value[str(values[0])].median
            for value, seconds in by_value.items():
                print(f"| `{name}` | {value} | {1e3 * seconds.median:.0f} | {seconds.median / first:.2f} |")
        return
    print("| recipe | step, ms | term | term, ms | share |")
    print("|:--|--:|:--|--:|--:|")
    for name in arguments.recipes or [name for name in RECIPES if name.endswith("_tiny")]:
        config = overrides.apply(RECIPES[name](), changes)
        work = StepAlone(config, CPU)
        found = in_turns({"": work.step, **parts(work)}, arguments.repeats, CPU)
        taken = {part: seconds.median for part, seconds in found.items()}
        step_s = taken.pop("")
        if LOOK in taken and config.sentinel is not None:
            taken[LOOK] /= config.sentinel.every
        for term, part_s in taken.items():
            share = part_s / step_s
            mark = " (above the aim)" if share > TARGET else ""
            print(
                f"| `{name}` | {1e3 * step_s:.1f} | {term} | {1e3 * part_s:.2f} | {100 * share:.1f} %{mark} |",
                flush=True,
            )


def parts(work: StepAlone) -> dict[str, Callable[[], None]]:
    """Each term alone, forward and backward, and the sentinel's look."""
    look = work.look()
    return {**work.terms(), **({} if look is None else {LOOK: look})}


def rows(repeats: int = 7) -> Iterator[tuple[str, list[float], list[float], str]]:
    """For the table: of all terms of the tiny recipes that with the largest share of its recipe's step."""
    torch.set_num_threads(1)
    worst: tuple[float, list[float], list[float], str] | None = None
    recipes = [name for name in RECIPES if name.endswith("_tiny")]
    for recipe in recipes:
        work = StepAlone(RECIPES[recipe](), CPU)
        taken = times_in_turns({"": work.step, **work.terms()}, repeats, CPU)
        steps = taken.pop("")
        for term, seconds in taken.items():
            share = statistics.median(seconds) / statistics.median(steps)
            if worst is None or share > worst[0]:
                worst = share, seconds, steps, f"the worst of {len(recipes)} tiny recipes: `{term}` of `{recipe}`"
    assert worst is not None
    yield "a term", *worst[1:]


if __name__ == "__main__":
    main()
