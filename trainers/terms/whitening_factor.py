"""Whitening matrices: factors Φ of a second moment S with Φ S Φᵀ = I, differentiable where eigenvalues repeat.

For rows X [a, b] (a variables, b observations) with S = X Xᵀ / count, Φ X has second moment I. Φ is not unique:

* "zca": S^-1/2, the symmetric one. Each variable stays closest to itself.
* "cholesky": L⁻¹ with S = L Lᵀ: Gram-Schmidt, variable j is made of variables up to j.
* "pca": Λ^-1/2 Uᵀ, principal components by falling variance. Variables lose their identity; as a loss it is known to
  fail. A negative control.
* "newton": Newton-Schulz steps towards S^-1/2 from S / trace (IterNorm, Huang et al., CVPR 2019, arXiv 1904.03441). Few
  steps (5) leave small eigenvalues unwhitened, which is another method; 12 and more approach "zca" where S is well
  conditioned.

A direction in which the rows vary by no more than rounding (`_floor`) has no factor, as where rows are copies of each
other, blank or constant. It is left out: Φ is 0 in it, so that Φ S Φᵀ is the projection onto the other ones, and no
gradient grows without bound as the direction's variance goes to 0. "zca" and "pca" leave out directions of an
eigenvalue, "cholesky" each row that is made of those before it (which becomes 0), and "newton" damps them. What has no
such direction is factored as if there were no floor, bit for bit. A matrix that is not finite gives NaN throughout.

Eigenvectors are what a GPU is slow at. `Arithmetic` says whether "zca" and "cholesky" are to come of matrix products
instead (`whitening_products`), wherever these are as good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainers.terms.whitening_products import factors

FactorKind = Literal["zca", "cholesky", "pca", "newton"]
Arithmetic = Literal["reference", "float64", "float32"]
Noise = Tensor | float
PRECISIONS: Mapping[Arithmetic, tuple[torch.dtype, ...]] = {
    "reference": (),
    "float64": (torch.float64,),
    "float32": (torch.float32, torch.float64),
}
"""In which matrix products are tried, before eigenvectors."""


def whiten(
    rows: Tensor,
    moment: Tensor,
    kind: FactorKind,
    newton_steps: int,
    noise: Noise = 0.0,
    arithmetic: Arithmetic = "reference",
) -> Tensor:
    """Φ X, [..., a, b], of rows X [..., a, b] with second moment S [..., a, a], both float64 but for "reference".

    `noise` is the variance that rounding alone gives a direction of X, by matrix [...] or for all.
    """
    if kind == "pca" or kind == "newton":
        return _whiten(rows, moment, kind, newton_steps, noise)
    return _whiten_by_products(rows, moment, kind, newton_steps, noise, PRECISIONS[arithmetic])


def _whiten_by_products(
    rows: Tensor,
    moment: Tensor,
    kind: Literal["zca", "cholesky"],
    newton_steps: int,
    noise: Noise,
    precisions: Sequence[torch.dtype],
) -> Tensor:
    """Each matrix in the first of the precisions that is good enough for it, else as `_whiten` does."""
    if not precisions:
        return _whiten(rows, moment, kind, newton_steps, noise)
    factor, sound = factors(moment, kind, noise, precisions[0])
    if sound.all():
        return factor.view_as(moment) @ rows
    noise = torch.as_tensor(noise, dtype=moment.dtype, device=moment.device).expand(sound.shape)
    others = _whiten_by_products(rows[~sound], moment[~sound], kind, newton_steps, noise[~sound], precisions[1:])
    return torch.zeros_like(rows).index_put((sound,), factor @ rows[sound]).index_put((~sound,), others)


def _whiten(rows: Tensor, moment: Tensor, kind: FactorKind, newton_steps: int, noise: Noise) -> Tensor:
    if kind == "cholesky":
        factor, kept = cholesky_factor(moment, noise)
        rows = torch.where(kept[..., None], rows, 0.0)
        whitened: Tensor = torch.linalg.solve_triangular(factor, rows, upper=False)
        return whitened
    if kind == "zca":
        return inverse_root(moment, noise) @ rows
    if kind == "pca":
        return principal_factor(moment, noise) @ rows
    return newton_inverse_root(moment, newton_steps, noise) @ rows


def inverse_root(moment: Tensor, noise: Noise = 0.0) -> Tensor:
    """S^-1/2 of symmetric S [..., a, a]. Backward needs no gap between eigenvalues (Daleckii-Krein)."""
    root: Tensor = _InverseRoot.apply(moment, noise)
    return root


def principal_factor(moment: Tensor, noise: Noise = 0.0) -> Tensor:
    """Λ^-1/2 Uᵀ, rows by falling eigenvalue. Rotations within a repeated eigenvalue get no gradient: it is infinite."""
    factor: Tensor = _PrincipalFactor.apply(moment, noise)
    return factor


def cholesky_factor(moment: Tensor, noise: Noise = 0.0) -> tuple[Tensor, Tensor]:
    """Lower L [..., a, a] with S = L Lᵀ, and which rows it is of, [..., a]: not of those that are made of rows before
    them, which have a row and column of the identity instead. torch's own backward has no gaps to divide by.
    """
    finite = moment.isfinite().all(-1).all(-1)[..., None, None]
    safe = torch.where(finite, moment, _identity_like(moment))
    kept = _independent(safe.detach(), noise)
    factor, _ = torch.linalg.cholesky_ex(_with_identity(safe, kept))
    return torch.where(finite, factor, torch.nan), kept


def newton_inverse_root(moment: Tensor, steps: int, noise: Noise = 0.0) -> Tensor:
    """P_T / sqrt(trace S), with P_0 = I and P_k+1 = (3 P_k - P_k³ S / trace S) / 2.

    Written as P_k+1 = T P_k and Y_k+1 = Y_k T with Y_0 = S / trace and T = (3 I - P_k Y_k) / 2: the same in exact
    arithmetic, but rounding does not grow, as it does in the form above once S is badly conditioned. Where S is
    singular it grows all the same; a small multiple of the identity is added to such a one.
    """
    identity = _identity_like(moment)
    trace = moment.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    blank = trace.squeeze((-2, -1)) <= moment.shape[-1] * torch.as_tensor(noise)
    trace = torch.where(blank[..., None, None], 1.0, trace)
    singular = ~_is_definite(moment.detach(), noise)[..., None, None]
    scaled = moment / trace
    scaled = torch.where(singular, scaled + _epsilon(moment) ** 0.5 * identity, scaled)
    root = identity.expand_as(moment)
    for _ in range(steps):
        step = 1.5 * identity - 0.5 * (root @ scaled)
        root, scaled = step @ root, scaled @ step
    return torch.where(blank[..., None, None], 0.0, root / trace.sqrt())


def _identity_like(moment: Tensor) -> Tensor:
    return torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)


def _floor(moment: Tensor, largest: Tensor, noise: Noise) -> Tensor:
    """Eigenvalues up to this are rounding: of S's own arithmetic beside its `largest` one, or what is there of the
    rows'."""
    return (8 * moment.shape[-1] * _epsilon(moment) * largest).clamp_min(noise)


