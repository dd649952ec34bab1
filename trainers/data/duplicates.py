"""Images that occur twice in a data set: with equal pixels, with equal pixels under two labels, or nearly equal.

Nearly equal are two whose small gray pictures agree (`LEVELS`), as those of a photograph that was scaled or compressed
again do. Candidates are found by a difference hash: the 64 bits say whether each cell of 9x8 is darker than its right
neighbor, and two hashes that differ in at most three bits agree in one of four runs of 16.

Letters: n, m = images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainers.data.splits import Integers

WIDTH, HEIGHT = 9, 8
"""Of the small pictures, in pixels: 8 differences in each of 8 rows."""
BITS = 3
"""In how many of 64 the hashes of two images may differ that are nearly equal."""
LEVELS = 2.0
"""How far, of 255, their small pictures may lie apart on average."""
_STEP = 2  # levels by which a cell must be brighter than its neighbor: a plain ground has no noise in its hash
_SUMS = 1 << 15  # more than a small picture's sum can be
_APART = int(LEVELS * WIDTH * HEIGHT)  # how far two sums lie apart at most, if the pictures agree
_MOST = 1024  # candidates for an image in each run
_PAIRS = 1 << 20  # looked at at once

Digests = NDArray[np.uint64]
Pictures = NDArray[np.uint8]


class Near(NamedTuple):
    """Which images of one split are nearly equal to one of another: rows of the first, and of one such in the other."""

    rows: Integers
    others: Integers


def picture(image: Image.Image) -> bytes:
    """The small gray picture of an image, row by row, `WIDTH` * `HEIGHT` bytes."""
    return image.resize((WIDTH, HEIGHT), Image.Resampling.BOX).convert("L").tobytes()


def hashes(pictures: Pictures) -> Digests:
    """The difference hash of each small picture [n, WIDTH * HEIGHT], [n]."""
    cells = pictures.reshape(-1, HEIGHT, WIDTH).astype(np.int16)
    bits = cells[:, :, 1:] > cells[:, :, :-1] + _STEP
    packed = np.packbits(bits.reshape(len(cells), 64), axis=1)
    found: Digests = np.ascontiguousarray(packed).view(">u8").reshape(-1).astype(np.uint64)
    return found


def near(pictures: Pictures, others: Pictures) -> Near:
    """The images of `pictures` [n, …] that are nearly equal to one of `others` [m, …].

    Compared are those of which 16 bits of the hash agree and whose sums are no further apart than that of two such can
    be; where these are very many, as of images that are almost black, those with the nearest sums. So the work is
    bounded by n.
    """
    mine, theirs = hashes(pictures), hashes(others)
    my_sums, sums = (rows.sum(axis=1, dtype=np.int64) for rows in (pictures, others))
    found = np.full(len(mine), -1, dtype=np.int64)
    for shift in range(0, 64, 16):
        keys = _runs(theirs, shift) + sums
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        open_rows = np.flatnonzero(found < 0)
        runs, own = _runs(mine[open_rows], shift), my_sums[open_rows]
        first = np.searchsorted(keys, runs + np.maximum(own - _APART, 0), side="left")
        last = np.searchsorted(keys, runs + np.minimum(own + _APART, _SUMS - 1), side="right")
        middle = np.searchsorted(keys, runs + own)
        first = np.maximum(first, middle - _MOST // 2)
        for rows, places in _pairs(first, np.minimum(last - first, _MOST)):
            one, other = open_rows[rows], order[places]
            close = np.bitwise_count(mine[one] ^ theirs[other]) <= BITS
            one, other = one[close], other[close]
            distance = np.abs(pictures[one].astype(np.int16) - others[other]).mean(axis=1)
            agree = distance <= LEVELS
            found[one[agree]] = other[agree]
    rows = np.flatnonzero(found >= 0)
    return Near(rows, found[rows])


def _runs(found: Digests, shift: int) -> Integers:
    """The 16 bits of each hash from `shift` on, with room for a sum below them."""
    return ((found >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64) * _SUMS


def _pairs(first: Integers, counts: Integers) -> Iterator[tuple[Integers, Integers]]:
    """(row, place) for each row and each of its `counts` places from `first` on, in pieces of bounded size."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _PAIRS, side="right")))
        total = int(ends[stop - 1]) - before
        places = np.arange(total)
        rows = start + np.searchsorted(ends[start:stop] - before, places, side="right")
        yield rows, first[rows] + places - (ends[rows] - counts[rows] - before)
        start = stop


def equal(digests: Mapping[str, Digests]) -> dict[str, int]:
    """`a/b`: how many images of split a have pixels that occur in b as well; `train/train`: how many of `train` repeat
    an earlier one. Splits that are not there are left out.
    """
    found = {"train/train": len(digests["train"]) - len(np.unique(digests["train"]))}
    for one, other in (
        ("select", "train"),
        ("report", "train"),
        ("report", "select"),
        ("unlabeled", "select"),
        ("unlabeled", "report"),
    ):
        if one in digests and other in digests:
            found[f"{one}/{other}"] = int(np.isin(digests[one], digests[other]).sum())
    return found


def contradicting(digests: Digests, labels: Integers) -> list[Integers]:
    """Groups of rows of `digests` [n] whose pixels are equal and whose `labels` [n] are not, in order."""
    order = np.lexsort((labels, digests))
    starts = np.flatnonzero(np.diff(digests[order], prepend=digests[order[:1]] ^ np.uint64(1)))
    groups = np.split(order, starts[1:]) if len(order) else []
    return sorted(
        (np.sort(group) for group in groups if len(group) > 1 and labels[group[0]] != labels[group[-1]]),
        key=lambda group: int(group[0]),
    )
