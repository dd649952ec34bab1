"""WebDataset shards: tars in which the files of one sample share a name, as in 0001.jpg, 0001.cls, 0001.json.

Shards come as one tar, as a folder of them, or as a pattern such as `train-{000..146}.tar` or `shards/*.tar`. Unpacked
ones are read as well.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.data.sources.base import Blob, image_suffixes, shown
from trainers.data.sources.joined import Found, sorted_into_parts
from trainers.data.sources.layout import part_by_name
from trainers.data.sources.listing import Entry, Listing, joined, listing
from trainers.data.sources.tables import label_text, names_a

_SHARD = re.compile(r"\.(tar|tgz|tar\.(gz|bz2|xz))$", re.IGNORECASE)
_MOST = 100_000  # shards of one pattern
_Key = tuple[tuple[str, ...], str, Path | None]


def shards(path: Path) -> list[Path] | None:
    """The tars that a pattern names, or those of a folder that holds tars and no image; None where it is neither.

    ValueError where one of the pattern is missing.
    """
    if not path.exists() and re.search(r"[{*?\[]", str(path)):
        return _expanded(path)
    if not path.is_dir():
        return None
    found: list[Path] = []
    for root, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in image_suffixes():
                return None
            found += [Path(root, name)] if _SHARD.search(name) and not name.startswith(".") else []
    return found or None


def is_one(found: Listing) -> bool:
    """Whether labels lie beside the images, each in a file of the image's name."""
    flat = not any(entry.folders for entry in found.entries)
    for suffix in (".cls", ".json"):
        keys = {_key(entry) for entry in found.beside if _ends(entry, suffix)}
        labeled = sum(_key(entry) in keys for entry in found.entries)
        # Class folders stay what they are where every image has a file of facts; one of them alone is no rule.
        if labeled and (flat or (suffix == ".cls" and labeled == len(found.entries))):
            return True
    return False


def load(path: Path, found: Listing, columns: Mapping[str, str]) -> Found:
    """One shard, or a folder that was one, of which `found` is the listing. `columns`: by which key of its .json files
    it holds the `label`.
    """
    return _sorted(path, {"": found}, columns)


def load_all(path: Path, files: Sequence[Path], scratch: Path, columns: Mapping[str, str]) -> Found:
    """The shards of a pattern or folder. A part is what their names, or folders, say."""
    by_part: dict[str, list[Listing]] = {}
    for file in files:
        found = listing(file, scratch)
        if not is_one(found):
            raise ValueError(
                f"{shown(file)}: tars of one source must be WebDataset shards, with a label (.cls, .json) beside each "
                f"image, but this one holds none; give it by --unlabelled, or unpack each into the folder of its class"
            )
        part = part_by_name(file.relative_to(path) if path.is_dir() else Path(file.name))
        by_part.setdefault(part, []).append(found)
    return _sorted(path, {part: joined(found) for part, found in by_part.items()}, columns)


def _sorted(path: Path, by_part: Mapping[str, Listing], columns: Mapping[str, str]) -> Found:
    rows: dict[str, tuple[list[Blob], list[str | None]]] = {}
    others: Counter[str] = Counter()
    notes: list[str] = []
    for part, found in by_part.items():
        labels = _labels(found, columns)
        rows[part] = ([entry.blob for entry in found.entries], labels)
        others.update({what: count for what, count in found.others.items() if what not in (".cls file", ".json file")})
        notes += found.notes
    return sorted_into_parts(path, rows, None, others=others, notes=tuple(notes))


def _labels(found: Listing, columns: Mapping[str, str]) -> list[str | None]:
    """The class of each image, from the .cls or else the .json file of its name; None where there is none."""
    of_class = {_key(entry): entry.blob for entry in found.beside if _ends(entry, ".cls")}
    of_facts = {_key(entry): entry.blob for entry in found.beside if _ends(entry, ".json")}
    asked = columns.get("label")
    if asked == "":
        return [None] * len(found.entries)
    labels: list[str | None] = []
    for entry in found.entries:
        key = _key(entry)
        if key in of_class and asked is None:
            labels.append(_plain(of_class[key]))
        elif key in of_facts:
            labels.append(_fact(of_facts[key], asked))
        else:
            labels.append(None)
    return labels


def _plain(blob: Blob) -> str | None:
    try:
        return blob.read().decode("utf-8").strip() or None
    except UnicodeDecodeError as error:
        raise ValueError(f"{blob.name}: a class must be a number or a name in UTF-8, but is not ({error})") from error


def _fact(blob: Blob, asked: str | None) -> str | None:
    try:
        facts: Any = json.loads(blob.read())
    except ValueError as error:
        raise ValueError(f"{blob.name}: must be JSON, but is not ({error}); write the shard again") from error
    if not isinstance(facts, dict):
        return label_text(facts, (), blob.name)
    known = ", ".join(map(repr, facts)) or "none"
    names = [asked] if asked is not None else [name for name in facts if names_a("label", name)]
    if len(names) != 1 or names[0] not in facts:
        raise ValueError(
            f"{blob.name}: it must be clear which of its keys is the label, but they are {known}; say which with "
            f"--column label=KEY, or with --column label= that there are none"
        )
    return label_text(facts[names[0]], (), blob.name)


def _key(entry: Entry) -> _Key:
    """What the files of one sample share: shard, folders, and everything up to the first dot of their name."""
    return entry.folders, entry.file.split(".")[0], None if entry.blob.size is None else entry.blob.path


def _ends(entry: Entry, suffix: str) -> bool:
    return entry.file.lower().endswith(suffix)


def _expanded(path: Path) -> list[Path]:
    """Braces as a shell's ({000..010}, {a,b}), then * ? [ ]."""
    pieces: list[list[str]] = []
    for piece in re.split(r"(\{[^{}]*\})", str(path)):
        span = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", piece)
        if span:
            low, high = int(span[1]), int(span[2])
            if abs(high - low) >= _MOST:
                raise ValueError(f"{shown(path)}: a pattern must name at most {_MOST:,} files; correct {piece}")
            step = 1 if high >= low else -1
            width = len(span[1]) if span[1].startswith("0") or len(span[1]) == len(span[2]) else 0
            pieces.append([f"{number:0{width}}" for number in range(low, high + step, step)])
        else:
            pieces.append(piece[1:-1].split(",") if piece.startswith("{") and "," in piece else [piece])
    total = 1
    for choices in pieces:
        total *= len(choices)
    if total > _MOST:
        raise ValueError(f"{shown(path)}: a pattern must name at most {_MOST:,} files, but names {total:,}; correct it")
    found: list[Path] = []
    missing: list[str] = []
    for name in map("".join, itertools.product(*pieces)):
        matching = [name] if os.path.exists(name) else sorted(glob.glob(name))
        found += map(Path, matching)
        missing += [] if matching else [shown(name)]
    if missing:
        raise ValueError(
            f"{shown(path)}: each file of a pattern must exist, but {len(missing):,} of {total:,} are not there, such "
            f"as {missing[0]}; check the pattern"
        )
    return list(dict.fromkeys(found))
