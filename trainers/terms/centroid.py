"""Multiview centroid: views are drawn to the center of other views of their image. MSBReg's attraction."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from trainers.terms.base import Facts, Outputs, TermConfig, unit_rows

if TYPE_CHECKING:
    from torch import Tensor


Reading = Literal["c2c", "v2c", "pairs"]
Split = Literal["split", "loo", "all"]
Directions = list[tuple[tuple[int, ...], tuple[int, ...]]]
"""Pairs (A, B): the center of online views A is drawn to the center of target views B."""


class MultiviewCentroid(TermConfig):
    """Distance of centers of unit embeddings, online views A against target views B of one image, averaged.

    p̂ = unit predictions (projections without a predictor), t̂ = unit teacher projections (the projections themselves
    without a teacher), never with a gradient. Per image and direction (A, B): 2 - 2 cos(mean of p̂ over A, mean of t̂
    over B), or with `normalize=False` the squared distance of the two means. 0 if views agree, 4 if antipodal.

    `reading` and `view_split` choose the directions; each has its own split where None is given:
    * "c2c", centroid to centroid. "split": two disjoint halves of the views, (A, B) and (B, A); drawn anew each step,
      from (seed, step), if there are more than two views. Its pull weakens as 2 / K with the number of views K.
    * "v2c", view to centroid. "loo": each view to all views but itself. "all": to all views.
    * "pairs", each view to each other one: BYOL over several views.
    Views beyond the teacher's (local crops: fewer targets than predictions) are never part of B; they join A of both
    halves, and are drawn to all targets. For two views all three are the same, half of BYOL's official loss, which sums
    its two directions. "c2c" with "all" is 0 whenever teacher and student agree, and is refused.

    Source: Moon et al., WACV 2023 (arXiv 2207.03552). Confirmed: online centroid against target centroid of different
    views. Inferred: what "different" means (disjoint halves), normalizing the centers, the other readings.
    """

    kind: Literal["centroid"] = "centroid"
    reading: Reading = "c2c"
    view_split: Split | None = None
    normalize: bool = True

    @model_validator(mode="after")
    def _split_suits_the_reading(self) -> MultiviewCentroid:
        allowed: dict[Reading, tuple[Split, ...]] = {"c2c": ("split",), "v2c": ("loo", "all"), "pairs": ()}
        if self.view_split is not None and self.view_split not in allowed[self.reading]:
            reason = (
                "; with the same views on both sides it is 0 without any invariance" if self.reading == "c2c" else ""
            )
            raise ValueError(
                f"view_split of reading {self.reading!r} must be one of {[*allowed[self.reading], None]}, "
                f"but is {self.view_split!r}{reason}; choose another, or leave it out"
            )
        return self

    def __call__(self, outputs: Outputs) -> Tensor:
        from trainers.keyed_random import key_of

        online = outputs.projections if outputs.predictions is None else outputs.predictions
        targets = outputs.targets
        if targets is None:
            targets = tuple(projection.detach() for projection in outputs.projections)
        order = list(range(len(targets)))
        if len(targets) > 2:
            random.Random(key_of("centroid", outputs.seed, outputs.step)).shuffle(order)
        directions = directions_of(self.reading, self.view_split, len(online), order)
        return centroid_distance(online, targets, directions, normalize=self.normalize)

    def check(self, name: str, facts: Facts) -> None:
        facts.require_two_views(name, "centroid")
        facts.require_predictions_like_projections(name, "centroid")


def directions_of(reading: Reading, view_split: Split | None, view_count: int, order: list[int]) -> Directions:
    """The directions of a reading. `order` lists the views that have targets, first half first; the rest are local."""
    if len(order) < 2 or view_count < len(order):
        raise ValueError(
            f"centroids need at least 2 target views, each of them also an online view, but there are {len(order)} "
            f"target and {view_count} online views; add a view"
        )
    if reading == "c2c":
        half = (len(order) + 1) // 2
        first, second, local = order[:half], order[half:], range(len(order), view_count)
        return [((*first, *local), tuple(second)), ((*second, *local), tuple(first))]
    targets = sorted(order)
    if reading == "pairs":
        return [((k,), (j,)) for k in range(view_count) for j in targets if j != k]
    return [((k,), tuple(j for j in targets if j != k or view_split == "all")) for k in range(view_count)]


def centroid_distance(
    online: tuple[Tensor, ...], targets: tuple[Tensor, ...], directions: Directions, *, normalize: bool
) -> Tensor:
    """Mean over directions and rows of this rank of the distance of centers; rows [n, q] per view, of any length."""
    import torch

    def centers(views: tuple[Tensor, ...], sets: list[tuple[int, ...]]) -> Tensor:
        unit = [unit_rows(rows) for rows in views]
        found = torch.stack([torch.stack([unit[k] for k in members]).mean(0) for members in sets])
        return unit_rows(found) if normalize else found  # [directions, n, q]

    a = centers(online, [views for views, _ in directions])
    b = centers(targets, [views for _, views in directions]).detach()
    # For unit centers 2 - 2 cos, without the digits that this difference would lose between near centers.
    return (a - b).square().sum(-1).mean()
