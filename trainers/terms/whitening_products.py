"""Whitening matrices by matrix products and Cholesky factors alone: what a GPU is quick at, where eigenvectors are not.

S^-1/2 comes of Newton-Schulz steps in their coupled form (Higham, "Functions of Matrices", 2008, section 6.3), scaled
so that one step does most for the smallest eigenvalue that is meant (Chen and Chow, "A stable scaling of Newton-Schulz
for improving the sign function computation of a Hermitian matrix", Argonne preprint ANL/MCS-P5059-0114, 2014). Each is
two products, their number depends on the precision alone, and repeated eigenvalues are no case of their own. The
gradient is the solution of a Lyapunov equation, by the same steps (Lin and Maji, "Improved bilinear pooling with
CNNs", BMVC 2017, arXiv 1707.06772). L⁻¹ of Cholesky's L has a gradient of three products.

In d digits a matrix of condition number κ has a factor of d - log10 κ digits, however it is computed. How good a
factor has become is seen in double precision, by Φ S Φᵀ. What it does not whiten well enough, or what has directions of
no more than rounding, is not answered here: `whitening_factor` has a slower way for it. Of 64 variables float32 answers
up to κ about 5e3 and float64 up to 1e9, and where they answer, value and gradient are those of that way within 1e-4 and
1e-7.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MOST_CONDITION = {torch.float32: 1e6, torch.float64: 1e10}
"""The squared norm of S^-1/2 times the norm of S, beyond which steps do not reach; κ at least, often 30 times that."""
MOST_ERROR = {torch.float32: 3e-5, torch.float64: 1e-8}
"""By how much an element of Φ S Φᵀ may differ from the identity's; Φ is off by half of that, its gradient by twice."""


class Factors(NamedTuple):
    """Of second moments S [..., a, a]."""

    factor: Tensor
    """Φ [k, a, a] of the k matrices that are `sound`, in their order and dtype; differentiable."""
    sound: Tensor
    """Which are answered, [...] bool."""


def factors(moment: Tensor, kind: Literal["zca", "cholesky"], noise: Tensor | float, dtype: torch.dtype) -> Factors:
    """Φ with Φ S Φᵀ = I, computed in `dtype`, of those S that have one of that precision.

    `noise` is the variance that rounding alone gives a direction, by matrix [...] or for all.
    """
    found = ((moment + moment.mT) / 2).detach()
    if kind == "zca":
        # Its norm, not its trace, is 1: eigenvalues come as near to 1 as is safe.
        size = torch.linalg.matrix_norm(found)[..., None, None]
        root, inverse = _roots((found / size).to(dtype))
        factor = inverse.to(found.dtype) / size.sqrt()
    else:
        # Cholesky's factor does not mind the variables' scales, and without them the condition is at its best.
        deviations = found.diagonal(dim1=-2, dim2=-1).sqrt()
        correlations = found / (deviations[..., :, None] * deviations[..., None, :])
        lower, _ = torch.linalg.cholesky_ex(correlations.to(dtype))
        identity = torch.eye(found.shape[-1], dtype=dtype, device=found.device).expand_as(lower)
        inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
        factor = inverse.to(found.dtype) / deviations[..., None, :]
    condition = torch.linalg.matrix_norm(inverse).square()
    whitened = factor @ found @ factor.mT
    error = (whitened - torch.eye(found.shape[-1], dtype=found.dtype, device=found.device)).abs().amax((-2, -1))
    loudest = factor.square().sum((-2, -1)) * noise
    # Each comparison is False where something is not finite.
    sound = (condition < MOST_CONDITION[dtype]) & (error < MOST_ERROR[dtype]) & (loudest < 1)
    chosen = moment[sound]
    if kind == "zca":
        answer: Tensor = _InverseRoot.apply(chosen, factor[sound], root[sound], size[sound])
    else:
        answer = _InverseCholesky.apply(chosen, factor[sound])
    return Factors(answer, sound)


class _InverseRoot(torch.autograd.Function):
    """Φ = S^-1/2, already computed, with Q = S^1/2: dΦ = -Φ dQ Φ, where Q dQ + dQ Q = dS.

    Both are kept for S / size, in the precision of the steps: `root` is Q of that.
    """

    @staticmethod
    def forward(ctx: Any, moment: Tensor, factor: Tensor, root: Tensor, size: Tensor) -> Tensor:
        ctx.save_for_backward(factor, root, size)
        return factor.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        factor, root, size = ctx.saved_tensors
        right = -factor @ (gradient + gradient.mT) @ factor / 2
        # Gradients are small where batches are large: divided by their size they stay in float32's range.
        scale = right.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(right.dtype).tiny)
        solved = _lyapunov(root, (right / scale).to(root.dtype)).to(right.dtype)
        return solved * (scale / size.sqrt()), None, None, None


class _InverseCholesky(torch.autograd.Function):
    """Φ = L⁻¹, already computed. S̄ = -Φᵀ (Ψ + Ψᵀ) Φ / 2, with Ψ = Φ̄ Φᵀ, its upper half 0 and its diagonal halved.

    That is L̄ = -Φᵀ Φ̄ Φᵀ put into the backward pass of Cholesky's factor (Murray, arXiv 1602.07527, section 3).
    """

    @staticmethod
    def forward(ctx: Any, moment: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return factor.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = ctx.saved_tensors
        half = (gradient @ factor.mT).tril()
        half.diagonal(dim1=-2, dim2=-1).mul_(0.5)
        return factor.mT @ (half + half.mT) @ factor / -2, None


@cache
def _scales(dtype: torch.dtype) -> tuple[float, ...]:
    """ρ of each step x <- ρ x (3 - ρ² x²) / 2, which together bring all of [low, 1] to 1.

    The best ρ would take both ends to one value, at first a tiny one, and 1 / that in digits from what was near 1; up
    to 1.5 it is never below 0.56. Near 1 ρ is 1, and digits double.
    """
    low, scales = MOST_CONDITION[dtype] ** -0.5, []
    while 1 - low > torch.finfo(dtype).eps:
        scale = min(1.5, math.sqrt(3 / (1 + low + low * low))) if low < 0.9 else 1.0
        scales.append(scale)
        low = min(scale * end * (3 - (scale * end) ** 2) / 2 for end in (low, 1.0))
    return tuple(scales)


def _roots(moment: Tensor) -> tuple[Tensor, Tensor]:
    """S^1/2 and S^-1/2 of symmetric S [..., a, a] of norm at most 1."""
    identity = torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)
    root, inverse = moment, identity.expand_as(moment)
    for scale in _scales(moment.dtype):
        step = 1.5 * scale * identity - 0.5 * scale**3 * (inverse @ root)
        root, inverse = root @ step, step @ inverse
    return (root + root.mT) / 2, (inverse + inverse.mT) / 2


def _lyapunov(root: Tensor, right: Tensor) -> Tensor:
    """X of Q X + X Q = C for symmetric C and Q of eigenvalues in (0, 1]: the upper right of the sign of [[Q, C], [0,
    -Q]], halved.
    """
    for scale in _scales(root.dtype):
        left = root @ right
        # Q² C - Q C Q + C Q², symmetric to the last bit: steps would let a skew part of rounding grow.
        half = root @ left - left @ root / 2
        right = 1.5 * scale * right - 0.5 * scale**3 * (half + half.mT)
        root = 1.5 * scale * root - 0.5 * scale**3 * (root @ root @ root)
    return right / 2
