"""Several sources of images joined to one: whose labels are names of classes, each found in its own way."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainers.data.sources import listing, published
from trainers.data.sources.base import (
    Blob,
    Branch,
    ChainedImages,
    FileImages,
    Images,
    Part,
    SelectedImages,
    Source,
    no_labels,
    shown,
)
from trainers.data.sources.layout import role
from trainers.data.splits import UNLABELED


class Rows(NamedTuple):
    """Images, and the name of each one's class; None where they have no labels."""

    images: Images
    classes: list[str] | None

    @classmethod
    def none(cls) -> Rows:
        """Not one image."""
        return cls(FileImages([]), [])


@dataclass(frozen=True)
class Found:
    """What one source holds: images to train on, and its test part; either may be empty."""

    train: Rows
    test: Rows
    outline: Branch
    """How it was understood."""
    notes: tuple[str, ...] = ()
    others: Counter[str] = field(default_factory=Counter)
    """Files that are no images, by what they are."""
    left_out: int = 0
    """Images that are in neither part."""
    names: tuple[str, ...] | None = None
    """All its classes in the order of their numbers, where it says so itself."""
    by_value: bool = False
    """Whether classes that are numbers come in the order of their values. Folders come by letter, as ever."""


def only(found: Sequence[Found], classes: str) -> list[Found]:
    """The images of these classes alone, of a list (`trainers.data.sources.published.classes`).

    ValueError where one of them is in no source, or a source has no labels.
    """
    wanted = published.classes(classes)
    present = {name for one in found for rows in (one.train, one.test) for name in rows.classes or ()}
    # A line may say more than the name: `n01440764 tench`.
    kept = {line if line in present else line.split()[0] for line in wanted}
    if missing := sorted(kept - present):
        some = ", ".join(map(shown, sorted(present)[:5])) + (" …" if len(present) > 5 else "")
        raise ValueError(
            f"--classes {classes}: every class of the list must be in the sources, but {len(missing):,} of "
            f"{len(kept):,} are not, such as {missing[0]!r} (there are {some or 'none'}); check the list, or name the "
            f"folder that holds the classes' folders"
        )
    return [_only(one, kept) for one in found]


def _only(found: Found, kept: set[str]) -> Found:
    def part(rows: Rows) -> Rows:
        names = rows.classes or []
        places = [place for place, name in enumerate(names) if name in kept]
        return Rows(SelectedImages(rows.images, places), [names[place] for place in places])

    train, test = part(found.train), part(found.test)
    left = len(found.train.images) + len(found.test.images) - len(train.images) - len(test.images)
    note = f"left out, of classes that are not in the list: {left:,} images"
    return replace(
        found,
        train=train,
        test=test,
        notes=(*found.notes, *([note] if left else [])),
        left_out=found.left_out + left,
    )


def as_test(found: Found) -> Found:
    """The source as a test part."""
    return replace(found, train=found.test, test=found.train)


def sorted_into_parts(
    path: Path,
    by_part: Mapping[str, tuple[list[Blob], list[str | None]]],
    names: tuple[str, ...] | None,
    *,
    others: Counter[str] | None = None,
    notes: tuple[str, ...] = (),
) -> Found:
    """Images and their classes (None: no label), by the name of their part (empty: it has none), as a source.

    Beside a test part a validation part is left out, and so is one without labels where others have some. ValueError
    where parts, or labels, leave a doubt.
    """
    where = shown(path)
    train = [part for part in by_part if part == "" or role(part) == "train"]
    tests = [part for part in by_part if part and role(part) == "test"]
    if not train:
        if len(by_part) > 1 or not tests:
            raise ValueError(
                f"{where}: one part must be called train, but the parts are {', '.join(map(repr, sorted(by_part)))}; "
                f"rename them, or read no parts with --column split="
            )
        train, tests = tests, []
    # A validation part is for choosing, as `select` is; what is reported on is the test part.
    labeled = [part for part in tests if any(label is not None for label in by_part[part][1])]
    final = [part for part in labeled if not re.search("val|dev|vld", part.lower())] or labeled
    if len(final) > 1:
        raise ValueError(
            f"{where}: one part must be the test part, but {' and '.join(map(repr, sorted(final)))} may both be; keep "
            f"one of them, or read no parts with --column split="
        )
    unlabeled = all(label is None for part in train for label in by_part[part][1])
    if unlabeled and len(tests) == 1:
        final = tests
    lines, left_out = [], 0
    rows = {}
    for own, parts in (("train", train), ("test", final)):
        blobs = [blob for part in parts for blob in by_part[part][0]]
        labels = [label for part in parts for label in by_part[part][1]]
        if labels and not unlabeled and None in labels:
            lacking = labels.count(None)
            raise ValueError(
                f"{where}: every image must have a label, or none, but {lacking:,} of {len(labels):,} have none, such "
                f"as {blobs[labels.index(None)].name}; remove these rows"
            )
        told = [label for label in labels if label is not None]
        rows[own] = Rows(FileImages(blobs), None if unlabeled else told)
        if blobs:
            what = "without labels" if unlabeled else f"{len(set(told)):,} classes"
            title = f"{', '.join(part for part in parts if part)}  " if any(parts) else ""
            lines.append(Branch(f"{title}{own}: {len(blobs):,} images, {what}"))
    for part, (blobs, _) in by_part.items():
        if part not in (*train, *final):
            why = "there is a test part" if part in labeled else "no labels" if part in tests else "no part's name"
            lines.append(Branch(f"{part}  left out, {why}: {len(blobs):,} images"))
            left_out += len(blobs)
    outline = Branch(f"{shown(path.resolve().name)}{'/' if path.is_dir() else ''}", tuple(lines))
    return Found(rows["train"], rows["test"], outline, notes, others or Counter(), left_out, names, by_value=True)


