"""The nearest images by the cosine of their features, searched by parts, and what they vote for.

Letters: n = images searched, m = queries, p = features, k = neighbors, C = classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

SIMILARITIES = 1 << 24
"""Held at once: 64 MB in float32."""

Weighting = Literal["similarity", "none"]


class Nearest(NamedTuple):
    """The most similar rows of each query, best first: cosines [m, k], and row numbers [m, k]; of equal ones the
    earlier row is first.
    """

    similarities: Tensor
    rows: Tensor


@torch.no_grad()
def nearest(parts: Iterable[Tensor], queries: Tensor, *, neighbors: int) -> Nearest:
    """Of the rows of `parts` ([n_i, p] each, one after another) the `neighbors` most similar to `queries` [m, p]; all,
    where they are fewer. On the queries' device, in their dtype.
    """
    queries = functional.normalize(queries, dim=1)
    nothing = queries[:, :0]
    best = Nearest(nothing, nothing.long())
    start = 0
    for part in parts:
        rows = functional.normalize(part.to(queries.device, queries.dtype), dim=1)
        found: list[Nearest] = []
        size = max(1, SIMILARITIES // max(1, len(rows)))
        for place in range(0, len(queries), size):
            block = slice(place, place + size)
            similarities = torch.cat([best.similarities[block], queries[block] @ rows.T], dim=1)
            numbers = torch.arange(start, start + len(rows), device=queries.device).expand(len(similarities), -1)
            numbers = torch.cat([best.rows[block], numbers], dim=1)
            top = similarities.topk(min(neighbors, similarities.shape[1]), dim=1)
            found.append(Nearest(top.values, numbers.gather(1, top.indices)))
        best = Nearest(torch.cat([one.similarities for one in found]), torch.cat([one.rows for one in found]))
        start += len(rows)
    return best


def votes(
    found: Nearest, labels: Tensor, *, class_count: int, neighbors: int, weighting: Weighting, temperature: float
) -> Tensor:
    """What each class gets [m, C] from the first `neighbors` of each query: exp(similarity / temperature) each (Wu et
    al. 2018, arXiv 1805.01978, section 3.4; DINO, arXiv 2104.14294, the same), or 1. `labels` [n] are of all rows.
    """
    similarities, rows = found.similarities[:, :neighbors], found.rows[:, :neighbors]
    if weighting == "none":
        weights = torch.ones_like(similarities)
    else:
        weights = ((similarities - similarities[:, :1]) / temperature).exp()  # relative to the best: no overflow
    total = torch.zeros(len(rows), class_count, dtype=weights.dtype, device=weights.device)
    queries = torch.arange(len(rows), device=total.device)
    for place in range(rows.shape[1]):  # one vote per query at a time: the sum has one order on every device
        total[queries, labels[rows[:, place]]] += weights[:, place]
    return total
