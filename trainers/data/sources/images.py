"""Image files in one folder per class (ImageFolder), in a directory, tar or zip; any sizes and color modes that Pillow
reads. Without folders there are no labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from trainers.data.sources import joined, published, tables, webdataset
from trainers.data.sources import listing as listings
from trainers.data.sources.base import Branch, FileImages, Images, Source, existing, shown
from trainers.data.sources.joined import Found, Rows
from trainers.data.sources.layout import Layout, Reading, class_lines, read, role
from trainers.data.sources.listing import Entry, Listing, counted, listing


def load(
    sources: Sequence[Path],
    scratch: Path,
    layout: Layout = "auto",
    columns: Mapping[str, str] | None = None,
    classes: str | None = None,
) -> Source:
    """One folder per class; a class takes all images below its folder. Several sources are joined.

    A test part is recognized where the top folders are named as parts (`trainers.data.sources.layout`), and where
    one of several sources (a folder, or an archive by its stem) is. Images that all lie right in a source have no
    labels. A source may be a table as well (`trainers.data.sources.tables`), whose `columns` hold what is asked for.
    `classes`: only those of a list (`trainers.data.sources.published`).
    """
    if not sources:
        raise ValueError(
            "images needs --source: a folder, tar or zip with one sub-folder per class; name it, or give images "
            "without labels by --unlabelled"
        )
    several = len(sources) > 1
    found = [_found(path, scratch, layout, columns or {}, several) for path in sources]
    return joined.source(sources, found if classes is None else joined.only(found, classes), layout)


def load_images(path: Path, scratch: Path, columns: Mapping[str, str] | None = None) -> Images:
    """Every image below a folder, in an archive or in a table, whatever the layout and the labels."""
    if tables.holds(path):
        table = tables.load(path, scratch, {**(columns or {}), "label": "", "split": ""})
        table.train.images.outline = (table.outline,)
        return table.train.images
    shards = webdataset.shards(path)
    found = listings.joined([listing(one, scratch) for one in shards or [existing(path, "the unlabelled images")]])
    images = FileImages([entry.blob for entry in found.entries])
    name = f"{shown(path.resolve().name)}{'/' if path.is_dir() else ''}"
    images.outline = (Branch(f"{name}  unlabeled: {len(images):,} images", class_lines(found.entries)),)
    tests = sorted({name for entry in found.entries for name in entry.folders if role(name) == "test"})
    images.notes = (
        *found.notes,
        *([f"left out of the unlabeled images: {counted(found.others)}"] if found.others else []),
        *(f"unlabeled images from {shown(name)}/, a test part by its name, join pretraining" for name in tests[:3]),
    )
    return images


def _found(path: Path, scratch: Path, layout: Layout, columns: Mapping[str, str], several: bool) -> Found:
    named = role(_stem(path)) if several else None
    if shards := webdataset.shards(path):
        found = webdataset.load_all(path, shards, scratch, columns)
        return joined.as_test(found) if named == "test" and not len(found.test.images) else found
    existing(path, "the source of images")
    if layout == "auto":
        published.refuse(path)
    if tables.holds(path):
        table = tables.load(path, scratch, columns)
        return joined.as_test(table) if named == "test" and not len(table.test.images) else table
    listed = listing(path, scratch)
    if webdataset.is_one(listed):
        found = webdataset.load(path, listed, columns)
        return joined.as_test(found) if named == "test" else found
    if not any(entry.folders for entry in listed.entries):
        return _flat(path, listed, layout, named == "test")
    wanted = "auto" if named and layout == "parts" else layout
    reading = read(listed.entries, where=shown(path), layout=wanted, folder=path.is_dir())
    if named == "test" and not reading.has_parts:
        reading = reading._replace(train=[], test=reading.train)
    return Found(
        train=_rows(reading.train),
        test=_rows(reading.test or []),
        outline=_branch(path, reading),
        notes=tuple(listed.notes),
        others=listed.others,
        left_out=reading.left_out,
    )


def _flat(path: Path, found: Listing, layout: Layout, is_test: bool) -> Found:
    """Images that lie right in the source. What labels may lie beside them is never passed over in silence."""
    count = len(found.entries)
    if found.others[".json file"]:
        raise ValueError(
            f"{shown(path)}: images without folders have no labels, but a .json file lies beside them; write a CSV of "
            f"path and label from it and name that with --source, or give the images by --unlabelled"
        )
    if table := next((what for what in ("CSV file", "Parquet file") if found.others[what]), ""):
        raise ValueError(
            f"{shown(path)}: images without folders have no labels, but a {table} lies beside them; name that file "
            f"with --source to read its labels, or give the images by --unlabelled"
        )
    if layout != "auto":
        raise ValueError(
            f"{shown(path)}: with --layout {layout} every image must lie in the folder of its class, but all {count:,} "
            f"lie right in it; sort them into folders, or leave --layout out to take them as images without labels"
        )
    rows = Rows(FileImages([entry.blob for entry in found.entries]), None)
    name = f"{shown(path.resolve().name)}{'/' if path.is_dir() else ''}"
    return Found(
        train=Rows.none() if is_test else rows,
        test=rows if is_test else Rows.none(),
        outline=Branch(f"{name}  {'test' if is_test else 'train'}: {count:,} images without labels"),
        notes=tuple(found.notes),
        others=found.others,
    )


def _branch(path: Path, reading: Reading) -> Branch:
    """The tree of one source, headed by its name and what it is as a whole."""
    name = f"{shown(path.resolve().name)}{'/' if path.is_dir() else ''}"
    if reading.has_parts:
        return Branch(name, reading.below)
    own, entries = ("train", reading.train) if reading.test is None else ("test", reading.test)
    count = len({entry.folders[0] for entry in entries if entry.folders})
    return Branch(f"{name}  {own}: {len(entries):,} images, {count:,} classes", reading.below)


def _rows(entries: Sequence[Entry]) -> Rows:
    return Rows(FileImages([entry.blob for entry in entries]), [_class_of(entry) for entry in entries])


def _class_of(entry: Entry) -> str:
    if not entry.folders:
        raise ValueError(
            f"{entry.blob.name}: every image must lie in the folder of its class, but this one lies beside them; "
            "move it, or give images without labels by --unlabelled"
        )
    return entry.folders[0]


def _stem(path: Path) -> str:
    """The name without the suffixes of an archive; a folder's as it is."""
    name = path.resolve().name if path.name in ("", "..") else path.name
    return name if path.is_dir() else name.split(".")[0]
