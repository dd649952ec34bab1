"""Variance: each feature of the embedding should vary over the batch. VICReg's hinge against collapse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainers.terms.base import Outputs, TermConfig, wide

if TYPE_CHECKING:
    from torch import Tensor


class Variance(TermConfig):
    """Hinge on each feature's standard deviation: mean over features and views of max(0, `target` - s).

    s = sqrt(variance + `epsilon`), the variance of a feature of the projections (not normalized) over the N rows of the
    global batch, with N - 1. From 0 to `target`.

    Scale: the mean over views, as in VICReg's official code, which halves the sum over its two views. solo-learn does
    not halve: its weight w is weight 2 w here.

    Source: Bardes, Ponce and LeCun, "VICReg", ICLR 2022 (arXiv 2105.04906), equation 1; official code
    facebookresearch/vicreg.
    """

    kind: Literal["variance"] = "variance"
    target: float = Field(1.0, gt=0.0)
    epsilon: float = Field(1e-4, gt=0.0)

    def __call__(self, outputs: Outputs) -> Tensor:
        import torch

        from trainers import dist

        x = torch.stack([wide(projection) for projection in outputs.projections])  # [V, n, q]
        row_count = x.shape[1] * dist.world_size()
        if row_count < 2:
            raise ValueError(f"a variance needs at least 2 rows, but has {row_count}; raise batch_size")
        centered = x - dist.mean_over_ranks(x.mean(1, keepdim=True))
        variance = dist.sum_over_ranks(centered.square().sum(1)) / (row_count - 1)
        return (self.target - (variance + self.epsilon).sqrt()).relu().mean()
