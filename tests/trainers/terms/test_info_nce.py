"""InfoNCE against a loop over anchors, and the oracles of the DILEMMA notes (item 13)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainers.terms.outputs import outputs_of, random_views
from trainers.config import TrialConfig, ViewConfig
from trainers.terms import InfoNCE


def reference(first: Tensor, second: Tensor, temperature: float) -> float:
    """NT-Xent anchor by anchor, over 2N rows of which the own one is removed."""
    rows = torch.nn.functional.normalize(torch.cat([first, second]))
    count, n = len(rows), len(first)
    losses = []
    for i in range(count):
        similarities = [float(rows[i] @ rows[k]) / temperature for k in range(count)]
        others = [math.exp(similarities[k]) for k in range(count) if k != i]
        losses.append(math.log(math.fsum(others)) - similarities[(i + n) % count])
    return float(np.mean(losses))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_it_is_the_cross_entropy_over_all_other_rows_of_both_views(temperature: float) -> None:
    views = random_views(2)
    value = InfoNCE(temperature=temperature)(outputs_of(*views))
    assert value.item() == pytest.approx(reference(views[0], views[1], temperature), rel=1e-12)


def test_more_views_are_averaged_over_pairs() -> None:
    views = random_views(4)
    expected = [reference(a, b, 0.2) for a, b in itertools.combinations(views, 2)]
    assert InfoNCE()(outputs_of(*views)).item() == pytest.approx(float(np.mean(expected)), rel=1e-12)


@pytest.mark.parametrize("n", [2, 256])
def test_equal_embeddings_cost_the_logarithm_of_the_other_rows(n: int) -> None:
    same = torch.ones(n, 4, dtype=torch.float64)
    assert InfoNCE()(outputs_of(same, same)).item() == pytest.approx(math.log(2 * n - 1), rel=1e-12)
    assert math.log(2 * n - 1) == pytest.approx({2: 1.0986, 256: 6.2364}[n], abs=1e-4)


def test_perfect_orthogonal_pairs_cost_what_their_negatives_leave() -> None:
    rows = torch.eye(4, dtype=torch.float64)
    value = InfoNCE(temperature=0.5)(outputs_of(rows, 5 * rows)).item()
    assert value == pytest.approx(0.594438, abs=1e-6)
    assert value == pytest.approx(math.log(1 + 6 * math.exp(-2)), rel=1e-12)


def test_the_official_code_is_twice_this() -> None:
    """google-research/simclr: for each view, cross-entropy over [other view, own view without itself]; both means
    added."""
    views = random_views(2)
    n, temperature = len(views[0]), 0.5
    a, b = (torch.nn.functional.normalize(view) for view in views)
    total = 0.0
    for own, other in ((a, b), (b, a)):
        within = own @ own.T / temperature - 1e9 * torch.eye(n, dtype=torch.float64)
        logits = torch.cat([own @ other.T / temperature, within], dim=1)
        total += torch.nn.functional.cross_entropy(logits, torch.arange(n)).item()
    assert 2 * InfoNCE(temperature=temperature)(outputs_of(*views)).item() == pytest.approx(total, rel=1e-12)


def test_a_tiny_temperature_keeps_values_and_slopes_finite() -> None:
    views = [view.float().requires_grad_() for view in random_views(2)]
    value = InfoNCE(temperature=0.01)(outputs_of(*views))
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, views))


def test_a_single_view_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"objective\.pull \(info_nce\).*at least 2.*views has 1.*add a view"):
        TrialConfig(views=(ViewConfig(),), objective={"pull": InfoNCE()})
    with pytest.raises(ValueError, match="needs at least 2, but has 1"):
        InfoNCE()(outputs_of(*random_views(1)))
