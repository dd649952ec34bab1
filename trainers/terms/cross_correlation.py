"""Cross-correlation: features of two views should agree, each with itself alone. Barlow Twins' loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainers.terms.base import Facts, Outputs, TermConfig, full_precision, wide

if TYPE_CHECKING:
    from torch import Tensor


class CrossCorrelation(TermConfig):
    """Distance of two views' cross-correlation matrix from the identity, the mean over pairs of views.

    C [q, q] = correlations over the N rows of the global batch of each feature of the projections of view a with each
    of view b. Value: sum over i of (1 - C_ii)² + `off_diagonal` · sum over i ≠ j of C_ij². The first part asks for
    invariance, the second against redundancy. Features are standardized as batch norm does it: variance over N, plus
    `epsilon`. It grows with q: about q for unrelated views.

    Scale: as in the official code. solo-learn multiplies all by its `scale_loss` (0.1 for CIFAR): that is the weight.

    Source: Zbontar et al., "Barlow Twins", ICML 2021 (arXiv 2103.03230), equations 1 and 2.
    """

    kind: Literal["cross_correlation"] = "cross_correlation"
    off_diagonal: float = Field(0.0051, ge=0.0)
    epsilon: float = Field(1e-5, gt=0.0)

    def __call__(self, outputs: Outputs) -> Tensor:
        import torch

        from trainers import dist

        x = torch.stack([wide(projection) for projection in outputs.projections])  # [V, n, q]
        view_count, n, q = x.shape
        row_count = n * dist.world_size()
        if view_count < 2:
            raise ValueError(f"cross_correlation needs at least 2 views, but has {view_count}; add one")
        centered = x - dist.mean_over_ranks(x.mean(1, keepdim=True))
        variance = dist.mean_over_ranks(centered.square().mean(1, keepdim=True))
        z = centered / (variance + self.epsilon).sqrt()
        same = torch.eye(q, dtype=torch.bool, device=x.device)
        values = []
        with full_precision(x.device):
            for a in range(view_count):
                for b in range(a + 1, view_count):
                    correlations = dist.sum_over_ranks(z[a].T @ z[b]) / row_count
                    own = (1 - correlations.diagonal()).square().sum(dtype=torch.float64)
                    others = correlations.square().masked_fill(same, 0.0).sum(dtype=torch.float64)
                    values.append(own + self.off_diagonal * others)
        return torch.stack(values).mean().to(x.dtype)

    def check(self, name: str, facts: Facts) -> None:
        facts.require_two_views(name, "cross_correlation")
