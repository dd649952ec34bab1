"""Heads that are trained together are what torch's own SGD makes of each alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.trainers.evaluation import small
from trainers.data.loader import epoch_order
from trainers.evaluation import frozen, heads

RATES = (0.1, 1.0)
EPOCHS, BATCH = 2, 128


def alone(features: Tensor, labels: Tensor, rate: float, inside: Tensor, first: Tensor) -> nn.Linear:
    """One head, trained by torch on the same batches; images that are not `inside` count nothing."""
    head = nn.Linear(features.shape[1], small.CLASSES)
    with torch.no_grad():
        head.weight.copy_(first.T)
        head.bias.zero_()
    optimizer = torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9, weight_decay=1e-3)
    steps, step = EPOCHS * math.ceil(len(labels) / BATCH), 0
    for epoch in range(EPOCHS):
        order = epoch_order(np.arange(len(labels)), seed=3, epoch=epoch)
        for start in range(0, len(order), BATCH):
            places = torch.from_numpy(order[start : start + BATCH])
            kept = places[inside[places]]
            optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(features[kept]), labels[kept]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
    return head


def test_each_head_is_what_torch_trains_alone(tmp_path: Path) -> None:
    digits = small.Digits()
    data, looked = small.data(digits, tmp_path), small.subject()
    fit, scored = frozen.features(looked, data, device=small.CPU, report=small.silent)
    inside, held = frozen.held_out(data.fit_labels, 0.2, "key")
    schedule = heads.Schedule(RATES, EPOCHS, BATCH, momentum=0.9, weight_decay=1e-3, augmented=False)
    trained = heads.train(looked, data, fit, inside, schedule, seed=3, device=small.CPU, report=small.silent)
    features, labels = torch.from_numpy(fit.take()), torch.from_numpy(data.fit_labels)
    first = torch.randn(64, small.CLASSES, generator=torch.Generator().manual_seed(3)) * heads.DEVIATION
    is_inside = torch.zeros(len(labels), dtype=torch.bool)
    is_inside[torch.from_numpy(inside)] = True
    accuracies = trained.accuracies(fit.some(held), data.fit_labels[held], small.CPU)
    for place, rate in enumerate(RATES):
        judged = alone(features, labels, rate, is_inside, first)
        whole = alone(features, labels, rate, torch.ones_like(is_inside), first)
        torch.testing.assert_close(trained.heads.weight[place], judged.weight.detach().T, rtol=0, atol=1e-5)
        torch.testing.assert_close(trained.heads.weight[2 + place], whole.weight.detach().T, rtol=0, atol=1e-5)
        with torch.no_grad():
            said = whole(torch.from_numpy(scored.take()))
            right = judged(features[held]).argmax(1) == labels[held]
        torch.testing.assert_close(trained.scores(scored, place, small.CPU), said, rtol=0, atol=1e-4)
        assert accuracies[place] == float(right.double().mean())