def _epsilon(moment: Tensor) -> float:
    return float(torch.finfo(moment.dtype).eps)


def _is_resolved(factor: Tensor, moment: Tensor, noise: Noise) -> Tensor:
    """Whether rounding stays small where rows of Φ, [..., r, a], are applied to variables of second moment S: [..., r].

    Φ_k carries a relative error of rounding in variable i on as |Φ_ki| √S_ii, and `noise` in each as |Φ_ki|.
    """
    deviations = moment.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    own = (factor.abs() @ deviations[..., None]).squeeze(-1).square() * (8 * moment.shape[-1] * _epsilon(moment))
    carried = factor.square().sum(-1) * torch.as_tensor(noise)[..., None]
    resolved: Tensor = (own < 1) & (carried < 1)
    return resolved


def _is_definite(moment: Tensor, noise: Noise) -> Tensor:
    """Whether S has a Cholesky factor that rounding does not decide, [...]; False where it is not finite."""
    factor, failed_at = torch.linalg.cholesky_ex(moment)
    inverse = torch.linalg.solve_triangular(factor, _identity_like(moment).expand_as(moment), upper=False)
    definite: Tensor = (failed_at == 0) & _is_resolved(inverse, moment, noise).all(-1)
    return definite


def _independent(moment: Tensor, noise: Noise) -> Tensor:
    """Which variables are not made of those before them, [..., a]. Without gradient."""
    kept = torch.ones_like(moment[..., 0], dtype=torch.bool)
    singular = ~_is_definite(moment, noise)
    if not singular.any():
        return kept
    found = moment[singular]
    noise = torch.as_tensor(noise, device=moment.device).expand(singular.shape)[singular]
    size = found.shape[-1]
    identity = _identity_like(found)
    left, lower, factor = found.clone(), torch.zeros_like(found), torch.zeros_like(found)
    chosen = torch.ones_like(found[..., 0], dtype=torch.bool)
    for k in range(size):  # Gram-Schmidt, a variable at a time
        length = left[:, k, k].clamp_min(0).sqrt()[:, None]
        row = (identity[k] - (lower[:, k, None, :] @ factor)[:, 0]) / length
        chosen[:, k] = _is_resolved(row[:, None], found, noise)[:, 0]
        factor[:, k] = torch.where(chosen[:, k, None], row, 0.0)
        lower[:, k:, k] = torch.where(chosen[:, k, None], left[:, k:, k] / length, 0.0)
        left[:, k:, k:] -= lower[:, k:, k, None] * lower[:, k:, k][:, None]
    # Another order of sums may still find a pivot that is not positive: what comes from there on is left out.
    _, failed_at = torch.linalg.cholesky_ex(_with_identity(found, chosen))
    reached = (failed_at[:, None] == 0) | (torch.arange(size, device=moment.device) < failed_at[:, None] - 1)
    kept[singular] = chosen & reached
    return kept


