"""Spectral contrastive loss: views of one image attract each other, different images become orthogonal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainers.terms.base import Facts, Outputs, TermConfig, full_precision, unit_rows, wide

if TYPE_CHECKING:
    from torch import Tensor


class Spectral(TermConfig):
    """-2 · mean over i of f_ai·f_bi + mean over i ≠ j of (f_ai·f_bj)², the mean over pairs of views, over μ.

    f = projections, those longer than √μ cut to that length; N rows a view over the global batch; μ =
    `squared_radius`. Without the cut, its minimum over all functions factors the graph of views. With μ = 1: -1 if all
    embeddings are one point of length 1, -2 at best, where views agree and different images are orthogonal.

    Relation: on unit rows the attraction is `alignment` - 2; the repulsion is that of `mmd` with the quadratic kernel
    and estimator "u", but between the two views instead of within each. The division by μ is the official code's.

    Source: HaoChen et al., "Provable guarantees for self-supervised deep learning with spectral contrastive loss",
    NeurIPS 2021 (arXiv 2106.04156); cut and division after copies of its code, not the original.
    """

    kind: Literal["spectral"] = "spectral"
    squared_radius: float = Field(1.0, gt=0.0)

    def __call__(self, outputs: Outputs) -> Tensor:
        import torch

        from trainers import dist

        radius = self.squared_radius**0.5
        rows = torch.stack([wide(projection) for projection in outputs.projections])  # [V, n, q]
        long = torch.linalg.vector_norm(rows.detach(), dim=-1, keepdim=True) > radius
        f = torch.where(long, radius * unit_rows(rows), rows)
        view_count, n = f.shape[:2]
        row_count = n * dist.world_size()
        if view_count < 2 or row_count < 2:
            raise ValueError(
                f"spectral needs at least 2 views and 2 rows, but has {view_count} views of {row_count} rows; "
                "add a view, or raise batch_size"
            )
        everything = dist.gather_rows(f.transpose(0, 1)).transpose(0, 1)  # [V, N, q]
        own = torch.arange(n, device=f.device)
        values = []
        with full_precision(f.device):
            for a in range(view_count):
                for b in range(a + 1, view_count):
                    products = f[a] @ everything[b].T  # [n, N]
                    same = products[own, dist.row_offset(n) + own]
                    others = products.square().sum(dtype=torch.float64) - same.square().sum(dtype=torch.float64)
                    values.append(others / (row_count - 1) - 2 * same.sum(dtype=torch.float64))
        return (torch.stack(values).mean() / n / self.squared_radius).to(rows.dtype)

    def check(self, name: str, facts: Facts) -> None:
        facts.require_two_views(name, "spectral")
