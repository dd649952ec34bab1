"""Which folders of a source are parts (train, test), which are classes: by names, and by what lies below them.

Where both readings are possible the answer is a refusal that says so, never a guess: a part that is taken for a class
puts test images into pretraining, and nothing later would tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Literal, NamedTuple, NoReturn, get_args

from trainers.data.sources.base import Branch, shown
from trainers.data.sources.listing import Entry

Layout = Literal["auto", "parts", "classes"]
"""`parts`: the folders named train, val, test … hold the classes' folders; `classes`: each top folder is a class;
`auto`: told from names and contents, refused where that leaves a doubt.
"""
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
Role = Literal["train", "test"]
Verdict = Literal["parts", "classes", "unclear"]

_TRAIN = frozenset({"train", "training", "trn", "trainval", "trainvalid", "trainset"})
_VALIDATION = frozenset({"val", "valid", "validation", "validate", "vld", "dev", "devel", "development"})
_TEST = frozenset({"test", "testing", "tst", "eval", "evaluation", "evaluate", "holdout", "heldout"})
_SHORT: dict[str, Role] = {"tr": "train", "te": "test", "ts": "test", "va": "test", "vl": "test"}
"""What ends a name of several words, such as imagesTr; too short to stand alone."""
_FILLERS = frozenset(
    {
        "set", "sets", "data", "dataset", "image", "images", "img", "imgs", "photo", "photos", "picture", "pictures",
        "pic", "pics", "sample", "samples", "file", "files", "folder", "dir", "split", "part", "subset", "full", "all",
        "small", "new", "my", "the", "jpg", "jpeg", "png",
    }
)  # fmt: skip
"""Words beside `train` and `test` that say nothing."""
_SHOWN_CLASSES = 8
_MOST_PARTS = 20  # in one folder; more are classes, or sorts of them


class _Name(NamedTuple):
    """A folder's name that is one of a part. `plain`: nothing else is in it but fillers and numbers."""

    role: Role
    plain: bool


class Reading(NamedTuple):
    """A source as it was understood. `below`: its tree; `left_out`: images that are in neither part."""

    train: list[Entry]
    test: list[Entry] | None
    has_parts: bool
    below: tuple[Branch, ...]
    left_out: int


class _Folder:
    """A folder, with what lies in it and below it. Built once: a source may have millions of images."""

    def __init__(self) -> None:
        self.folders: dict[str, _Folder] = {}
        self.images: list[Entry] = []
        """Right in it."""
        self.count = 0
        """At any depth."""

    @property
    def only(self) -> str | None:
        """The name of the single folder in it, if nothing else is."""
        return next(iter(self.folders)) if len(self.folders) == 1 and not self.images else None

    @property
    def branches(self) -> bool:
        """Whether two folders or more are in it, or in the single ones in it."""
        here = self
        while (name := here.only) is not None:
            here = here.folders[name]
        return len(here.folders) > 1

    def entries(self, depth: int) -> list[Entry]:
        """All images in the order of their paths, with the names from below this folder on, which is `depth` deep."""
        found: list[Entry] = []
        pending = [self]
        while pending:
            here = pending.pop()
            found += here.images
            pending += [inner for _, inner in sorted(here.folders.items(), reverse=True)]
        return [Entry(entry.folders[depth:], entry.blob, entry.file) for entry in found] if depth else found


def _tree(entries: Sequence[Entry]) -> _Folder:
    root = _Folder()
    known: dict[tuple[str, ...], list[_Folder]] = {(): [root]}
    for entry in entries:
        if entry.folders not in known:
            way = [root]
            for name in entry.folders:
                way.append(way[-1].folders.setdefault(name, _Folder()))
            known[entry.folders] = way
        known[entry.folders][-1].images.append(entry)
    for way in known.values():
        for folder in way:
            folder.count += len(way[-1].images)
    return root


_Tops = Mapping[str, _Folder]
"""The folders of one level."""


