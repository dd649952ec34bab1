"""Which folders of a source are parts (train, test), which are classes: by names, and by what lies below them.

Where both readings are possible the answer is a refusal that says so, never a guess: a part that is taken for a class
puts test images into pretraining, and nothing later would tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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


_Tops = Mapping[str, Sequence[Entry]]
"""The folders of one level, and what lies in each: entries whose own `folders` begin below it."""


def role(name: str) -> Role | None:
    """Which part a folder of this name would be: seg_train, TRAIN, imagesTs, train2017, dev … None: no part's name."""
    found = _named(name)
    return None if found is None else found.role


def read(entries: Sequence[Entry], *, where: str, layout: Layout = "auto", folder: bool = True) -> Reading:
    """Tell parts and classes apart. `folder`: the source is a folder, so that one inside it can be a --source, too.

    ValueError, naming `where`, where the source does not lie as `layout` says, or `auto` could be wrong.
    """
    if layout == "classes":
        return _classes(entries, ())
    passed, here = _looked_through(entries)
    tops, lost = _level(here)
    place = "/".join((where.rstrip("/"), *map(shown, passed)))
    if layout == "auto":
        verdict, why = _judged(tops)
        if verdict == "unclear":
            raise ValueError(
                f"{place}: its folders must be parts (train, test) or classes, but {why}: {_counts(tops)}; "
                f"say which with --layout parts or --layout classes"
            )
        if verdict == "classes":
            return _classes(here, passed)
    return _parts(tops, len(lost), passed, place, folder)


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


# ---- levels


def _level(entries: Sequence[Entry]) -> tuple[dict[str, list[Entry]], list[Entry]]:
    """(what lies in each folder of this level, what lies beside them)."""
    tops: dict[str, list[Entry]] = {}
    lost: list[Entry] = []
    for entry in entries:
        if entry.folders:
            tops.setdefault(entry.folders[0], []).append(Entry(entry.folders[1:], entry.blob))
        else:
            lost.append(entry)
    return tops, lost


def _holds_folders(entries: Sequence[Entry]) -> bool:
    return any(entry.folders for entry in entries)


def _names_below(entries: Sequence[Entry]) -> set[str]:
    return {entry.folders[0] for entry in entries if entry.folders}


def _looked_through(entries: Sequence[Entry]) -> tuple[tuple[str, ...], Sequence[Entry]]:
    """(the single folders around everything, what lies in them). One that is a part itself is not looked through."""
    passed: tuple[str, ...] = ()
    while True:
        tops, lost = _level(entries)
        if len(tops) != 1 or lost:
            return passed, entries
        ((name, inner),) = tops.items()
        if not _holds_folders(inner) or (role(name) and _judged_by_name(_level(inner)[0])[0] != "parts"):
            return passed, entries
        passed, entries = (*passed, name), inner


def _core(name: str, entries: Sequence[Entry]) -> tuple[tuple[str, ...], Sequence[Entry]]:
    """(folders of a part that hold nothing but one folder, what lies in the last), as in seg_train/seg_train/cat."""
    passed: tuple[str, ...] = ()
    while True:
        tops, lost = _level(entries)
        if len(tops) != 1 or lost:
            return passed, entries
        ((inner_name, inner),) = tops.items()
        again = role(name) is not None and role(inner_name) == role(name)
        if not again and (role(inner_name) or not _branches(inner)):
            return passed, entries
        passed, entries = (*passed, inner_name), inner


def _inside_part(name: str, entries: Sequence[Entry], place: str) -> tuple[tuple[str, ...], Sequence[Entry]]:
    """What `_core` says of a part. ValueError: it holds parts itself."""
    passed, entries = _core(name, entries)
    tops, _ = _level(entries)
    if _judged_by_name(tops)[0] != "classes":
        raise ValueError(
            f"{place}/{shown(name)}: a part must hold its classes' folders, but holds folders named as parts: "
            f"{_counts(tops)}; name the folders that are meant, one --source for each part, or rename these"
        )
    return passed, entries


def _branches(entries: Sequence[Entry]) -> bool:
    """Whether there are two folders or more, right here or in a single one."""
    while True:
        tops, lost = _level(entries)
        if len(tops) != 1 or lost:
            return len(tops) > 1
        (entries,) = tops.values()


