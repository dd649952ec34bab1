"""Brownian kicks: their law, their gradient, and that they belong to a sample and not to a rank (MSBReg, O12)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainers.terms.outputs import outputs_of
from trainers.terms import Brownian
from trainers.terms.base import unit_rows

N, K, D = 12, 3, 6


def random_views(count: int = K, n: int = N) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, D, generator=generator, dtype=torch.float64) for _ in range(count)]


def noise_of(term: Brownian, ids: list[int], view_count: int, step: int = 0) -> Tensor:
    """The directions g [K, n, D], read off the term: g·e_j for each axis e_j, one image at a time."""
    g = torch.zeros(view_count, len(ids), D, dtype=torch.float64)
    for j in range(D):
        for v in range(view_count):
            for i, sample in enumerate(ids):
                views = [torch.zeros(1, D, dtype=torch.float64) for _ in range(view_count)]
                views[v][0, j] = 2.0
                outputs = outputs_of(*views, ids=torch.tensor([sample]), step=step)
                g[v, i, j] = view_count * term(outputs)
    return g


@pytest.mark.parametrize("share", ["image", "view", "batch"])
@pytest.mark.parametrize("norm", ["unit", "gaussian"])
def test_the_value_is_the_mean_cosine_with_directions_shared_as_asked(share: Any, norm: Any) -> None:
    term, views, ids = Brownian(share=share, norm=norm), random_views(), list(range(40, 40 + N))
    g = noise_of(term, ids, K)
    expected = torch.stack([(unit_rows(view) * g[v]).sum(1).mean() for v, view in enumerate(views)]).mean()
    assert term(outputs_of(*views, ids=torch.tensor(ids))).item() == pytest.approx(expected.item(), rel=1e-12)
    if norm == "unit":
        torch.testing.assert_close(g.norm(dim=-1), torch.ones(K, N, dtype=torch.float64))
    distinct = {"image": N, "view": N * K, "batch": 1}[share]
    assert len({tuple(row.tolist()) for row in g.flatten(0, 1).mul(1e9).round()}) == distinct


@pytest.mark.parametrize("share", ["image", "view", "batch"])
def test_a_samples_kick_does_not_depend_on_its_place_or_its_batch(share: Any) -> None:
    term, views, ids = Brownian(share=share), random_views(), torch.arange(100, 100 + N)
    whole = term(outputs_of(*views, ids=ids)).item()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    shuffled = term(outputs_of(*[view[order] for view in views], ids=ids[order])).item()
    halves = [
        term(outputs_of(*[view[half] for view in views], ids=ids[half])).item()
        for half in (slice(None, N // 2), slice(N // 2, None))
    ]
    assert shuffled == pytest.approx(whole, rel=1e-12)
    assert sum(halves) / 2 == pytest.approx(whole, rel=1e-12)


def test_seed_and_step_give_the_value_bit_for_bit_and_others_give_another() -> None:
    term, views = Brownian(), random_views()
    values = {(seed, step): term(outputs_of(*views, seed=seed, step=step)).item() for seed in (0, 1) for step in (0, 1)}
    assert len(set(values.values())) == 4
    assert all(term(outputs_of(*views, seed=s, step=t)).item() == value for (s, t), value in values.items())


@pytest.mark.parametrize(
    ("share", "same_views", "same_images", "deviation"),
    [
        ("image", True, False, 1 / math.sqrt(N * D)),
        ("view", False, False, 1 / math.sqrt(N * K * D)),
        ("batch", True, True, 1 / math.sqrt(D)),
    ],
)
def test_over_steps_the_value_has_mean_zero_and_the_deviation_of_independent_directions(
    share: Any, same_views: bool, same_images: bool, deviation: float
) -> None:
    draws = 1500
    views = random_views(1) * K if same_views else random_views()
    if same_images:
        views = [view[:1].expand(N, D) for view in views]
    values = torch.stack([Brownian(share=share)(outputs_of(*views, step=step)) for step in range(draws)])
    assert values.mean().item() == pytest.approx(0.0, abs=4.5 * deviation / math.sqrt(draws))
    assert values.std().item() == pytest.approx(deviation, rel=4.5 / math.sqrt(2 * draws))


def test_the_gradient_is_the_tangential_part_of_the_direction() -> None:
    term = Brownian()
    views = [view.requires_grad_() for view in random_views(2)]
    gradients = torch.autograd.grad(term(outputs_of(*views)), views)
    g = noise_of(term, list(range(N)), 2)
    sizes = []
    for v, (view, gradient) in enumerate(zip(views, gradients, strict=True)):
        p = unit_rows(view.detach())
        tangent = g[v] - (g[v] * p).sum(1, keepdim=True) * p
        expected = tangent / view.detach().norm(dim=1, keepdim=True) / (2 * N)
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)
        sizes.append(tangent.square().sum(1))
    # E ||tangent||² = (D - 1) / D, here over 12 directions: a mean of variables of deviation below 1 / D
    assert torch.cat(sizes).mean().item() == pytest.approx((D - 1) / D, abs=4 * (1 / D) / math.sqrt(N))


def test_gaussian_directions_are_longer_by_the_root_of_the_dimension() -> None:
    views = [torch.randn(4, 400, generator=torch.Generator().manual_seed(v), dtype=torch.float64) for v in range(2)]
    unit, gaussian = (Brownian(norm=norm)(outputs_of(*views)).item() for norm in ("unit", "gaussian"))
    assert gaussian / unit == pytest.approx(20.0, rel=0.15)


def test_predictions_are_kicked_if_there_are_any_unless_projections_are_asked_for() -> None:
    projections, predictions = random_views(2), [view + 1 for view in random_views(2)]
    outputs = outputs_of(*projections)
    both = outputs._replace(predictions=tuple(predictions))
    assert Brownian()(both) == Brownian()(outputs_of(*predictions))
    assert Brownian(source="projection")(both) == Brownian()(outputs)
