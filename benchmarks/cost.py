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
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pretune.request import levels, overrides
from search_spaces import RECIPES
from trainers import optim, sentinel
from trainers.config import TrialConfig
from trainers.model import build_model
from trainers.objective import Objective
from trainers.terms import Outputs, TermConfig
from trainers.train import TrainingStep

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
                str(value): Work(overrides.apply(RECIPES[name](), {**changes, path: value})).step for value in values
            }
            taken = in_turns(steps, arguments.repeats)
            for value, seconds in taken.items():
                print(f"| `{name}` | {value} | {1e3 * seconds:.0f} | {seconds / taken[str(values[0])]:.2f} |")
        return
    print("| recipe | step, ms | term | term, ms | share |")
    print("|:--|--:|:--|--:|--:|")
    for name in arguments.recipes or [name for name in RECIPES if name.endswith("_tiny")]:
        config = overrides.apply(RECIPES[name](), changes)
        work = Work(config)
        parts = in_turns({"": work.step, **work.parts()}, arguments.repeats)
        step_s = parts.pop("")
        if config.sentinel is not None:
            parts[LOOK] /= config.sentinel.every
        for term, seconds in parts.items():
            share = seconds / step_s
            mark = " (above the aim)" if share > TARGET else ""
            print(
                f"| `{name}` | {1e3 * step_s:.1f} | {term} | {1e3 * seconds:.2f} | {100 * share:.1f} %{mark} |",
                flush=True,
            )


class Work:
    """A recipe's step, ready to be run again and again, and its terms one by one."""

    def __init__(self, config: TrialConfig, device: torch.device = CPU) -> None:
        self._config = config
        model = build_model(config).to(device).to(memory_format=torch.channels_last).train()
        self._objective = Objective(config.objective)
        optimizer = optim.build_optimizer(model, config.optimizer)
        self._training_step = TrainingStep(config, model, self._objective, optimizer)
        generator = torch.Generator().manual_seed(0)
        noise = [torch.randn(config.batch_size, 3, view.size, view.size, generator=generator) for view in config.views]
        self._views = tuple(view.to(device).to(memory_format=torch.channels_last) for view in noise)
        self._sample_ids = torch.arange(config.batch_size, device=device)

    def step(self) -> None:
        """Everything that the loop does with a batch."""
        self._training_step.gradients(self._views, self._sample_ids, 0)
        self._training_step.update(self._config.optimizer.learning_rate, 0, 1000)

    def parts(self) -> dict[str, Callable[[], None]]:
        """Each term alone, forward and backward, and the sentinel's look, on the outputs of one step."""
        outputs = self._training_step.gradients(self._views, self._sample_ids, 0).outputs
        watched = self._config.sentinel

        def alone(term: TermConfig) -> Callable[[], None]:
            return lambda: term(_leaves(outputs)).backward()  # type: ignore[no-untyped-call]

        def look() -> None:
            if watched is not None:
                sentinel.complaint(outputs, {}, torch.ones((), device=self._sample_ids.device), watched)

        looks = {} if watched is None else {LOOK: look}
        return {name: alone(term) for name, term in self._objective.terms.items()} | looks


def in_turns(work: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """The median seconds of each."""
    return {name: statistics.median(taken) for name, taken in times_in_turns(work, repeats).items()}


def times_in_turns(work: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """The seconds of each, time after time, after three to warm up."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + 3):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= 3:
                times[name].append(time.perf_counter() - started)
    return times


def rows(repeats: int = 7) -> Iterator[tuple[str, list[float], list[float], str]]:
    """For the table: of all terms of the tiny recipes that with the largest share of its recipe's step."""
    torch.set_num_threads(1)
    worst: tuple[float, list[float], list[float], str] | None = None
    recipes = [name for name in RECIPES if name.endswith("_tiny")]
    for recipe in recipes:
        work = Work(RECIPES[recipe]())
        terms = {name: run for name, run in work.parts().items() if name != LOOK}
        taken = times_in_turns({"": work.step, **terms}, repeats)
        steps = taken.pop("")
        for term, seconds in taken.items():
            share = statistics.median(seconds) / statistics.median(steps)
            if worst is None or share > worst[0]:
                worst = share, seconds, steps, f"the worst of {len(recipes)} tiny recipes: `{term}` of `{recipe}`"
    assert worst is not None
    yield "a term", *worst[1:]


def _leaves(outputs: Outputs) -> Outputs:
    """The same outputs, cut off from the model: what asked for a gradient is a leaf."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().requires_grad_(value.requires_grad)
        if isinstance(value, tuple):
            items = map(cut, value)
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return value

    cutoff: Outputs = cut(outputs)
    return cutoff


if __name__ == "__main__":
    main()
