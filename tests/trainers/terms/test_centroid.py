"""The multiview centroid against the table and identities of MSBReg's notes (O1 to O8, O15)."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from trainers.config import MLPConfig, ModelConfig, TrialConfig, ViewConfig
from trainers.terms import MultiviewCentroid, Outputs
from trainers.terms.base import unit_rows
from trainers.terms.centroid import Directions, centroid_distance, directions_of


def rows(*views: list[float]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([view], dtype=torch.float64) for view in views)


def random_views(count: int, n: int = 5, q: int = 4, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, q, generator=generator, dtype=torch.float64) for _ in range(count))


def outputs_of(
    online: tuple[Tensor, ...], targets: tuple[Tensor, ...] | None, *, step: int = 0, predictor: bool = True
) -> Outputs:
    return Outputs(
        features=online,
        projections=tuple(view * -3 for view in online) if predictor else online,
        predictions=online if predictor else None,
        targets=targets,
        sample_ids=torch.arange(len(online[0])),
        seed=0,
        step=step,
    )


def everything(count: int) -> Directions:
    """The same views on both sides: what "c2c" must not be."""
    return [(tuple(range(count)), tuple(range(count)))]


E1, E2 = [1.0, 0.0], [0.0, 1.0]
ROOT2, ROOT5 = math.sqrt(2), math.sqrt(5)
TABLE: dict[str, tuple[list[list[float]], list[list[float]], list[float]]] = {
    # online, target: c2c/split, c2c/all, v2c/loo, v2c/all, v2c/loo raw, v2c/all raw
    "O1": ([E1, E1], [E2, E2], [2, 2, 2, 2, 2, 2]),
    "O2": ([E1, E2], [E1, E2], [2, 0, 2, 2 - ROOT2, 2, 1 / 2]),
    "O3": ([E1, E2, E1, E2], [E1, E2, E1, E2], [0, 0, 2 - 2 / ROOT5, 2 - ROOT2, 8 / 9, 1 / 2]),
    "O4": ([E1, E1, E2, E2], [E1, E1, E2, E2], [2, 0, 2 - 2 / ROOT5, 2 - ROOT2, 8 / 9, 1 / 2]),
    "O5, same": ([E1] * 4, [E1] * 4, [0] * 6),
    "O5, antipodal": ([E1] * 4, [[-1.0, 0.0]] * 4, [4] * 6),
}


@pytest.mark.parametrize("case", TABLE)
def test_point_sets_take_the_values_of_the_table(case: str) -> None:
    online, targets, expected = TABLE[case]
    count = len(online)
    order = list(range(count))
    ways = [
        (directions_of("c2c", None, count, order), True),
        (everything(count), True),
        (directions_of("v2c", None, count, order), True),
        (directions_of("v2c", "all", count, order), True),
        (directions_of("v2c", "loo", count, order), False),
        (directions_of("v2c", "all", count, order), False),
    ]
    found = [
        centroid_distance(rows(*online), rows(*targets), directions, normalize=normalize).item()
        for directions, normalize in ways
    ]
    assert found == pytest.approx(expected, abs=1e-12)


def reference(
    online: tuple[Tensor, ...], targets: tuple[Tensor, ...], directions: Directions, normalize: bool
) -> float:
    """By the definition, one image and direction at a time."""
    costs = []
    for i in range(len(online[0])):
        p = [view[i] / view[i].norm() for view in online]
        t = [view[i] / view[i].norm() for view in targets]
        for members, others in directions:
            c, d = sum(p[k] for k in members) / len(members), sum(t[k] for k in others) / len(others)
            assert isinstance(c, Tensor)
            assert isinstance(d, Tensor)
            cost = 2 - 2 * (c @ d) / (c.norm() * d.norm()) if normalize else (c - d) @ (c - d)
            costs.append(cost.item())
    return sum(costs) / len(costs)


@pytest.mark.parametrize("normalize", [True, False])
def test_each_reading_is_the_mean_distance_over_its_directions(normalize: bool) -> None:
    online, targets = random_views(3), random_views(3, seed=1)
    ways: list[tuple[Any, Any, Directions]] = [
        ("v2c", None, [((0,), (1, 2)), ((1,), (0, 2)), ((2,), (0, 1))]),
        ("v2c", "all", [((k,), (0, 1, 2)) for k in range(3)]),
        ("pairs", None, [((k,), (j,)) for k, j in itertools.permutations(range(3), 2)]),
    ]
    for reading, split, directions in ways:
        term = MultiviewCentroid(reading=reading, view_split=split, normalize=normalize)
        expected = reference(online, targets, directions, normalize)
        assert term(outputs_of(online, targets)).item() == pytest.approx(expected, rel=1e-12)


def test_halves_are_disjoint_drawn_anew_each_step_and_all_are_drawn() -> None:
    online, targets = random_views(4), random_views(4, seed=1)
    term = MultiviewCentroid()
    halves: dict[float, tuple[int, ...]] = {}
    for first in itertools.combinations(range(4), 2):
        second = tuple(k for k in range(4) if k not in first)
        halves[round(reference(online, targets, [(first, second), (second, first)], True), 10)] = first
    assert len(halves) == 3
    values = [term(outputs_of(online, targets, step=step)).item() for step in range(30)]
    assert {round(value, 10) for value in values} == halves.keys()
    assert values == [term(outputs_of(online, targets, step=step)).item() for step in range(30)]


def test_two_views_are_half_of_byols_official_loss_in_every_reading() -> None:
    online = tuple(view.requires_grad_() for view in random_views(2))
    targets = random_views(2, seed=1)

    def regression(x: Tensor, y: Tensor) -> Tensor:  # google-deepmind/deepmind-research, byol_experiment.py
        x, y = torch.nn.functional.normalize(x, dim=1), torch.nn.functional.normalize(y, dim=1)
        return -2 * (x * y).sum(dim=1)

    # their constant, 2 for each direction, is left out there
    official = (regression(online[0], targets[1]) + regression(online[1], targets[0]) + 4).mean()
    expected = torch.autograd.grad(official, online)
    for reading in ("c2c", "v2c", "pairs"):
        value = 2 * MultiviewCentroid(reading=reading)(outputs_of(online, targets))
        assert value.item() == pytest.approx(official.item(), rel=1e-12)
        for gradient, wanted in zip(torch.autograd.grad(value, online), expected, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-14)


def test_scatter_separates_views_to_center_from_center_to_center() -> None:
    """O6: with all targets, view to center = center to center + mean of 1 - ||c||²."""
    online, targets = random_views(4), random_views(4, seed=1)
    v2c = centroid_distance(online, targets, directions_of("v2c", "all", 4, [0, 1, 2, 3]), normalize=False)
    c2c = centroid_distance(online, targets, everything(4), normalize=False)
    center = torch.stack([unit_rows(view) for view in online]).mean(0)
    assert v2c.item() == pytest.approx((c2c + 1 - center.square().sum(1).mean()).item(), rel=1e-12)


def test_raw_leave_one_out_has_the_gradient_of_all_pairs() -> None:
    """O7: the difference, 1 - ||leave-one-out center||², is of targets alone."""
    count = 4
    online = tuple(view.requires_grad_() for view in random_views(count))
    targets = random_views(count, seed=1)
    loo = MultiviewCentroid(reading="v2c", normalize=False)(outputs_of(online, targets))
    pairs = MultiviewCentroid(reading="pairs")(outputs_of(online, targets))
    t = torch.stack([unit_rows(view) for view in targets])
    centers = torch.stack([t[[j for j in range(count) if j != k]].mean(0) for k in range(count)])
    assert pairs.item() == pytest.approx((loo + 1 - centers.square().sum(-1).mean()).item(), rel=1e-12)
    for a, b in zip(torch.autograd.grad(loo, online), torch.autograd.grad(pairs, online), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
    # and over all K² pairs, with the full center
    every: Directions = [((k,), (j,)) for k in range(count) for j in range(count)]
    all_pairs = centroid_distance(online, targets, every, normalize=False)
    v2c = MultiviewCentroid(reading="v2c", view_split="all", normalize=False)(outputs_of(online, targets))
    assert all_pairs.item() == pytest.approx((v2c + 1 - t.mean(0).square().sum(-1).mean()).item(), rel=1e-12)


def test_raw_centers_move_a_set_as_one_and_views_contract() -> None:
    """O8, by unit rows p̂: (2 / (N |A|)) (c - c') for c2c, (2 / (N K)) (p̂_k - c') for v2c."""
    n, count = 5, 4
    unit = tuple(unit_rows(view).requires_grad_() for view in random_views(count, n))
    targets = tuple(unit_rows(view) for view in random_views(count, n, seed=1))
    center, goal = torch.stack(unit).mean(0), torch.stack(targets).mean(0)
    project = [torch.eye(4, dtype=torch.float64) - row[:, :, None] * row[:, None, :] for row in unit]  # of unit_rows

    c2c = torch.autograd.grad(centroid_distance(unit, targets, everything(count), normalize=False), unit)
    v2c_directions = directions_of("v2c", "all", count, list(range(count)))
    v2c = torch.autograd.grad(centroid_distance(unit, targets, v2c_directions, normalize=False), unit)
    for k in range(count):
        together = 2 / (n * count) * (center - goal)
        alone = 2 / (n * count) * (unit[k] - goal)
        torch.testing.assert_close(c2c[k], (project[k] @ together[..., None])[..., 0], rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(v2c[k], (project[k] @ alone[..., None])[..., 0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("reading", ["c2c", "v2c", "pairs"])
@pytest.mark.parametrize("normalize", [True, False])
def test_gradients_are_tangential_equal_finite_differences_and_never_reach_targets(
    reading: Any, normalize: bool
) -> None:
    term = MultiviewCentroid(reading=reading, normalize=normalize)
    online = tuple(view.requires_grad_() for view in random_views(3, n=2))
    targets = tuple(view.requires_grad_() for view in random_views(3, n=2, seed=1))
    gradients = torch.autograd.grad(term(outputs_of(online, targets)), (*online, *targets), allow_unused=True)
    assert all(gradient is None for gradient in gradients[3:])
    assert all((gradient * view).sum(1).abs().max() < 1e-14 for gradient, view in zip(gradients, online, strict=False))
    assert torch.autograd.gradcheck(lambda *views: term(outputs_of(views, targets)), online, eps=1e-6, atol=1e-9)


def test_without_a_teacher_or_predictor_projections_take_their_place_and_targets_stay_without_gradient() -> None:
    online = tuple(view.requires_grad_() for view in random_views(2))
    alone = outputs_of(online, None, predictor=False)
    value = MultiviewCentroid()(alone)
    against_copy = MultiviewCentroid()(outputs_of(online, tuple(view.detach() for view in online)))
    assert value.item() == against_copy.item()
    for a, b in zip(torch.autograd.grad(value, online), torch.autograd.grad(against_copy, online), strict=True):
        assert torch.equal(a, b)


def test_local_crops_are_drawn_to_global_views_and_never_the_other_way() -> None:
    online, targets = random_views(5), random_views(3, seed=1)
    assert directions_of("c2c", None, 5, [2, 0, 1]) == [((2, 0, 3, 4), (1,)), ((1, 3, 4), (2, 0))]
    assert directions_of("v2c", None, 5, [2, 0, 1])[3:] == [((3,), (0, 1, 2)), ((4,), (0, 1, 2))]
    assert len(directions_of("pairs", None, 5, [0, 1, 2])) == 3 * 2 + 2 * 3
    expected = reference(online, targets, directions_of("v2c", None, 5, [0, 1, 2]), True)
    value = MultiviewCentroid(reading="v2c")(outputs_of(online, targets))
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_the_trivial_zero_and_what_does_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'c2c' must be one of \['split', None\], but is 'all'; with the same views"):
        MultiviewCentroid(reading="c2c", view_split="all")
    with pytest.raises(ValueError, match="'pairs' must be one of"):
        MultiviewCentroid(reading="pairs", view_split="loo")
    with pytest.raises(ValueError, match=r"objective\.pull \(centroid\).*at least 2.*views has 1.*add a view"):
        TrialConfig(views=(ViewConfig(),), objective={"pull": MultiviewCentroid()})
    model = ModelConfig(projector=MLPConfig(widths=(8, 8)), predictor=MLPConfig(widths=(8, 4)))
    with pytest.raises(ValueError, match=r"predictor\.widths must be that of model\.projector\.widths, 8, but is 4"):
        TrialConfig(model=model, objective={"pull": MultiviewCentroid()})
    with pytest.raises(ValueError, match="at least 2 target views"):
        MultiviewCentroid()(outputs_of(random_views(2), random_views(1)))
