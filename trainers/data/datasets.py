"""Sources to data sets: FFCV files with three disjoint splits, written aside and renamed, all of it or nothing.

What a data set is, and how one is opened and checked, is in `trainers.data.manifest`, whose names are here, too.
Building is deterministic: the same source, seed and sizes give the same bytes, whatever the folder or the number of
threads. (JPEGs that are encoded here depend on Pillow's version too.) This module imports neither torch nor FFCV.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import os
import shutil
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainers import storage
from trainers.data.beton import LARGEST_PAGE, LARGEST_SIDE, BetonWriter, file_bytes, page_size_for
from trainers.data.lock import HeldError, held
from trainers.data.manifest import (
    DATA_FILES,
    MANIFEST_FILE,
    REPORT_FILE,
    REPORT_LABELS,
    SEARCH_FILE,
    SEARCH_LABELS,
    Counts,
    Dataset,
    FileRecord,
    LabelList,
    Manifest,
    manifest_text,
    open_dataset,
    quick_hash,
    sha256_of,
    summary,
    verify,
)
from trainers.data.splits import UNLABELED, Integers, carve, check_population, count_of
from trainers.files import sync, write_whole
from trainers.settings import amount

if TYPE_CHECKING:
    from trainers.data.sources.base import Branch, BrokenImageError, Images, Source

log = logging.getLogger(__name__)

__all__ = [
    "MANIFEST_FILE",
    "REPORT_FILE",
    "REPORT_LABELS",
    "SEARCH_FILE",
    "SEARCH_LABELS",
    "Counts",
    "Dataset",
    "FileRecord",
    "Manifest",
    "build",
    "ensure_builtin",
    "kinds",
    "open_dataset",
    "summary",
    "verify",
]

Progress = Callable[[int, int], None]
Understood = Callable[[Sequence["Branch"], Sequence[str]], None]
Split = Literal["train", "select", "report", "unlabeled"]
SPLITS: tuple[Split, ...] = ("train", "select", "unlabeled", "report")  # the order in which they are written

RAW_SIDE = 64  # images that all share one size up to this are stored as pixels, others as JPEG
JPEG_QUALITY = 95  # of images that are encoded here, without chroma subsampling
BUILTIN_WAIT_S = 300.0  # for another process that builds the digits, which takes about two seconds
ELSEWHERE = "build it elsewhere with `pretune data … --out DIR`"  # a remedy for a sweep that builds the digits as well


def kinds() -> dict[str, str]:
    """Every kind that `build` knows, with one line on what its source looks like."""
    from trainers.data import sources

    return {name: kind.layout for name, kind in sources.KINDS.items()}


def ensure_builtin(name: str, root: Path) -> Dataset:
    """The data set `root/name`, built first if it is missing; only "digits" is built in. Processes may race for it."""
    if name != "digits":
        raise ValueError(
            f"{name!r} is not built in, only 'digits' is; build it with `pretune data {name}` and give its folder"
        )
    out = Path(root) / name
    if not (out / MANIFEST_FILE).is_file():
        with _lock(out, wait_s=BUILTIN_WAIT_S):
            if not (out / MANIFEST_FILE).is_file():
                return _build_locked(_Request(kind=name, out=out))
    return open_dataset(out)


def build(
    kind: str,
    *,
    source: Sequence[Path] = (),
    unlabeled: Path | None = None,
    out: Path,
    max_side: int | None = None,
    split_seed: int = 0,
    select_images: int | str | None = None,
    report_images: int | str | None = None,
    progress: Progress | None = None,
    download: bool = False,
    layout: str = "auto",
    arrays: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    classes: str | None = None,
    skip_broken: float | None = None,
    understood: Understood | None = None,
    threads: int = 2,
) -> Dataset:
    """Write a data set of `kind` (see `kinds()`) to the new folder `out`, all of it or nothing.

    `source`: what the kind reads. `unlabeled`: a folder of images, a tar, an npz with `images`, or STL-10's
    unlabeled_X.bin; they join pretraining only. Without a `source` they are the whole data set, which then has no
    labels, as one of a flat folder of images has none. `max_side`: bring the longer side down to so many pixels.
    `select_images` and `report_images` are counts, or shares of the source's training part ("10%"), stratified. The
    first defaults to 500 for digits, else to a tenth of the training part, at least 500 and at most 50,000, but never
    more than a quarter; the second, used where the source has no test part, to a sixth, at most 50,000.
    `progress(done, total)` is called often, from this thread. `download`: let torchvision fetch CIFAR or STL-10 (into
    `source`, if given). `layout`: of images, which folders are parts and which are classes, where names leave that open
    (`parts`, `classes`); of an npz, which axis holds the channels (`channels-first`, `channels-last`). `arrays`: by
    which key an npz holds `images`, `labels`, `test_images`, `test_labels`. `columns`: by which column a table
    holds `path`, `label`, `split`. `classes`: only these, a file with one a line or the name of a published list.
    `skip_broken`: leave images out that do
    not decode, and list them in the manifest, up to so many percent of all; every image is then decoded once more,
    before the splits are drawn. `understood` gets what the source was taken for, before anything is written: a tree,
    and notes.

    An RGB JPEG that is upright and within `max_side` keeps its bytes; everything else is stored as pixels (all of one
    size, at most 64 px) or encoded once, at quality 95 with full chroma. Unlabeled images of another size than
    fixed-size pixels are scaled and center-cropped to it. Raises ValueError naming the file, the rule, the value and
    the remedy.
    """
    request = _Request(
        kind=kind.replace("_", "-"),
        out=Path(os.path.abspath(out)),
        source=tuple(Path(path) for path in source),
        unlabeled=None if unlabeled is None else Path(unlabeled),
        max_side=max_side,
        split_seed=split_seed,
        select_images=select_images,
        report_images=report_images,
        progress=progress or _silent,
        download=download,
        layout=layout,
        arrays=arrays,
        columns=columns,
        classes=classes,
        skip_broken=skip_broken,
        understood=understood,
        threads=threads,
    )
    for name, value, least in (("max_side", max_side, 4), ("threads", threads, 1), ("split_seed", split_seed, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, but is {value}; raise it")
    for name, asked in (("--select", select_images), ("--report", report_images)):
        if asked is not None:
            amount(asked, name)
    if skip_broken is not None and not 0 <= skip_broken <= 100:
        raise ValueError(f"skip_broken must be 0 to 100 percent, but is {skip_broken:g}; change it")
    _refuse_existing(request.out)
    from PIL import Image

    with _lock(request.out, wait_s=0.0), warnings.catch_warnings():
        # Of an image twice as large Pillow makes an error, which is told with the file's name.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return _build_locked(request)


# ---- building ------------------------------------------------------------------------------------------------------


def _silent(done: int, total: int) -> None:
    """No progress wanted."""


class _Request(NamedTuple):
    kind: str
    out: Path
    source: tuple[Path, ...] = ()
    unlabeled: Path | None = None
    max_side: int | None = None
    split_seed: int = 0
    select_images: int | str | None = None
    report_images: int | str | None = None
    progress: Progress = _silent
    download: bool = False
    layout: str = "auto"
    arrays: Mapping[str, str] | None = None
    columns: Mapping[str, str] | None = None
    classes: str | None = None
    skip_broken: float | None = None
    understood: Understood | None = None
    threads: int = 2


class _Rows(NamedTuple):
    """One split on its way to the file."""

    split: Split
    images: Images
    indices: Integers
    labels: Integers


class _Plan(NamedTuple):
    """What the headers of all images say about how to store them."""

    encoding: Literal["raw", "jpeg"]
    fixed_size: tuple[int, int] | None
    min_size: tuple[int, int]
    max_size: tuple[int, int]
    page_size: int
    white: int


class _Prepared(NamedTuple):
    """One image, ready to be written. `histogram`: counts of the 256 values of each channel, [3, 256]; `picture`: see
    `trainers.data.duplicates`.
    """

    payload: bytes
    height: int
    width: int
    digest: bytes
    histogram: NDArray[np.int64]
    picture: bytes
    encoded: bool


class _Written(NamedTuple):
    """What one split's images were. `digests`: the first 64 bits of each image's hash of pixels, [n]; `pictures`: each
    one's small picture, [n, …].
    """

    digests: NDArray[np.uint64]
    pictures: NDArray[np.uint8]
    content: str
    histogram: NDArray[np.int64]
    encoded: int


def _build_locked(request: _Request) -> Dataset:
    """Build aside, then rename: the caller holds the lock, so whatever lies aside is left over from a build that
    was killed.
    """
    from trainers.data import sources
    from trainers.data.sources.base import BrokenImageError

    out = request.out
    _refuse_existing(out)
    for leftover in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    staging = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.partial"
    staging.mkdir()
    try:
        scratch = staging / "scratch"
        scratch.mkdir()
        arrays, columns = request.arrays or {}, request.columns or {}
        sources.check(request.kind, layout=request.layout, arrays=arrays, columns=columns, classes=request.classes)
        unlabeled = None if request.unlabeled is None else _unlabeled(request, request.unlabeled, scratch)
        alone = unlabeled is not None and not (request.source or request.download)
        if (
            unlabeled is not None
            and request.unlabeled is not None
            and alone
            and request.kind in sources.UNLABELED_ALONE
        ):
            source, unlabeled = sources.without_labels(request.kind, [request.unlabeled], unlabeled), None
        else:
            source = sources.load(
                request.kind,
                request.source,
                scratch=scratch,
                download=request.download,
                layout=request.layout,
                arrays=arrays,
                columns=columns,
                classes=request.classes,
            )
        if request.understood is not None:
            notes = (*source.notes, *(() if unlabeled is None else unlabeled.notes))
            request.understood(sources.outline(source, unlabeled), notes)
        skipped: list[BrokenImageError] = []
        if request.skip_broken is not None:
            source, unlabeled, skipped = _without_broken(request, source, unlabeled)
        try:
            manifest = _write(request, source, unlabeled, staging)
        except BrokenImageError as error:
            raise _all_broken(request, source, unlabeled, error) from error
        manifest = manifest.model_copy(update={"broken": tuple(_path_in_source(request, one.name) for one in skipped)})
        shutil.rmtree(scratch)
        write_whole(staging / MANIFEST_FILE, manifest_text(manifest))
        staging.rename(out)
        sync(out.parent)
    except OSError as error:
        full = storage.is_full(error)
        remedy = f"free some disk space or {ELSEWHERE}" if full else "check that it exists, and who may use it"
        raise ValueError(
            f"{error.filename or out}: could not be read or written ({error.strerror or error}); {remedy}"
        ) from error
    finally:
        # Also on Ctrl-C. After the rename nothing lies here any more.
        shutil.rmtree(staging, ignore_errors=True)
    return open_dataset(out)


def _unlabeled(request: _Request, path: Path, scratch: Path) -> Images:
    """What was said of an npz or a table holds for the unlabeled one, too."""
    from trainers.data import sources
    from trainers.data.sources.base import CHANNELS, Channels

    channels: Channels = next((one for one in CHANNELS if one == request.layout), "auto")
    return sources.load_unlabeled(
        path,
        scratch=scratch,
        channels=channels,
        key=(request.arrays or {}).get("images", "images"),
        columns=request.columns or {},
    )


def _without_broken(
    request: _Request, source: Source, unlabeled: Images | None
) -> tuple[Source, Images | None, list[BrokenImageError]]:
    """(source and unlabeled images without the broken ones, these). ValueError, listing them, where they are more than
    was asked for.
    """
    from trainers.data.sources import broken
    from trainers.data.sources.base import SelectedImages

    assert request.skip_broken is not None
    parts = _files_of(source, unlabeled)
    total = sum(map(len, parts.values()))
    tally = _Tally(request.progress, total)
    found = {name: broken.find(part, threads=request.threads, advance=tally.advance) for name, part in parts.items()}
    errors = [error for part in found.values() for error in part.values()]
    if len(errors) > total * request.skip_broken / 100:
        raise broken.refusal(errors, total, bound=request.skip_broken)
    if unlabeled is not None:
        bad = found["unlabeled"]
        unlabeled = SelectedImages(unlabeled, [index for index in range(len(unlabeled)) if index not in bad])
    return broken.without(source, found), unlabeled, errors


def _all_broken(request: _Request, source: Source, unlabeled: Images | None, first: BrokenImageError) -> ValueError:
    """What to say of the first broken image that was met: all there are, which takes decoding the others, too."""
    from trainers.data.sources import broken

    parts = _files_of(source, unlabeled)
    errors = [error for part in parts.values() for error in broken.find(part, threads=request.threads).values()]
    return broken.refusal(errors or [first], sum(map(len, parts.values())))


def _files_of(source: Source, unlabeled: Images | None) -> dict[str, Images]:
    parts = {"train": source.train.images, "test": None if source.test is None else source.test.images}
    return {name: part for name, part in {**parts, "unlabeled": unlabeled}.items() if part is not None}


def _path_in_source(request: _Request, name: str) -> str:
    """Its path from the source's own folder on: a manifest holds no absolute path."""
    from trainers.data.sources.base import shown

    for path in (*request.source, *([] if request.unlabeled is None else [request.unlabeled])):
        if name.startswith(shown(path)):
            return shown(path.resolve().name) + name[len(shown(path)) :]
    return name.rsplit("/", 1)[-1]


