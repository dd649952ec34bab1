"""Whitening matrices: Φ S Φᵀ = I, and gradients that survive repeated eigenvalues (CW-RGP, oracles 2, 7, 10, 11)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from trainers.terms.whitening_factor import (
    cholesky_factor,
    inverse_root,
    newton_inverse_root,
    principal_factor,
    whiten,
)
from trainers.terms.whitening_products import factors

SPECTRA = {
    "identity": [1.0, 1, 1, 1, 1, 1],
    "repeated": [1.0, 1, 2, 2, 2, 5],
    "clustered": [1.0, 1 + 1e-9, 1 + 2e-9, 2, 2 + 1e-8, 5],
    "generic": [0.3, 0.7, 1.1, 1.9, 2.6, 5],
    "wide": [1e-6, 1e-4, 1e-2, 1, 1e2, 1e4],
}
EVERY_SPECTRUM = pytest.mark.parametrize("spectrum", SPECTRA)


def rotation(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    turn: Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    return turn


def moment_of(spectrum: str) -> Tensor:
    u = rotation(6)
    return u * torch.tensor(SPECTRA[spectrum], dtype=torch.float64) @ u.T


def matrix(kind: Any, moment: Tensor, steps: int = 60) -> Tensor:
    return whiten(torch.eye(moment.shape[-1], dtype=moment.dtype), moment, kind, steps)


@EVERY_SPECTRUM
@pytest.mark.parametrize("kind", ["zca", "cholesky", "pca", "newton"])
def test_the_second_moment_becomes_the_identity(kind: Any, spectrum: str) -> None:
    moment = moment_of(spectrum)
    factor = matrix(kind, moment)
    tolerance = 1e-4 if spectrum == "wide" else 1e-12
    torch.testing.assert_close(factor @ moment @ factor.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=tolerance)


def test_factors_have_their_shapes_and_differ_by_orthogonal_matrices() -> None:
    moment = moment_of("generic")
    values, u = torch.linalg.eigh(moment)
    zca, cholesky, pca = (matrix(kind, moment) for kind in ("zca", "cholesky", "pca"))
    torch.testing.assert_close(zca, zca.T)
    assert torch.linalg.eigvalsh(zca).min() > 0
    torch.testing.assert_close(zca @ zca @ moment, torch.eye(6, dtype=torch.float64))
    assert cholesky.triu(1).abs().max() == 0
    torch.testing.assert_close(pca.abs(), (u / values.sqrt()).T.flip(0).abs())
    torch.testing.assert_close(u.flip(1) * (u.flip(1) * pca.T).sum(0).sign() @ pca, zca)  # Φ_ZCA = U Φ_PCA
    for other in (cholesky, pca):
        turn = other @ torch.linalg.inv(zca)
        torch.testing.assert_close(turn @ turn.T, torch.eye(6, dtype=torch.float64))


@EVERY_SPECTRUM
def test_the_gradient_of_the_inverse_root_equals_finite_differences_where_eigenvalues_repeat(spectrum: str) -> None:
    if spectrum == "wide":
        moment = moment_of("wide")[None].requires_grad_()
        (gradient,) = torch.autograd.grad(inverse_root(moment).square().sum(), moment)
        # of tr S^-1: -S^-2
        expected = -torch.linalg.matrix_power(torch.linalg.inv(moment.detach()), 2)
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-3 * expected.abs().max().item())
        return
    moment = torch.stack([moment_of(spectrum), torch.diag(torch.tensor(SPECTRA[spectrum], dtype=torch.float64))])
    assert torch.autograd.gradcheck(inverse_root, (moment.requires_grad_(),), eps=1e-6, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("spectrum", ["identity", "repeated", "generic"])
@pytest.mark.parametrize(
    "factor", [lambda moment: cholesky_factor(moment)[0], lambda moment: newton_inverse_root(moment, 5)]
)
def test_the_other_gap_free_factors_have_exact_gradients_too(factor: Callable[[Tensor], Tensor], spectrum: str) -> None:
    def of_symmetric(moment: Tensor) -> Tensor:
        return factor((moment + moment.mT) / 2)

    assert torch.autograd.gradcheck(of_symmetric, (moment_of(spectrum).requires_grad_(),), atol=1e-7, rtol=1e-6)


def test_the_principal_factor_has_an_exact_gradient_between_gaps_and_a_finite_one_without() -> None:
    moment = moment_of("generic").requires_grad_()
    assert torch.autograd.gradcheck(principal_factor, (moment,), eps=1e-6, atol=1e-8, rtol=1e-6)
    for spectrum in ("identity", "repeated"):
        diagonal = torch.diag(torch.tensor(SPECTRA[spectrum], dtype=torch.float64)).requires_grad_()
        (gradient,) = torch.autograd.grad(principal_factor(diagonal).pow(3).sum(), diagonal)
        assert gradient.isfinite().all()


def test_plain_autograd_through_eigenvectors_fails_where_ours_does_not() -> None:
    """Why the custom backward exists."""
    moment = torch.eye(4, dtype=torch.float64, requires_grad=True)
    values, vectors = torch.linalg.eigh(moment)
    (plain,) = torch.autograd.grad((vectors * values.rsqrt() @ vectors.mT).pow(3).sum(), moment)
    (ours,) = torch.autograd.grad(inverse_root(moment).pow(3).sum(), moment)
    assert not plain.isfinite().all()
    torch.testing.assert_close(ours, -1.5 * torch.eye(4, dtype=torch.float64))


def low_rank(size: int, rank: int, seed: int = 0) -> Tensor:
    """Rows [size, 7] in `rank` directions."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(size, rank, generator=generator, dtype=torch.float64)
    return first @ torch.randn(rank, 7, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["zca", "cholesky", "pca"])