# ---- what a level is


def _judged(tops: _Tops) -> tuple[Verdict, str]:
    verdict, why = _judged_by_name(tops)
    if verdict == "classes":
        why = _split_inside(tops) or _alike(tops)
    return ("unclear", why) if verdict == "classes" and why else (verdict, why)


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
    below = {name: _names_below(_core(name, inner)[1]) for name, inner in tops.items()}
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


def _split_inside(tops: _Tops) -> str:
    """Why images of a test part would be among those to train on: the classes, or several sets, hold parts."""
    for name, inner in tops.items():
        if {"train", "test"} <= {role(below) for below in _names_below(inner)}:
            return f"{shown(name)} holds parts itself, which would be joined ({_counts(_level(inner)[0])})"
    return ""


def _alike(tops: _Tops) -> str:
    """Why folders that no name tells apart may be parts in another language: all hold the same two or more folders."""
    below = [_names_below(inner) for inner in tops.values()]
    union = set[str]().union(*below)
    if len(tops) < 2 or any(len(names) < 2 or 2 * len(names) <= len(union) for names in below):
        return ""
    few = sorted(union)[:3]
    return f"all hold the same folders ({', '.join(map(shown, few))}{' …' if len(union) > 3 else ''}), as parts do"


# ---- readings


def _classes(entries: Sequence[Entry], passed: tuple[str, ...]) -> Reading:
    return Reading(list(entries), None, False, _through(passed, class_lines(entries)), 0)


def _parts(tops: _Tops, lost: int, passed: tuple[str, ...], place: str, folder: bool) -> Reading:
    found: dict[Role, list[tuple[str, Sequence[Entry]]]] = {"train": [], "test": []}
    lines: list[Branch] = []
    left_out = lost
    for name, inner in sorted(tops.items()):
        own = role(name)
        below, held = ((), inner) if own is None else _inside_part(name, inner, place)
        path = "/".join(map(shown, (name, *below)))
        count = _images(len(held))
        if own is not None and _holds_folders(held):
            found[own].append((path, held))
            lines.append(Branch(f"{path}/  {own}: {count}, {_class_count(held)}", class_lines(held)))
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
            left_out += len(held)
    if not found["train"] and not found["test"]:
        raise ValueError(
            f"{place}: there must be folders named as parts, such as train and test, but there are {_counts(tops)}; "
            f"rename them, or take them for classes with --layout classes"
        )
    for own, several in found.items():
        if len(several) > 1:
            _refuse_several(own, [path for path, _ in several], found, place, folder)
    if lost:
        lines.append(Branch(f"left out, beside the parts: {_images(lost)}"))
    train = [entry for _, held in found["train"] for entry in held]
    test = [entry for _, held in found["test"] for entry in held] if found["test"] else None
    return Reading(train, test, True, _through(passed, tuple(lines)), left_out)


def _refuse_several(
    own: Role, paths: list[str], found: Mapping[Role, Sequence[tuple[str, object]]], place: str, folder: bool
) -> NoReturn:
    chosen = [several[0][0] for several in (found["train"], found["test"]) if several]
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
    tops, _ = _level(entries)
    sizes = sorted((name, len(inner)) for name, inner in tops.items())
    if len(sizes) <= _SHOWN_CLASSES:
        return tuple(Branch(f"{shown(name)}/  {count:,}") for name, count in sizes)
    listed, rest = sizes[: _SHOWN_CLASSES - 1], [count for _, count in sizes[_SHOWN_CLASSES - 1 :]]
    span = f"{min(rest):,}" if min(rest) == max(rest) else f"{min(rest):,} to {max(rest):,}"
    return (
        *(Branch(f"{shown(name)}/  {count:,}") for name, count in listed),
        Branch(f"… {len(rest):,} more of {span} images"),
    )


def _class_count(entries: Sequence[Entry]) -> str:
    count = len(_names_below(entries))
    return f"{count:,} class{'' if count == 1 else 'es'}"


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _counts(tops: _Tops) -> str:
    """`Training (40 images), Testing (12 images)`: at most six folders."""
    listed = ", ".join(f"{shown(name)} ({_images(len(inner))})" for name, inner in sorted(tops.items())[:6])
    return (listed or "none") + (f" and {len(tops) - 6:,} more" if len(tops) > 6 else "")
