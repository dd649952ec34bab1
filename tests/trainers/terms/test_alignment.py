"""Alignment against its definition, pair by pair (SFRIK, numerical oracle 10)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainers.terms.outputs import outputs_of
from trainers.config import TrialConfig, ViewConfig
from trainers.terms import Alignment


def reference(views: list[np.ndarray[Any, Any]]) -> float:
    """Mean over unordered pairs of views, and over rows, of 2 - 2 cos."""
    costs = []
    for first, second in itertools.combinations(views, 2):
        for a, b in zip(first, second, strict=True):
            costs.append(2 - 2 * float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b)))
    return float(np.mean(costs))


@pytest.mark.parametrize("view_count", [2, 3, 5])
def test_alignment_is_the_mean_squared_distance_over_all_pairs_of_views(view_count: int) -> None:
    views = list(np.random.default_rng(0).standard_normal((view_count, 7, 4)) * 3)
    value = Alignment()(outputs_of(*(torch.from_numpy(view) for view in views)))
    assert value.item() == pytest.approx(reference(views), rel=1e-12)


def test_equal_views_cost_nothing_antipodal_views_four_and_orthogonal_views_two() -> None:
    h = torch.randn(5, 8, dtype=torch.float64)
    assert Alignment()(outputs_of(h, h, h)).item() == pytest.approx(0.0, abs=1e-28)
    assert Alignment()(outputs_of(h, 2 * h)).item() == pytest.approx(0.0, abs=1e-28)
    assert Alignment()(outputs_of(h, -h)).item() == pytest.approx(4.0, rel=1e-14)
    e = torch.eye(4, dtype=torch.float64)
    assert Alignment()(outputs_of(e, e.roll(1, 0))).item() == pytest.approx(2.0, rel=1e-14)


def test_the_official_weight_is_ours_times_the_dimension() -> None:
    """λ_sim · mean of (z1 - z2)² over all n·q entries, as valeoai/sfrik writes it."""
    q, weight = 16, 0.488
    first, second = torch.randn(6, q, dtype=torch.float64), torch.randn(6, q, dtype=torch.float64)
    z1, z2 = torch.nn.functional.normalize(first), torch.nn.functional.normalize(second)
    official = (weight * q) * torch.nn.functional.mse_loss(z1, z2)
    assert weight * Alignment()(outputs_of(first, second)).item() == pytest.approx(official.item(), rel=1e-12)


def test_the_length_of_an_embedding_does_not_matter_and_gets_no_gradient() -> None:
    h = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    other = torch.randn(5, 8, dtype=torch.float64)
    value = Alignment()(outputs_of(h, other))
    (gradient,) = torch.autograd.grad(value, h)
    assert (gradient * h).sum(1).abs().max() < 1e-15
    scaled = Alignment()(outputs_of(h * torch.rand(5, 1, dtype=torch.float64).add(0.1), other))
    assert scaled.item() == pytest.approx(value.item(), rel=1e-13)


def test_nearly_equal_views_keep_their_digits_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(64, 128, generator=generator, dtype=torch.float64)
    near = h + 1e-3 * torch.randn(64, 128, generator=generator, dtype=torch.float64)
    exact = Alignment()(outputs_of(h, near)).item()
    assert exact < 1e-5
    # Writing it as 2 - 2 cos would leave an error of about 1e-7 / 1e-6 here.
    assert Alignment()(outputs_of(h.float(), near.float())).item() == pytest.approx(exact, rel=1e-3)


def test_without_normalizing_it_is_the_mean_squared_error_of_vicreg() -> None:
    first, second = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    value = Alignment(normalize=False)(outputs_of(first, second))
    assert value.item() == pytest.approx(torch.nn.functional.mse_loss(first, second).item(), rel=1e-12)


@pytest.mark.parametrize("global_views", [1, 2, 3, 5])
def test_global_views_are_compared_with_every_other_view_and_small_crops_are_not(global_views: int) -> None:
    """SFRIK's official SwAV form: the mean over global views of the mean over all other views."""
    views = list(np.random.default_rng(0).standard_normal((5, 7, 4)) * 3)
    costs = [np.mean([reference([views[a], views[b]]) for b in range(5) if b != a]) for a in range(global_views)]
    term = Alignment(global_views=global_views)
    value = term(outputs_of(*(torch.from_numpy(view) for view in views)))
    assert value.item() == pytest.approx(float(np.mean(costs)), rel=1e-12)
    if global_views == 5:
        assert value.item() == pytest.approx(reference(views), rel=1e-12)


def test_more_global_views_than_views_are_refused() -> None:
    with pytest.raises(ValueError, match=r"objective\.pull\.global_views must be at most .* 2, but is 3; lower it"):
        TrialConfig(objective={"pull": Alignment(global_views=3)})


def test_alignment_of_a_single_view_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"objective\.pull \(alignment\).*at least 2.*views has 1.*add a view"):
        TrialConfig(views=(ViewConfig(),), objective={"pull": Alignment()})