def test_directions_without_variance_are_left_out_and_the_others_have_variance_one(kind: Any) -> None:
    for rank in (1, 2, 4):
        rows = low_rank(6, rank)
        white = whiten(rows, rows @ rows.T, kind, 12)
        spectrum = torch.linalg.eigvalsh(white @ white.T)
        torch.testing.assert_close(spectrum, torch.tensor([0.0] * (6 - rank) + [1.0] * rank, dtype=torch.float64))
        factor = matrix(kind, rows @ rows.T)
        torch.testing.assert_close(factor @ rows if kind != "cholesky" else white, white)


def test_cholesky_leaves_out_each_row_that_is_made_of_those_before_it_whatever_its_size() -> None:
    rows = low_rank(6, 6)
    rows[2], rows[4] = 1e3 * rows[0], 3 * rows[1] - 1e-3 * rows[3]
    moment = (rows @ rows.T)[None].expand(2, 6, 6)
    factor, kept = cholesky_factor(moment)
    assert kept.tolist() == [[True, True, False, True, False, True]] * 2
    white = whiten(rows.expand(2, 6, 7), moment, "cholesky", 12)[0]
    torch.testing.assert_close(white @ white.T, torch.diag(kept[0].double()), rtol=0, atol=1e-9)
    assert factor.isfinite().all()


