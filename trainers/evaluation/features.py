"""Features of whole data sets, computed once and shared by all protocols: a file per subject, source, data and view.

A file is an .npy that is mapped or read by parts, written whole, in `$PRETUNE_CACHE/features` (by default
`~/.cache/pretune/features`). One process computes it while others wait. Where files exceed the store's budget, those
that nobody has used for longest are removed first.

Letters: n = images, p = features, S = pixels.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainers.data.lock import HeldError, held
from trainers.files import opened_whole

if TYPE_CHECKING:
    from trainers.data.manifest import Dataset
    from trainers.evaluation.subject import Subject

log = logging.getLogger(__name__)

FILES = "*.npy"
WAIT_S = 24 * 3600.0
"""For another process that computes the same features."""
BUDGET = 64 * 2**30
"""Bytes that the files of a store may take; the one in use is kept, whatever it takes."""
CHUNK_BYTES = 256 * 2**20
"""Of features that are read at once."""


Part = Literal["train", "select", "report"]


class View(NamedTuple):
    """How images are changed before a network sees them. `name` is all that tells it from others."""

    name: str
    change: Callable[[Tensor], Tensor] | None = None
    """Of normalized images [n, 3, S, S]."""


PLAIN = View("plain")


@dataclass(frozen=True)
class Rows:
    """Features [n, p] of one split in a file, in the data set's order; only what is asked for is read."""

    path: Path
    count: int
    width: int
    dtype: np.dtype[Any]
    largest: float
    """Of their absolute values; not a number where one of them is not finite."""
    _offset: int

    @property
    def finite(self) -> bool:
        """Whether each of them is a number."""
        return math.isfinite(self.largest)

    def take(self, ids: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """The features of rows `ids`, [len(ids), p], copied."""
        found: NDArray[Any] = np.empty((len(ids), self.width), self.dtype)
        place = 0
        for part in self.chunks(ids):
            found[place : place + len(part)] = part
            place += len(part)
        return found

    def chunks(self, ids: NDArray[np.integer[Any]], *, size: int = CHUNK_BYTES) -> Iterator[NDArray[Any]]:
        """The same in pieces of at most `size` bytes, in the order of `ids`. What was read is not kept."""
        rows = max(1, size // max(1, self.width * self.dtype.itemsize))
        row_bytes = self.width * self.dtype.itemsize
        for start in range(0, len(ids), rows):
            part = np.asarray(ids[start : start + rows])
            first, last = int(part.min()), int(part.max()) + 1
            if last - first <= 2 * len(part):  # one read of a run is quicker than many of rows
                whole = np.fromfile(
                    self.path, self.dtype, (last - first) * self.width, offset=self._offset + first * row_bytes
                ).reshape(-1, self.width)
                yield whole if len(part) == last - first and bool((np.diff(part) == 1).all()) else whole[part - first]
            else:
                mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
                yield np.array(mapped[part])
                del mapped


class Store:
    """The features' files in one folder, at most `budget` bytes of them. `dtype` is what they are kept in."""

    def __init__(self, folder: Path, *, dtype: Literal["float16", "float32"] = "float32", budget: int = BUDGET) -> None:
        self.folder, self.dtype, self.budget = folder, np.dtype(dtype), budget

    def rows(
        self,
        subject: Subject,
        dataset: Dataset,
        part: Part,
        *,
        batches: Callable[[], Iterator[NDArray[Any]]],
        view: View = PLAIN,
        report: Callable[[float], None] = lambda done: None,
    ) -> Rows:
        """Features of a split's images: those of `batches()`, [m, p] each, where there is no file of them yet.

        A file that is damaged is made again. ValueError where another process has been computing them for longer than
        a day.
        """
        names = (subject.key[:16], dataset.manifest_hash[:16], part, subject.source, view.name, self.dtype.name)
        path = self.folder / f"{'-'.join(names)}.npy"
        try:
            with held(path, wait_s=WAIT_S):
                count = len(rows_of(dataset, part))
                if not _is_whole(path, count):
                    log.info("features of %d images of %s (%s, %s)", count, dataset.folder, part, view.name)
                    self._write(path, count, batches(), report)
        except HeldError as error:
            raise ValueError(
                f"{path}: another process has been computing these features for more than {WAIT_S / 3600:g} hours; "
                "end it, or set PRETUNE_CACHE to another folder"
            ) from error
        os.utime(path)  # used now: see `_make_room`
        return _opened(path)

    def _write(self, path: Path, count: int, batches: Iterator[NDArray[Any]], report: Callable[[float], None]) -> None:
        done = 0
        with opened_whole(path) as written:
            for features in batches:
                if not done:
                    self._make_room(count * features.shape[1] * self.dtype.itemsize)
                    header = {
                        "descr": np.lib.format.dtype_to_descr(self.dtype),
                        "fortran_order": False,
                        "shape": (count, features.shape[1]),
                    }
                    np.lib.format.write_array_header_1_0(written, header)
                written.write(np.ascontiguousarray(features, self.dtype).tobytes())
                done += len(features)
                report(done / count)

    def _make_room(self, needed: int) -> None:
        """Removes what was not used for longest until `needed` bytes more are within the budget and on the disk."""
        files: list[tuple[float, int, Path]] = []
        for one in self.folder.glob(FILES):
            with suppress(FileNotFoundError):  # removed by another process
                state = one.stat()
                files.append((state.st_mtime, state.st_size, one))
        taken = sum(size for _, size, _ in files)
        allowed = min(self.budget, taken + shutil.disk_usage(self.folder).free)
        for _, size, one in sorted(files):
            if taken + needed <= allowed:
                return
            taken -= size
            one.unlink(missing_ok=True)
            log.info("removed the features in %s, to stay within %d bytes", one, allowed)


def rows_of(dataset: Dataset, part: Part) -> NDArray[np.int64]:
    """Rows of the file that a split is in."""
    if part == "report":
        return np.arange(dataset.report_count, dtype=np.int64)
    return dataset.train_ids if part == "train" else dataset.select_ids


def _is_whole(path: Path, count: int) -> bool:
    """Whether a file of so many rows is there."""
    try:
        return len(np.load(path, mmap_mode="r", allow_pickle=False)) == count
    except (OSError, ValueError, EOFError):  # there is none, or a disk has cut it off
        return False


def _opened(path: Path) -> Rows:
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    count, width = mapped.shape
    rows = Rows(path, count, width, mapped.dtype, 0.0, mapped.offset)
    largest = 0.0
    for part in rows.chunks(np.arange(count)):
        here = float(np.abs(part).max())
        largest = max(largest, here) if math.isfinite(here) else math.nan
        if math.isnan(largest):
            break
    return replace(rows, largest=largest)


def cache() -> Path:
    """Where a store lies unless it is said. The environment says where, never what."""
    root = os.environ.get("PRETUNE_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "pretune") / "features"
