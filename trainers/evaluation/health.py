"""Is the representation alive, and how good is it as far as that can be told without labels? Spread, ranks and the
spectrum of features and embeddings, from a few decompositions of small matrices.

Letters: m = rows (images), v = views of an image, p = features, q = embedding width, d = p or q, σ_k = singular values
of the centered [m, d] matrix.
"""

from __future__ import annotations

import math
from functools import partial
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
LIDAR_VIEWS = 4
"""Augmented views of each image that LiDAR compares; its authors take 10 and 50, of thousands of images."""
LIDAR_IMAGES = ROWS // LIDAR_VIEWS
"""Images that they are of, so that LiDAR costs about what the other measures do. It is below this number."""
LIDAR_RIDGE = 1e-4
"""Added to each variance within images (the authors' δ)."""
SMALL = 1e-7
"""Added to each share of a spectrum in RankMe and LiDAR (the authors' ε)."""
POWER_LAW_RANKS = (4, 100)
"""First and last place in the spectrum that alpha-ReQ's line is fitted to, as in its authors' code."""


def evaluate(
    embed: probe.Embed,
    *,
    dataset: Dataset,
    loaders: Loaders,
    config: TrialConfig,
    device: torch.device,
    split: Literal["search", "report"] = "search",
) -> dict[str, float]:
    """`measure` and `rankme` on the first `ROWS` images of the probe's part of `select`, and `lidar` on augmented views
    of the first `LIDAR_IMAGES`; the same numbers on all ranks. Of `report` where that is asked for, which only `pretune
    finalize` may do.

    `embed` is `Model.embed`, in evaluation mode: [n, 3, S, S] -> features [n, p], projections [n, q]. The views are
    the config's first one, drawn by image and place alone, so that all epochs and seeds are measured by the same draws.
    """
    ids = probe.select_subset(dataset, config).ids if split == "search" else np.arange(dataset.report_count)
    look = partial(probe.extract, embed, dataset=dataset, loaders=loaders, config=config, device=device, split=split)
    features, embedding = look(ids[:ROWS])
    viewed = look(ids[:LIDAR_IMAGES], views=LIDAR_VIEWS)
    metrics = {}
    if dist.rank() == 0:
        metrics = measure(features, embedding)
        for name, rows, views in zip(("features", "embedding"), (features, embedding), viewed, strict=True):
            metrics[f"health/{name}/rankme"] = rankme(rows)
            metrics[f"health/{name}/lidar"] = lidar(views.reshape(-1, LIDAR_VIEWS, views.shape[1]))
    return dist.broadcast_object(metrics)


def measure(features: Tensor, embedding: Tensor) -> dict[str, float]:
    """Health of features [m, p] and of projections [m, q] (normalized here), under the names `health/features/…` and
    `health/embedding/…`.

    `std`: mean over dimensions of the standard deviation over rows. For the embedding it is of L2-normalized rows and
    relative to 1 / sqrt(q), so that 1 is spread over the whole sphere and 0 collapsed (Chen and He 2021, SimSiam,
    section 4.1). `rank`, `effective_rank`, `stable_rank`: see `ranks`. `whitening`: the stable rank over the number of
    dimensions, 1 where the covariance is a multiple of the identity; the extent of whitening that CW-RGP's authors plot
    (arXiv 2210.03586; its name is theirs, the closed form inferred). High says alive, not good. `cosine`, of the
    embedding: mean cosine between different images; 1 is complete collapse. `alpha_req`: see `power_law`. At most the
    first `ROWS` rows are used. Not-a-number where a value is not finite.
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
        squares = spectrum(rows)
        found = _ranks(squares, *rows.shape)
        metrics[f"health/{name}/std"] = spread[name]
        metrics[f"health/{name}/rank"] = found.rank
        metrics[f"health/{name}/effective_rank"] = found.effective
        metrics[f"health/{name}/stable_rank"] = found.stable
        metrics[f"health/{name}/whitening"] = found.stable / rows.shape[1]
        metrics[f"health/{name}/alpha_req"] = power_law(squares.flip(0))
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
    """
    return _ranks(spectrum(rows), *rows.shape)


def spectrum(rows: Tensor) -> Tensor:
    """The squares of σ_k of rows [m, d], smallest first, float64; none where all rows are equal, a not-a-number where a
    value is not finite.

    They are eigenvalues of the smaller of the Gram matrix [m, m] and the covariance [d, d]. Directions below the
    rounding of the rows' own dtype, or of the decomposition, are dropped: otherwise the dust on a collapsed batch would
    pass for full rank.
    """
    if not bool(torch.isfinite(rows).all()):
        return torch.full((1,), math.nan, dtype=torch.float64)
    wide = rows.double()
    centered = wide - wide.mean(0)
    m, d = centered.shape
    squares = torch.linalg.eigvalsh(centered @ centered.T if m <= d else centered.T @ centered)
    rows_rounding = torch.finfo(rows.dtype).eps ** 2 * wide.square().sum()
    decomposition_rounding = torch.finfo(torch.float64).eps * len(squares) * squares.max()
    kept: Tensor = squares[squares > torch.maximum(rows_rounding, decomposition_rounding)]
    return kept


