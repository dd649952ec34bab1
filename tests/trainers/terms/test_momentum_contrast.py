"""MoCo v3's loss against a loop over queries, and the oracles of the DILEMMA notes (item 12)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainers.terms.outputs import outputs_of, random_views
from trainers.terms import MomentumContrast


def cross_entropy(queries: Tensor, keys: Tensor, temperature: float) -> float:
    """Mean over queries of -log softmax at the key of the same row, written out."""
    q, k = torch.nn.functional.normalize(queries), torch.nn.functional.normalize(keys)
    losses = []
    for i in range(len(q)):
        scores = [float(q[i] @ k[j]) / temperature for j in range(len(k))]
        losses.append(math.log(math.fsum(math.exp(score) for score in scores)) - scores[i])
    return float(np.mean(losses))


def test_two_views_are_the_official_sum_of_both_directions_times_twice_the_temperature() -> None:
    q, k, tau = random_views(2), random_views(2, seed=1), 0.2
    official = 2 * tau * (cross_entropy(q[0], k[1], tau) + cross_entropy(q[1], k[0], tau))
    value = MomentumContrast(temperature=tau)(outputs_of(*random_views(2, seed=2), predictions=q, targets=k))
    assert value.item() == pytest.approx(official, rel=1e-12)


def test_without_the_official_scale_it_is_the_mean_over_ordered_pairs_of_views() -> None:
    q, k, tau = random_views(3), random_views(3, seed=1), 0.5
    expected = [cross_entropy(q[a], k[b], tau) for a, b in itertools.permutations(range(3), 2)]
    term = MomentumContrast(temperature=tau, official_scale=False)
    assert term(outputs_of(*q, predictions=q, targets=k)).item() == pytest.approx(float(np.mean(expected)), rel=1e-12)


def test_local_crops_ask_but_are_not_asked_for() -> None:
    q, k, tau = random_views(4), random_views(2, seed=1), 0.2
    pairs = [(a, b) for a in range(4) for b in range(2) if a != b]
    expected = np.mean([cross_entropy(q[a], k[b], tau) for a, b in pairs])
    term = MomentumContrast(official_scale=False)
    assert term(outputs_of(*q, predictions=q, targets=k)).item() == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(("n", "expected"), [(2, 0.5545), (256, 4.4361), (512, 4.9907)])
def test_equal_embeddings_cost_the_logarithm_of_the_batch(n: int, expected: float) -> None:
    same = [torch.ones(n, 4, dtype=torch.float64)] * 2
    value = MomentumContrast()(outputs_of(*same, predictions=same, targets=same)).item()
    assert value == pytest.approx(expected, abs=1e-4)
    assert value == pytest.approx(0.8 * math.log(n), rel=1e-12)


@pytest.mark.parametrize(("n", "expected"), [(2, 0.005372), (256, 0.79997)])
def test_perfect_orthogonal_pairs_cost_what_their_negatives_leave(n: int, expected: float) -> None:
    rows = [torch.eye(n, dtype=torch.float64)] * 2
    assert MomentumContrast()(outputs_of(*rows, predictions=rows, targets=rows)).item() == pytest.approx(
        expected, abs=1e-5
    )


def test_without_predictor_and_teacher_projections_take_their_places_and_keys_have_no_gradient() -> None:
    views = [view.requires_grad_() for view in random_views(2)]
    value = MomentumContrast()(outputs_of(*views))
    fixed = [view.detach() for view in views]
    explicit = MomentumContrast()(outputs_of(*fixed, predictions=views, targets=fixed))
    assert value.item() == pytest.approx(explicit.item(), rel=1e-14)
    for ours, theirs in zip(torch.autograd.grad(value, views), torch.autograd.grad(explicit, views), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
