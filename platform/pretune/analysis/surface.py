"""A smooth picture of the values over two parameters: a local mean of the trials near each point (Nadaraya 1964, Watson
1964), and nothing where no trial is near.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

POINTS = 33
"""Of the grid, along each axis."""
REACH = 2.0
"""Bandwidths beyond which a point has no trial near it."""


def smoothed(x: Numbers, y: Numbers, values: Numbers) -> tuple[Numbers, Numbers]:
    """The grid's places along either axis, (POINTS,), and the local mean at each, (POINTS, POINTS) by y and x, NaN
    where no trial is near. `x` and `y`, (N,), lie between 0 and 1. The bandwidth is Scott's, n^(-1/6) times the spread.
    """
    grid = np.linspace(0.0, 1.0, POINTS)
    reach = max(3.0 / POINTS, float(len(values) ** (-1 / 6) * max(0.12, (np.std(x) + np.std(y)) / 2.0)))
    # (grid y, grid x, trials)
    squared = ((grid[None, :, None] - x) ** 2 + (grid[:, None, None] - y) ** 2) / reach**2
    weights = np.exp(-0.5 * squared)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (weights * values).sum(axis=2) / weights.sum(axis=2)
    mean[squared.min(axis=2) > REACH**2] = np.nan
    return grid, mean
