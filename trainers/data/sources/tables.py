"""Tables of images: CSV and TSV with a file's path and its label, Parquet with the same or with the images' own bytes
(as on the Hugging Face hub), and folders that `datasets` wrote with `save_to_disk`.

Which column holds what is told by its name, and asked for by `--column` where that leaves a doubt. Parts come from a
column of their own, or from the names of files and folders. Imports pyarrow where it is needed.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trainers.data.sources.base import Blob, image_suffixes, shown
from trainers.data.sources.joined import Found, sorted_into_parts
from trainers.data.sources.layout import part_by_name
from trainers.data.sources.listing import refuse_too_large

COLUMNS = ("path", "label", "split")
"""What the columns of a table may be: the image (its path, or its bytes), its class, and its part."""
_WORDS = {
    "path": {
        "path", "file", "filename", "filepath", "image", "images", "img", "imagepath", "imagefile", "imagefilename",
        "imagename", "imgpath", "imgname", "picture", "photo",
    },
    "label": {
        "label", "labels", "class", "classes", "classname", "classlabel", "labelname", "category", "categoryname",
        "target", "y", "cls",
    },
    "split": {"split", "set", "partition", "part", "dataset", "datasplit"},
}  # fmt: skip
_TEXT = (".csv", ".tsv")
_PARQUET = ".parquet"
_HUB = ("dataset_dict.json", "state.json")
"""What `save_to_disk` writes beside its .arrow files: of several splits, of one."""
_BATCH = 256  # rows read at once


class _Image(NamedTuple):
    """An image of a row: its bytes, or where it lies."""

    data: bytes | None
    path: str


@dataclass
class _Table:
    """One file: its columns, and its rows with only some of them. `names`: those of classes that are numbers."""

    path: Path
    columns: list[str]
    rows: Callable[[Sequence[str]], Iterator[tuple[Any, ...]]]
    part: str = ""
    """Which part it is, by its name or its folder's; empty where they say nothing."""
    pictures: frozenset[str] = frozenset()
    """Columns of images themselves."""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def holds(path: Path) -> bool:
    """Whether `path` is a table, a folder of Parquet files alone, or what `save_to_disk` wrote."""
    if path.is_file():
        return path.suffix.lower() in (*_TEXT, _PARQUET)
    return path.is_dir() and (any((path / name).is_file() for name in _HUB) or _is_of_parquet_alone(path))


def load(path: Path, scratch: Path, asked: Mapping[str, str] | None = None) -> Found:
    """The images of a table, with labels and parts. `asked`: by which column it holds what (see `COLUMNS`); a path may
    be put together, as in `images/{id}.jpg`, and an empty name is no column.

    Paths are relative to the table. ValueError where a column is missing or in doubt, or a row has no image or label.
    """
    wanted = dict(asked or {})
    if unknown := sorted(wanted.keys() - set(COLUMNS)):
        raise ValueError(f"--column must name one of {', '.join(COLUMNS)}, but names {unknown[0]}; write NAME=COLUMN")
    tables = _tables(path)
    by_part: dict[str, tuple[list[Blob], list[str | None]]] = {}
    for table in tables:
        for part, blob, label in _read(table, scratch, wanted):
            blobs, labels = by_part.setdefault(part, ([], []))
            blobs.append(blob)
            labels.append(label)
    if not any(blobs for blobs, _ in by_part.values()):
        raise ValueError(f"{shown(path)}: a table must have a row for each image, but has none; check the file")
    orders = {names for table in tables for names in table.names.values()}
    return sorted_into_parts(path, by_part, orders.pop() if len(orders) == 1 else None)


# ---- files


def _is_of_parquet_alone(folder: Path) -> bool:
    """Whether there are Parquet files and no image: a walk that ends at the first one."""
    found = False
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in image_suffixes():
                return False
            found = found or suffix == _PARQUET
    return found


def _parquet_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob(f"*{_PARQUET}") if not path.name.startswith("."))


def _tables(path: Path) -> list[_Table]:
    if path.is_file():
        return [_text_table(path) if path.suffix.lower() in _TEXT else _parquet(path, "")]
    if (path / _HUB[0]).is_file():
        splits = _json(path / _HUB[0]).get("splits")
        if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
            raise ValueError(f"{shown(path / _HUB[0])}: must list the splits, but does not; save the data set again")
        return [table for name in splits for table in _saved(path / name, name)]
    if (path / _HUB[1]).is_file():
        return _saved(path, "")
    files = _parquet_files(path)
    return [_parquet(file, part_by_name(file.relative_to(path))) for file in files]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{shown(path)}: must be JSON, but is not ({error}); save the data set again") from error
    return found if isinstance(found, dict) else {}


