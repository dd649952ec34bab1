"""Kernel MMD against explicit sums, closed forms on point sets and whole-batch gradients (SFRIK, oracles 3 to 13)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.stats import ortho_group
from torch import Tensor

from tests.trainers.terms.outputs import Array, gradient_of, outputs_of, random_rows, value_of
from tests.two_processes import TwoProcesses
from trainers import dist
from trainers.config import MLPConfig, ModelConfig, TrialConfig
from trainers.terms import KernelMMD, kernels
from trainers.terms.base import unit_rows
from trainers.terms.mmd import gram_form

KERNELS: list[kernels.Kernel] = [
    kernels.Truncated(coefficients=(1.0, 40.0)),
    kernels.Truncated(),
    kernels.Truncated(coefficients=(1.0, 2.0, 3.0, 4.0)),
    kernels.Linear(),
    kernels.Quadratic(),
    kernels.RBF(),
    kernels.LogRBF(),
    kernels.IMQ(),
    kernels.Laplace(),
    kernels.Energy(),
    kernels.Energy(exponent=0.5),
    kernels.Polynomial(),
    kernels.Polynomial(offset=0.5, degree=2),
    kernels.Exponential(),
]
SINGULAR: list[kernels.Kernel] = [kernels.Riesz(), kernels.Riesz(exponent=0.5), kernels.Logarithm()]
EVERY_KERNEL = pytest.mark.parametrize("kernel", KERNELS, ids=repr)
OFFICIAL = KernelMMD(normalize=False)  # coefficients (1, 40, 40), all pairs


# --- the definition, pair by pair ---


def reference_phi(kernel: kernels.Kernel, u: Array, v: Array) -> float:
    """φ from the two points themselves, for the kernels that the tests of `kernels` check as functions of t."""
    q, t, squared = len(u), float(u @ v), float(((u - v) ** 2).sum())
    match kernel:
        case kernels.Truncated():
            legendre = [
                t,
                (q * t**2 - 1) / (q - 1),
                ((q + 2) * t**3 - 3 * t) / (q - 1),
                ((q + 2) * (q + 4) * t**4 - 6 * (q + 2) * t**2 + 3) / (q**2 - 1),
            ]
            return sum(b * p for b, p in zip(kernel.coefficients, legendre, strict=False))
        case kernels.Linear():
            return t
        case kernels.Quadratic():
            return t**2
        case kernels.RBF() | kernels.LogRBF():
            return math.exp(-kernel.gamma * squared)
        case kernels.IMQ():
            return float((kernel.offset**2 + squared) ** -kernel.exponent)
        case kernels.Laplace():
            return math.exp(-kernel.gamma * math.sqrt(squared))
        case kernels.Energy():
            return float(-(math.sqrt(squared) ** kernel.exponent))
        case kernels.Polynomial():
            return float((kernel.offset + t) ** kernel.degree)
        case kernels.Exponential():
            return math.exp(t / kernel.temperature)
        case kernels.Riesz():
            return float(math.sqrt(squared) ** -kernel.exponent)
        case kernels.Logarithm():
            return -math.log(squared) / 2
    raise AssertionError(kernel)


def reference(term: KernelMMD, views: list[Array]) -> float:
    values = []
    for view in views:
        z = view / np.linalg.norm(view, axis=1, keepdims=True)
        n, q = z.shape
        pairs = [(i, j) for i in range(n) for j in range(n) if term.estimator == "v" or i != j]
        mean = float(np.mean([reference_phi(term.kernel, z[i], z[j]) for i, j in pairs]))
        b_0 = term.kernel.mean(q)
        if isinstance(term.kernel, kernels.LogRBF):
            values.append(1 - math.log(mean) / math.log(b_0) if term.normalize else math.log(mean))
        else:
            collapsed = reference_phi(term.kernel, z[0], z[0]) - b_0
            values.append((mean - b_0) / (collapsed if term.normalize else 1.0))
    return float(np.mean(values))


@EVERY_KERNEL
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("estimator", ["v", "u"])
@pytest.mark.parametrize("shape", [(9, 4), (5, 7)], ids=["more rows than dimensions", "fewer"])
def test_the_value_is_the_mean_over_pairs_and_views(
    kernel: kernels.Kernel, normalize: bool, estimator: Any, shape: tuple[int, int]
) -> None:
    term = KernelMMD(kernel=kernel, normalize=normalize, estimator=estimator)
    views = [3 * random_rows(*shape, seed=seed) for seed in range(3)]
    assert value_of(term, *views) == pytest.approx(reference(term, views), rel=1e-10, abs=1e-13)


def test_many_blocks_of_rows_equal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(23, 5)
    value, gradient = value_of(OFFICIAL, rows), gradient_of(OFFICIAL, rows)
    monkeypatch.setattr("trainers.terms.mmd.BLOCK_ELEMENTS", 23 * 4)
    assert value_of(OFFICIAL, rows) == pytest.approx(value, rel=1e-14)
    torch.testing.assert_close(gradient_of(OFFICIAL, rows), gradient, rtol=1e-12, atol=1e-15)


# --- the table of oracles: p_l = mean of P_l over all pairs ---


def degree_means(rows: Array) -> list[float]:
    q = rows.shape[1]
    assert q >= 2
    single = [tuple(float(k == degree) for k in range(4)) for degree in range(4)]
    return [value_of(KernelMMD(kernel=kernels.Truncated(coefficients=b), normalize=False), rows) for b in single]


def simplex(q: int) -> Array:
    centered = np.eye(q + 1) - 1 / (q + 1)
    basis = np.linalg.svd(centered)[2][:q]
    return np.asarray(centered @ basis.T)


def icosahedron() -> Array:
    golden = (1 + math.sqrt(5)) / 2
    corners = [(0.0, a, b * golden) for a in (1, -1) for b in (1, -1)]
    return np.array([np.roll(corner, shift) for corner in corners for shift in range(3)])


def e8_roots() -> Array:
    roots = []
    for i, j in itertools.combinations(range(8), 2):
        for a, b in itertools.product((1.0, -1.0), repeat=2):
            root = np.zeros(8)
            root[i], root[j] = a, b
            roots.append(root)
    roots += [np.array(s) / 2 for s in itertools.product((1.0, -1.0), repeat=8) if np.prod(s) > 0]
    return np.array(roots)


def polygon(corners: int) -> Array:
    angles = 2 * math.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def cross_polytope(q: int) -> Array:
    return np.concatenate([np.eye(q), -np.eye(q)])


@pytest.mark.parametrize("q", [3, 8, 32])
def test_point_sets_take_their_closed_forms(q: int) -> None:
    u = random_rows(1, q)
    fourth = (q + 4) / (q * (q + 1))
    expected: dict[str, tuple[Array, list[float]]] = {
        "all equal": (np.repeat(u, 5, axis=0), [1, 1, 1, 1]),
        "single point": (u, [1, 1, 1, 1]),
        "antipodal pair": (np.concatenate([u, -u]), [0, 1, 0, 1]),
        "antipodal, three of each": (np.concatenate([u, -u] * 3), [0, 1, 0, 1]),
        "basis": (np.eye(q), [1 / q, 0, 1 / q, fourth]),
        "cross-polytope": (cross_polytope(q), [0, 0, 0, fourth]),
    }
    for name, (rows, means) in expected.items():
        np.testing.assert_allclose(degree_means(rows), means, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(degree_means(np.eye(q)[:2])[:3], [0.5, (1 - 1 / (q - 1)) / 2, 0.5], atol=1e-12)
    np.testing.assert_allclose(degree_means(simplex(q))[:3], [0, 0, (q + 2) / q**2], atol=1e-12)


def test_totals_with_the_official_coefficients() -> None:
    def total(rows: Array) -> float:
        return value_of(OFFICIAL, rows)

    assert total(np.repeat(random_rows(1, 8), 4, axis=0)) == pytest.approx(81, rel=1e-12)
    assert total(cross_polytope(8)[[0, 8]]) == pytest.approx(40, rel=1e-12)
    assert total(np.eye(8)[:2]) == pytest.approx(37.642857, abs=1e-6)
    assert total(np.eye(3)[:2]) == pytest.approx(30.5, rel=1e-12)
    assert total(np.eye(8)) == pytest.approx(5.125, rel=1e-12)
    assert total(simplex(8)) == pytest.approx(6.25, rel=1e-12)
    assert total(simplex(3)) == pytest.approx(22.2222, abs=1e-4)
    assert total(cross_polytope(8)) == pytest.approx(0, abs=1e-12)


def test_spherical_designs_cost_nothing() -> None:
    full = KernelMMD(kernel=kernels.Truncated(coefficients=(1.0, 2.0, 3.0, 4.0)), normalize=False)
    assert icosahedron().shape == (12, 3)
    assert e8_roots().shape == (240, 8)
    assert value_of(full, icosahedron()) == pytest.approx(0, abs=1e-12)
    assert value_of(full, e8_roots()) == pytest.approx(0, abs=1e-12)
    for corners in range(2, 9):
        expected = [float(degree % corners == 0) for degree in range(1, 5)]
        np.testing.assert_allclose(degree_means(polygon(corners)), expected, atol=1e-12)


def test_other_kernels_take_their_published_values() -> None:
    u = random_rows(1, 8)
    rows = [np.eye(8), cross_polytope(8), np.concatenate([u, -u]), np.repeat(u, 3, axis=0)]
    expected = {
        kernels.RBF(gamma=2.5): [0.1041651786, 0.0416680161, 0.4732921749, 0.9732694750],
        kernels.Energy(exponent=1.0): [0.1518909185, 0.0268909185, 0.3893277856, 1.3893277856],
    }
    for kernel, values in expected.items():
        computed = [value_of(KernelMMD(kernel=kernel, normalize=False), points) for points in rows]
        np.testing.assert_allclose(computed, values, atol=1e-10)
    imq = KernelMMD(kernel=kernels.IMQ(offset=1.0, exponent=0.5), normalize=False)
    computed = [value_of(imq, points) for points in (rows[0], rows[1], rows[3])]
    np.testing.assert_allclose(computed, [0.0394100595, 0.0048609092, 0.4092285739], atol=1e-10)


@EVERY_KERNEL
def test_a_single_point_costs_the_peak_less_the_mean(kernel: kernels.Kernel) -> None:
    if not kernel.logarithmic:
        term = KernelMMD(kernel=kernel, normalize=False)
        assert value_of(term, random_rows(1, 8)) == pytest.approx(kernel.peak(8) - kernel.mean(8), rel=1e-13)


@EVERY_KERNEL
@pytest.mark.parametrize("estimator", ["v", "u"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("q", [8, 2048])
def test_a_collapsed_batch_costs_one_and_has_a_finite_gradient(
    kernel: kernels.Kernel, estimator: Any, dtype: torch.dtype, q: int
) -> None:
    rows = torch.as_tensor(np.repeat(random_rows(1, q), 16, axis=0), dtype=dtype).requires_grad_()
    value = KernelMMD(kernel=kernel, estimator=estimator)(outputs_of(rows))
    assert value.dtype == dtype
    assert value.item() == pytest.approx(1, rel=1e-4 if dtype == torch.float32 else 1e-12)
    (gradient,) = torch.autograd.grad(value, rows)
    assert gradient.isfinite().all()


# --- invariances ---


@EVERY_KERNEL
@pytest.mark.parametrize("estimator", ["v", "u"])
def test_rotations_reflections_permutations_and_lengths_change_nothing(kernel: kernels.Kernel, estimator: Any) -> None:
    term = KernelMMD(kernel=kernel, estimator=estimator)
    rows = random_rows(10, 4)
    value = value_of(term, rows)
    rotation = ortho_group.rvs(4, random_state=0)
    lengths = np.random.default_rng(1).uniform(0.1, 10, (10, 1))
    for changed in (rows @ rotation, rows @ np.diag([-1, 1, 1, 1]), rows[::-1].copy(), rows * lengths, -rows):
        assert value_of(term, changed) == pytest.approx(value, rel=1e-11, abs=1e-14)


@EVERY_KERNEL
def test_duplicating_every_row_leaves_v_but_not_u(kernel: kernels.Kernel) -> None:
    rows = random_rows(6, 4)
    doubled = np.concatenate([rows, rows])
    v, u = KernelMMD(kernel=kernel, estimator="v"), KernelMMD(kernel=kernel, estimator="u")
    assert value_of(v, doubled) == pytest.approx(value_of(v, rows), rel=1e-11)
    assert abs(value_of(u, doubled) - value_of(u, rows)) > 1e-3


def test_flipping_some_signs_changes_odd_degrees_only() -> None:
    rows = random_rows(9, 4)
    flipped = rows * np.where(np.arange(9) % 2, 1.0, -1.0)[:, None]
    before, after = degree_means(rows), degree_means(flipped)
    for degree in (2, 4):
        assert after[degree - 1] == pytest.approx(before[degree - 1], rel=1e-12)
    for degree in (1, 3):
        assert abs(after[degree - 1] - before[degree - 1]) > 1e-3


def test_views_are_never_mixed() -> None:
    """The mean of the views' values is not the value of the union of the views: antipodal views show it best."""
    rows = random_rows(6, 5)
    union = np.concatenate([rows, -rows])
    assert value_of(OFFICIAL, rows, -rows) == pytest.approx(value_of(OFFICIAL, rows), rel=1e-13)
    assert abs(value_of(OFFICIAL, rows, -rows) - value_of(OFFICIAL, union)) > 0.1


