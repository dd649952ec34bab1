"""Features of images as one file, written batch by batch: an npz, a Parquet file or safetensors, by the file's suffix.

Any number of rows fits: of the features, a batch is in memory at a time (in Parquet a row group). Each file opens with
numpy, pyarrow or safetensors alone, and has the same in it:

* npz: arrays `features` [n, p], `ids` [n], with labels `labels` [n] and `class_names` [C]; `metadata`, JSON as text.
* Parquet: columns `id`, `features` (lists of p numbers), and with labels `label` and `class`; the schema's metadata has
  JSON as `pretune`.
* safetensors: tensors `features` [n, p]; `ids` [n] where they are numbers, else `ids`, the UTF-8 bytes of all, joined,
  and `id_ends` [n], where each one ends; with labels `labels` [n]. The header's metadata has JSON as `pretune`, in it
  the names of the classes.

A label is a class's number, -1 where an image has none (in Parquet null).

Letters: n = images, p = features, C = classes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainers.files import named, opened_whole

SUFFIXES = (".npz", ".parquet", ".safetensors")
"""What a file may be, by its name."""
METADATA = "pretune"
"""The key of the JSON in Parquet's and safetensors' own metadata."""
ROW_GROUP_BYTES = 32 * 2**20
"""Of features in a row group of Parquet."""
_NAMES = 4096  # ids that are turned into bytes at once

Features = NDArray[np.floating[Any]]
_TYPES = {"float16": "F16", "float32": "F32", "float64": "F64"}  # safetensors' names of numpy's


@dataclass(frozen=True)
class About:
    """What is said of features beside them. `ids`: paths, or numbers [n]; `labels` [n], from -1; `metadata`: JSON."""

    ids: Sequence[str] | NDArray[np.int64]
    labels: NDArray[np.int64] | None
    class_names: Sequence[str]
    metadata: Mapping[str, Any]


def write(path: Path, batches: Iterable[Features], about: About) -> None:
    """Writes [m, p] after [m, p] until there are as many rows as ids. The file is there as a whole or not at all.

    OSError where it cannot be written, and before the second batch where the disk has no room for all of them;
    ValueError where there are more rows or fewer than ids.
    """
    if not len(about.ids):
        raise ValueError("there must be an image to write features of, but there is none")
    rows = _checked(iter(batches), len(about.ids))
    with opened_whole(path) as file:
        first = next(rows)
        _check_room(path, len(about.ids) * first.shape[1] * first.itemsize)
        with named(path):
            _WRITERS[path.suffix.lower()](file, first, chain([first], rows), about)


def _checked(batches: Iterator[Features], count: int) -> Iterator[Features]:
    seen = 0
    for batch in batches:
        seen += len(batch)
        if seen > count:
            break
        yield np.ascontiguousarray(batch)
    if seen != count:
        raise ValueError(f"there must be a row of features for each of the {count} ids, but there are {seen}")


def _check_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"it takes {needed / 1e6:,.0f} MB, but {free / 1e6:,.0f} MB are free")


def _json(about: About) -> str:
    return json.dumps(dict(about.metadata), ensure_ascii=False)


# ---- npz


def _npz(file: BinaryIO, first: Features, batches: Iterable[Features], about: About) -> None:
    count = len(about.ids)
    with zipfile.ZipFile(file, "w") as archive:
        _member(archive, "features", (count, first.shape[1]), first.dtype, (batch.tobytes() for batch in batches))
        if isinstance(about.ids, np.ndarray):
            _member(archive, "ids", (count,), about.ids.dtype, [about.ids.tobytes()])
        else:
            kind = np.dtype(f"<U{max(map(len, about.ids))}")
            parts = (about.ids[start : start + _NAMES] for start in range(0, count, _NAMES))
            # Mostly zeros, as every one takes the room of the longest.
            _member(archive, "ids", (count,), kind, (np.array(part, kind).tobytes() for part in parts), packed=True)
        if about.labels is not None:
            _member(archive, "labels", (count,), about.labels.dtype, [about.labels.tobytes()])
            _text(archive, "class_names", np.array(about.class_names, dtype=np.str_))
        _text(archive, "metadata", np.array(_json(about)))


def _text(archive: zipfile.ZipFile, name: str, array: NDArray[np.str_]) -> None:
    _member(archive, name, array.shape, array.dtype, [array.tobytes()], packed=True)


def _member(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    parts: Iterable[bytes],
    *,
    packed: bool = False,
) -> None:
    """An array by its bytes. Its date is always the same, so that equal features make equal files."""
    info = zipfile.ZipInfo(f"{name}.npy")
    info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with archive.open(info, "w", force_zip64=True) as member:
        head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(member, head)
        for part in parts:
            member.write(part)


# ---- Parquet


def _parquet(file: BinaryIO, first: Features, batches: Iterable[Features], about: About) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    width = first.shape[1]
    numbered = isinstance(about.ids, np.ndarray)
    fields = [pa.field("id", pa.int64() if numbered else pa.string(), nullable=False)]
    if about.labels is not None:
        fields += [pa.field("label", pa.int64()), pa.field("class", pa.string())]
    fields.append(pa.field("features", pa.list_(pa.from_numpy_dtype(first.dtype), width), nullable=False))
    schema = pa.schema(fields, metadata={METADATA: _json(about)})
    columns = ["class"] if about.labels is not None else False
    # Features are as good as random: nothing packs them.
    group = np.empty((min(len(about.ids), max(1, ROW_GROUP_BYTES // (width * first.itemsize))), width), first.dtype)
    # By its name: through Python's file, all bytes would be copied once more.
    with parquet.ParquetWriter(file.name, schema, compression="none", use_dictionary=columns) as writer:
        start = 0
        for rows in _grouped(batches, group):
            end = start + len(rows)
            arrays = [pa.array(about.ids[start:end], fields[0].type)]
            if about.labels is not None:
                labels = about.labels[start:end]
                arrays.append(pa.array(labels, mask=labels < 0))
                arrays.append(pa.array([about.class_names[label] if label >= 0 else None for label in labels]))
                arrays[-1] = arrays[-1].cast(pa.string())
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), width))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=len(rows))
            start = end


def _grouped(batches: Iterable[Features], group: Features) -> Iterator[Features]:
    """The same rows, as many at a time as `group` holds. It is filled again and again."""
    filled = 0
    for batch in batches:
        rest = batch
        while len(rest):
            taken = rest[: len(group) - filled]
            group[filled : filled + len(taken)] = taken
            filled, rest = filled + len(taken), rest[len(taken) :]
            if filled == len(group):
                yield group
                filled = 0
    if filled:
        yield group[:filled]


# ---- safetensors


def _safetensors(file: BinaryIO, first: Features, batches: Iterable[Features], about: About) -> None:
    """The format is a length, a header in JSON and the tensors' bytes, at places that follow from their shapes:
    https://github.com/huggingface/safetensors#format
    """
    count = len(about.ids)
    metadata = {**about.metadata, **({} if about.labels is None else {"class_names": list(about.class_names)})}
    tensors: list[tuple[str, str, list[int], Iterable[bytes], int]] = []

    def add(name: str, kind: str, shape: Sequence[int], parts: Iterable[bytes], size: int) -> None:
        tensors.append((name, kind, list(shape), parts, size))

    width = first.shape[1]
    size = count * width * first.itemsize
    add("features", _TYPES[first.dtype.name], (count, width), (batch.tobytes() for batch in batches), size)
    if about.labels is not None:
        add("labels", "I64", (count,), [about.labels.astype("<i8").tobytes()], 8 * count)
    if isinstance(about.ids, np.ndarray):
        add("ids", "I64", (count,), [about.ids.astype("<i8").tobytes()], 8 * count)
    else:
        ends = np.cumsum([len(name.encode()) for name in about.ids], dtype="<i8")
        add("id_ends", "I64", (count,), [ends.tobytes()], 8 * count)
        add("ids", "U8", (int(ends[-1]),), (name.encode() for name in about.ids), int(ends[-1]))
    head: dict[str, Any] = {"__metadata__": {METADATA: json.dumps(metadata, ensure_ascii=False)}}
    start = 0
    for name, kind, shape, _, size in tensors:
        head[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(head, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin where any number may begin in memory
    file.write(len(text).to_bytes(8, "little") + text)
    for *_, parts, _ in tensors:
        file.writelines(parts)


_WRITERS = {".npz": _npz, ".parquet": _parquet, ".safetensors": _safetensors}


def why_not(path: Path, *, overwrite: bool) -> str:
    """Why features cannot be written to `path`, with the remedy; empty where nothing is known against it."""
    if path.suffix.lower() not in SUFFIXES:
        return f"--out must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, but is {path}; change its name"
    if path.is_dir():
        return f"--out must be a file, but {path} is a folder; name a file in it"
    if os.path.lexists(path) and not overwrite:
        return f"{path} is there already; add --overwrite to replace it, or choose another --out"
    return ""