def role(name: str) -> Role | None:
    """Which part a folder of this name would be: seg_train, TRAIN, imagesTs, train2017, dev … None: no part's name."""
    found = _named(name)
    return None if found is None else found.role


def part_by_name(path: PurePath) -> str:
    """The part that a file is by its name, or by a folder's above it: `train` of data/train-00000-of-00002.parquet and
    of train/0000.tar. Empty where no name says so.
    """
    for name in (re.sub(r"[-_.]?\d.*$", "", path.stem), *reversed(path.parts[:-1])):
        if role(name):
            return name
    return ""


def read(entries: Sequence[Entry], *, where: str, layout: Layout = "auto", folder: bool = True) -> Reading:
    """Tell parts and classes apart. `folder`: the source is a folder, so that one inside it can be a --source, too.

    ValueError, naming `where`, where the source does not lie as `layout` says, or `auto` could be wrong.
    """
    if layout == "classes":
        return _classes(_tree(entries), ())
    passed, here = _looked_through(_tree(entries))
    tops = here.folders
    place = "/".join((where.rstrip("/"), *map(shown, passed)))
    if layout == "auto":
        verdict, why = _judged_by_name(tops)
        if verdict == "classes":
            _refuse_parts_inside(tops, place)
            why = _alike(tops)
        if why:
            raise ValueError(
                f"{place}: its folders must be parts (train, test) or classes, but {why}: {_counts(tops)}; "
                f"say which with --layout parts or --layout classes"
            )
        if verdict == "classes":
            return _classes(here, passed)
    return _parts(here, passed, place, folder)


# ---- names


def _named(name: str) -> _Name | None:
    """Words are told apart by whatever is no letter, and by case where that helps; of words that are stuck together,
    such as testset, fillers are taken off.
    """
    words: list[str] = []
    for chunk in re.findall(r"[^\W\d_]+", name):
        glued = _role_of_word(chunk.lower()) is not None
        words += [chunk] if glued else re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z]+", chunk)
    words = [word.lower() for word in words]
    roles: list[Role | None] = [_role_of_word(word) for word in words]
    if len(words) > 1 and roles[-1] is None:
        roles[-1] = _SHORT.get(words[-1])
    if words[-2:] in (["hold", "out"], ["held", "out"]):
        roles[-2:] = ["test", "test"]
    kinds = {one for one in roles if one is not None}
    if kinds == {"train", "test"} and not _TEST & set(words):
        kinds = {"train"}  # train_val: both parts a model is made with
    if len(kinds) != 1:
        return None
    plain = all(one is not None or word in _FILLERS for word, one in zip(words, roles, strict=True))
    return _Name(kinds.pop(), plain)


def _role_of_word(word: str) -> Role | None:
    stems = {word} | {word.removesuffix(filler) for filler in _FILLERS} | {word.removeprefix(f) for f in _FILLERS}
    if stems & _TRAIN:
        return "train"
    return "test" if stems & (_VALIDATION | _TEST) else None


# ---- single folders


def _looked_through(folder: _Folder) -> tuple[tuple[str, ...], _Folder]:
    """(the single folders around everything, the last of them). One that is a part itself is not looked through."""
    passed: tuple[str, ...] = ()
    while (name := folder.only) is not None:
        inner = folder.folders[name]
        if not inner.folders or (role(name) and _judged_by_name(inner.folders)[0] != "parts"):
            break
        passed, folder = (*passed, name), inner
    return passed, folder


def _core(name: str, folder: _Folder) -> tuple[tuple[str, ...], _Folder]:
    """(folders of a part that hold nothing but one folder, the last of them), as in seg_train/seg_train/cat."""
    passed: tuple[str, ...] = ()
    while (inner_name := folder.only) is not None:
        inner = folder.folders[inner_name]
        again = role(name) is not None and role(inner_name) == role(name)
        if not again and (role(inner_name) or not inner.branches):
            break
        passed, folder = (*passed, inner_name), inner
    return passed, folder