# --- two computational forms ---


@pytest.mark.parametrize(
    "kernel",
    [
        kernels.Linear(),
        kernels.Quadratic(),
        kernels.Truncated(coefficients=(1.0, 40.0)),
        kernels.Truncated(coefficients=(2.0,)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("shape", [(37, 11), (5, 11)])
@pytest.mark.parametrize("estimator", ["v", "u"])
def test_gram_and_feature_form_agree_in_value_and_gradient(
    kernel: kernels.Kernel, shape: tuple[int, int], estimator: Any
) -> None:
    rows = random_rows(*shape)
    gram = KernelMMD(kernel=kernel, form="gram", normalize=False, estimator=estimator)
    feature = gram.model_copy(update={"form": "feature"})
    assert value_of(feature, rows) == pytest.approx(value_of(gram, rows), rel=1e-12, abs=1e-12)
    torch.testing.assert_close(gradient_of(feature, rows), gradient_of(gram, rows), rtol=1e-11, atol=1e-13)


def test_the_automatic_form_takes_moments_only_where_they_are_cheaper(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("the other form was expected")

    degree_two = KernelMMD(kernel=kernels.Quadratic())
    with monkeypatch.context() as patch:
        patch.setattr("trainers.terms.mmd.gram_form", refuse)
        value_of(degree_two, random_rows(9, 8))
        for dear in (random_rows(8, 8), random_rows(5, 8)):
            with pytest.raises(AssertionError, match="other form"):
                value_of(degree_two, dear)
    monkeypatch.setattr("trainers.terms.mmd.feature_form", refuse)
    value_of(degree_two.model_copy(update={"form": "gram"}), random_rows(9, 8))
    value_of(OFFICIAL, random_rows(9, 8))


def test_the_third_degree_equals_the_explicit_third_moment() -> None:
    """b_3 ((q + 2) ||M_3||² - 3 ||μ||²) / (q - 1) with M_3 = mean of z ⊗ z ⊗ z."""
    q, rows = 4, random_rows(20, 4)
    z = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    third = np.einsum("na,nb,nc->abc", z, z, z) / len(z)
    expected = ((q + 2) * (third**2).sum() - 3 * (z.mean(0) ** 2).sum()) / (q - 1)
    assert degree_means(rows)[2] == pytest.approx(expected, rel=1e-12)


def test_the_second_degree_is_the_distance_of_the_second_moment_from_isotropy() -> None:
    q, rows = 5, random_rows(20, 5)
    z = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    excess = z.T @ z / len(z) - np.eye(q) / q
    assert degree_means(rows)[0] == pytest.approx((z.mean(0) ** 2).sum(), rel=1e-12)
    assert degree_means(rows)[1] == pytest.approx(q / (q - 1) * (excess**2).sum(), rel=1e-12)
    quadratic = KernelMMD(kernel=kernels.Quadratic(), normalize=False)
    assert value_of(quadratic, rows) == pytest.approx((excess**2).sum(), rel=1e-12)


# --- statistics ---


def test_estimators_have_the_mean_and_variance_of_independent_uniform_points() -> None:
    """q = 6, N = 10, coefficients (1, 40, 40): E V = 81 / 10, E U = 0, Var U = 2.4926."""
    draws = 4000
    generator = torch.Generator().manual_seed(0)
    rows = unit_rows(torch.randn(draws, 10, 6, generator=generator, dtype=torch.float64))
    v = gram_form(rows, kernels.Truncated())
    u = (10 * v - 81) / 9
    assert v.mean().item() == pytest.approx(8.1, abs=4 * math.sqrt(2.4926 / draws))
    assert u.mean().item() == pytest.approx(0.0, abs=4 * math.sqrt(2.4926 / draws))
    assert u.var().item() == pytest.approx(2.4926, rel=0.15)


# --- gradients ---


@EVERY_KERNEL
@pytest.mark.parametrize("estimator", ["v", "u"])
def test_gradients_equal_finite_differences_and_are_tangential(kernel: kernels.Kernel, estimator: Any) -> None:
    term = KernelMMD(kernel=kernel, estimator=estimator)
    rows = torch.from_numpy(random_rows(6, 4)).requires_grad_()
    other = torch.from_numpy(random_rows(6, 4, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: term(outputs_of(a, b)), (rows, other), eps=1e-6, atol=1e-9, rtol=1e-6)
    assert (gradient_of(term, rows.detach()) * rows).sum(1).abs().max() < 1e-14


def test_regular_point_sets_are_stationary_and_a_bare_basis_is_not() -> None:
    for rows in (cross_polytope(8), simplex(8)):
        assert gradient_of(OFFICIAL, rows).abs().max() < 1e-12
    assert gradient_of(OFFICIAL, np.eye(8)).abs().max() > 1e-2
    balanced = KernelMMD(
        kernel=kernels.Truncated(coefficients=(3 * 7 / 7, 40.0, 7.0)), normalize=False
    )  # b_1 = 3 b_3 / (q - 1)
    assert gradient_of(balanced, np.eye(8)).abs().max() < 1e-12


def test_coinciding_points_have_no_infinite_slope() -> None:
    rows = np.concatenate([random_rows(5, 4), random_rows(5, 4)])  # each point twice, i ≠ j
    for kernel in (kernels.Laplace(), kernels.Energy(), kernels.Energy(exponent=0.25)):
        assert gradient_of(KernelMMD(kernel=kernel), rows).isfinite().all()


def test_a_row_of_zeros_stays_finite() -> None:
    rows = random_rows(5, 4)
    rows[2] = 0.0
    for kernel in KERNELS:
        assert math.isfinite(value_of(KernelMMD(kernel=kernel), rows))
        assert gradient_of(KernelMMD(kernel=kernel), rows).isfinite().all()


def test_a_non_finite_row_shows_in_the_value() -> None:
    rows = random_rows(5, 4)
    rows[2, 1] = np.nan
    for kernel in KERNELS:
        assert math.isnan(value_of(KernelMMD(kernel=kernel), rows))


# --- ranks ---


@pytest.mark.parametrize("ranks", [1, 2, 4])
@EVERY_KERNEL
def test_the_ranks_blocks_add_up_to_the_whole_batch(
    kernel: kernels.Kernel, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank in turn, its collectives replaced by what they would return: blocks' sums and gradients must add up."""
    z = unit_rows(torch.from_numpy(random_rows(12, 5)))[None]
    leaf = z.clone().requires_grad_()
    whole = gram_form(leaf, kernel)
    (gradient,) = torch.autograd.grad(whole.sum(), leaf)

    n = 12 // ranks
    shares, gradients = [], []
    for rank in range(ranks):
        monkeypatch.setattr(dist, "world_size", lambda: ranks)
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(dist, "gather_rows_detached", lambda _: z.transpose(0, 1))
        mine = z[:, rank * n : rank * n + n].clone().requires_grad_()
        share = gram_form(mine, kernel)
        shares.append(share.detach())
        gradients.append(torch.autograd.grad(share.sum(), mine)[0])
    torch.testing.assert_close(torch.stack(shares).mean(0), whole.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(torch.cat(gradients, dim=1) / ranks, gradient, rtol=1e-12, atol=1e-14)


def _whole_gram(rows: Tensor, kernel: kernels.Kernel) -> Tensor:
    """The official scheme: gather with gradients, then every rank evaluates all N² pairs."""
    z = unit_rows(dist.gather_rows(rows))
    n, q = z.shape
    t = z @ z.T
    off_diagonal = kernel.values(t[~torch.eye(n, dtype=torch.bool)], q).sum()
    return (off_diagonal + n * kernel.peak(q)) / n**2 - kernel.mean(q)


def _gradients_by_both_schemes(rows: Tensor, kernel: kernels.Kernel) -> list[Tensor]:
    n = len(rows) // dist.world_size()
    results = []
    schemes: list[Callable[[Tensor], Tensor]] = [
        lambda mine: dist.mean_of_values(gram_form(unit_rows(mine)[None], kernel)[0]),
        lambda mine: _whole_gram(mine, kernel),
    ]
    for scheme in schemes:
        mine = rows[dist.row_offset(n) : dist.row_offset(n) + n].clone().requires_grad_()
        value = scheme(mine)
        value.backward()  # type: ignore[no-untyped-call]
        assert mine.grad is not None
        results += [value.detach(), mine.grad]
    return results


@EVERY_KERNEL
def test_row_blocks_with_a_detached_gather_equal_the_gather_with_gradients(
    two_processes: TwoProcesses, kernel: kernels.Kernel
) -> None:
    rows = torch.from_numpy(random_rows(12, 5))
    for value, gradient, expected_value, expected_gradient in two_processes.run(
        _gradients_by_both_schemes, rows, kernel
    ):
        torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-11, atol=1e-14)


@EVERY_KERNEL
def test_the_mean_of_the_ranks_own_values_is_another_objective(kernel: kernels.Kernel) -> None:
    """The reason for all this: halves of a batch look further from uniform than the batch."""
    rows = random_rows(12, 5)
    term = KernelMMD(kernel=kernel)
    halves = (value_of(term, rows[:6]) + value_of(term, rows[6:])) / 2
    assert halves > value_of(term, rows) + 1e-2


# --- precision ---


def test_half_precision_rows_keep_the_off_diagonal_part() -> None:
    """Gaussian rows, N = 512, q = 8192: what learning sees is some 1e-5 and survives half precision to a percent."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(512, 8192, generator=generator, dtype=torch.float64)
    constant = 81 / 512

    def value(dtype: torch.dtype) -> float:
        return OFFICIAL(outputs_of(rows.to(dtype))).double().item()

    exact = value(torch.float64)
    assert exact == pytest.approx(constant, abs=4 * 3.6e-5)  # U is 0 within four of its standard deviations
    assert value(torch.float32) - constant == pytest.approx(exact - constant, rel=1e-3)
    assert value(torch.float16) - constant == pytest.approx(exact - constant, rel=1e-2)
    assert value(torch.bfloat16) - constant == pytest.approx(exact - constant, rel=2e-2)


@EVERY_KERNEL
def test_autocast_does_not_reach_the_term(kernel: kernels.Kernel) -> None:
    rows = torch.from_numpy(random_rows(12, 5)).float()
    for form in ("gram", "auto"):
        term = KernelMMD(kernel=kernel, form=form)
        results = []
        for enabled in (False, True):
            leaf = rows.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                value = term(outputs_of(leaf))
            results.append((value, *torch.autograd.grad(value, leaf)))
        assert all(torch.equal(plain, mixed) for plain, mixed in zip(*results, strict=True))
        assert results[0][0].dtype == torch.float32


def test_no_gradient_is_computed_where_none_is_asked_for() -> None:
    rows = torch.from_numpy(random_rows(12, 5)).requires_grad_()
    for kernel in (kernels.Truncated(), kernels.Quadratic()):
        with torch.no_grad():
            value = KernelMMD(kernel=kernel)(outputs_of(rows))
        assert not value.requires_grad
        assert value.item() == pytest.approx(KernelMMD(kernel=kernel)(outputs_of(rows)).item(), rel=1e-14)


# --- kernels that are infinite at a point itself, and multi-crop ---


@pytest.mark.parametrize("kernel", SINGULAR, ids=repr)
def test_a_singular_kernel_sums_over_pairs_of_different_points(kernel: kernels.Kernel) -> None:
    term = KernelMMD(kernel=kernel, estimator="u", normalize=False)
    views = [random_rows(9, 4), random_rows(9, 4, seed=1)]
    q, costs = 4, []
    for view in views:
        z = view / np.linalg.norm(view, axis=1, keepdims=True)
        phi = [reference_phi(kernel, z[i], z[j]) for i, j in itertools.permutations(range(9), 2)]
        costs.append(np.mean(phi) - kernel.mean(q))
    assert value_of(term, *views) == pytest.approx(float(np.mean(costs)), rel=1e-12)


@pytest.mark.parametrize("kernel", SINGULAR, ids=repr)
def test_a_singular_kernel_is_zero_on_average_for_independent_uniform_points(kernel: kernels.Kernel) -> None:
    term = KernelMMD(kernel=kernel, estimator="u", normalize=False)
    draws = [value_of(term, random_rows(32, 6, seed)) for seed in range(200)]
    assert np.mean(draws) == pytest.approx(0.0, abs=4 * float(np.std(draws)) / math.sqrt(len(draws)))


@pytest.mark.parametrize("kernel", SINGULAR, ids=repr)
def test_a_singular_kernel_survives_coinciding_points_and_is_least_spread_out(kernel: kernels.Kernel) -> None:
    term = KernelMMD(kernel=kernel, estimator="u", normalize=False)
    twice = np.concatenate([random_rows(4, 6), random_rows(4, 6)])
    assert math.isfinite(value_of(term, twice))
    assert gradient_of(term, twice).isfinite().all()
    assert gradient_of(term, simplex(8)).abs().max() < 1e-12
    assert value_of(term, cross_polytope(6)) < value_of(term, random_rows(12, 6)) < value_of(term, twice)
    assert math.isnan(value_of(term, np.full((4, 6), np.nan)))


def test_a_singular_kernel_needs_the_estimator_of_different_points_and_no_scale() -> None:
    halves: list[dict[str, Any]] = [{}, {"estimator": "u"}, {"normalize": False}]
    for settings in halves:
        with pytest.raises(ValidationError, match="needs estimator='u' and normalize=False"):
            KernelMMD(kernel=kernels.Logarithm(), **settings)
    narrow = ModelConfig(projector=MLPConfig(widths=(16, 4)))
    steep = KernelMMD(kernel=kernels.Riesz(exponent=3.0), estimator="u", normalize=False)
    with pytest.raises(ValueError, match=r"objective\.push\.kernel: the exponent of a Riesz kernel must be below"):
        TrialConfig(model=narrow, objective={"push": steep})


def test_only_global_views_are_spread_where_asked_for() -> None:
    views = [random_rows(9, 4, seed) for seed in range(4)]
    for kernel in (kernels.Truncated(), kernels.Quadratic(), kernels.LogRBF()):
        some, pair = KernelMMD(kernel=kernel, global_views=2), KernelMMD(kernel=kernel)
        assert value_of(some, *views) == pytest.approx(value_of(pair, *views[:2]), rel=1e-14)
    with pytest.raises(ValueError, match=r"objective\.mmd\.global_views must be at most the number of views, 2"):
        TrialConfig(objective={"mmd": KernelMMD(global_views=3)})


@pytest.mark.parametrize("gamma", [2.0, 0.7])
def test_uniformity_of_wang_and_isola_is_the_log_rbf_kernel_as_published(gamma: float) -> None:
    """Their code: the log of the mean of exp(-t ||u - v||²) over pairs i < j, the two views' values averaged."""
    views = [torch.from_numpy(random_rows(9, 4, seed)) for seed in range(2)]
    official = [torch.pdist(unit_rows(view)).square().mul(-gamma).exp().mean().log().item() for view in views]
    term = KernelMMD(kernel=kernels.LogRBF(gamma=gamma), estimator="u", normalize=False)
    assert value_of(term, *views) == pytest.approx(sum(official) / 2, rel=1e-12)


# --- configs ---


def test_the_feature_form_of_a_higher_degree_is_refused() -> None:
    with pytest.raises(ValidationError, match="form='feature' needs a kernel of degree 2 at most"):
        KernelMMD(kernel=kernels.Truncated(), form="feature")
    KernelMMD(kernel=kernels.Truncated(coefficients=(1.0, 2.0, 0.0)), form="feature")


def test_a_sphere_of_one_dimension_is_refused() -> None:
    narrow = ModelConfig(projector=MLPConfig(widths=(16, 1)))
    with pytest.raises(ValueError, match=r"objective\.spread \(mmd\).*at least 2 dimensions.*widths is 1; raise it"):
        TrialConfig(model=narrow, objective={"spread": KernelMMD()})
    with pytest.raises(ValueError, match="estimator 'u' at least 2 rows"):
        value_of(KernelMMD(estimator="u"), random_rows(1, 4))
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        value_of(KernelMMD(), random_rows(4, 1))


def test_a_config_in_json_reaches_every_setting() -> None:
    settings = {
        "kind": "mmd",
        "weight": 2.0,
        "kernel": {"kind": "truncated", "coefficients": [1.0, 40.0]},
        "normalize": False,
        "estimator": "u",
        "form": "feature",
        "global_views": 2,
    }
    term = KernelMMD.model_validate(settings)
    assert term.model_dump(mode="json") == settings
    assert term.kernel == kernels.Truncated(coefficients=(1.0, 40.0))
