"""Alignment: views of one image should have the same embedding. The attractive half of most methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainers.terms.base import Facts, Outputs, TermConfig, unit_rows, wide

if TYPE_CHECKING:
    from torch import Tensor


class Alignment(TermConfig):
    """Mean squared distance between unit embeddings of two views of one image, over images and pairs of views.

    z_v = L2-normalized projections of view v, [n, q]. For views a < b of V: A_ab = mean over images of ||z_a - z_b||²
    = 2 - 2 (mean cosine), and the value is the mean of A_ab over the V (V - 1) / 2 pairs: 0 if all views agree, 4 if
    two are antipodal, 2 if unrelated.

    The distance is summed over the q features, not averaged: `weight` is the per-sample weight λ_a of the SFRIK
    notes. The official SFRIK code (arXiv 2208.00789, valeoai/sfrik) divides by q; its weight is λ_sim = weight · q.

    `normalize=False`: of the projections themselves, and averaged over the features too: VICReg's invariance term (its
    official code and solo-learn agree on that).

    `global_views` = k, for multi-crop: each of the first k views with each other view, the mean over the ordered pairs
    (global view, any other view), so that small crops are not compared with each other. SFRIK's official code: k = 2
    with SwAV's crops, k = 1 with OBoW's (patches with the one image they are from). None: all pairs.
    """

    kind: Literal["alignment"] = "alignment"
    normalize: bool = True
    global_views: int | None = Field(None, ge=1)

    def __call__(self, outputs: Outputs) -> Tensor:
        import torch

        rows = [unit_rows(view) if self.normalize else wide(view) for view in outputs.projections]
        z = torch.stack(rows)  # [V, n, q]
        view_count, row_count, q = z.shape
        if view_count < 2:
            raise ValueError(f"alignment compares views and needs at least 2, but has {view_count}; add one")
        if self.global_views is None:
            # Sum over pairs a < b of ||z_a - z_b||² = V · sum over v of ||z_v - center||²: linear in V, and it keeps
            # digits that 2 - 2 cos would lose between near views.
            distances = 2 * (z - z.mean(0)).square().sum()
        else:
            distances = torch.stack([(z - anchor).square().sum() for anchor in z[: self.global_views]]).mean()
        value = distances / ((view_count - 1) * row_count)
        return value if self.normalize else value / q

    def check(self, name: str, facts: Facts) -> None:
        facts.require_two_views(name, "alignment")
        if self.global_views is not None and self.global_views > len(facts.views):
            raise ValueError(
                f"objective.{name}.global_views must be at most the number of views, {len(facts.views)}, "
                f"but is {self.global_views}; lower it"
            )