def _contradictions(request: _Request, splits: Mapping[Split, _Rows], written: Mapping[Split, _Written]) -> int:
    """How many images have pixels that occur under another label as well; the first are named."""
    from trainers.data import duplicates

    labeled = [split for split in written if split != "unlabeled"]
    digests = np.concatenate([written[split].digests for split in labeled])
    labels = np.concatenate([splits[split].labels for split in labeled])
    names = [(split, row) for split in labeled for row in range(len(splits[split].labels))]
    groups = duplicates.contradicting(digests, labels)
    if not groups:
        return 0
    count = sum(map(len, groups))
    few = [" = ".join(_named(splits, *names[row]) for row in group[:3]) for group in groups[:_NAMED]]
    _say(request, f"{count:,} images have equal pixels and different labels: {_listed(few, len(groups))}")
    return count


def _near_duplicates(
    request: _Request, splits: Mapping[Split, _Rows], written: Mapping[Split, _Written]
) -> dict[str, int]:
    """How many images of `select` and `report` are nearly equal to one of `train`, equal ones apart; the first are
    named.
    """
    from trainers.data import duplicates

    found: dict[str, int] = {}
    judging: tuple[Split, ...] = ("select", "report")
    for split in judging:
        apart = np.flatnonzero(~np.isin(written[split].digests, written["train"].digests))
        near = duplicates.near(written[split].pictures[apart], written["train"].pictures)
        if count := len(near.rows):
            found[f"{split}/train"] = count
            few = [
                f"{_named(splits, split, int(apart[row]))} ~ {_named(splits, 'train', int(other))}"
                for row, other in zip(near.rows[:_NAMED], near.others[:_NAMED], strict=True)
            ]
            which = f"1 image of {split} is" if count == 1 else f"{count:,} images of {split} are"
            _say(request, f"{which} nearly equal to one of train: {_listed(few, count)}")
    return found


