"""What terms on prototypes share: each view's scores foretell what another view is answered with.

Letters: n = images, N = images of the global batch, M = prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def cross_entropy(answers: Sequence[Tensor], logs: Sequence[Tensor], *, term: str) -> Tensor:
    """The mean over pairs of different views (i, j) and over this rank's rows of -q_i · ln p_j: `answers` are q and
    `logs` ln p of each view, [n, M], the answered views first. ValueError, naming the term, where there is no pair.
    """
    import torch

    costs = [-(q * log_p).sum(1).mean() for i, q in enumerate(answers) for j, log_p in enumerate(logs) if i != j]
    if not costs:
        raise ValueError(f"{term} compares different views and needs at least 2, but has {len(logs)}; add a view")
    return torch.stack(costs).mean()


def information(answers: Sequence[Tensor]) -> Tensor:
    """Nats that an answer tells of its image, H(mean of q) - mean of H(q) over the global batch, the mean over the
    views of `answers`, [n, M] each. At most ln min(M, N); 0 where all images have one answer.
    """
    import torch

    from trainers import dist

    stacked = torch.stack([*answers])  # [views, n, M]
    of_all = torch.special.entr(dist.mean_over_ranks(stacked.mean(1))).sum(1)
    of_each = torch.special.entr(stacked).sum(2).mean(1)
    gained: Tensor = (of_all - dist.mean_over_ranks(of_each)).mean()
    return gained