def _text_table(path: Path) -> _Table:
    """A CSV or TSV in any of the usual dialects, with or without a header."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown(path)}: must be UTF-8, but is not ({error}); save it as UTF-8") from error
    first = text.partition("\n")[0]
    comma = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=first.count)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=comma, strict=True) if row]
    except csv.Error as error:
        raise ValueError(f"{shown(path)}: must be a table of separated values, but is not ({error})") from error
    if not rows:
        raise ValueError(f"{shown(path)}: a table must have a row for each image, but is empty; check the file")
    start = 1
    header = [name.strip() for name in rows[0]]
    if any(name and len(name) < 1000 and (path.parent / name).is_file() for name in header):
        start, header = 0, [str(number) for number in range(1, len(header) + 1)]  # it has no header
        if len(header) == 2:
            header = ["path", "label"]
    if len(set(header)) < len(header):
        twice = next(name for name, count in Counter(header).items() if count > 1)
        raise ValueError(
            f"{shown(path)}: each column must have a name of its own, but {twice!r} comes twice; rename one"
        )
    for number, row in enumerate(rows[start:], start + 1):
        if len(row) != len(header):
            raise ValueError(
                f"{shown(path)}: row {number} must have {len(header)} values, as the first has, but has {len(row)}; "
                f"correct it, or quote values that hold {comma!r}"
            )
    place = {name: index for index, name in enumerate(header)}
    return _Table(
        path, header, lambda names: (tuple(row[place[name]].strip() for name in names) for row in rows[start:])
    )


def _parquet(path: Path, part: str) -> _Table:
    import pyarrow
    from pyarrow import parquet

    def rows(names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        with _reading(path, "Parquet file"), parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH, columns=list(dict.fromkeys(names))):
                yield from _values(batch, names)

    with _reading(path, "Parquet file"):
        schema: pyarrow.Schema = parquet.read_schema(path)
    return _arrow_table(path, schema, rows, part)


def _saved(folder: Path, part: str) -> list[_Table]:
    """The .arrow files of one split, as its state.json lists them: others beside them are caches."""
    import pyarrow

    state = _json(folder / _HUB[1])
    if state.get("_indices_files"):
        raise ValueError(
            f"{shown(folder)}: rows must lie in their order, but are picked by indices; save it again after "
            f"`flatten_indices()`"
        )
    names = [str(one.get("filename", "")) for one in state.get("_data_files") or [] if isinstance(one, dict)]
    tables = []
    for name in names:
        path = folder / name

        def rows(wanted: Sequence[str], path: Path = path) -> Iterator[tuple[Any, ...]]:
            with _reading(path, "Arrow file"), pyarrow.memory_map(str(path)) as file:
                for batch in pyarrow.ipc.open_stream(file):
                    for start in range(0, batch.num_rows, _BATCH):
                        yield from _values(batch.slice(start, _BATCH), wanted)

        with _reading(path, "Arrow file"), pyarrow.memory_map(str(path)) as file:
            schema = pyarrow.ipc.open_stream(file).schema
        tables.append(_arrow_table(path, schema, rows, part))
    return tables


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Turns pyarrow's errors on `path` into ours."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{shown(path)}: not a complete {what} ({reason}); copy or save it again") from error


def _arrow_table(path: Path, schema: Any, rows: Any, part: str) -> _Table:
    import pyarrow

    def is_picture(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):
            return any(kind.field(index).name == "bytes" for index in range(kind.num_fields))
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    names: dict[str, tuple[str, ...]] = {}
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        for name, feature in features.items():
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
                names[name] = tuple(map(str, feature["names"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # then labels are what they are
    pictures = frozenset(one.name for one in schema if is_picture(one.type))
    return _Table(path, list(schema.names), rows, part, pictures, names)


def _values(batch: Any, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    return zip(*(batch.column(name).to_pylist() for name in names), strict=True)


# ---- columns


def _read(table: _Table, scratch: Path, asked: Mapping[str, str]) -> Iterator[tuple[str, Blob, str | None]]:
    """(part, image, class or None) of each row."""
    where = shown(table.path)
    path = asked.get("path") or _column(table, "path", where)
    label = asked["label"] if "label" in asked else _label_column(table, path, where)
    split = asked["split"] if "split" in asked else _optional(table, "split", where)
    template = path if "{" in path and path not in table.columns else "{" + path + "}"
    pieces = re.findall(r"\{([^{}]+)\}", template)
    wanted = [*pieces, *([label] if label else []), *([split] if split else [])]
    for name in wanted:
        if name not in table.columns:
            raise ValueError(
                f"{where}: --column must name one of its columns, {', '.join(map(repr, table.columns))}, but names "
                f"{name!r}; change it"
            )
    if not pieces:
        raise ValueError(f"{where}: --column path={path} must name a column, such as {{id}}; change it")
    if table.pictures & set(pieces):
        refuse_too_large(table.path, scratch, table.path.stat().st_size)
    names = table.names.get(label, ())
    missing: list[str] = []
    seen: dict[str, int] = {}
    store = scratch / f"{uuid.uuid4().hex}.images"
    with store.open("wb") as file:
        for number, row in enumerate(table.rows(wanted), 1):
            title = f"{where}: row {number}"
            values = dict(zip(pieces, row, strict=False))
            image = _image(values, template, title)
            if image.data is not None:
                start = file.tell()
                file.write(image.data)
                blob = Blob(store, f"{title}{f' ({shown(image.path)})' if image.path else ''}", start, len(image.data))
            else:
                place = table.path.parent / image.path
                if image.path in seen:
                    raise ValueError(
                        f"{title}: each image must have one row, but {shown(image.path)} is that of row "
                        f"{seen[image.path]} as well; remove one, or choose images of a single label"
                    )
                seen[image.path] = number
                missing += [] if place.is_file() else [shown(place)]
                blob = Blob(place, shown(place))
            told = label_text(row[len(pieces)], names, title) if label else None
            part = str(row[-1]) if split and row[-1] is not None else table.part
            yield part, blob, told
    if missing:
        raise ValueError(
            f"{where}: each row must name a file, but {len(missing):,} of {len(seen):,} are not there, such as "
            f"{missing[0]}; paths start at the table's folder, and may be put together: --column "
            f"'path=images/{{{pieces[0]}}}.jpg'"
        )


def _image(values: Mapping[str, Any], template: str, title: str) -> _Image:
    first = next(iter(values.values()))
    if isinstance(first, bytes):
        return _Image(first, "")
    if isinstance(first, Mapping):
        data, path = first.get("bytes"), first.get("path")
        if data is None and not path:
            raise ValueError(f"{title}: must hold an image, but is empty; remove it")
        return _Image(data, str(path or ""))
    if any(value is None or value == "" for value in values.values()):
        raise ValueError(f"{title}: must name an image, but is empty; remove it")
    path = re.sub(r"\{([^{}]+)\}", lambda found: _text(values[found[1]], title), template)
    if re.match(r"[a-z][a-z0-9+]*://", path):
        raise ValueError(f"{title}: images must be files here, but this is the address {path}; fetch them first")
    return _Image(None, path)


def label_text(value: Any, names: Sequence[str], title: str) -> str | None:
    """The class's name; None where the row has no label."""
    if value is None or value == "" or (isinstance(value, float) and value != value):
        return None
    if names and isinstance(value, int):
        if value == -1:
            return None
        if not 0 <= value < len(names):
            raise ValueError(f"{title}: a label must be 0 to {len(names) - 1}, but is {value}; save the data set again")
        return names[value]
    return _text(value, title)


