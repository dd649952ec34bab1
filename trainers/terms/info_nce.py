"""InfoNCE over a batch: of all other embeddings, find the other view of the same image. SimCLR's loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainers.terms.base import Facts, Outputs, TermConfig, full_precision, unit_rows

if TYPE_CHECKING:
    from torch import Tensor


class InfoNCE(TermConfig):
    """NT-Xent: cross-entropy of the own other view among all 2N - 1 other embeddings, mean over the 2N anchors.

    z = L2-normalized projections, N rows a view over the global batch, τ = `temperature`. For an anchor i of view a and
    its other view p: -z_i·z_p / τ + log of the sum over k ≠ i of exp(z_i·z_k / τ), k over both views' rows. With more
    than two views: the mean over pairs of views, each with the 2N embeddings of its own two views. log(2N - 1) for a
    collapsed batch.

    Scale: this is the mean over 2N anchors, as in solo-learn. SimCLR's official code adds the means over the N anchors
    of either view, twice this: its weight 1 is weight 2 here.

    Source: Chen et al., "A simple framework for contrastive learning of visual representations", ICML 2020 (arXiv
    2002.05709), equation 1. `temperature` 0.5 is theirs for CIFAR-10, 0.1 for ImageNet.
    """

    kind: Literal["info_nce"] = "info_nce"
    temperature: float = Field(0.2, ge=0.01, le=10.0)

    def __call__(self, outputs: Outputs) -> Tensor:
        import torch

        from trainers import dist

        z = torch.stack([unit_rows(projection) for projection in outputs.projections])  # [V, n, q]
        view_count, n = z.shape[:2]
        if view_count < 2:
            raise ValueError(f"info_nce compares views and needs at least 2, but has {view_count}; add one")
        everything = dist.gather_rows(z.transpose(0, 1)).transpose(0, 1)  # [V, N, q]
        first = dist.row_offset(n)
        own = torch.arange(n, device=z.device)
        with full_precision(z.device):
            logits = torch.einsum("anq,bmq->abnm", z, everything) / self.temperature  # [V, V, n, N]
        positives = logits[:, :, own, first + own]  # [V, V, n]
        itself = torch.zeros(n, everything.shape[1], dtype=torch.bool, device=z.device)
        itself[own, first + own] = True
        same = torch.eye(view_count, dtype=torch.bool, device=z.device)[:, :, None, None]
        sums = logits.masked_fill(same & itself, -torch.inf).logsumexp(3)  # [V, V, n], over the rows of one view
        within = sums.diagonal().T[:, None]  # [V, 1, n]
        losses = torch.logaddexp(within.expand_as(sums), sums) - positives
        mask = ~same[..., 0].expand_as(losses)
        return losses[mask].mean()

    def check(self, name: str, facts: Facts) -> None:
        facts.require_two_views(name, "info_nce")
