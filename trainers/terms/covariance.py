"""Covariance: different features of the embedding should not be correlated. VICReg's decorrelation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trainers.terms.base import Outputs, TermConfig, full_precision, wide

if TYPE_CHECKING:
    from torch import Tensor


class Covariance(TermConfig):
    """Squared covariances between different features: sum over i ≠ j of C_ij² / q, the mean over views.

    C [q, q] = covariance of the projections (not normalized) over the N rows of the global batch, with N - 1. Nothing
    in it keeps features from vanishing: it comes with `variance`.

    Scale: VICReg's official code and solo-learn add the two views: their weight w is weight 2 w here. (The official
    code halves its variance term, but not this one.)

    With q > N the sum is taken from the N x N Gram matrix of the centered rows, whose squares have the same sum: memory
    O(n N) instead of O(q²).

    Source: Bardes, Ponce and LeCun, "VICReg", ICLR 2022 (arXiv 2105.04906), equations 3 and 4; official code
    facebookresearch/vicreg.
    """

    kind: Literal["covariance"] = "covariance"

    def __call__(self, outputs: Outputs) -> Tensor:
        import torch

        from trainers import dist

        x = torch.stack([wide(projection) for projection in outputs.projections])  # [V, n, q]
        row_count, q = x.shape[1] * dist.world_size(), x.shape[2]
        if row_count < 2:
            raise ValueError(f"a covariance needs at least 2 rows, but has {row_count}; raise batch_size")
        centered = x - dist.mean_over_ranks(x.mean(1, keepdim=True))
        with full_precision(x.device):
            if q > row_count:
                everything = dist.gather_rows(centered.transpose(0, 1)).transpose(0, 1)
                gram = centered @ everything.transpose(1, 2)  # [V, n, N]
                squares = dist.sum_over_ranks(gram.square().sum((1, 2), dtype=torch.float64))
                variances = dist.sum_over_ranks(centered.square().sum(1))
                total = squares - variances.square().sum(1, dtype=torch.float64)
            else:
                moments = dist.sum_over_ranks(centered.transpose(1, 2) @ centered)  # [V, q, q]
                different = ~torch.eye(q, dtype=torch.bool, device=x.device)
                total = moments.square().mul(different).sum((1, 2), dtype=torch.float64)
        return (total / ((row_count - 1) ** 2 * q)).mean().to(x.dtype)
