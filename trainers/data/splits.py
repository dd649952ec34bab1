"""Which image belongs to which split: pure functions of labels, a seed and a purpose, the same on every machine and
version.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

UNLABELED = -1
"""In the place of a label."""


def count_of(amount: int | str, available: int) -> int:
    """How many of `available` images an amount (`trainers.settings.amount`) is: a count as it is, a share such as
    "10%" rounded to the nearest, but at least 1.
    """
    if isinstance(amount, int):
        return amount
    return max(1, math.floor(available * Fraction(amount.removesuffix("%")) / 100 + Fraction(1, 2)))


def keyed_ranks(count: int, key: str) -> NDArray[np.uint64]:
    """A 64-bit number for each of `count` rows, [count]: splitmix64 of the row, started at a hash of `key`.

    NumPy's own generators may change their streams between versions; a data set must not.
    """
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = np.uint64(start) + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        ranks: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return ranks


def stratified_order(labels: Integers, key: str) -> Integers:
    """All rows of `labels` [n], ordered so that every prefix holds each class in proportion, within one image; keyed
    by `key`.

    So prefixes are nested: the 500 rows of a small subset are among the 1,000 of a larger one.
    """
    ranks = keyed_ranks(len(labels), key)
    position = np.zeros(len(labels), dtype=np.float64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        shuffled = rows[np.argsort(ranks[rows], kind="stable")]
        position[shuffled] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.lexsort((ranks, position)).astype(np.int64)


def check_population(labels: Integers, splits: int, *, class_names: Sequence[str], where: str) -> None:
    """Raise ValueError, naming `where` and the class, where a class has fewer images than there are splits."""
    for name, size in zip(class_names, np.bincount(labels, minlength=len(class_names)), strict=True):
        if size < splits:
            raise ValueError(
                f"{where}: class {name!r} has {size} image{'' if size == 1 else 's'}, but each class needs at least "
                f"{splits} to be in each of {splits} splits; add images or remove the class"
            )


def carve(
    labels: Integers, counts: Sequence[int], *, key: str, class_names: Sequence[str], where: str
) -> list[Integers]:
    """Disjoint, stratified splits of the rows of `labels` [n]: one of each size in `counts`, then the rest, each
    sorted.

    Every class has at least one image in each split, otherwise its share, rounded so that the sizes are exact (largest
    remainder). Raises ValueError, naming `where` and the class, where a class has fewer images than there are splits.
    """
    check_population(labels, len(counts) + 1, class_names=class_names, where=where)
    population = np.bincount(labels, minlength=len(class_names))
    ranks = keyed_ranks(len(labels), key)
    order = [
        rows[np.argsort(ranks[rows], kind="stable")]
        for rows in (np.flatnonzero(labels == c) for c in range(len(class_names)))
    ]
    taken = np.zeros(len(class_names), dtype=np.int64)
    splits = []
    for index, count in enumerate(counts):
        later = len(counts) - index  # one image each for the splits still to come, the rest included
        quotas = _quotas(population, count, room=population - taken - later)
        splits.append(
            np.sort(np.concatenate([rows[t : t + q] for rows, t, q in zip(order, taken, quotas, strict=True)]))
        )
        taken = taken + quotas
    splits.append(np.sort(np.concatenate([rows[t:] for rows, t in zip(order, taken, strict=True)])))
    return splits


def _quotas(population: Integers, count: int, *, room: Integers) -> Integers:
    """How many images each class gives to a split of `count`: its share of `population`, from 1 to `room`."""
    count = int(min(max(count, len(population)), room.sum()))
    shares = population * (count / population.sum())
    quotas = np.clip(np.floor(shares).astype(np.int64), 1, room)
    while (missing := count - int(quotas.sum())) != 0:
        # The class furthest below (above) its share gives (drops) one; ties go to the lower class.
        step = 1 if missing > 0 else -1
        gap = (shares - quotas) * step
        gap[(quotas >= room) if step > 0 else (quotas <= 1)] = -np.inf
        quotas[int(np.argmax(gap))] += step
    result: Integers = quotas
    return result