def _label_lists(splits: Mapping[Split, _Rows]) -> dict[str, LabelList]:
    """Which images papers take where they take few labels, if they are ImageNet's, by their files' names."""
    from trainers.data.sources import published

    labeled = [splits["train"], splits["select"], splits["report"]]
    names = (rows.images.name(index) for rows in labeled for index in rows.indices.tolist())
    count = sum(len(rows.indices) for rows in labeled[:2])
    return {
        share: LabelList.of(np.array([place for place in found.places if place < count]), count, listed=found.listed)
        for share, found in published.few_labels(names).items()
    }


_NAMED = 3  # examples


def _named(splits: Mapping[Split, _Rows], split: Split, row: int) -> str:
    rows = splits[split]
    return rows.images.name(int(rows.indices[row]))


def _listed(few: Sequence[str], count: int) -> str:
    return "; ".join(few) + (f"; and {count - len(few):,} more" if count > len(few) else "")


def _say(request: _Request, text: str) -> None:
    if request.understood is not None:
        request.understood((), (text,))


def _write(request: _Request, source: Source, unlabeled: Images | None, folder: Path) -> Manifest:
    from trainers.data import duplicates

    splits = _split(request, source)
    if unlabeled is not None:
        count = len(unlabeled)
        if not count:
            raise ValueError(
                f"{request.unlabeled}: the unlabelled images must be at least one, but are none; leave it out"
            )
        splits.insert(2, _Rows("unlabeled", unlabeled, np.arange(count), np.full(count, UNLABELED, dtype=np.int64)))
    tally = _Tally(request.progress, _scan_count(splits) + sum(len(rows.indices) for rows in splits))
    plan = _scan(request, splits, folder, tally)
    written: dict[Split, _Written] = {}
    for name, members in ((SEARCH_FILE, splits[:-1]), (REPORT_FILE, splits[-1:])):
        count = sum(len(rows.indices) for rows in members)
        with BetonWriter(folder / name, rows=count, page_size=plan.page_size) as writer:
            for rows in members:
                written[rows.split] = _write_rows(request, rows, plan, writer, tally)
            writer.finish()
    np.save(folder / SEARCH_LABELS, np.concatenate([rows.labels for rows in splits[:-1]]))
    np.save(folder / REPORT_LABELS, splits[-1].labels)
    for name in (SEARCH_LABELS, REPORT_LABELS):
        sync(folder / name)
    mean, std = _moments(written["train"].histogram)
    by_name = {rows.split: rows for rows in splits}
    twice = duplicates.equal({split: part.digests for split, part in written.items()})
    leaks = {pair: n for pair, n in twice.items() if n}
    if leaks:
        log.warning(
            "%s: images with equal pixels: %s", source.description, ", ".join(f"{p} {n}" for p, n in leaks.items())
        )
    contradictions = _contradictions(request, by_name, written) if source.class_names else 0
    nearly = _near_duplicates(request, by_name, written)
    labeled = bool(source.class_names)
    return Manifest(
        format_version=1 if labeled else 2,
        kind=request.kind,
        source=source.description,
        class_names=source.class_names,
        counts=Counts(**{name: len(by_name[name].indices) if name in by_name else 0 for name in SPLITS}),
        class_counts={
            name: tuple(np.bincount(by_name[name].labels, minlength=len(source.class_names)).tolist())
            if labeled
            else ()
            for name in ("train", "select", "report")
        },
        encoding=plan.encoding,
        fixed_size=plan.fixed_size,
        min_size=plan.min_size,
        max_size=plan.max_size,
        mean=mean,
        std=std,
        split_seed=request.split_seed,
        report_origin="carved" if source.test is None else "source",
        max_side=request.max_side,
        reencoded=sum(part.encoded for part in written.values()),
        skipped=source.skipped,
        gray_white=plan.white,
        duplicates=twice,
        contradictions=contradictions,
        near_duplicates=nearly,
        label_lists=_label_lists(by_name) if labeled else {},
        content={split: part.content for split, part in written.items()},
        files={
            name: FileRecord(
                bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name), quick=quick_hash(folder / name)
            )
            for name in DATA_FILES
        },
    )


