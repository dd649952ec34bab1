"""Momentum contrast: of all images' targets, find that of the same image in another view. MoCo v3's loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainers.terms.base import Facts, Outputs, TermConfig, full_precision, unit_rows

if TYPE_CHECKING:
    from torch import Tensor


class MomentumContrast(TermConfig):
    """Cross-entropy of the own image among N targets of another view, over ordered pairs of different views.

    q̂ = unit predictions (projections without a predictor), k̂ = unit teacher projections (the projections, detached,
    without a teacher), N rows a view over the global batch, τ = `temperature`. For views a ≠ b and image i:
    -q̂_ai·k̂_bi / τ + log of the sum over j of exp(q̂_ai·k̂_bj / τ). Candidates are targets of view b only: unlike
    `info_nce` there are no negatives from the query's own view. Targets have no gradient.

    Scale: with `official_scale` (default) the mean over images and pairs is multiplied by 4 τ, so that with two views
    it is what MoCo v3's official code and solo-learn compute: each of two directions times 2 τ, added. A collapsed
    batch then costs 4 τ log N. `official_scale=False` leaves the factor out: a plain mean, log N for a collapsed batch,
    on the scale of `info_nce`. Beside the two, the same weight of another term means different things.

    Views beyond the teacher's (local crops: fewer targets than predictions) are queries only.

    Source: Chen, Xie and He, "An empirical study of training self-supervised vision transformers", ICCV 2021 (arXiv
    2104.02057), algorithm 1.
    """

    kind: Literal["momentum_contrast"] = "momentum_contrast"
    temperature: float = Field(0.2, ge=0.01, le=10.0)
    official_scale: bool = True

    def __call__(self, outputs: Outputs) -> Tensor:
        import torch

        from trainers import dist

        queries = outputs.projections if outputs.predictions is None else outputs.predictions
        targets = outputs.projections if outputs.targets is None else outputs.targets
        q = [unit_rows(view) for view in queries]
        keys = torch.stack([unit_rows(view.detach()) for view in targets], dim=1)  # [n, K, q]
        n, target_count = keys.shape[:2]
        pairs = [(a, b) for a in range(len(q)) for b in range(target_count) if a != b]
        if not pairs:
            raise ValueError(
                f"momentum_contrast compares different views and needs at least 2, but has {len(q)}; add a view"
            )
        everything = dist.gather_rows_detached(keys)  # [N, K, q]
        place = dist.row_offset(n) + torch.arange(n, device=keys.device)
        losses = []
        with full_precision(keys.device):
            for a, b in pairs:
                logits = q[a] @ everything[:, b].T / self.temperature
                losses.append(torch.nn.functional.cross_entropy(logits, place))
        value = torch.stack(losses).mean()
        return 4 * self.temperature * value if self.official_scale else value

    def check(self, name: str, facts: Facts) -> None:
        facts.require_two_views(name, "momentum_contrast")
        facts.require_predictions_like_projections(name, "momentum_contrast")
