"""Features in two dimensions: PCA by scikit-learn, UMAP by umap-learn (the extra `embed`).

Letters: n = images, p = features.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from pretune.core.errors import RequestError

Method = Literal["pca", "umap"]
METHODS: tuple[Method, ...] = get_args(Method)
FEWEST = 3
"""Images on a map: two always lie on a line."""
NEIGHBORS = 15
"""UMAP's own default: how many neighbors keep together."""

ALL_COMPONENTS = 256
"""Up to so many images or features, PCA finds all components."""


class Plane(NamedTuple):
    """Where each image lies, [n, 2], and what the two axes are."""

    points: NDArray[np.float64]
    axes: tuple[str, str]


def check(text: str) -> Method:
    """The method of that name. RequestError for one that is not known, or whose package is not installed."""
    method = next((one for one in METHODS if one == text), None)
    if method is None:
        raise RequestError(f"--method must be one of {', '.join(METHODS)}, but is {text!r}; choose one")
    if method == "umap" and find_spec("umap") is None:
        raise RequestError(
            "--method umap needs umap-learn, not installed here; pip install 'pretune[embed]', or take --method pca"
        )
    return method


def project(features: NDArray[np.floating[Any]], method: Method, *, seed: int = 0) -> Plane:
    """Rows [n, p] in the plane; `seed` is UMAP's, PCA draws nothing.

    ValueError for fewer than `FEWEST` rows, and where one is not finite.
    """
    if len(features) < FEWEST:
        raise ValueError(f"a map takes at least {FEWEST} images, but there are {len(features)}; name more")
    if not np.isfinite(features).all():
        count = int((~np.isfinite(features).all(1)).sum())
        raise ValueError(
            f"a map takes finite features, but those of {count:,} of {len(features):,} images are not; the network "
            "has diverged: take another trial"
        )
    return _pca(features) if method == "pca" else _umap(features, seed)


def _pca(features: NDArray[np.floating[Any]]) -> Plane:
    from sklearn.decomposition import PCA

    wide = features.astype(np.float64)
    points, shares = np.zeros((len(features), 2)), [0.0, 0.0]
    if np.ptp(wide, axis=0).any():
        count = min(2, features.shape[1])
        # Only the two largest are looked for, where looking for all would take long.
        solver = "arpack" if min(features.shape) > ALL_COMPONENTS else "full"
        found = PCA(count, svd_solver=solver, random_state=0).fit(wide)
        points[:, :count] = found.transform(wide)
        shares[:count] = found.explained_variance_ratio_.tolist()
    first, second = (f"component {number + 1}: {100 * shares[number]:.0f}% of the variance" for number in range(2))
    return Plane(points, (first, second))


def _umap(features: NDArray[np.floating[Any]], seed: int) -> Plane:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that UMAP can do without, and of one thread
        from umap import UMAP

        # A spectral start takes more rows than dimensions by two.
        start = "spectral" if len(features) > NEIGHBORS else "random"
        found = UMAP(
            n_neighbors=min(NEIGHBORS, len(features) - 1), metric="cosine", random_state=seed, n_jobs=1, init=start
        ).fit_transform(features.astype(np.float32))
    points = np.nan_to_num(np.asarray(found, dtype=np.float64))
    return Plane(points, ("UMAP 1", "UMAP 2"))
