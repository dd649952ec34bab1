"""Alignment: views of one image should have the same embedding. The attractive half of most methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trainers.terms.base import Outputs, TermConfig, unit_rows

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.config import TrialConfig


class Alignment(TermConfig):
    """Mean squared distance between unit embeddings of two views of one image, over images and pairs of views.

    z_v = L2-normalized projections of view v, [n, q]. For views a < b of V: A_ab = mean over images of ||z_a - z_b||²
    = 2 - 2 (mean cosine), and the value is the mean of A_ab over the V (V - 1) / 2 pairs: 0 if all views agree, 4 if
    two are antipodal, 2 if unrelated.

    The distance is summed over the q features, not averaged: `weight` is the per-sample weight λ_a of the SFRIK
    notes. The official SFRIK code (arXiv 2208.00789, valeoai/sfrik) divides by q; its weight is λ_sim = weight · q.
    """

    kind: Literal["alignment"] = "alignment"

    def __call__(self, outputs: Outputs) -> Tensor:
        import torch

        from trainers import dist

        z = torch.stack([unit_rows(projection) for projection in outputs.projections])  # [V, n, q]
        view_count, row_count = z.shape[:2]
        # Sum over pairs a < b of ||z_a - z_b||² = V · sum over v of ||z_v - center||²: linear in V, and it keeps digits
        # that 2 - 2 cos would lose between near views.
        scatter = (z - z.mean(0)).square().sum() / row_count
        return dist.mean_over_ranks(2 / (view_count - 1) * scatter)

    def check(self, name: str, config: TrialConfig) -> None:
        if len(config.views) < 2:
            raise ValueError(
                f"objective.{name} (alignment) compares views of one image and needs at least 2, "
                f"but views has {len(config.views)}; add a view, or set objective.{name}.weight=0"
            )
