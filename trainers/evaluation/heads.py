"""Linear heads trained by SGD on frozen features, many at once: a batch's features serve all learning rates.

Letters: n = images of a batch, p = features, C = classes, G = learning rates, H = 2 G heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainers import dist
from trainers.data.loader import epoch_order
from trainers.evaluation import together
from trainers.evaluation.frozen import matrix
from trainers.settings import ViewConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainers.evaluation.frozen import Features
    from trainers.evaluation.protocol import Data, Integers, Report
    from trainers.evaluation.subject import Subject

DEVIATION = 0.01
"""Of a head's first weights (MoCo's main_lincls.py); its biases are 0."""


class Schedule(NamedTuple):
    """How heads are trained: SGD with momentum, each learning rate along a cosine to 0."""

    learning_rates: tuple[float, ...]
    epochs: int
    batch_size: int
    momentum: float
    weight_decay: float
    augmented: bool
    """Whether each epoch sees other crops and flips, or features that are kept."""


class Heads:
    """Weights [H, p, C] and biases [H, C], all starting from one draw. Heads are independent of each other: each one is
    what `torch.optim.SGD` would make of it alone.
    """

    def __init__(
        self,
        width: int,
        class_count: int,
        rates: Tensor,
        *,
        momentum: float,
        weight_decay: float,
        seed: int,
        device: torch.device,
    ) -> None:
        first = torch.randn(width, class_count, generator=torch.Generator().manual_seed(seed)) * DEVIATION
        self.weight = first.to(device).repeat(len(rates), 1, 1)
        self.bias = torch.zeros(len(rates), class_count, device=device)
        self._rates = rates.to(device)
        self._momentum, self._decay = momentum, weight_decay
        self._velocities = [torch.zeros_like(self.weight), torch.zeros_like(self.bias)]

    def logits(self, features: Tensor) -> Tensor:
        """[n, p] -> [H, n, C]."""
        return torch.baddbmm(self.bias[:, None], features.expand(len(self.weight), -1, -1), self.weight)

    @torch.no_grad()
    def step(self, features: Tensor, labels: Tensor, counted: Tensor, factor: float) -> None:
        """One step down the mean cross-entropy of features [n, p] with labels [n], each head over the images that
        `counted` [H, n] has for it, with `factor` of its learning rate.
        """
        residual = torch.softmax(self.logits(features), dim=2)
        residual[:, torch.arange(len(labels), device=labels.device), labels] -= 1
        residual *= (counted / counted.sum(1, keepdim=True).clamp(min=1))[:, :, None]
        gradients = (features.T @ residual, residual.sum(1))
        rates = self._rates * factor
        for value, gradient, velocity in zip((self.weight, self.bias), gradients, self._velocities, strict=True):
            if self._decay:
                gradient = gradient + self._decay * value
            velocity.mul_(self._momentum).add_(gradient)
            value.sub_(rates.view(-1, *[1] * (value.ndim - 1)) * velocity)


class Trained(NamedTuple):
    """Of each learning rate, a head that never saw what was held out, then those that saw all: [2 G, …]."""

    heads: Heads
    rates: int
    """G."""

    def accuracies(self, features: Features, labels: Integers, device: torch.device) -> list[float]:
        """Of each rate, on what was held out; 0 where it has diverged."""
        target = torch.from_numpy(labels).to(device)
        right = torch.zeros(self.rates, dtype=torch.float64, device=device)
        start = 0
        for part in features.chunks():
            logits = self.heads.logits(torch.from_numpy(part).to(device, torch.float32))[: self.rates]
            here = target[start : start + len(part)]
            right += ((logits.argmax(2) == here) & logits.isfinite().all(2)).sum(1)
            start += len(part)
        return [float(one) / len(labels) for one in right]

    def scores(self, features: Features, rate: int, device: torch.device) -> Tensor:
        """Class scores [n, C] of the head of rate number `rate` that saw all, on the CPU."""
        place = self.rates + rate
        weight, bias = self.heads.weight[place], self.heads.bias[place]
        parts = (torch.from_numpy(part).to(device, torch.float32) for part in features.chunks())
        return torch.cat([torch.addmm(bias, part, weight).cpu() for part in parts])


def train(
    subject: Subject,
    data: Data,
    fit: Features,
    inside: Integers,
    schedule: Schedule,
    *,
    seed: int,
    device: torch.device,
    report: Report,
) -> Trained:
    """Heads of all rates on the images `fit`; `inside` are the places of those that are not held out.

    Order, crops and flips are keyed by seed and epoch.
    """
    labels = data.fit_labels
    rates = torch.tensor(schedule.learning_rates).repeat(2)
    heads = Heads(
        fit.width,
        data.dataset.class_count,
        rates,
        momentum=schedule.momentum,
        weight_decay=schedule.weight_decay,
        seed=seed,
        device=device,
    )
    is_inside = np.zeros(len(labels), dtype=bool)
    is_inside[inside] = True
    batches = partial(_augmented, subject, data, device=device) if schedule.augmented else partial(_kept, fit, device)
    steps = schedule.epochs * -(-len(labels) // schedule.batch_size)
    step = 0
    for epoch in range(schedule.epochs):
        order = epoch_order(np.arange(len(labels), dtype=np.int64), seed=seed, epoch=epoch)
        for features, places in batches(order, size=schedule.batch_size, seed=seed, epoch=epoch):
            counted = torch.ones(2, len(places))
            counted[0] = torch.from_numpy(is_inside[places])
            heads.step(
                features,
                torch.from_numpy(labels[places]).to(device),
                counted.repeat_interleave(len(schedule.learning_rates), dim=0).to(device),
                0.5 * (1 + math.cos(math.pi * step / steps)),
            )
            step += 1
            report(f"linear by SGD, seed {seed}", step / steps)
    return Trained(heads, rates=len(schedule.learning_rates))


def _augmented(
    subject: Subject, data: Data, order: Integers, *, size: int, seed: int, epoch: int, device: torch.device
) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """Features of crops and flips of the images at places `order`, by batches of `size`."""
    start = 0
    for features in together.divided(
        _views,
        subject,
        data,
        device=device,
        report=lambda done: None,
        ids=data.fit_ids[order],
        size=size,
        seed=seed,
        epoch=epoch,
    ):
        yield features.to(device), order[start : start + len(features)]
        start += len(features)


def _views(
    subject: Subject,
    data: Data,
    *,
    device: torch.device,
    report: Callable[[float], None],
    ids: Integers,
    size: int,
    seed: int,
    epoch: int,
) -> Iterator[Tensor]:
    """Features of crops and flips of rows `ids` of the search file, by batches of `size`; ranks take turns."""
    view = ViewConfig(
        size=subject.size, resampling=subject.resampling, jitter_probability=0.0, grayscale_probability=0.0
    )
    subject.to(device)

    def own() -> Iterator[Tensor]:
        rows = dist.own_batches(ids, size)
        for images, _ in data.augmented(subject, rows, view, batch_size=size, seed=seed, epoch=epoch):
            found = subject.encode(images.to(device, torch.get_default_dtype())).float()
            yield found if dist.world_size() == 1 else found.cpu()  # to travel

    return dist.in_order(own(), -(-len(ids) // size))


def _kept(
    fit: Features, device: torch.device, order: Integers, *, size: int, seed: int, epoch: int
) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """Features that are kept, the same at every epoch."""
    held = matrix(fit, device)
    for start in range(0, len(order), size):
        places = np.sort(order[start : start + size])
        if isinstance(held, Tensor):
            yield held[torch.from_numpy(places).to(device)].float(), places
        else:
            yield torch.from_numpy(fit.some(places).take()).to(device, torch.float32), places
