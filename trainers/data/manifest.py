"""A data set on disk: what its manifest says, how it is opened, and how its files are checked. Builds nothing.

A data set is a folder that holds

    manifest.json        source, counts, classes, sizes, channel means, hashes; its own sha256 is the data set's name
    search.beton         FFCV file, rows in the order train | select | unlabeled; fields `image` and `label`
    report.beton         FFCV file, the split that is read once, by `pretune finalize`
    search_labels.npy    int64, one per row of search.beton; -1 for an unlabeled image
    report_labels.npy    int64, one per row of report.beton

This module imports neither torch nor FFCV.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from trainers.data.splits import Integers, count_of, stratified_order
from trainers.upgrade import understood

FORMAT: Final = 2
"""The newest of a manifest, raised when an older version would misread it; all older ones stay readable, and are still
written where they say all there is. A key that is merely added needs no other format: who does not know it passes over
it. 2: images without labels.
"""
MANIFEST_FILE = "manifest.json"
SEARCH_FILE, REPORT_FILE = "search.beton", "report.beton"
SEARCH_LABELS, REPORT_LABELS = "search_labels.npy", "report_labels.npy"
DATA_FILES = (SEARCH_FILE, REPORT_FILE, SEARCH_LABELS, REPORT_LABELS)


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileRecord(_Stored):
    """`quick` is a hash of the size, both ends and 256 blocks between: it takes milliseconds whatever the size."""

    bytes: int
    sha256: str
    quick: str


class LabelList(_Stored):
    """Which images of `train` and `select` are on a published list of few labels (`sources.published.few_labels`)."""

    listed: int
    """Images on the list that are of the data set's classes; those that are not in `rows` are in `report`, or missing.
    """
    rows: str
    """A bit for each row of `train` and `select`, the first one highest; zlib, base64."""

    @classmethod
    def of(cls, rows: Integers, count: int, *, listed: int) -> LabelList:
        """`count` is that of all rows of `train` and `select`."""
        bits = np.zeros(count, dtype=bool)
        bits[rows] = True
        return cls(listed=listed, rows=base64.b64encode(zlib.compress(np.packbits(bits).tobytes(), 9)).decode())

    @property
    def ids(self) -> Integers:
        """Rows of the search file, ascending. ValueError where they are not readable."""
        try:
            packed = np.frombuffer(zlib.decompress(base64.b64decode(self.rows)), dtype=np.uint8)
        except (ValueError, zlib.error) as error:
            raise ValueError("the manifest's label_lists are damaged; build the data set again") from error
        return np.flatnonzero(np.unpackbits(packed))


class Counts(_Stored):
    train: int
    select: int
    report: int
    unlabeled: int


class Manifest(_Stored):
    """What a data set is. Sizes are (height, width) in pixels; `mean` and `std` are of train's RGB channels on a 0
    to 1 scale.
    """

    format_version: Literal[1, 2] = 1
    kind: str
    source: str
    class_names: tuple[str, ...]
    """None where the images have no labels."""
    counts: Counts
    class_counts: Mapping[str, tuple[int, ...]]
    """Images per class in `train`, `select` and `report`."""
    encoding: Literal["raw", "jpeg"]
    fixed_size: tuple[int, int] | None
    """The size of every image, or None where they differ."""
    min_size: tuple[int, int]
    max_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    split_seed: int
    report_origin: Literal["source", "carved"]
    """Whether `report` is the source's own test part, or was carved from its only part."""
    max_side: int | None
    reencoded: int
    """Images whose JPEG bytes were made here (quality 95, full chroma) instead of taken from the source."""
    skipped: int
    """Files of the source that were left out because they are no images."""
    broken: tuple[str, ...] = ()
    """Images that were left out because they do not decode, by their paths in the source; `--skip-broken`."""
    gray_white: int = 65535
    """The value of 16-bit gray that was taken for white: lower where all such images use fewer bits."""
    duplicates: Mapping[str, int]
    """`a/b`: images of `a` whose pixels occur in `b` too; `train/train`: images of `train` that repeat an earlier
    one.
    """
    contradictions: int = 0
    """Images with labels whose pixels occur under another label as well."""
    near_duplicates: Mapping[str, int] = {}
    """`select/train`, `report/train`: images of the first that are nearly equal to one of the other, equal ones apart
    (`trainers.data.duplicates`); only where there are some.
    """
    label_lists: Mapping[str, LabelList] = {}
    """By share ("1%", "10%"), of data sets that were written from ImageNet; only where there are some."""
    content: Mapping[str, str]
    """sha256 over every image's decoded pixels and label, per split: independent of how the file stores them."""
    files: Mapping[str, FileRecord]


