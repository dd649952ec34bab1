"""A model's outputs made by hand, as the tests of terms give them; and random rows to make them of.

value = Alignment()(outputs_of(first, second)).item()
value = Prediction()(outputs_of(*projections, predictions=p, targets=t)).item()
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.terms import Outputs, TermConfig

Array = np.ndarray[Any, np.dtype[np.float64]]


def outputs_of(
    *views: Tensor,
    predictions: Sequence[Tensor] | None = None,
    targets: Sequence[Tensor] | None = None,
    ids: Tensor | None = None,
    seed: int = 0,
    step: int = 0,
) -> Outputs:
    """`views` [n, q] each, as features and as projections; the sample ids are 0 to n - 1 where none are given."""
    return Outputs(
        features=views,
        projections=views,
        predictions=None if predictions is None else tuple(predictions),
        targets=None if targets is None else tuple(targets),
        sample_ids=torch.arange(len(views[0])) if ids is None else ids,
        seed=seed,
        step=step,
    )


def random_rows(n: int, q: int, seed: int = 0) -> Array:
    """[n, q], standard normal."""
    return np.random.default_rng(seed).standard_normal((n, q))


def random_views(count: int, n: int = 6, q: int = 5, *, scale: float = 1.0, seed: int = 0) -> list[Tensor]:
    """`count` unrelated views [n, q], normal with this deviation."""
    return [torch.from_numpy(view) for view in np.random.default_rng(seed).standard_normal((count, n, q)) * scale]


def value_of(term: TermConfig, *views: Tensor | Array) -> float:
    """The term of these views alone, in double precision."""
    return term(outputs_of(*(torch.as_tensor(view, dtype=torch.float64) for view in views))).item()


def gradient_of(term: TermConfig, rows: Tensor | Array) -> Tensor:
    """The gradient of the term of one view with respect to its rows."""
    leaf = torch.as_tensor(rows, dtype=torch.float64).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(term(outputs_of(leaf)), leaf)
    return gradient