def _inside_part(name: str, folder: _Folder, place: str) -> tuple[tuple[str, ...], _Folder]:
    """What `_core` says of a part. ValueError: it holds parts itself."""
    passed, inner = _core(name, folder)
    if _judged_by_name(inner.folders)[0] != "classes":
        raise ValueError(
            f"{place}/{shown(name)}: a part must hold its classes' folders, but holds folders named as parts: "
            f"{_counts(inner.folders)}; name the folders that are meant, one --source for each part, or rename these"
        )
    return passed, inner


# ---- what a level is


def _judged_by_name(tops: _Tops) -> tuple[Verdict, str]:
    """What the names of the folders say, with what lies in them; and why it is unclear."""
    named = {name: found for name in tops if (found := _named(name)) is not None}
    others = [name for name in tops if name not in named]
    # Among many classes there may be a bullet_train and a test_tube.
    if not any(found.plain for found in named.values()) and 2 * len(named) < max(len(tops), 1):
        return "classes", ""
    if not named:
        return "classes", ""
    trains = [name for name, found in named.items() if found.role == "train"]
    tests = [name for name, found in named.items() if found.role == "test"]
    below = {name: set(_core(name, inner)[1].folders) for name, inner in tops.items()}
    deep = {name for name, names in below.items() if names}
    if len(tops) == 1 and deep:
        return "parts", ""
    if trains and tests and deep.issuperset(trains):
        classes = set[str]().union(*(below[name] for name in trains))
        strangers = sorted(name for name in others if classes & below[name])
        labeled = [name for name in tests if name in deep]
        agree = not labeled or any(classes & below[name] for name in labeled)
        if not others or (agree and not strangers):
            return "parts", ""
        if strangers:
            return "unclear", f"{shown(strangers[0])} has no part's name and holds the same folders as they do"
        return "unclear", "some have names of parts, and hold other folders than one another"
    if trains and tests:
        return "unclear", "some have names of parts, and images lie right in them"
    if not others:
        return "unclear", "all have names of the same part" if len(tops) > 1 else "it has a part's name"
    if deep & named.keys():
        return "unclear", "one has a part's name and holds folders, the others have not"
    return "classes", ""


def _refuse_parts_inside(tops: _Tops, place: str) -> None:
    """Images of a test part would be among those to train on where the classes, or several sets, hold parts."""
    for name, inner in tops.items():
        if 2 <= len(inner.folders) <= _MOST_PARTS and {"train", "test"} <= {role(below) for below in inner.folders}:
            raise ValueError(
                f"{place}: its folders must be parts (train, test) or classes, but {shown(name)} holds parts itself: "
                f"{_counts(inner.folders)}; sort them as train/{shown(name)}, name one --source for each part, or join "
                f"them with --layout classes"
            )


def _alike(tops: _Tops) -> str:
    """Why folders that no name tells apart may be parts in another language: all hold the same two or more folders."""
    below = [set(inner.folders) for inner in tops.values()]
    union = set[str]().union(*below)
    if len(tops) < 2 or any(len(names) < 2 or 2 * len(names) <= len(union) for names in below):
        return ""
    few = sorted(union)[:3]
    return f"all hold the same folders ({', '.join(map(shown, few))}{' …' if len(union) > 3 else ''}), as parts do"


# ---- readings


def _classes(here: _Folder, passed: tuple[str, ...]) -> Reading:
    return Reading(here.entries(len(passed)), None, False, _through(passed, _class_lines(here)), 0)


class _Part(NamedTuple):
    """A part that was found: its path in the source, its folder, and how deep that lies."""

    path: str
    folder: _Folder
    depth: int