@dataclass(frozen=True)
class Dataset:
    """An opened data set. Sample ids are row numbers of the search file: train, then select, then unlabeled."""

    folder: Path
    manifest: Manifest
    manifest_hash: str

    @property
    def train_count(self) -> int:
        return self.manifest.counts.train

    @property
    def select_count(self) -> int:
        return self.manifest.counts.select

    @property
    def report_count(self) -> int:
        return self.manifest.counts.report

    @property
    def unlabeled_count(self) -> int:
        return self.manifest.counts.unlabeled

    @property
    def class_count(self) -> int:
        return len(self.manifest.class_names)

    @property
    def has_labels(self) -> bool:
        """Whether anybody says what is on the images that are not merely `unlabeled`. Nothing can be probed without."""
        return bool(self.manifest.class_names)

    @property
    def search_file(self) -> Path:
        return self.folder / SEARCH_FILE

    @property
    def report_file(self) -> Path:
        return self.folder / REPORT_FILE

    @property
    def train_ids(self) -> Integers:
        """Rows of the search file, [train]."""
        return np.arange(self.train_count, dtype=np.int64)

    @property
    def select_ids(self) -> Integers:
        """Rows of the search file, [select]."""
        return np.arange(self.train_count, self.train_count + self.select_count, dtype=np.int64)

    @property
    def unlabeled_ids(self) -> Integers:
        """Rows of the search file, [unlabeled]."""
        start = self.train_count + self.select_count
        return np.arange(start, start + self.unlabeled_count, dtype=np.int64)

    def pretrain_ids(self, subset: int | str | None = None) -> Integers:
        """Rows to pretrain on, sorted: `train` and the unlabeled images, or a stratified `subset` of `train` of that
        size or share ("10%").

        The subset is a function of the data set alone; smaller ones lie inside larger ones.
        """
        if subset is None:
            return np.concatenate([self.train_ids, self.unlabeled_ids])
        count = count_of(subset, self.train_count)
        if not 1 <= count <= self.train_count:
            raise ValueError(
                f"data.subset must be 1 to {self.train_count} (the images of `train` in {self.folder}), but is "
                f"{subset}; lower it"
            )
        labels = self.search_labels()[: self.train_count]
        return np.sort(stratified_order(labels, f"subset/{self.manifest.split_seed}")[:count])

    def search_labels(self) -> Integers:
        """Labels of the search file's rows, [train + select + unlabeled]; -1 where unlabeled."""
        counts = self.manifest.counts
        return self._labels(SEARCH_LABELS, counts.train + counts.select + counts.unlabeled)

    def report_labels(self) -> Integers:
        """Labels of the report file's rows, [report]."""
        return self._labels(REPORT_LABELS, self.report_count)

    def _labels(self, name: str, count: int) -> Integers:
        path = self.folder / name
        _check_hash(path, self.manifest.files[name].sha256, sha256_of(path))
        labels: Integers = np.load(path, allow_pickle=False)
        if labels.shape != (count,) or labels.dtype != np.int64:
            raise ValueError(
                f"{path}: must hold {count} int64 labels, but holds {labels.dtype} {list(labels.shape)}; build it again"
            )
        return labels


def open_dataset(path: str | Path, *, expected_hash: str | None = None, files: Sequence[str] = DATA_FILES) -> Dataset:
    """Read and check the manifest and the sizes of `files`. Builds nothing, hashes nothing large.

    Raises ValueError where the folder is no data set, is incomplete, or is another one than `expected_hash` (the
    sha256 of manifest.json) says.
    """
    folder = Path(path)
    try:
        text = (folder / MANIFEST_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"{folder}: a data set is a folder with a {MANIFEST_FILE}, but there is none; build it with `pretune "
            f"data`, or check the path"
        ) from error
    except OSError as error:
        raise ValueError(
            f"{folder / MANIFEST_FILE}: cannot be read ({error.strerror}); check who may read it"
        ) from error
    found = hashlib.sha256(text).hexdigest()
    if expected_hash is not None and found != expected_hash:
        raise ValueError(
            f"{folder}: the run was made for the data set {expected_hash[:12]}, but this one is {found[:12]}; "
            "name the folder with the original data, or start a new run"
        )
    manifest = parse_manifest(text, folder / MANIFEST_FILE)
    for name in files:
        record = manifest.files.get(name)
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if record is None or size != record.bytes:
            rule = "must be listed in the manifest" if record is None else f"must have {record.bytes} bytes"
            raise ValueError(f"{folder / name}: {rule}, but {_says(size)}; build the data set again")
    return Dataset(folder, manifest, found)


def parse_manifest(text: bytes, place: object) -> Manifest:
    """What `text`, the bytes of a manifest.json, says; keys that this version does not know are passed over.

    ValueError, naming `place`, where it is no manifest, or of a format that is newer than this version.
    """
    values = _parsed(text)
    version = values.get("format_version")
    if isinstance(version, int) and version > FORMAT:
        raise ValueError(
            f"{place}: has format {version}, but this version of pretune reads up to {FORMAT}; use a newer one"
        )
    try:
        return understood(Manifest.model_validate, values)[0]
    except ValidationError as error:
        raise ValueError(f"{place}: not a manifest of this version ({_first_fault(error)}); build it again") from error