def _text(value: Any, title: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float):
        raise ValueError(
            f"{title}: a path or label must be text or a number, but is {type(value).__name__}; choose another column "
            f"with --column"
        )
    return str(value).strip()


def names_a(what: str, name: str) -> bool:
    """Whether a column, or a key, of this name holds a `path`, `label` or `split` in all likelihood."""
    return re.sub(r"[^a-z]", "", name.lower()) in _WORDS[what]


def _matching(table: _Table, what: str) -> list[str]:
    found = [name for name in table.columns if names_a(what, name)]
    if what == "path" and table.pictures:
        return [name for name in table.columns if name in table.pictures]
    return found


def _optional(table: _Table, what: str, where: str) -> str:
    found = _matching(table, what)
    if len(found) > 1:
        raise ValueError(
            f"{where}: it must be clear which column holds the {what}, but it may be {' or '.join(map(repr, found))}; "
            f"say which with --column {what}={found[0]}"
        )
    return found[0] if found else ""


def _column(table: _Table, what: str, where: str) -> str:
    found = _optional(table, what, where)
    if not found:
        raise ValueError(
            f"{where}: a column must hold the {what}, but none of {', '.join(map(repr, table.columns))} is called so; "
            f"say which with --column {what}=COLUMN"
        )
    return found


def _label_column(table: _Table, path: str, where: str) -> str:
    """Empty where the table holds nothing but images."""
    if len(table.columns) == 1:
        return ""
    found = _optional(table, "label", where)
    if not found:
        raise ValueError(
            f"{where}: a column must hold the label, but none of {', '.join(map(repr, table.columns))} is called so; "
            f"say which with --column label=COLUMN, or with --column label= that there are none"
        )
    return found