def _with_identity(moment: Tensor, kept: Tensor) -> Tensor:
    """S with a row and column of the identity in the place of each variable that is not kept."""
    return torch.where(kept[..., :, None] & kept[..., None, :], moment, _identity_like(moment))


def _eigen(moment: Tensor, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues, ascending, all NaN where the matrix is not finite; which are above the floor; eigenvectors."""
    symmetric = (moment + moment.mT) / 2
    finite = symmetric.isfinite().all(-1).all(-1)
    safe = torch.where(finite[..., None, None], symmetric, _identity_like(moment))  # eigh refuses what is not finite
    values, vectors = torch.linalg.eigh(safe)
    kept = values > _floor(moment, values[..., -1], noise)[..., None]
    return torch.where(finite[..., None], values, torch.nan), kept | ~finite[..., None], vectors


class _InverseRoot(torch.autograd.Function):
    """Φ = U Λ^-1/2 Uᵀ. dΦ = U (K ∘ (Uᵀ dS U)) Uᵀ with K_ij = -1 / (√λ_i √λ_j (√λ_i + √λ_j)), a divided difference that
    stays finite at λ_i = λ_j. K is symmetric, so the same map carries the symmetric part of the gradient back.

    A direction that is left out counts as λ_j = 0 with 1 / √λ_j = 0: K_ij = λ_i^-3/2 with one that is not, else 0.
    """

    @staticmethod
    def forward(ctx: Any, moment: Tensor, noise: Noise) -> Tensor:
        values, kept, vectors = _eigen(moment, noise)
        roots = torch.where(kept, values, 1.0).sqrt()
        ctx.save_for_backward(roots, kept, vectors)
        root: Tensor = torch.where(kept[..., None, :], vectors / roots[..., None, :], 0.0) @ vectors.mT
        return root

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        roots, kept, vectors = ctx.saved_tensors
        rows, columns = roots[..., :, None], roots[..., None, :]
        both, one = kept[..., :, None] & kept[..., None, :], kept[..., :, None] ^ kept[..., None, :]
        inner = vectors.mT @ (gradient + gradient.mT) @ vectors
        slopes = rows * columns * (rows + columns) * -2
        slopes = torch.where(one, 2 * (rows * columns) ** 3, slopes)  # the root of the one left out is kept as 1
        inner = torch.where(both | one, inner / slopes, 0.0)
        back: Tensor = vectors @ inner @ vectors.mT
        return back, None


class _PrincipalFactor(torch.autograd.Function):
    """Φ = Λ^-1/2 Uᵀ. With M = Uᵀ dS U: dλ_i = M_ii and dU = U (F ∘ M), F_ij = 1 / (λ_j - λ_i).

    Eigenvalues that share half of their digits count as repeated.
    """

    @staticmethod
    def forward(ctx: Any, moment: Tensor, noise: Noise) -> Tensor:
        values, kept, vectors = _eigen(moment, noise)
        values, kept, vectors = values.flip(-1), kept.flip(-1), vectors.flip(-1)
        roots = torch.where(kept, values, 1.0).sqrt()
        factor = torch.where(kept[..., None, :], vectors / roots[..., None, :], 0.0).mT
        ctx.save_for_backward(values, kept, vectors)
        return factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        values, kept, vectors = ctx.saved_tensors
        projected = gradient @ vectors
        gaps = values[..., None, :] - values[..., :, None]
        larger = torch.maximum(values[..., None, :], values[..., :, None])
        resolved = ~(gaps.abs() <= _epsilon(values) ** 0.5 * larger)
        safe = torch.where(kept, values, 1.0)
        slopes = torch.where(resolved, -safe.rsqrt()[..., :, None] / torch.where(resolved, gaps, 1.0), 0.0)
        slopes.diagonal(dim1=-2, dim2=-1).copy_(-0.5 * safe.pow(-1.5))
        inner = torch.where(kept[..., :, None], slopes * projected, 0.0)
        back: Tensor = vectors @ ((inner + inner.mT) / 2) @ vectors.mT
        return back, None
