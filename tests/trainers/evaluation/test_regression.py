"""Logistic regression by parts, along a path, and to scikit-learn's optimum as near as is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from trainers.evaluation import regression
from trainers.evaluation.regression import Parts, fit_linear, regularization_path


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    return torch.from_numpy(found.data[:600]), torch.from_numpy(found.target[:600].astype(np.int64))


def test_it_is_as_near_to_scikit_learns_optimum_as_is_asked_for(digits: tuple[Tensor, Tensor]) -> None:
    from sklearn.linear_model import LogisticRegression

    features, labels = digits
    found = fit_linear(features, labels, class_count=10, regularization=1e-2, excess=1e-13)
    x = ((features - found.mean) / found.scale).numpy()
    reference = LogisticRegression(C=1 / (1e-2 * len(x)), solver="newton-cg", tol=1e-10, max_iter=2000).fit(x, labels)
    np.testing.assert_allclose(found.weight.T.numpy(), reference.coef_, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        torch.softmax(found.scores(features), 1).numpy(), reference.predict_proba(x), rtol=0, atol=1e-6
    )


def test_features_that_are_read_by_parts_give_what_held_ones_do(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = digits
    narrow = features.float()
    parts = Parts(lambda: torch.split(narrow, 77), *narrow.shape)
    held = fit_linear(narrow, labels, class_count=10, regularization=1e-2)
    read = fit_linear(parts, labels, class_count=10, regularization=1e-2)
    torch.testing.assert_close(read.weight, held.weight, rtol=0, atol=2e-3)
    assert (read.predict(narrow) == held.predict(narrow)).float().mean() > 0.999


def test_a_path_passes_through_the_optima_of_each_regularization(digits: tuple[Tensor, Tensor]) -> None:
    features, labels = digits
    path = dict(regularization_path(features, labels, class_count=10, regularizations=[1e-3, 1.0, 1e-2]))
    assert list(path) == [1.0, 1e-2, 1e-3]
    for strength, probe in path.items():
        alone = fit_linear(features, labels, class_count=10, regularization=strength, excess=1e-6)
        x = (features - probe.mean) / probe.scale

        def loss(one: regression.LinearProbe, x: Tensor = x, strength: float = strength) -> float:
            entropy = torch.nn.functional.cross_entropy(x @ one.weight + one.bias, labels)
            return float(entropy + strength / 2 * one.weight.square().sum())

        assert loss(probe) == pytest.approx(loss(alone), rel=regression.CHOOSING)
