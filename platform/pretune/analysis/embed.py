"""Images -> features in a file, and on the same way the nearest neighbors of some of them, and a few for a map.

Every batch goes by once: nothing is held but one batch, each query's nearest, and the images that were drawn for a map.

Letters: n = images, p = features, T = a thumbnail's side in pixels.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretune.analysis import evaluate
from pretune.analysis.nearest import Nearest
from pretune.analysis.projection import FEWEST
from pretune.core.errors import RequestError
from pretune.request import request as requests
from trainers import storage
from trainers.data import feature_files, named_images, report_reads
from trainers.data.manifest import Dataset
from trainers.data.named_images import NamedImages
from trainers.data.report_reads import ReportRead
from trainers.data.sources.base import Blob, BrokenImageError

if TYPE_CHECKING:
    from trainers.data.loader import Loaders
    from trainers.evaluation.subject import Subject

Split = Literal["train", "select", "unlabeled", "report"]
Progress = Callable[[int, int], None]
Batches = Iterator[NDArray[np.floating[Any]]]
Pixels = NDArray[np.uint8]

THUMBNAIL, ON_A_MAP = 96, 64
"""Sides in pixels of the images in a picture and on a map."""

MOST_QUERIES = 50
"""Images whose neighbors are looked for at once: a picture has a row for each."""


@dataclass(frozen=True)
class OfData:
    """The images of a split. `place` is the folder or URI by which the data set was named."""

    dataset: Dataset
    place: str
    split: Split

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """Rows of the split's file."""
        match self.split:
            case "train":
                return self.dataset.train_ids
            case "select":
                return self.dataset.select_ids
            case "unlabeled":
                return self.dataset.unlabeled_ids
            case "report":
                return np.arange(self.dataset.report_count, dtype=np.int64)

    @cached_property
    def labels(self) -> NDArray[np.int64] | None:
        if not self.dataset.has_labels or self.split == "unlabeled":
            return None
        return self.dataset.report_labels() if self.split == "report" else self.dataset.search_labels()[self.ids]

    @property
    def file(self) -> Literal["search", "report"]:
        return "report" if self.split == "report" else "search"


@dataclass(frozen=True)
class Request:
    """Which images go where. `queries` are images whose `count` nearest neighbors are looked for; `drawn` is how many,
    at most, are drawn for a map with `seed`. `skipped` are the names of broken images that were left out.
    """

    target: evaluate.Target
    images: NamedImages | OfData
    source: str = "features"
    out: Path | None = None
    overwrite: bool = False
    queries: NamedImages | None = None
    count: int = 10
    drawn: int = 0
    seed: int = 0
    skipped: Sequence[str] = ()

    @property
    def size(self) -> int:
        """n."""
        return len(self.images.ids if isinstance(self.images, OfData) else self.images.blobs)

    @property
    def where(self) -> str:
        """Where the images are from, in words."""
        if isinstance(self.images, OfData):
            return f"{self.images.split} of {Path(self.images.place).name}"
        return f"{self.size:,} images in files"

    @property
    def notes(self) -> list[str]:
        """What was left out, or is out of the ordinary."""
        if isinstance(self.images, OfData):
            return []
        count = len(self.skipped)
        left_out = f"broken {'image was' if count == 1 else 'images were'} left out: {', '.join(self.skipped[:3])}"
        return [*self.images.notes, *([f"{count:,} {left_out}{'' if count < 4 else ', …'}"] if count else [])]

    @property
    def labels(self) -> NDArray[np.int64] | None:
        return self.images.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.images.dataset.manifest.class_names if isinstance(self.images, OfData) else self.images.class_names

    def name(self, row: int) -> str:
        """What an image is called: its path, or its place in the split's file."""
        if isinstance(self.images, OfData):
            return f"{self.images.split} {self.images.ids[row]}"
        return self.images.blobs[row].name

    def label(self, row: int) -> str | None:
        labels = self.labels
        return None if labels is None or labels[row] < 0 else self.class_names[labels[row]]


class Neighbor(NamedTuple):
    """`row` counts from the first image; `similarity` is the cosine of its features and the query's."""

    row: int
    similarity: float


@dataclass(frozen=True)
class Embedded:
    """What came out. `nearest`: for each query its neighbors, the nearest first; `drawn`: rows that were drawn for a
    map, ascending, and `features` theirs, [drawn, p]. `recorded`: whether a read of `report` was written down.
    `not_finite`: how many images have features that are no numbers.
    """

    count: int
    width: int
    seconds: float
    metadata: Mapping[str, Any]
    nearest: tuple[tuple[Neighbor, ...], ...]
    drawn: NDArray[np.int64]
    features: NDArray[np.floating[Any]]
    recorded: bool | None
    not_finite: int
    thumbnails: Callable[[Sequence[int], int], list[Pixels]]
    """Of some rows, with that side."""
    query_thumbnails: tuple[Pixels, ...]


