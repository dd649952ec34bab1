"""Barlow Twins' loss against correlation coefficients, feature by feature, and against the official form."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.trainers.terms.outputs import outputs_of
from trainers.config import TrialConfig, ViewConfig
from trainers.terms import CrossCorrelation


def random_views(count: int, n: int = 9, q: int = 4) -> list[Tensor]:
    generator = np.random.default_rng(0)
    shared = generator.standard_normal((n, q)) @ generator.standard_normal((q, q))
    return [torch.from_numpy(shared + generator.standard_normal((n, q)) + 3) for _ in range(count)]


def reference(first: Tensor, second: Tensor, off_diagonal: float) -> float:
    total = 0.0
    for i, a in enumerate(first.numpy().T):
        for j, b in enumerate(second.numpy().T):
            r = float(np.corrcoef(a, b)[0, 1])
            total += (1 - r) ** 2 if i == j else off_diagonal * r**2
    return total


def test_it_is_the_distance_of_correlation_coefficients_from_the_identity() -> None:
    views = random_views(3)
    expected = [reference(a, b, 0.3) for a, b in itertools.combinations(views, 2)]
    value = CrossCorrelation(off_diagonal=0.3, epsilon=1e-14)(outputs_of(*views))
    assert value.item() == pytest.approx(float(np.mean(expected)), rel=1e-10)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)], ids=["more rows than features", "fewer"])
def test_it_equals_the_official_form_with_batch_norm_in_value_and_gradient(shape: tuple[int, int]) -> None:
    views = [view.requires_grad_() for view in random_views(2, *shape)]
    norm = nn.BatchNorm1d(shape[1], affine=False).double()
    c = norm(views[0]).T @ norm(views[1]) / shape[0]
    on_diagonal = (torch.diagonal(c) - 1).square().sum()
    beside = c[~torch.eye(shape[1], dtype=torch.bool)].square().sum()
    official = on_diagonal + 0.0051 * beside
    value = CrossCorrelation()(outputs_of(*views))
    assert value.item() == pytest.approx(official.item(), rel=1e-12)
    for ours, theirs in zip(torch.autograd.grad(value, views), torch.autograd.grad(official, views), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


def test_equal_views_of_independent_features_cost_nothing_and_opposite_ones_four_a_feature() -> None:
    sign = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    exact = CrossCorrelation(epsilon=1e-14)
    assert exact(outputs_of(sign, 3 * sign + 1)).item() == pytest.approx(0.0, abs=1e-24)
    assert exact(outputs_of(sign, -sign)).item() == pytest.approx(8.0, rel=1e-12)


def test_a_constant_feature_costs_one_and_stays_finite() -> None:
    views = [torch.cat([view, torch.ones(9, 1, dtype=torch.float64)], dim=1) for view in random_views(2)]
    with_constant = CrossCorrelation()(outputs_of(*views)).item()
    assert with_constant == pytest.approx(CrossCorrelation()(outputs_of(*random_views(2))).item() + 1, rel=1e-12)


def test_a_single_view_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"objective\.twins \(cross_correlation\).*at least 2.*add a view"):
        TrialConfig(views=(ViewConfig(),), objective={"twins": CrossCorrelation()})
