"""A recipe's step on views of noise that lie on the device already: the loop of `trainers.train` without its loader,
whole, and each of its parts alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from trainers import compiling, dist, optim, sentinel
from trainers.config import TrialConfig
from trainers.model import build_model
from trainers.objective import Objective
from trainers.operations import Operations
from trainers.profiling.figures import Spread
from trainers.terms import Outputs, TermConfig
from trainers.train import TrainingStep, data_parallel

WARM_UP = 3
"""Runs of anything that are not counted."""


class StepAlone:
    """A step, ready to be run again and again on this process, or on all ranks of the process group at once."""

    def __init__(self, config: TrialConfig, device: torch.device) -> None:
        self._config = config
        self.model = build_model(config).to(device).to(memory_format=torch.channels_last).train()
        if config.compile != "off":
            self.model.call = compiling.compiled(config, device, dist.world_size())
        self._objective = Objective(config.objective)
        self._operations = Operations(config.views)
        optimizer = optim.build_optimizer(self.model, config.optimizer)
        network = data_parallel(self.model, self._objective, config, device)
        self.model.train()
        self._training_step = TrainingStep(config, self.model, self._objective, optimizer, network)
        rows = config.batch_size // dist.world_size()
        generator = torch.Generator().manual_seed(dist.rank())
        noise = [torch.randn(rows, 3, view.size, view.size, generator=generator) for view in config.views]
        self._views = tuple(view.to(device).to(memory_format=torch.channels_last) for view in noise)
        self._sample_ids = torch.arange(rows, device=device) + dist.row_offset(rows)

    def step(self) -> None:
        """Everything that the loop does with a batch."""
        views = self._operations(self._views, self._sample_ids, seed=self._config.seed, epoch=0)
        self._training_step.gradients(views, self._sample_ids, 0)
        self.update()

    def update(self) -> None:
        """Moves the parameters by the gradients of the last step once more, then the teacher."""
        self._training_step.update(self._config.optimizer.learning_rate, 0, 1000)

    def terms(self) -> dict[str, TermAlone]:
        """Each term alone, on the outputs of one step."""
        outputs = self._outputs()
        return {name: TermAlone(term, outputs) for name, term in self._objective.terms.items()}

    def look(self) -> Callable[[], None] | None:
        """The sentinel's look at the outputs of one step; None where there is none, or nothing that it looks at."""
        watched = self._config.sentinel
        if watched is None or not any(term.reads_embeddings for term in self._objective.terms.values()):
            return None
        outputs, one = self._outputs(), torch.ones((), device=self._sample_ids.device)

        def look() -> None:
            sentinel.complaint(outputs, {}, one, watched)

        return look

    def _outputs(self) -> Outputs:
        return self._training_step.gradients(self._views, self._sample_ids, 0).outputs


class TermAlone:
    """A term's two passes on outputs that are there: its value, and the gradient down to them."""

    def __init__(self, term: TermConfig, outputs: Outputs) -> None:
        self._term, self._outputs = term, outputs
        self._value: Tensor | None = None

    def forward(self) -> None:
        self._value = self._term(_leaves(self._outputs))

    def backward(self) -> None:
        """Of the last forward pass, once."""
        if self._value is None:
            raise RuntimeError("a term's backward pass follows its forward pass; call forward() first")
        value, self._value = self._value, None
        value.backward()  # type: ignore[no-untyped-call]

    def __call__(self) -> None:
        self.forward()
        self.backward()


def _leaves(outputs: Outputs) -> Outputs:
    """The same outputs, cut off from the model: what asked for a gradient is a leaf."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            # A copy: CUDA graphs write the next step's outputs over these.
            return value.detach().clone().requires_grad_(value.requires_grad)
        if isinstance(value, tuple):
            items = map(cut, value)
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return value

    cutoff: Outputs = cut(outputs)
    return cutoff


# --- timing -----------------------------------------------------------------------------------------------------------


def finish(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(work: Mapping[str, Callable[[], None]], repeats: int, device: torch.device) -> dict[str, Spread]:
    """The seconds of each, waited for; they take turns, in this order, so that all see the same machine."""
    return {name: Spread.of(times) for name, times in times_in_turns(work, repeats, device).items()}


def times_in_turns(
    work: Mapping[str, Callable[[], None]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """The same, time by time."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + WARM_UP):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            finish(device)
            if repeat >= WARM_UP:
                times[name].append(time.perf_counter() - started)
    return {name: slowest(values) for name, values in times.items()}


def windows(run: Callable[[], None], device: torch.device, *, steps: int, count: int) -> Spread:
    """The seconds of one `run` among `steps` in a row, which alone are waited for, in `count` windows."""
    for _ in range(WARM_UP):
        run()
    finish(device)
    times = []
    for _ in range(count):
        started = time.perf_counter()
        for _ in range(steps):
            run()
        finish(device)
        times.append((time.perf_counter() - started) / steps)
    return Spread.of(slowest(times))


def slowest(values: list[float]) -> list[float]:
    """Of each number the largest over the ranks, which wait for each other."""
    return [max(of_ranks) for of_ranks in zip(*dist.gather_objects(values), strict=True)]
