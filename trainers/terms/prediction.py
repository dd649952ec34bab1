"""Prediction: the target of another view, predicted without negatives. BYOL's and SimSiam's loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trainers.terms.base import Facts, Outputs, TermConfig, unit_rows

if TYPE_CHECKING:
    from torch import Tensor


class Prediction(TermConfig):
    """Distance of unit predictions to unit targets of another view, the mean over images and ordered pairs of views.

    p̂ = unit predictions (projections without a predictor), t̂ = unit teacher projections (BYOL), or without a teacher
    the projections, detached (SimSiam). `distance` "squared": ||p̂_a - t̂_b||² = 2 - 2 cos for a ≠ b, from 0 to 4;
    "negative_cosine": -cos, from -1 to 1, half of it less 1. What prevents collapse is predictor and stopped gradient
    alone.

    Scale, for two views: BYOL's official code and solo-learn add the squared distances of the two directions: their
    weight 1 is weight 2 here. SimSiam takes the mean of two negative cosines: weight 1 with "negative_cosine".

    Views beyond the teacher's (local crops: fewer targets than predictions) predict, but are not predicted.

    Sources: Grill et al., NeurIPS 2020 (arXiv 2006.07733), equation 2; Chen and He, CVPR 2021 (arXiv 2011.10566),
    equation 4.
    """

    kind: Literal["prediction"] = "prediction"
    distance: Literal["squared", "negative_cosine"] = "squared"

    def __call__(self, outputs: Outputs) -> Tensor:
        import torch

        predictions = outputs.projections if outputs.predictions is None else outputs.predictions
        targets = outputs.projections if outputs.targets is None else outputs.targets
        p = [unit_rows(view) for view in predictions]
        t = [unit_rows(view.detach()) for view in targets]
        squares = [
            (p[a] - t[b]).square().sum(1).mean() for a in range(len(p)) for b in range(len(t)) if a != b
        ]  # not 2 - 2 cos, which loses digits between near rows
        if not squares:
            raise ValueError(f"prediction compares different views and needs at least 2, but has {len(p)}; add a view")
        value = torch.stack(squares).mean()
        return value if self.distance == "squared" else value / 2 - 1

    def check(self, name: str, facts: Facts) -> None:
        facts.require_two_views(name, "prediction")
        facts.require_predictions_like_projections(name, "prediction")
