"""Image files in one folder per class (ImageFolder), in a directory, tar or zip; any sizes and color modes that Pillow
reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainers.data.sources.base import Branch, FileImages, Images, Part, Source, existing, shown
from trainers.data.sources.layout import Layout, Reading, class_lines, read, role
from trainers.data.sources.listing import Entry, Listing, counted, listing


def load(sources: Sequence[Path], scratch: Path, layout: Layout = "auto") -> Source:
    """One folder per class; a class takes all images below its folder. Several sources are joined.

    A test part is recognized where the top folders are named as parts (`trainers.data.sources.layout`), and where
    one of several sources (a folder, or an archive by its stem) is.
    """
    if not sources:
        raise ValueError("images needs --source: a folder, tar or zip with one sub-folder per class; name it")
    train: list[Entry] = []
    test: list[Entry] = []
    branches: list[Branch] = []
    notes: list[str] = []
    others: Counter[str] = Counter()
    left_out = 0
    for path in sources:
        found = listing(existing(path, "the source of images"), scratch)
        _refuse_flat(path, found)
        named = len(sources) > 1 and role(_stem(path)) is not None
        wanted = "auto" if named and layout == "parts" else layout
        reading = read(found.entries, where=shown(path), layout=wanted, folder=path.is_dir())
        if named and not reading.has_parts:
            reading = _as_named(reading, path)
        train += reading.train
        test += reading.test or []
        left_out += reading.left_out
        others += found.others
        notes += found.notes
        branches.append(_branch(path, reading))
    if not train:
        raise ValueError(
            f"{shown(sources[0])}: there must be images to train on, but only a test part was found; add a --source "
            f"for them"
        )
    names = sorted({_class_of(entry) for entry in train})
    unknown = sorted({_class_of(entry) for entry in test} - set(names))
    if unknown:
        raise ValueError(
            f"{shown(sources[-1])}: labels don't match: the test part has the class {shown(unknown[0])!r}, which the "
            f"training part lacks "
            f"(it has {', '.join(map(shown, names[:10]))}{' …' if len(names) > 10 else ''}); name the folders alike"
        )
    if len(names) == 1:
        if layout == "auto":
            raise ValueError(
                f"{shown(sources[0])}: there must be two classes or more, but all {len(train):,} images to train on "
                f"are in one, {shown(names[0])!r}; name the folder that holds the classes' folders; or take it so, "
                f"which makes every probe right, with --layout {'parts' if test else 'classes'}; or give images "
                f"without labels by --unlabelled"
            )
        notes.append(f"there is one class only, {shown(names[0])!r}: every probe will be right on every image")
    if layout == "auto" and (parts := [shown(name) for name in names if role(name)]):
        notes.append(f"taken for classes, though named as parts are: {', '.join(parts[:5])}; see --layout")
    if others:
        notes.append(f"no images that are read here, left out: {counted(others)}")
    return Source(
        description=f"images: {', '.join(shown(path.resolve().name) for path in sources)}",
        class_names=tuple(map(shown, names)),
        train=_part(train, names),
        test=_part(test, names) if test else None,
        skipped=left_out + others.total(),
        outline=tuple(branches),
        notes=tuple(notes),
    )


def load_images(path: Path, scratch: Path) -> Images:
    """Every image below a folder or in an archive, whatever the layout."""
    found = listing(path, scratch)
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


def _refuse_flat(path: Path, found: Listing) -> None:
    count = len(found.entries)
    if any(entry.folders for entry in found.entries):
        return
    if max(found.others[".cls file"], found.others[".json file"]) >= count:
        raise ValueError(
            f"{shown(path)}: every image must lie in the folder of its class, but this is a WebDataset shard, with "
            f"labels in files beside {count:,} images; unpack it into one folder per class"
        )
    raise ValueError(
        f"{shown(path)}: every image must lie in the folder of its class, but all {count:,} lie right in it; sort them "
        f"into folders, or give images without labels by --unlabelled"
    )


def _as_named(reading: Reading, path: Path) -> Reading:
    """One of several sources is the part that its name says."""
    return reading._replace(train=[], test=reading.train) if role(_stem(path)) == "test" else reading


def _branch(path: Path, reading: Reading) -> Branch:
    """The tree of one source, headed by its name and what it is as a whole."""
    name = f"{shown(path.resolve().name)}{'/' if path.is_dir() else ''}"
    if reading.has_parts:
        return Branch(name, reading.below)
    own, entries = ("train", reading.train) if reading.test is None else ("test", reading.test)
    count = len({entry.folders[0] for entry in entries if entry.folders})
    return Branch(f"{name}  {own}: {len(entries):,} images, {count:,} classes", reading.below)


def _class_of(entry: Entry) -> str:
    if not entry.folders:
        raise ValueError(
            f"{entry.blob.name}: every image must lie in the folder of its class, but this one lies beside them; "
            "move it, or give images without labels by --unlabelled"
        )
    return entry.folders[0]


def _part(entries: Sequence[Entry], names: Sequence[str]) -> Part:
    label_of = {name: label for label, name in enumerate(names)}
    labels = np.array([label_of[_class_of(entry)] for entry in entries], dtype=np.int64)
    return Part(FileImages([entry.blob for entry in entries]), labels)


def _stem(path: Path) -> str:
    """The name without the suffixes of an archive; a folder's as it is."""
    name = path.resolve().name if path.name in ("", "..") else path.name
    return name if path.is_dir() else name.split(".")[0]