def of_data(place: str, split: Split) -> OfData:
    """A split of the data set at `place`, a folder, a URI or a built-in one. RequestError or a ValueError of the data
    set's where there is none.
    """
    dataset = requests.open_data(place)
    if not storage.is_uri(place):
        return OfData(dataset, str(dataset.folder), split)
    from trainers.data.data_cache import open_anywhere
    from trainers.data.manifest import DATA_FILES, SEARCH_FILE, SEARCH_LABELS

    files = DATA_FILES if split == "report" else (SEARCH_FILE, SEARCH_LABELS)
    return OfData(open_anywhere(place, expected_hash=dataset.manifest_hash, files=files), place, split)


def named(paths: Sequence[Path], scratch: Path, *, skipping: bool = False) -> NamedImages:
    """The images at `paths`; archives that are packed are unpacked into `scratch`. ValueError where there is none, one
    is named twice, or some are no images by their headers, unless `skipping` those that are broken comes next.
    """
    found = named_images.collect(paths, scratch)
    if not skipping:
        named_images.check_headers(found, threads=_threads())
    return found


def without_broken(request: Request, percent: float) -> Request:
    """The same without images that do not decode. ValueError where these are more than `percent`."""
    assert not isinstance(request.images, OfData), "a data set's images decode"
    sound, skipped = named_images.without_broken(request.images, percent=percent, threads=_threads())
    return replace(request, images=sound, skipped=skipped)


def check(request: Request) -> None:
    """RequestError where no image is there, too many are asked about, there are too few for a map, `out` cannot be
    written, or `report` is not to be read yet.
    """
    if request.out is not None and (why := feature_files.why_not(request.out, overwrite=request.overwrite)):
        raise RequestError(why)
    if request.queries is not None and len(request.queries.blobs) > MOST_QUERIES:
        raise RequestError(
            f"--neighbors takes at most {MOST_QUERIES} images, but {len(request.queries.blobs):,} are named; name fewer"
        )
    if request.drawn and request.size < FEWEST:
        raise RequestError(f"--map takes at least {FEWEST} images, but there are {request.size}; name more")
    if not isinstance(request.images, OfData):
        return
    if not request.size:
        raise RequestError(
            f"there must be images, but {request.images.place} has none in its split {request.images.split!r}; choose "
            "another --split"
        )
    if request.images.split == "report" and request.target.live:
        raise RequestError(
            f"sweep {request.target.sweep} runs, and its choices must not depend on `report`; take another --split, "
            "or wait until it has ended"
        )


def run(request: Request, *, progress: Progress = lambda done, total: None) -> Embedded:
    """Features of all images. A read of `report` is written down before it happens.

    RequestError where images are broken (all of them are listed), the checkpoint is damaged or has no such source, or
    features are not finite where neighbors are looked for; OSError where `out` cannot be written. Then nothing was.
    """
    import torch

    from trainers.data.loader import Loaders
    from trainers.evaluation import embedding

    started, threads = time.monotonic(), _threads()
    torch.set_num_threads(threads)
    try:
        subject = evaluate.load(request.target).at(request.source)
    except ValueError as error:
        raise RequestError(str(error)) from error
    subject.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    loaders, images = Loaders(), request.images
    nearest = None
    if request.queries is not None:
        rows = np.concatenate(list(_of_images(subject, request.queries)))
        try:
            nearest = Nearest(rows, request.count, left_out=_themselves(request.queries, images))
        except ValueError as error:
            raise RequestError(str(error)) from error
    recorded: bool | None = None
    if isinstance(images, OfData):
        if images.split == "report":
            recorded = report_reads.record(images.place, _read(request.target))
        batches = embedding.of_data(
            subject, images.dataset, images.ids, loaders=loaders, file=images.file, threads=threads
        )
    else:
        batches = _of_images(subject, images)
    taps = _Taps(request, nearest, progress)
    through = taps.through(batches)
    first = next(through)
    metadata = _metadata(request, subject, first.shape[1])
    if request.out is not None:
        request.out.parent.mkdir(parents=True, exist_ok=True)
        ids = images.ids if isinstance(images, OfData) else images.names
        about = feature_files.About(ids, request.labels, request.class_names, metadata)
        feature_files.write(request.out, chain([first], through), about)
    for _ in through:  # where nothing is written
        pass
    thumbnails = partial(_thumbnails, loaders=loaders, white=subject.white)
    queries = request.queries
    return Embedded(
        count=request.size,
        width=first.shape[1],
        seconds=time.monotonic() - started,
        metadata=metadata,
        nearest=() if nearest is None else _neighbors(nearest),
        drawn=taps.drawn,
        features=taps.features(),
        recorded=recorded,
        not_finite=taps.not_finite,
        thumbnails=partial(thumbnails, images),
        query_thumbnails=() if queries is None else tuple(thumbnails(queries, range(len(queries.blobs)), THUMBNAIL)),
    )