def manifest_text(manifest: Manifest) -> str:
    """What manifest.json says. A key of a later version that says nothing is left out: the text, whose hash is the
    data set's name, is then what an older version wrote of the same source.
    """
    added = ("broken", "gray_white", "contradictions", "near_duplicates", "label_lists")
    silent = {key for key in added if getattr(manifest, key) == Manifest.model_fields[key].default}
    return manifest.model_dump_json(indent=1, exclude=silent) + "\n"


def verify(dataset: Dataset, *, files: Sequence[str] | None = None, full: bool = True) -> None:
    """Compare the files' bytes with the manifest: all bytes, or with `full=False` the quick hash (milliseconds).

    `files` defaults to all four; a search passes `(SEARCH_FILE,)`, so that it never opens the report split. A file
    that was hashed once by this process and has not been touched since is not hashed again. Raises ValueError, naming
    the file.
    """
    for name in DATA_FILES if files is None else files:
        path, record = dataset.folder / name, dataset.manifest.files[name]
        if full:
            _check_hash(path, record.sha256, sha256_of(path))
        else:
            _check_hash(path, record.quick, quick_hash(path))


def summary(dataset: Dataset) -> dict[str, str]:
    """A data set in words, for a terminal: what a row is called, and what it says."""
    manifest, counts = dataset.manifest, dataset.manifest.counts
    low, high = manifest.min_size, manifest.max_size
    size = f"{low[1]}x{low[0]}" if low == high else f"{low[1]}x{low[0]} to {high[1]}x{high[0]}"
    stored = sum(record.bytes for record in manifest.files.values())
    leaks = {pair: count for pair, count in manifest.duplicates.items() if count}
    return {
        "folder": str(dataset.folder),
        "source": manifest.source,
        "classes": f"{dataset.class_count}" if dataset.has_labels else "none: the images have no labels",
        "train": f"{counts.train:,} images",
        "select": f"{counts.select:,} images, carved from the training part",
        "report": f"{counts.report:,} images, "
        + (
            "the source's own test part"
            if manifest.report_origin == "source"
            else "carved, as the source has no test part"
        ),
        "unlabeled": f"{counts.unlabeled:,} images",
        "images": f"{size}, stored as {manifest.encoding}",
        **({"broken": f"{len(manifest.broken):,} left out, listed in the manifest"} if manifest.broken else {}),
        "duplicates": ", ".join(f"{pair} {count:,}" for pair, count in leaks.items()) or "none",
        **(
            {"labels": f"{manifest.contradictions:,} images occur with another label too"}
            if manifest.contradictions
            else {}
        ),
        **(
            {"near": ", ".join(f"{pair} {n:,}" for pair, n in manifest.near_duplicates.items())}
            if manifest.near_duplicates
            else {}
        ),
        **(
            {"few labels": f"the published {' and '.join(manifest.label_lists)} of ImageNet"}
            if manifest.label_lists
            else {}
        ),
        "disk": f"{stored / 2**20:,.1f} MiB",
        "hash": dataset.manifest_hash,
    }


_hashed: dict[tuple[str, int, int, int], str] = {}
"""What this process has hashed: (path, inode, size, time of change in ns) -> sha256. A cache only; it changes no
result.
"""


def sha256_of(path: Path) -> str:
    try:
        state = path.stat()
        key = (str(path.resolve()), state.st_ino, state.st_size, state.st_mtime_ns)
        if key not in _hashed:
            with path.open("rb") as file:
                _hashed[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return _hashed[key]
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); build the data set again, or check who may read it"
        ) from error


def quick_hash(path: Path) -> str:
    """sha256 of a file's size, its first and last MiB, and 256 blocks of 4 KiB spread evenly: bounded work for any
    size.
    """
    end, block = 1 << 20, 1 << 12
    sha = hashlib.sha256()
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            sha.update(str(size).encode())
            for offset, length in (
                (0, end),
                (max(0, size - end), end),
                *((size * i // 256, block) for i in range(256)),
            ):
                file.seek(offset)
                sha.update(file.read(length))
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); build the data set again, or check who may read it"
        ) from error
    return sha.hexdigest()


def _check_hash(path: Path, expected: str, found: str) -> None:
    if expected != found:
        raise ValueError(
            f"{path}: its bytes must have the hash {expected[:12]} of the manifest, but have {found[:12]}; "
            "the file was changed or damaged: build the data set again"
        )


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _says(size: int | None) -> str:
    return "is missing" if size is None else f"has {size} bytes"


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    return f"{'.'.join(str(part) for part in fault['loc']) or 'the file'}: {fault['msg']}"