@pytest.mark.parametrize("kind", ["zca", "cholesky", "pca"])
def test_a_direction_that_is_left_out_has_the_derivative_of_those_that_stay(kind: Any) -> None:
    """Of rows that keep their rank; where the sign of eigenvectors does not matter, in the product of two rows."""
    other = low_rank(6, 3, seed=1)[:3]
    rows = low_rank(3, 3)

    def compared(rows: Tensor) -> Tensor:
        copies = torch.cat([rows, rows])
        white = whiten(copies, copies @ copies.T, kind, 12)
        return (white @ other.T).square() if kind == "pca" else white @ other.T

    assert torch.autograd.gradcheck(compared, (rows.requires_grad_(),), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("kind", ["zca", "cholesky", "pca", "newton"])
def test_what_has_no_factor_is_finite_with_a_finite_gradient_and_changes_nothing_beside_it(kind: Any) -> None:
    sound = moment_of("generic")
    ones = torch.ones(6, 6, dtype=torch.float64)
    bad = [
        torch.zeros(6, 6, dtype=torch.float64),
        1e-40 * ones,
        ones,  # what a constant batch gives
        0.1 * ones + 1e-16 * torch.eye(6, dtype=torch.float64),
        1e50 * ones,
        -sound,
    ]
    moments = torch.stack([sound, *bad]).requires_grad_()
    rows = torch.ones(7, 6, 3, dtype=torch.float64)
    whitened = whiten(rows, moments, kind, 12, 1e-24)
    assert torch.equal(whitened[0], whiten(rows[0], sound, kind, 12))
    assert whitened[:-1].isfinite().all()
    (gradient,) = torch.autograd.grad(whitened[:-1].square().sum(), moments)
    assert gradient[:-1].isfinite().all()
    assert gradient[:-1].abs().max() < 1e8
    for hole in (torch.nan, torch.inf):
        broken = sound.clone()
        broken[3, 3] = hole
        mixed = whiten(rows[:2], torch.stack([sound, broken]), kind, 12)
        assert torch.equal(mixed[0], whitened[0])
        assert mixed[1].isnan().any()


def test_newton_steps_whiten_slowly_as_published() -> None:
    """Notes: m = 64 Gaussian blocks of 2 m channels, largest error of the whitened eigenvalues after T steps."""
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moment = x @ x.T / 127
    errors = []
    for steps in (5, 7, 10, 15):
        white = whiten(x, moment, "newton", steps)
        errors.append(float((torch.linalg.eigvalsh(white @ white.T / 127) - 1).abs().max()))
    assert errors[:3] == pytest.approx([0.92, 0.66, 0.014], rel=0.35, abs=0.02)
    assert errors[3] < 1e-4


# --- by matrix products ---


def conditioned(kappa: float, size: int = 16, count: int = 3) -> Tensor:
    """Moments [count, size, size] of that condition number, with their eigenvalues evenly apart in logarithm."""
    values = torch.logspace(0, -math.log10(kappa), size, dtype=torch.float64)
    turns = torch.stack([rotation(size, seed) for seed in range(count)])
    moments: Tensor = 3 * (turns * values) @ turns.mT
    return moments


def rows_of(moment: Tensor, count: int = 24) -> Tensor:
    """Rows [..., a, count] of just that second moment, times `count`."""
    size = moment.shape[-1]
    flat = rotation(count)[:size]
    rows: Tensor = torch.linalg.cholesky(moment) @ flat
    return rows


def weighted(rows: Tensor, kind: Any, arithmetic: Any, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Whitened rows, and the gradient with respect to `rows` of a sum of them that treats all alike."""
    leaf = rows.clone().requires_grad_()
    white = whiten(leaf, leaf @ leaf.mT, kind, 12, noise, arithmetic)
    weight = torch.randn(white.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((white * weight).sum(), leaf)
    return white.detach(), gradient


def error(found: Tensor, expected: Tensor) -> float:
    """The largest matrix's, relative to it."""
    return float(((found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).max())


PRODUCTS = pytest.mark.parametrize(("arithmetic", "tolerance"), [("float32", 1e-4), ("float64", 1e-7)])
GAP_FREE = pytest.mark.parametrize("kind", ["zca", "cholesky"])


@PRODUCTS
@GAP_FREE
@pytest.mark.parametrize("size", [2, 16, 64])
def test_products_give_the_value_and_gradient_of_eigenvectors(
    kind: Any, arithmetic: Any, tolerance: float, size: int
) -> None:
    for kappa in (1.0, 10.0, 1e3, 5e3, 1e6, 1e9):  # float32 itself up to 1e4 or so; from there on what it falls back to
        rows = rows_of(conditioned(kappa, size), 2 * size)
        expected, slope = weighted(rows, kind, "reference")
        white, gradient = weighted(rows, kind, arithmetic)
        assert error(white, expected) < tolerance, kappa
        assert error(gradient, slope) < tolerance, kappa


@PRODUCTS
@GAP_FREE
@pytest.mark.parametrize("spectrum", ["identity", "repeated", "clustered", "generic"])
def test_products_need_no_gap_between_eigenvalues(kind: Any, arithmetic: Any, tolerance: float, spectrum: str) -> None:
    rows = rows_of(torch.stack([moment_of(spectrum), torch.diag(torch.tensor(SPECTRA[spectrum]).double())]))
    expected, slope = weighted(rows, kind, "reference")
    white, gradient = weighted(rows, kind, arithmetic)
    assert error(white, expected) < tolerance
    assert error(gradient, slope) < tolerance


@GAP_FREE
@pytest.mark.parametrize("spectrum", ["identity", "repeated", "generic"])
def test_products_have_an_exact_gradient_in_double_precision(kind: Any, spectrum: str) -> None:
    moment = moment_of(spectrum)[None].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda moment: factors((moment + moment.mT) / 2, kind, 0.0, torch.float64).factor,
        (moment,),
        eps=1e-6,
        atol=1e-8,
        rtol=1e-6,
    )


@GAP_FREE
@pytest.mark.parametrize(("dtype", "least", "most"), [(torch.float32, 1e3, 1e6), (torch.float64, 1e8, 1e11)])
def test_products_answer_what_is_well_conditioned_and_nothing_else(
    kind: Any, dtype: torch.dtype, least: float, most: float
) -> None:
    fine, poor = conditioned(least), conditioned(most)
    broken = fine[:1].clone()
    broken[0, 3, 3] = torch.nan
    others = [poor, broken, -fine[:1], torch.zeros_like(broken), torch.ones_like(broken), torch.inf * fine[:1]]
    answered = factors(torch.cat([fine, *others]), kind, 0.0, dtype)
    assert answered.sound.tolist() == [True] * 3 + [False] * (3 + 5)
    assert len(answered.factor) == 3
    # Directions of no more than rounding are left to those who leave them out.
    assert not factors(fine, kind, 3.1 / least, dtype).sound.any()
    assert factors(1e30 * fine, kind, 0.0, dtype).sound.all()
    assert factors(1e-30 * fine, kind, 0.0, dtype).sound.all()


@PRODUCTS
@GAP_FREE
def test_a_matrix_without_a_factor_changes_nothing_beside_it(kind: Any, arithmetic: Any, tolerance: float) -> None:
    """0 to 90 % of the rows are copies: what eigenvectors make of them, to the last bit, beside sound ones."""
    fine = rows_of(conditioned(100.0))
    copied = fine.clone()
    for index, share in enumerate((0.1, 0.5, 0.9)):
        copied[index, : 1 + round(share * 15)] = copied[index, :1]
    (expected, slope), (white, gradient) = (
        weighted(torch.cat([fine, copied]), kind, way, noise=1e-24) for way in ("reference", arithmetic)
    )
    assert torch.equal(white[3:], expected[3:])
    assert torch.equal(gradient[3:], slope[3:])
    assert error(white[:3], expected[:3]) < tolerance
    assert error(gradient[:3], slope[:3]) < tolerance
    broken = torch.cat([fine, copied])
    broken[1, 0, 0] = torch.nan
    holed, _ = weighted(broken, kind, arithmetic, noise=1e-24)
    assert holed[1].isnan().any()
    assert holed[[0, 2, 3, 4, 5]].isfinite().all()
