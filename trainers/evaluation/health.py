"""Is the representation alive? Spread and rank of features and embeddings, from one decomposition of a small matrix.

Letters: m = rows (images), p = features, q = embedding width, d = p or q, σ_k = singular values of the centered [m,
d] matrix.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainers import dist
from trainers.evaluation import probe

if TYPE_CHECKING:
    from trainers.config import TrialConfig
    from trainers.data.datasets import Dataset
    from trainers.data.loader import Loaders

ROWS = 1024
"""Images looked at. An effective rank can not exceed it."""


def evaluate(
    embed: probe.Embed,
    *,
    dataset: Dataset,
    loaders: Loaders,
    config: TrialConfig,
    device: torch.device,
    split: Literal["search", "report"] = "search",
) -> dict[str, float]:
    """`measure` on the first `ROWS` images of the probe's part of `select`, the same numbers on all ranks; of `report`
    where that is asked for, which only `pretune finalize` may do.

    `embed` is `Model.embed`, in evaluation mode: [n, 3, S, S] -> features [n, p], projections [n, q].
    """
    ids = probe.select_subset(dataset, config).ids if split == "search" else np.arange(dataset.report_count)
    features, embedding = probe.extract(
        embed, ids[:ROWS], dataset=dataset, loaders=loaders, config=config, device=device, split=split
    )
    return dist.broadcast_object(measure(features, embedding) if dist.rank() == 0 else {})


def measure(features: Tensor, embedding: Tensor) -> dict[str, float]:
    """Health of features [m, p] and of projections [m, q] (normalized here), under the names `health/features/…` and
    `health/embedding/…`.

    `std`: mean over dimensions of the standard deviation over rows. For the embedding it is of L2-normalized rows and
    relative to 1 / sqrt(q), so that 1 is spread over the whole sphere and 0 collapsed (Chen and He 2021, SimSiam,
    section 4.1). `rank`, `effective_rank`, `stable_rank`: see `ranks`. `whitening`: the stable rank over the number of
    dimensions, 1 where the covariance is a multiple of the identity; the extent of whitening that CW-RGP's authors plot
    (arXiv 2210.03586; its name is theirs, the closed form inferred). High says alive, not good. `cosine`, of the
    embedding: mean cosine between different images; 1 is complete collapse. At most the first `ROWS` rows are used.
    Not-a-number where a value is not finite.
    """
    if features.ndim != 2 or embedding.ndim != 2 or min(len(features), len(embedding)) < 2:
        raise ValueError(
            "features and embedding must be matrices of at least 2 rows, "
            f"but have shapes {list(features.shape)} and {list(embedding.shape)}; give a larger batch"
        )
    features = features.detach()[:ROWS]
    embedding = torch.nn.functional.normalize(embedding.detach()[:ROWS], dim=1)
    spread = {"features": _spread(features), "embedding": _spread(embedding) * math.sqrt(embedding.shape[1])}
    metrics = {}
    for name, rows in (("features", features), ("embedding", embedding)):
        found = ranks(rows)
        metrics[f"health/{name}/std"] = spread[name]
        metrics[f"health/{name}/rank"] = found.rank
        metrics[f"health/{name}/effective_rank"] = found.effective
        metrics[f"health/{name}/stable_rank"] = found.stable
        metrics[f"health/{name}/whitening"] = found.stable / rows.shape[1]
    metrics["health/embedding/cosine"] = _mean_cosine(embedding)
    return metrics


class Ranks(NamedTuple):
    """Three readings of how many directions rows use."""

    rank: float
    effective: float
    stable: float


def ranks(rows: Tensor) -> Ranks:
    """The ranks of centered rows [m, d]; all 0 if all rows are equal, not-a-number if one is not finite.

    Rank: how many σ_k are above max(m, d) ε max σ, ε the rounding of float32. Effective rank (Roy and Vetterli 2007):
    exp(-sum p_k log p_k) with p_k = σ_k / sum σ. Stable rank: sum σ² / max σ². All are min(m - 1, d) for a flat
    spectrum and 1 for a single direction.

    The squares of σ are eigenvalues of the smaller of the Gram matrix [m, m] and the covariance [d, d], in float64.
    Directions below the rounding of the rows' own dtype, or of the decomposition, are dropped: otherwise the dust on a
    collapsed batch would pass for full rank.
    """
    if not bool(torch.isfinite(rows).all()):
        return Ranks(math.nan, math.nan, math.nan)
    wide = rows.double()
    centered = wide - wide.mean(0)
    m, d = centered.shape
    squares = torch.linalg.eigvalsh(centered @ centered.T if m <= d else centered.T @ centered)
    rows_rounding = torch.finfo(rows.dtype).eps ** 2 * wide.square().sum()
    decomposition_rounding = torch.finfo(torch.float64).eps * len(squares) * squares.max()
    squares = squares[squares > torch.maximum(rows_rounding, decomposition_rounding)]
    if len(squares) == 0:
        return Ranks(0.0, 0.0, 0.0)
    shares = squares.sqrt() / squares.sqrt().sum()
    entropy = -(shares * shares.log()).sum()
    threshold = (max(m, d) * torch.finfo(torch.float32).eps) ** 2 * squares.max()
    return Ranks(
        rank=float((squares > threshold).sum()),
        effective=float(entropy.exp()),
        stable=float(squares.sum() / squares.max()),
    )


def _mean_cosine(unit: Tensor) -> float:
    """Over all pairs of different unit rows, from their sum: |sum z|² counts each pair twice and each row once."""
    wide = unit.double()
    count = len(wide)
    return float((wide.sum(0).square().sum() - wide.square().sum()) / (count * (count - 1)))


def _spread(rows: Tensor) -> float:
    return float(rows.double().std(dim=0, correction=0).mean())
