"""From class scores to what papers print: top-1 and top-5 with intervals, the mean over classes, each class's
accuracy, what was taken for what, and how honest the probabilities are.

Letters: K = seeds, n = images, C = classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.evaluation.protocol import NORMAL, ClassScore, Integers, Judged, Score, joined, share

TOP = 5
BINS = 15
"""Of confidence, for the calibration error (Guo et al. 2017, arXiv 1706.04599, section 2)."""


def judge(
    scores: Sequence[Tensor], labels: Integers, class_names: Sequence[str], *, prefix: str = "", logits: bool = False
) -> Judged:
    """Of each seed's class scores [n, C]: `top1`, `top5` where there are more classes than that, and `mean_class`, the
    mean over classes of their accuracies; the first seed's confusion. Of equal scores the lower class counts as the
    higher one. `prefix` goes before the measures' names.

    With `logits` the scores' softmax is a probability, and there is `calibration_error`, too.
    """
    target = torch.from_numpy(labels)
    ranked = [one.cpu().sort(dim=1, descending=True, stable=True).indices[:, :TOP] for one in scores]
    hits = np.stack([(one == target[:, None]).numpy() for one in ranked])  # [K, n, top]
    correct = hits[:, :, 0]
    found = [share(f"{prefix}top1", correct)]
    if len(class_names) > TOP:
        found.append(share(f"{prefix}top5", np.any(hits, axis=2)))
    found.append(mean_class_score(f"{prefix}mean_class", correct, labels))
    if logits:
        errors = [calibration_error(torch.softmax(one.double().cpu(), dim=1), target) for one in scores]
        # A bootstrap's resamples are biased upwards here, so no interval over images is told.
        found.append(joined(f"{prefix}calibration_error", errors, count=len(labels), images=None))
    return Judged(
        tuple(found), _by_class(correct.mean(axis=0), labels, class_names), _confusion(ranked[0][:, 0], labels)
    )


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Expected calibration error of probabilities [n, C]: over `BINS` equal bins of the highest probability, the mean
    distance between it and the share told right, weighted by the images in a bin.

    A bin has its upper edge, as in the paper, so that certainty shares the last one with what is nearly certain;
    torchmetrics gives it one of its own, and is the same elsewhere. Ours needs no extra of the installation.
    """
    confidence, predicted = probabilities.max(1)
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    count = torch.zeros(BINS, dtype=torch.float64)
    sure = count.clone().index_add_(0, bins, confidence.double())
    right = count.clone().index_add_(0, bins, (predicted == labels).double())
    return float((sure - right).abs().sum() / len(labels))


def mean_class_score(measure: str, correct: NDArray[np.bool_], labels: Integers) -> Score:
    """Of `correct` [K, n]. The interval over images is the normal one; for a class's variance its share is drawn to a
    half by as much as Agresti and Coull do, so that one with all or none right has a spread, too.
    """
    counts = np.bincount(labels)
    there = np.flatnonzero(counts)
    shares = np.stack([np.bincount(labels, weights=one, minlength=len(counts))[there] for one in correct])
    per_seed = (shares / counts[there]).mean(axis=1)
    drawn = (shares.mean(axis=0) + 2.0) / (counts[there] + 4.0)
    half = NORMAL * float(np.sqrt((drawn * (1 - drawn) / counts[there]).sum())) / len(there)
    value = float(per_seed.mean())
    return joined(measure, per_seed, count=len(labels), images=(value - half, value + half))


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
