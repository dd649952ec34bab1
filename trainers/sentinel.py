"""Has the trial collapsed? A look at one batch's embeddings every few steps, so that a dead trial ends within an epoch.

`evaluation.health` waits for the end of an epoch and looks at the probe's images; this looks at what a step has at
hand, in training mode, and costs one small gather and one eigendecomposition of at most `ROWS` rows a rank.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainers import dist
from trainers.config import SentinelConfig
from trainers.evaluation import health
from trainers.terms import Outputs

ROWS = 64
"""Embeddings of each rank that are looked at, of the first view."""
STILL = 1e-12
"""A gradient of this norm moves nothing: at exact collapse the loss is flat."""


def complaint(outputs: Outputs, metrics: Mapping[str, Tensor], gradient_norm: Tensor, config: SentinelConfig) -> str:
    """What is wrong with this step's embeddings, in words; empty if nothing is. The same on all ranks.

    Projections [n, q] of the first view, what terms tell of the step (`Objective.metrics`), and the norm of all
    gradients. Wrong are: all in one direction (the standard deviation of unit rows times sqrt(q), 1 if they are spread
    over the sphere, is below `min_spread`); all in few directions (the effective rank, as of `health.ranks`, is below
    `min_rank_share` of what so many rows can have); all of one length near zero, as where a loss sees lengths (the
    standard deviation of the rows themselves is below `min_scale`); all sorted alike, by a term that sorts images into
    prototypes (its metric `information` is below `min_information`); no gradient at all.
    """
    rows = dist.gather_rows_detached(outputs.projections[0][:ROWS].detach().contiguous())
    information = [float(value) for name, value in metrics.items() if name.endswith("/information")]
    # One rank judges: a decomposition may round differently on another machine, and all ranks must end alike.
    judged = _judged(rows, information, float(gradient_norm), config) if dist.rank() == 0 else ""
    return dist.broadcast_object(judged)


def _judged(rows: Tensor, information: list[float], gradient_norm: float, config: SentinelConfig) -> str:
    measured = health.measure(rows, rows)
    spread, rank = measured["health/embedding/std"], measured["health/embedding/effective_rank"]
    scale = measured["health/features/std"]
    fullest = min(len(rows) - 1, rows.shape[1])
    if spread < config.min_spread:
        return f"embeddings of different images are alike: spread {spread:.2g}, below {config.min_spread:g}"
    if rank < config.min_rank_share * fullest:
        return (
            f"embeddings lie in few directions: effective rank {rank:.3g} of at most {fullest}, below "
            f"{config.min_rank_share:.0%}"
        )
    if scale < config.min_scale:
        return f"embeddings shrink to a point: standard deviation {scale:.2g}, below {config.min_scale:g}"
    if information and min(information) < config.min_information:
        return (
            f"images are sorted alike: a prototype tells {min(information):.2g} nats of its image, below "
            f"{config.min_information:g}"
        )
    if gradient_norm <= STILL:
        return f"nothing moves: the gradient's norm is {gradient_norm:.2g}"
    return ""