def _threads() -> int:
    return len(os.sched_getaffinity(0))


def _read(target: evaluate.Target) -> ReportRead:
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return ReportRead(time=now, sweep=target.sweep or target.file, trial=target.trial)


class _Taps:
    """What is taken from the rows that go by."""

    def __init__(self, request: Request, nearest: Nearest | None, progress: Progress) -> None:
        self._nearest, self._progress, self._total = nearest, progress, request.size
        count = min(request.drawn, request.size)
        generator = np.random.default_rng(request.seed)
        self.drawn: NDArray[np.int64] = np.sort(generator.choice(request.size, count, replace=False))
        self._taken: list[NDArray[np.floating[Any]]] = []
        self.not_finite = 0

    def through(self, batches: Batches) -> Batches:
        done = 0
        for batch in batches:
            if self._nearest is not None:
                self._nearest.add(batch)
            low, high = np.searchsorted(self.drawn, [done, done + len(batch)])
            self._taken.append(batch[self.drawn[low:high] - done])
            self.not_finite += len(batch) - int(np.isfinite(batch).all(axis=1).sum())
            done += len(batch)
            self._progress(done, self._total)
            yield batch

    def features(self) -> NDArray[np.floating[Any]]:
        return np.concatenate(self._taken)


def _of_images(subject: Subject, images: NamedImages) -> Batches:
    """Features of images in files; RequestError with all that are broken, where one is."""
    from trainers.evaluation import embedding

    try:
        yield from embedding.of_images(subject, images.blobs, threads=_threads())
    except BrokenImageError as error:
        raise RequestError(str(named_images.all_broken(images, error, threads=_threads()))) from error


def _themselves(queries: NamedImages, images: NamedImages | OfData) -> list[int | None]:
    """For each query the row that is the same file."""
    if isinstance(images, OfData):
        return [None] * len(queries.blobs)

    def key(blob: Blob) -> tuple[str, int, int | None]:
        return os.path.realpath(blob.path), blob.offset, blob.size

    rows = {key(blob): row for row, blob in enumerate(images.blobs)}
    return [rows.get(key(blob)) for blob in queries.blobs]


def _neighbors(nearest: Nearest) -> tuple[tuple[Neighbor, ...], ...]:
    return tuple(
        tuple(
            Neighbor(int(row), float(similarity))
            for row, similarity in zip(rows, similarities, strict=True)
            if row >= 0
        )
        for rows, similarities in zip(nearest.rows, nearest.similarities, strict=True)
    )


def _thumbnails(
    source: NamedImages | OfData, rows: Sequence[int], side: int, *, loaders: Loaders, white: int
) -> list[Pixels]:
    from trainers.evaluation import embedding

    if isinstance(source, OfData):
        ids = source.ids[np.asarray(rows, dtype=np.int64)]
        return embedding.thumbnails_of_data(source.dataset, ids, side, loaders=loaders, file=source.file)
    return embedding.thumbnails_of_images([source.blobs[row] for row in rows], side, white=white)


def _sha256(target: evaluate.Target) -> str | None:
    """Of a checkpoint's file; an export's folder has none."""
    from trainers import checkpoint

    if target.checkpoint is None and Path(target.file).is_dir():
        return None
    return (target.checkpoint or checkpoint.find(target.file)).sha256


def _metadata(request: Request, subject: Subject, width: int) -> dict[str, Any]:
    """What is needed to make the features again. No time: equal features make equal files."""
    source = request.images
    of = (
        {"data": source.place, "manifest": source.dataset.manifest_hash, "split": source.split}
        if isinstance(source, OfData)
        else {"skipped": list(request.skipped)}
    )
    return {
        "format": 1,
        "subject": subject.name,
        "digest": subject.digest,
        "checkpoint_sha256": _sha256(request.target),
        "source": subject.source,
        "size": subject.size,
        "mean": list(subject.mean),
        "std": list(subject.std),
        "resampling": subject.resampling,
        "precision": subject.precision,
        "gray_white": subject.white,
        "max_side": subject.max_side,
        "images": request.size,
        "width": width,
        **of,
        "versions": {
            "python": ".".join(map(str, sys.version_info[:3])),
            **{name: version(name) for name in ("pretune", "torch", "numpy", "pillow")},
        },
    }