def _ranks(squares: Tensor, m: int, d: int) -> Ranks:
    if len(squares) == 0:
        return Ranks(0.0, 0.0, 0.0)
    if not bool(torch.isfinite(squares).all()):
        return Ranks(math.nan, math.nan, math.nan)
    shares = squares.sqrt() / squares.sqrt().sum()
    entropy = -(shares * shares.log()).sum()
    threshold = (max(m, d) * torch.finfo(torch.float32).eps) ** 2 * squares.max()
    return Ranks(
        rank=float((squares > threshold).sum()),
        effective=float(entropy.exp()),
        stable=float(squares.sum() / squares.max()),
    )


def power_law(eigenvalues: Tensor) -> float:
    """alpha-ReQ (Agrawal et al. 2022, arXiv 2202.05808): the α of λ_k ~ k^-α for eigenvalues λ [r] of a covariance,
    largest first, which must be positive. 0 for fewer than two. Its authors find representations best near 1.

    Least squares of log λ_k on log k, weighted by 1 / k, over the places `POWER_LAW_RANKS`: the paper leaves range and
    weights open, these are of its authors' code. Where there are too few eigenvalues for that, over all of them.
    """
    first, last = POWER_LAW_RANKS
    if len(eigenvalues) <= first:
        first = 1
    values = eigenvalues[first - 1 : last].log()
    if not bool(torch.isfinite(eigenvalues).all()):
        return math.nan
    if len(values) < 2:
        return 0.0
    places = torch.arange(first, first + len(values), dtype=torch.float64, device=values.device)
    weights = 1 / places
    x = places.log() - (weights * places.log()).sum() / weights.sum()
    return -float((weights * x * values).sum() / (weights * x.square()).sum())


def rankme(rows: Tensor) -> float:
    """RankMe (Garrido et al. 2023, arXiv 2210.02885, equation 1) of rows [m, d], which are not centered: exp(-sum p_k
    log p_k), p_k = σ_k / sum σ + `SMALL`, with the singular values σ of the rows themselves.

    0 where all are zero, not-a-number where one is not finite. What `effective_rank` is of centered rows.
    """
    if not bool(torch.isfinite(rows).all()):
        return math.nan
    wide = rows.double()
    squares = torch.linalg.eigvalsh(wide @ wide.T if len(wide) <= wide.shape[1] else wide.T @ wide)
    return _exponential_entropy(squares.clamp_min(0).sqrt())


def lidar(rows: Tensor) -> float:
    """LiDAR (Thilak et al. 2023, arXiv 2312.04000, section 3.2) of rows [n, v, d]: v views each of n images.

    exp(-sum p_k log p_k), p_k = λ_k / sum λ + `SMALL`, with the eigenvalues λ of Σ_w^-½ Σ_b Σ_w^-½: Σ_b is the
    covariance of the images' means, Σ_w that of views around their image's mean, + `LIDAR_RIDGE` I. It counts the
    directions in which images differ by more than their views do. 0 where images do not differ, not-a-number where a
    value is not finite. Below n.
    """
    if rows.ndim != 3 or len(rows) < 2 or rows.shape[1] < 2:
        raise ValueError(f"LiDAR needs at least 2 views each of 2 images, but rows have shape {list(rows.shape)}")
    if not bool(torch.isfinite(rows).all()):
        return math.nan
    n, v, d = rows.shape
    flat = rows.double().flatten(0, 1)
    flat = flat - flat.mean(0)
    if d > n * v:  # in coordinates of what the rows span
        values, vectors = torch.linalg.eigh(flat @ flat.T)
        flat = vectors * values.clamp_min(0).sqrt()
    means = flat.reshape(n, v, -1).mean(1)
    if float(means.square().sum()) <= torch.finfo(rows.dtype).eps ** 2 * float(rows.double().square().sum()):
        return 0.0
    within = flat - means.repeat_interleave(v, 0)
    spread = within.T @ within / (n * v)
    # Of features so large that their rounding exceeds the ridge, that is the ridge.
    spread.diagonal().add_(LIDAR_RIDGE + len(spread) * torch.finfo(torch.float64).eps * float(spread.trace()))
    between = torch.linalg.solve_triangular(torch.linalg.cholesky(spread), means.T, upper=False)
    return _exponential_entropy(torch.linalg.svdvals(between).square())


def _exponential_entropy(values: Tensor) -> float:
    """exp(-sum p log p) of p = values [r] / their sum + `SMALL`; 0 where that sum is 0."""
    total = values.sum()
    if float(total) == 0.0:
        return 0.0
    shares = values / total + SMALL
    return float((-(shares * shares.log()).sum()).exp())


def _mean_cosine(unit: Tensor) -> float:
    """Over all pairs of different unit rows, from their sum: |sum z|² counts each pair twice and each row once."""
    wide = unit.double()
    count = len(wide)
    return float((wide.sum(0).square().sum() - wide.square().sum()) / (count * (count - 1)))


def _spread(rows: Tensor) -> float:
    return float(rows.double().std(dim=0, correction=0).mean())