def source(paths: Sequence[Path], found: Sequence[Found], layout: str) -> Source:
    """The sources at `paths` as one. ValueError where their labels do not fit together."""
    train = [one.train for one in found if len(one.train.images)]
    test = [one.test for one in found if len(one.test.images)]
    if not train:
        raise ValueError(
            f"{shown(paths[0])}: there must be images to train on, but only a test part was found; add a --source "
            f"for them"
        )
    notes = [note for one in found for note in one.notes]
    left_out, others = sum(one.left_out for one in found), sum((one.others for one in found), Counter[str]())
    titles = ", ".join(shown(path.resolve().name) for path in paths)
    if all(rows.classes is None for rows in (*train, *test)):
        names: tuple[str, ...] = ()
        notes.append(no_labels(sum(len(rows.images) for rows in train)))
    else:
        for path, one in zip(paths, found, strict=True):
            if one.train.classes is None or one.test.classes is None:
                raise ValueError(
                    f"{shown(path)}: all sources must have labels, or none, but this one has none and others have; "
                    f"give it by --unlabelled, as images that join pretraining only"
                )
        names = _names(paths, found, train, test)
        notes += _about_classes(paths, names, train, layout, has_test=bool(test))
    if others:
        notes.append(listing.left_out(others))
    return Source(
        description=f"images: {titles}" if names else f"images without labels: {titles}",
        class_names=tuple(map(shown, names)),
        train=_part(train, names),
        test=_part(test, names) if test else None,
        skipped=left_out + others.total(),
        outline=tuple(one.outline for one in found),
        notes=tuple(notes),
    )


def _names(
    paths: Sequence[Path], found: Sequence[Found], train: Sequence[Rows], test: Sequence[Rows]
) -> tuple[str, ...]:
    """The classes in the order of their labels: as a source says itself, else by letter, or numbers by value."""
    told = {one.names for one in found if one.names is not None}
    seen = {name for rows in train for name in rows.classes or ()}
    order = tuple(name for name in told.pop() if name in seen) if len(told) == 1 else ()
    rest = seen - set(order)
    numbers = any(one.by_value for one in found) and all(name.isdecimal() for name in rest)
    names = (*order, *sorted(rest, key=(lambda name: (int(name), name)) if numbers else None))
    unknown = sorted({name for rows in test for name in rows.classes or ()} - set(names))
    if unknown:
        raise ValueError(
            f"{shown(paths[-1])}: labels don't match: the test part has the class {shown(unknown[0])!r}, which the "
            f"training part lacks "
            f"(it has {', '.join(map(shown, names[:10]))}{' …' if len(names) > 10 else ''}); name the classes alike"
        )
    return names


def _about_classes(
    paths: Sequence[Path], names: Sequence[str], train: Sequence[Rows], layout: str, *, has_test: bool
) -> list[str]:
    """Notes on the classes. ValueError where there is one only that nobody asked for."""
    notes = []
    if len(names) == 1:
        if layout == "auto":
            raise ValueError(
                f"{shown(paths[0])}: there must be two classes or more, but all {sum(len(r.images) for r in train):,} "
                f"images to train on are in one, {shown(names[0])!r}; name the folder that holds the classes' folders; "
                f"or take it so, which makes every probe right, with --layout {'parts' if has_test else 'classes'}; or "
                f"give images without labels by --unlabelled"
            )
        notes.append(f"there is one class only, {shown(names[0])!r}: every probe will be right on every image")
    if layout == "auto" and (parts := [shown(name) for name in names if role(name)]):
        notes.append(f"taken for classes, though named as parts are: {', '.join(parts[:5])}; see --layout")
    return notes


def _part(rows: Sequence[Rows], names: Sequence[str]) -> Part:
    label_of = {name: label for label, name in enumerate(names)}
    labels = [
        UNLABELED if part.classes is None else label_of[part.classes[index]]
        for part in rows
        for index in range(len(part.images))
    ]
    images = rows[0].images if len(rows) == 1 else ChainedImages([part.images for part in rows])
    return Part(images, np.array(labels, dtype=np.int64))
