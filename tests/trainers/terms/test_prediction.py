"""BYOL's and SimSiam's losses against their definitions, row by row."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainers.terms.outputs import outputs_of, random_views
from trainers.terms import Prediction


def cosine(first: Tensor, second: Tensor) -> float:
    """Mean cosine of corresponding rows."""
    pairs = zip(first.numpy(), second.numpy(), strict=True)
    return float(np.mean([a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs]))


def test_twice_its_value_is_byols_sum_of_both_directions() -> None:
    p, t = random_views(2), random_views(2, seed=1)
    official = (2 - 2 * cosine(p[0], t[1])) + (2 - 2 * cosine(p[1], t[0]))
    value = Prediction()(outputs_of(*random_views(2, seed=2), predictions=p, targets=t)).item()
    assert 2 * value == pytest.approx(official, rel=1e-12)


def test_the_negative_cosine_is_simsiams_mean_of_both_directions() -> None:
    p, z = random_views(2), random_views(2, seed=1)
    official = -cosine(p[0], z[1]) / 2 - cosine(p[1], z[0]) / 2
    value = Prediction(distance="negative_cosine")(outputs_of(*z, predictions=p))
    assert value.item() == pytest.approx(official, rel=1e-12)


def test_views_are_averaged_over_ordered_pairs_and_local_crops_are_not_predicted() -> None:
    p, t = random_views(4), random_views(4, seed=1)
    expected = [2 - 2 * cosine(p[a], t[b]) for a, b in itertools.permutations(range(4), 2)]
    assert Prediction()(outputs_of(*p, predictions=p, targets=t)).item() == pytest.approx(
        float(np.mean(expected)), rel=1e-12
    )
    pairs = [(a, b) for a in range(4) for b in range(2) if a != b]
    expected = [2 - 2 * cosine(p[a], t[b]) for a, b in pairs]
    assert Prediction()(outputs_of(*p, predictions=p, targets=t[:2])).item() == pytest.approx(
        float(np.mean(expected)), rel=1e-12
    )


def test_targets_get_no_gradient_and_predictions_all_of_it() -> None:
    z = [view.requires_grad_() for view in random_views(2)]
    p = [view.requires_grad_() for view in random_views(2, seed=1)]
    value = Prediction()(outputs_of(*z, predictions=p))
    assert not any(
        gradient is not None for gradient in torch.autograd.grad(value, z, allow_unused=True, retain_graph=True)
    )
    by_hand = sum((2 - 2 * torch.nn.functional.cosine_similarity(p[a], z[1 - a].detach())).mean() for a in (0, 1)) / 2
    assert isinstance(by_hand, Tensor)
    for ours, theirs in zip(torch.autograd.grad(value, p), torch.autograd.grad(by_hand, p), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_nearly_equal_rows_keep_their_digits_in_float32() -> None:
    t = random_views(2)
    p = [view + 1e-3 * noise for view, noise in zip(reversed(t), random_views(2, seed=1), strict=True)]
    exact = Prediction()(outputs_of(*t, predictions=p, targets=t)).item()
    assert exact < 1e-5
    t, p = ([view.float() for view in views] for views in (t, p))
    near = Prediction()(outputs_of(*t, predictions=p, targets=t))
    assert near.item() == pytest.approx(exact, rel=1e-2)