def _write_rows(request: _Request, rows: _Rows, plan: _Plan, writer: BetonWriter, tally: _Tally) -> _Written:
    """Append one split to a file, in order."""
    from trainers.data import duplicates

    content, digests = hashlib.sha256(), np.zeros(len(rows.indices), dtype=np.uint64)
    pictures = np.zeros((len(rows.indices), duplicates.WIDTH * duplicates.HEIGHT), dtype=np.uint8)
    histogram, encoded = np.zeros((3, 256), dtype=np.int64), 0
    for number, image in enumerate(_prepare_all(request, rows, plan)):
        label = int(rows.labels[number])
        try:
            writer.add(image.payload, height=image.height, width=image.width, encoding=plan.encoding, label=label)
        except ValueError as error:
            name = rows.images.name(int(rows.indices[number]))
            raise ValueError(f"{name}: {error}, for example with --max-side") from error
        content.update(image.digest + label.to_bytes(8, "little", signed=True))
        digests[number] = int.from_bytes(image.digest[:8], "little")
        pictures[number] = np.frombuffer(image.picture, dtype=np.uint8)
        histogram += image.histogram
        encoded += image.encoded
        tally.advance()
    return _Written(digests, pictures, content.hexdigest(), histogram, encoded)


def _split(request: _Request, source: Source) -> list[_Rows]:
    """train, select, report."""
    pool, names, where = source.train.labels, source.class_names, source.description
    key, digits = f"split/{request.split_seed}", request.kind == "digits"
    if not len(pool):
        raise ValueError(f"{where}: there must be images to train on, but there are none; check the source")
    strata, least = pool, len(names)
    if not names:
        # As one class that has no name. A rank or a spread takes two images.
        strata, names, least = np.zeros_like(pool), ("",), 2
        if len(pool) < (most := 5 if source.test is None else 3):
            raise ValueError(
                f"{where}: there must be at least {most} images for the splits, but there are {len(pool)}; add some"
            )
    check_population(strata, 2 if source.test is not None else 3, class_names=names, where=where)
    if source.test is not None:
        if request.report_images is not None:
            raise ValueError(
                f"report_images is for sources without a test part, but {where} has its own test part; leave it out"
            )
        sizes = []
        report = _Rows("report", source.test.images, np.arange(len(source.test.labels)), source.test.labels)
    else:
        usual = 300 if digits else min(len(pool) // 6, 50_000)
        sizes = [
            _share(
                "report",
                request.report_images,
                usual,
                len(pool),
                len(pool),
                most=len(pool) - least - len(names),
                least=least,
            )
        ]
    left = len(pool) - sum(sizes)
    usual = 500 if digits else min(max(left // 10, 500), 50_000, left // 4)
    sizes.append(_share("select", request.select_images, usual, left, len(pool), most=left - len(names), least=least))
    *carved, select, train = carve(strata, sizes, key=key, class_names=names, where=where)
    images = source.train.images
    if source.test is None:
        report = _Rows("report", images, carved[0], pool[carved[0]])
    return [_Rows("train", images, train, pool[train]), _Rows("select", images, select, pool[select]), report]


def _share(
    split: str, asked: int | str | None, usual: int, available: int, whole: int, *, least: int, most: int
) -> int:
    """The size of a split: what was asked, a count or a share of the `whole` training part, if that leaves one image of
    each class here and in the others.
    """
    if asked is None:
        return min(max(usual, least), most)
    count = count_of(amount(asked, f"--{split}"), whole)
    if not least <= count <= most:
        found = f"{count}" if isinstance(asked, int) else f"{asked}, which is {count}"
        raise ValueError(
            f"the {split} split must take {least} to {most} of {available} images, but was asked for {found}; change it"
        )
    return count


def _scan_count(splits: Sequence[_Rows]) -> int:
    return sum(len(rows.indices) for rows in splits if rows.images.uniform is None)


def _scan(request: _Request, splits: Sequence[_Rows], folder: Path, tally: _Tally) -> _Plan:
    """Read every header, decide how to store, and refuse what does not fit on the disk before a byte is written."""
    from trainers.data.sources.base import target_size

    labeled: set[tuple[int, int]] = set()
    sizes: set[tuple[int, int]] = set()
    payload = largest = count = 0
    wide: list[tuple[Images, int]] = []
    for rows in splits:
        for index in [0] if rows.images.uniform else rows.indices.tolist():
            shape = rows.images.shape(index)
            height, width = target_size(shape.height, shape.width, request.max_side)
            if max(height, width) > LARGEST_SIDE:
                raise ValueError(
                    f"{rows.images.name(index)}: sides must be at most {LARGEST_SIDE} pixels, but are "
                    f"{width}x{height}; use --max-side"
                )
            repeats = len(rows.indices) if rows.images.uniform else 1
            sizes.add((height, width))
            if shape.wide:
                wide.append((rows.images, index))
            if rows.split != "unlabeled":
                labeled.add((height, width))
            resized = (height, width) != (shape.height, shape.width)
            # Natural images of quality 95 with full chroma take a fifth to a third of their pixels' bytes.
            size = height * width * 3 // 2 if shape.jpeg is None or resized else shape.jpeg
            payload, largest, count = payload + size * repeats, max(largest, size), count + repeats
            if not rows.images.uniform:
                tally.advance()
    fixed = next(iter(labeled)) if len(labeled) == 1 else None
    raw = fixed is not None and max(fixed) <= RAW_SIDE
    if fixed is not None and raw:
        # Unlabeled images of other sizes are brought to the labeled ones' size.
        sizes = {fixed}
        largest = fixed[0] * fixed[1] * 3
        payload = largest * count
    page_size = min(page_size_for(largest), LARGEST_PAGE)
    need = file_bytes(count, payload, largest, page_size) + page_size + 16 * count  # two files, and the labels
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ValueError(
            f"{request.out}: the data set needs about {need / 2**20:,.0f} MiB, but {free / 2**20:,.0f} MiB are free "
            f"on that disk; "
            f"free some, {ELSEWHERE}, or lower --max-side"
        )
    heights, widths = zip(*sizes, strict=True)
    return _Plan(
        encoding="raw" if raw else "jpeg",
        fixed_size=next(iter(sizes)) if len(sizes) == 1 else None,
        min_size=(min(heights), min(widths)),
        max_size=(max(heights), max(widths)),
        page_size=page_size,
        white=_white(request, wide),
    )


def _white(request: _Request, wide: Sequence[tuple[Images, int]]) -> int:
    """What 16-bit gray is taken for white: all values that the bits in use can have. A camera of 12 bits would give an
    almost black picture otherwise. Said where it is not all 16.
    """
    from trainers.data.sources.base import WHITE

    if not wide:
        return WHITE
    ranges = (255, 1023, 4095, 16383)
    brightest = 0
    for images, index in wide:
        brightest = max(brightest, images.brightest(index))
        if brightest > ranges[-1]:
            return WHITE
    white = next(top for top in ranges if brightest <= top)
    said = f"{len(wide):,} images of 16-bit gray use {white.bit_length()} bits, up to {brightest:,}"
    _say(request, f"{said}: 0 to {white:,} become black to white")
    return white


def _prepare_all(request: _Request, rows: _Rows, plan: _Plan) -> Iterator[_Prepared]:
    """Every image of a split, in order, decoded and encoded by a few threads (Pillow releases the lock while it
    works).
    """
    chunk = 32
    indices = rows.indices.tolist()
    pending: deque[Future[list[_Prepared]]] = deque()

    def prepare(part: list[int]) -> list[_Prepared]:
        return [_prepare(rows, index, plan, request.max_side) for index in part]

    with ThreadPoolExecutor(max(1, request.threads)) as pool:
        try:
            for start in range(0, len(indices), chunk):
                pending.append(pool.submit(prepare, indices[start : start + chunk]))
                if len(pending) > 2 * request.threads:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _prepare(rows: _Rows, index: int, plan: _Plan, max_side: int | None) -> _Prepared:
    import io

    from PIL import Image, ImageOps

    from trainers.data.duplicates import picture
    from trainers.data.sources.base import target_size

    image, jpeg = rows.images.read(index, plan.white)
    height, width = target_size(image.height, image.width, max_side)
    if (height, width) != (image.height, image.width):
        image, jpeg = image.resize((width, height), Image.Resampling.LANCZOS), None
    if plan.encoding == "raw" and plan.fixed_size is not None and (height, width) != plan.fixed_size:
        height, width = plan.fixed_size
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    pixels = image.tobytes()
    encoded = plan.encoding == "jpeg" and jpeg is None
    if plan.encoding == "raw":
        payload = pixels
    elif jpeg is not None:
        payload = jpeg
    else:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        payload = buffer.getvalue()
    digest = hashlib.blake2b(pixels, digest_size=16, key=f"{height}x{width}".encode()).digest()
    histogram = np.array(image.histogram(), dtype=np.int64).reshape(3, 256)
    return _Prepared(payload, height, width, digest, histogram, picture(image), encoded)


class _Tally:
    """Counts headers read and images written, and says so at every hundredth of the whole."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self._step = max(1, total // 200)
        progress(0, total)

    def advance(self) -> None:
        self._done += 1
        if self._done % self._step == 0 or self._done == self._total:
            self._progress(self._done, self._total)


def _moments(histogram: NDArray[np.int64]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel, on a 0 to 1 scale, over all pixels; sums are of integers, so
    exact.
    """
    mean, std = [], []
    for channel in histogram.tolist():
        count = sum(channel)
        first = sum(value * n for value, n in enumerate(channel))
        second = sum(value * value * n for value, n in enumerate(channel))
        mean.append(first / count / 255)
        std.append(max(0.0, (second * count - first * first) / (count * count)) ** 0.5 / 255)
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


# ---- files


def _refuse_existing(out: Path) -> None:
    if (out / MANIFEST_FILE).exists():
        raise ValueError(
            f"{out}: a data set lies there already and is never overwritten; use it, remove it, or {ELSEWHERE}"
        )
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out}: the output must be a new or empty folder, but something else lies there; {ELSEWHERE}")


@contextlib.contextmanager
def _lock(out: Path, *, wait_s: float) -> Iterator[None]:
    """Held by one process at a time for each `out`."""
    lock = contextlib.ExitStack()
    try:
        lock.enter_context(held(out, wait_s=wait_s))
    except HeldError as error:
        raise ValueError(
            f"{out}: only one process may build it, but another does so now; wait for it, or {ELSEWHERE}"
        ) from error
    except OSError as error:
        raise ValueError(
            f"{out.parent}: must be a folder that can be written to ({error.strerror}); {ELSEWHERE}"
        ) from error
    with lock:
        yield
