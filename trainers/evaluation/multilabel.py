"""Images with several labels: how well scores rank, class by class.

Letters: n = images, C = classes.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

UNKNOWN = -1
"""In the place of a target: neither right nor wrong, as an object that is marked difficult."""
LEVELS = np.linspace(0.0, 1.0, 11)
"""Of recall, in the mean of 11 points."""

Way = Literal["area", "11-point"]


def average_precision(scores: NDArray[np.floating], targets: NDArray[np.integer], way: Way = "area") -> float:
    """Of one class's scores [n] with targets [n] of 1, 0 and `UNKNOWN`; not a number where no target is 1.

    `area`: the sum over thresholds of precision times gained recall, as scikit-learn's and torchmetrics' (PASCAL VOC
    from 2010 on makes precision monotone first). `11-point`: the mean over 11 levels of recall of the highest precision
    at this or a higher recall (VOC2007's rule, Everingham et al. 2010, section 4.2). Equal scores are one threshold.
    """
    known = targets != UNKNOWN
    values, hits = scores[known], targets[known] == 1
    if not hits.any():
        return math.nan
    order = np.argsort(-values, kind="stable")
    last = np.flatnonzero(np.diff(values[order], append=np.nan))  # of each run of equal scores
    found = np.cumsum(hits[order])[last]
    precision, recall = found / (last + 1), found / hits.sum()
    if way == "area":
        return float((np.diff(recall, prepend=0.0) * precision).sum())
    return float(np.mean([precision[recall >= level - 1e-12].max(initial=0.0) for level in LEVELS]))


def mean_average_precision(
    scores: NDArray[np.floating], targets: NDArray[np.integer], way: Way = "area"
) -> tuple[float, NDArray[np.float64]]:
    """(mean over classes that have a positive, each class's [C]) of scores and targets [n, C]."""
    each = np.array([average_precision(*pair, way) for pair in zip(scores.T, targets.T, strict=True)])
    return (float(np.nanmean(each)) if np.isfinite(each).any() else math.nan), each
