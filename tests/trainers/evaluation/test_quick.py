"""Protocols at each probe: scikit-learn's numbers on the same features, and nothing where none is asked for."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.data.splits import stratified_order
from trainers.evaluation import probe, quick
from trainers.settings import ProbeProtocol

CLASSES = 4
NAMES: tuple[ProbeProtocol, ...] = get_args(ProbeProtocol)


def features(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centers = torch.randn(CLASSES, 12, generator=torch.Generator().manual_seed(9))
    return centers[labels] + 1.5 * torch.randn(count, 12, generator=generator), labels


def accuracies(*names: ProbeProtocol, **changed: Tensor) -> dict[str, float]:
    train, train_labels = features(300, 0)
    images, labels = features(200, 1)
    given = {"train": train, "train_labels": train_labels, "images": images, "labels": labels, **changed}
    return quick.accuracies(names, **given, class_count=CLASSES, device=torch.device("cpu"))


@pytest.mark.parametrize(("name", "neighbors"), [("knn5", 5), ("knn20", 20), ("knn200", 200)])
def test_votes_of_neighbors_are_scikit_learns(name: Any, neighbors: int) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    (train, train_labels), (images, labels) = features(300, 0), features(200, 1)
    peer = KNeighborsClassifier(
        neighbors, metric="cosine", weights=lambda distances: np.exp((1 - distances) / quick.TEMPERATURE)
    )
    peer.fit(train.double().numpy(), train_labels.numpy())
    wanted = float(peer.score(images.double().numpy(), labels.numpy()))
    found = accuracies(name)
    assert found[f"eval/{name}"] == pytest.approx(wanted, abs=1e-9)
    assert found[f"eval/{name}_stderr"] == pytest.approx(math.sqrt(wanted * (1 - wanted) / 200))


def test_the_linear_probe_is_scikit_learns_with_the_regularization_that_a_held_out_fifth_prefers() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    (train, train_labels), (images, labels) = ((x.double(), y) for x, y in (features(300, 0), features(200, 1)))

    def score(strength: float, fit: Any, target: Any, on: Any, wanted: Any) -> float:
        scaler = StandardScaler().fit(fit)
        peer = LogisticRegression(C=1 / (strength * len(fit)), max_iter=10_000, tol=1e-9)
        peer.fit(scaler.transform(fit), target)
        return float(peer.score(scaler.transform(on), wanted))

    x, y = train.numpy(), train_labels.numpy()
    held = np.zeros(len(x), dtype=bool)
    held[stratified_order(y, "eval/held-out")[: len(x) // quick.HELD_OUT]] = True
    assert np.bincount(y[held]).tolist() == [15] * CLASSES
    scores = [score(strength, x[~held], y[~held], x[held], y[held]) for strength in quick.REGULARIZATIONS]
    best = quick.REGULARIZATIONS[int(np.argmax(scores))]
    wanted = score(best, x, y, images.numpy(), labels.numpy())
    found = accuracies("linear_lbfgs", train=train, images=images)
    assert found["eval/linear_lbfgs"] == pytest.approx(wanted, abs=1e-9)


def test_nothing_is_computed_where_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "nearest", None)
    monkeypatch.setattr(quick, "fit_linear", None)
    assert accuracies() == {}


def test_all_are_told_together_and_features_that_are_not_finite_have_none() -> None:
    whole = accuracies(*NAMES)
    for name in NAMES:
        assert whole[f"eval/{name}"] == accuracies(name)[f"eval/{name}"]
    images = features(200, 1)[0]
    images[3, 2] = torch.nan
    assert all(math.isnan(value) for value in accuracies(*NAMES, images=images).values())


def test_few_images_and_large_features_are_taken() -> None:
    train, labels = features(4, 0)
    assert 0 <= accuracies(*NAMES, train=train, train_labels=labels)["eval/linear_lbfgs"] <= 1
    one = accuracies(*NAMES, train=train[:1], train_labels=labels[:1])
    assert one["eval/linear_lbfgs"] == one["eval/knn5"] == 0.25
    scaled = {"train": features(300, 0)[0] * 1e20, "images": features(200, 1)[0] * 1e20}
    assert accuracies("knn20", **scaled) == accuracies("knn20")


def test_the_probe_hands_on_its_own_features(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.trainers.evaluation.test_probe import FakeData, config, pixels

    data = FakeData()
    seen: list[list[int]] = []

    def beside(*parts: Tensor) -> dict[str, float]:
        seen.append([len(part) for part in parts])
        return {"eval/knn20": 0.5}

    settings = config()
    loaders: Any = data
    found = probe.evaluate(
        pixels,
        dataset=loaders,
        loaders=loaders,
        config=settings,
        device=torch.device("cpu"),
        full=True,
        beside=beside,
    )
    fitted = len(probe.train_subset(loaders, settings).ids)
    scored = len(probe.select_subset(loaders, settings).ids)
    assert seen == [[fitted, fitted, scored, scored]]
    assert found["eval/knn20"] == 0.5
    assert "probe/full_linear" in found
