"""Protocols that are cheap enough to be measured at each probe, so that a search can go by them: `eval/…`.

Fitted on the probe's images of `train` and scored on its images of `select`, with features that the probe has computed
anyway. Their numbers are fixed, unlike the probe's own, which belong to the config.

Letters: n = images fitted on, m = images scored, p = features, C = classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trainers.data.splits import stratified_order
from trainers.evaluation.neighbors import nearest, votes
from trainers.evaluation.regression import LARGEST, fit_linear
from trainers.settings import ProbeProtocol

NEIGHBORS: dict[ProbeProtocol, int] = {"knn5": 5, "knn20": 20, "knn200": 200}
TEMPERATURE = 0.07
"""Of the votes of neighbors: exp(cosine / temperature) (Wu et al. 2018, arXiv 1805.01978; DINO, arXiv 2104.14294)."""
REGULARIZATIONS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Of which `linear_lbfgs` takes the one that is best on a held-out part of its images; of equal ones the strongest."""
HELD_OUT = 5
"""One image in so many is held out, of each class alike."""


@torch.no_grad()
def accuracies(
    names: Sequence[ProbeProtocol],
    train: Tensor,
    train_labels: Tensor,
    images: Tensor,
    labels: Tensor,
    *,
    class_count: int,
    device: torch.device,
) -> dict[str, float]:
    """`eval/<name>` of each, the share of `images` [m, p] that is told right by what is fitted on `train` [n, p], and
    its binomial standard error `eval/<name>_stderr`; not-a-number where a feature is not finite. Nothing is drawn.
    """
    if not names:
        return {}
    train, train_labels, images, labels = (x.to(device) for x in (train, train_labels, images, labels))
    if max(float(train.abs().max()), float(images.abs().max())) > LARGEST:
        train, images = train.double(), images.double()
    finite = bool(torch.isfinite(train).all()) and bool(torch.isfinite(images).all())
    found: dict[str, float] = {}
    wanted = max((NEIGHBORS[name] for name in names if name in NEIGHBORS), default=0)
    near = nearest([train], images, neighbors=wanted) if wanted and finite else None
    for name in names:
        if not finite:
            share = math.nan
        elif near is not None and name in NEIGHBORS:
            counted = votes(
                near,
                train_labels,
                class_count=class_count,
                neighbors=NEIGHBORS[name],
                weighting="similarity",
                temperature=TEMPERATURE,
            )
            share = _share(counted.argmax(1), labels)
        else:
            strength = _strength(train, train_labels, class_count=class_count)
            fitted = fit_linear(train, train_labels, class_count=class_count, regularization=strength)
            share = _share(fitted.predict(images), labels)
        found[f"eval/{name}"] = share
        found[f"eval/{name}_stderr"] = math.sqrt(share * (1 - share) / len(labels))
    return found


def _strength(train: Tensor, labels: Tensor, *, class_count: int) -> float:
    """The regularization that is best on the held-out images; the strongest where there is but one image."""
    order = torch.from_numpy(stratified_order(labels.cpu().numpy(), "eval/held-out")).to(train.device)
    held = torch.zeros(len(train), dtype=torch.bool, device=train.device)
    held[order[: max(1, len(train) // HELD_OUT)]] = True
    if bool(held.all()):
        return REGULARIZATIONS[0]
    scores = []
    for strength in REGULARIZATIONS:
        fitted = fit_linear(train[~held], labels[~held], class_count=class_count, regularization=strength)
        scores.append(_share(fitted.predict(train[held]), labels[held]))
    return REGULARIZATIONS[scores.index(max(scores))]


def _share(predicted: Tensor, labels: Tensor) -> float:
    return float((predicted == labels).double().mean())