def _parts(here: _Folder, passed: tuple[str, ...], place: str, folder: bool) -> Reading:
    found: dict[Role, list[_Part]] = {"train": [], "test": []}
    lines: list[Branch] = []
    left_out = lost = len(here.images)
    for name, inner in sorted(here.folders.items()):
        own = role(name)
        below, held = ((), inner) if own is None else _inside_part(name, inner, place)
        path = "/".join(map(shown, (name, *below)))
        count = _images(held.count)
        if own is not None and held.folders:
            found[own].append(_Part(path, held, len(passed) + 1 + len(below)))
            lines.append(Branch(f"{path}/  {own}: {count}, {_class_count(held)}", _class_lines(held)))
        elif own == "train":
            raise ValueError(
                f"{place}/{path}: a part to train on must hold one folder per class, but its {count} lie right in it; "
                f"sort them into folders, take the parts for classes with --layout classes, or give images without "
                f"labels by --unlabelled"
            )
        else:
            # ImageNet's `test` has no class folders, because its labels are secret: it is no part to report on.
            why = "no part's name" if own is None else "no class folders"
            lines.append(Branch(f"{path}/  left out, {why}: {count}"))
            left_out += held.count
    if not found["train"] and not found["test"]:
        raise ValueError(
            f"{place}: there must be folders named as parts, such as train and test, but there are "
            f"{_counts(here.folders)}; rename them, or take them for classes with --layout classes"
        )
    for own, several in found.items():
        if len(several) > 1:
            _refuse_several(own, found, place, folder)
    if lost:
        lines.append(Branch(f"left out, beside the parts: {_images(lost)}"))
    train, test = ([part.folder.entries(part.depth) for part in found[own]] for own in get_args(Role))
    below_all = _through(passed, tuple(lines))
    return Reading(train[0] if train else [], test[0] if test else None, True, below_all, left_out)


def _refuse_several(own: Role, found: Mapping[Role, Sequence[_Part]], place: str, folder: bool) -> NoReturn:
    paths = [part.path for part in found[own]]
    chosen = [several[0].path for several in found.values() if several]
    remedy = f"name the parts: {' '.join(f'--source {place}/{path}' for path in chosen)}"
    raise ValueError(
        f"{place}: one folder must be the {own} part, but {' and '.join(sorted(paths))} both have class folders; "
        + (remedy if folder else "unpack it, and name each part's folder with --source")
    )


def _through(passed: Sequence[str], lines: tuple[Branch, ...]) -> tuple[Branch, ...]:
    for name in reversed(passed):
        lines = (Branch(f"{shown(name)}/  the only folder here: looked through", lines),)
    return lines


def class_lines(entries: Sequence[Entry]) -> tuple[Branch, ...]:
    """A line for each folder, with what is in it; where there are many, the first and what the rest are like."""
    return _class_lines(_tree(entries))


def _class_lines(here: _Folder) -> tuple[Branch, ...]:
    sizes = sorted((name, inner.count) for name, inner in here.folders.items())
    if len(sizes) <= _SHOWN_CLASSES:
        return tuple(Branch(f"{shown(name)}/  {count:,}") for name, count in sizes)
    listed, rest = sizes[: _SHOWN_CLASSES - 1], [count for _, count in sizes[_SHOWN_CLASSES - 1 :]]
    span = f"{min(rest):,}" if min(rest) == max(rest) else f"{min(rest):,} to {max(rest):,}"
    return (
        *(Branch(f"{shown(name)}/  {count:,}") for name, count in listed),
        Branch(f"… {len(rest):,} more of {span} images"),
    )


def _class_count(here: _Folder) -> str:
    count = len(here.folders)
    return f"{count:,} class{'' if count == 1 else 'es'}"


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _counts(tops: _Tops) -> str:
    """`Training (40 images), Testing (12 images)`: at most six folders."""
    listed = ", ".join(f"{shown(name)} ({_images(inner.count)})" for name, inner in sorted(tops.items())[:6])
    return (listed or "none") + (f" and {len(tops) - 6:,} more" if len(tops) > 6 else "")
