"""Whitening matrices: factors Φ of a second moment S with Φ S Φᵀ = I, differentiable where eigenvalues repeat.

For rows X [a, b] (a variables, b observations) with S = X Xᵀ / count, Φ X has second moment I. Φ is not unique:

* "zca": S^-1/2, the symmetric one. Each variable stays closest to itself.
* "cholesky": L⁻¹ with S = L Lᵀ: Gram-Schmidt, variable j is made of variables up to j.
* "pca": Λ^-1/2 Uᵀ, principal components by falling variance. Variables lose their identity; as a loss it is known to
  fail. A negative control.
* "newton": Newton-Schulz steps towards S^-1/2 from S / trace (IterNorm, Huang et al., CVPR 2019, arXiv 1904.03441). Few
  steps (5) leave small eigenvalues unwhitened, which is another method; 12 and more approach "zca" where S is well
  conditioned.

A singular S has no factor. Whatever is not positive definite to rounding, or not finite, gives NaN throughout, never a
finite number, except for "newton", which does not notice.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FactorKind = Literal["zca", "cholesky", "pca", "newton"]


def whiten(rows: Tensor, moment: Tensor, kind: FactorKind, newton_steps: int) -> Tensor:
    """Φ X, [..., a, b], of rows X [..., a, b] with second moment S [..., a, a]."""
    if kind == "cholesky":
        whitened: Tensor = torch.linalg.solve_triangular(cholesky_factor(moment), rows, upper=False)
        return whitened
    if kind == "zca":
        return inverse_root(moment) @ rows
    if kind == "pca":
        return principal_factor(moment) @ rows
    return newton_inverse_root(moment, newton_steps) @ rows


def inverse_root(moment: Tensor) -> Tensor:
    """S^-1/2 of symmetric S [..., a, a]. Backward needs no gap between eigenvalues (Daleckii-Krein)."""
    root: Tensor = _InverseRoot.apply(moment)
    return root


def principal_factor(moment: Tensor) -> Tensor:
    """Λ^-1/2 Uᵀ, rows by falling eigenvalue. Rotations within a repeated eigenvalue get no gradient: it is infinite."""
    factor: Tensor = _PrincipalFactor.apply(moment)
    return factor


def cholesky_factor(moment: Tensor) -> Tensor:
    """Lower L with S = L Lᵀ; torch's own backward has no gaps to divide by."""
    finite = moment.isfinite().all(-1).all(-1)
    safe = torch.where(finite[..., None, None], moment, _identity_like(moment))
    factor, failed_at = torch.linalg.cholesky_ex(safe)
    pivots = factor.detach().diagonal(dim1=-2, dim2=-1).square()
    largest = moment.detach().diagonal(dim1=-2, dim2=-1).amax(-1)
    sound = finite & (failed_at == 0) & (pivots.amin(-1) > _floor(moment, largest))
    return torch.where(sound[..., None, None], factor, torch.nan)


def newton_inverse_root(moment: Tensor, steps: int) -> Tensor:
    """P_T / sqrt(trace S), with P_0 = I and P_k+1 = (3 P_k - P_k³ S / trace S) / 2.

    Written as P_k+1 = T P_k and Y_k+1 = Y_k T with Y_0 = S / trace and T = (3 I - P_k Y_k) / 2: the same in exact
    arithmetic, but rounding does not grow, as it does in the form above once S is badly conditioned.
    """
    trace = moment.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    scaled = moment / trace
    identity = _identity_like(moment)
    root = identity.expand_as(moment)
    for _ in range(steps):
        step = 1.5 * identity - 0.5 * (root @ scaled)
        root, scaled = step @ root, scaled @ step
    return root / trace.sqrt()


def _identity_like(moment: Tensor) -> Tensor:
    return torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)


def _floor(moment: Tensor, largest: Tensor) -> Tensor:
    """Eigenvalues up to this are rounding."""
    return moment.shape[-1] * torch.finfo(moment.dtype).eps * largest


def _eigen(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, all NaN where the matrix is not positive definite, and eigenvectors."""
    symmetric = (moment + moment.mT) / 2
    finite = symmetric.isfinite().all(-1).all(-1)
    safe = torch.where(finite[..., None, None], symmetric, _identity_like(moment))  # eigh refuses what is not finite
    values, vectors = torch.linalg.eigh(safe)
    sound = finite & (values[..., 0] > _floor(moment, values[..., -1]))
    return torch.where(sound[..., None], values, torch.nan), vectors


class _InverseRoot(torch.autograd.Function):
    """Φ = U Λ^-1/2 Uᵀ. dΦ = U (K ∘ (Uᵀ dS U)) Uᵀ with K_ij = -1 / (√λ_i √λ_j (√λ_i + √λ_j)), a divided difference that
    stays finite at λ_i = λ_j. K is symmetric, so the same map carries the symmetric part of the gradient back.
    """

    @staticmethod
    def forward(ctx: Any, moment: Tensor) -> Tensor:
        values, vectors = _eigen(moment)
        roots = values.sqrt()
        ctx.save_for_backward(roots, vectors)
        root: Tensor = (vectors / roots[..., None, :]) @ vectors.mT
        return root

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        roots, vectors = ctx.saved_tensors
        rows, columns = roots[..., :, None], roots[..., None, :]
        inner = vectors.mT @ (gradient + gradient.mT) @ vectors
        inner = inner / (rows * columns * (rows + columns) * -2)
        back: Tensor = vectors @ inner @ vectors.mT
        return back


class _PrincipalFactor(torch.autograd.Function):
    """Φ = Λ^-1/2 Uᵀ. With M = Uᵀ dS U: dλ_i = M_ii and dU = U (F ∘ M), F_ij = 1 / (λ_j - λ_i)."""

    @staticmethod
    def forward(ctx: Any, moment: Tensor) -> Tensor:
        values, vectors = _eigen(moment)
        values, vectors = values.flip(-1), vectors.flip(-1)
        factor = (vectors / values.sqrt()[..., None, :]).mT
        ctx.save_for_backward(values, vectors)
        return factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors
        projected = gradient @ vectors
        gaps = values[..., None, :] - values[..., :, None]
        resolved = ~(gaps.abs() <= _floor(vectors, values[..., :1])[..., None])
        slopes = torch.where(resolved, -values.rsqrt()[..., :, None] / torch.where(resolved, gaps, 1.0), 0.0)
        slopes.diagonal(dim1=-2, dim2=-1).copy_(-0.5 * values.pow(-1.5))
        inner = slopes * projected
        back: Tensor = vectors @ ((inner + inner.mT) / 2) @ vectors.mT
        return back
