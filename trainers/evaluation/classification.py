"""From class scores to what papers print: top-1 and top-5 with intervals, each class's accuracy, what was taken for
what.

Letters: K = seeds, n = images, C = classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.evaluation.protocol import ClassScore, Integers, Score, share

TOP = 5


class Judged(NamedTuple):
    """What class scores are worth."""

    scores: tuple[Score, ...]
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, int, int], ...]


def judge(scores: Sequence[Tensor], labels: Integers, class_names: Sequence[str], *, prefix: str = "") -> Judged:
    """Of each seed's class scores [n, C]: `top1`, and `top5` where there are more classes than that; the first seed's
    confusion. Of equal scores the lower class counts as the higher score. `prefix` goes before the measures' names.
    """
    target = torch.from_numpy(labels)
    ranked = [one.cpu().sort(dim=1, descending=True, stable=True).indices[:, :TOP] for one in scores]
    hits = np.stack([(one == target[:, None]).numpy() for one in ranked])  # [K, n, top]
    correct = hits[:, :, 0]
    found = [share(f"{prefix}top1", correct)]
    if len(class_names) > TOP:
        found.append(share(f"{prefix}top5", np.any(hits, axis=2)))
    return Judged(
        tuple(found), _by_class(correct.mean(axis=0), labels, class_names), _confusion(ranked[0][:, 0], labels)
    )


def _by_class(correct: NDArray[np.floating], labels: Integers, names: Sequence[str]) -> tuple[ClassScore, ...]:
    counts = np.bincount(labels, minlength=len(names))
    sums = np.bincount(labels, weights=correct, minlength=len(names))
    return tuple(
        ClassScore(name=name, value=float(total / count) if count else None, count=int(count))
        for name, total, count in zip(names, sums, counts, strict=True)
    )


def _confusion(predicted: Tensor, labels: Integers) -> tuple[tuple[int, int, int], ...]:
    pairs, counts = np.unique(np.stack([labels, predicted.numpy()], axis=1), axis=0, return_counts=True)
    return tuple((int(true), int(taken), int(count)) for (true, taken), count in zip(pairs, counts, strict=True))
