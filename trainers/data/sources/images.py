"""Image files in one folder per class (ImageFolder), in a directory or a tar; any sizes and color modes that Pillow
reads.
"""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import os
import shutil
import tarfile
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from trainers.data.sources.base import IMAGE_SUFFIXES, Blob, FileImages, Images, Part, Source, existing

log = logging.getLogger(__name__)

TRAIN_NAMES = frozenset({"train", "training"})
TEST_NAMES = frozenset({"val", "valid", "validation", "test", "testing"})
_COMPRESSED: dict[bytes, type[gzip.GzipFile] | type[bz2.BZ2File] | type[lzma.LZMAFile]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
_BLOCK = 512  # bytes, of a tar


class _Entry(NamedTuple):
    """An image file, and where it lies below its source: `folders` are the names between."""

    folders: tuple[str, ...]
    blob: Blob


def load(sources: Sequence[Path], scratch: Path) -> Source:
    """One folder per class; a class takes all images below its folder. Several sources are joined.

    A test part is recognized where the top folders are `train` and one of `val`, `valid`, `validation`, `test`, and
    where sources themselves (a folder, or a tar by its stem) have these names.
    """
    if not sources:
        raise ValueError("images needs --source: a folder or tar with one sub-folder per class; name it")
    train: list[_Entry] = []
    test: list[_Entry] = []
    skipped = 0
    by_name = len(sources) > 1 and any(_stem(path) in TRAIN_NAMES for path in sources)
    for path in sources:
        entries, passed_over = _entries(existing(path, "the source of images"), scratch)
        if not entries:
            raise ValueError(
                f"{path}: must hold images ({' '.join(sorted(IMAGE_SUFFIXES))}), but there is none; check the path"
            )
        own_train, own_test, beside = _parts(entries, path)
        if own_test is None and by_name and _stem(path) in TEST_NAMES:
            own_train, own_test = [], own_train
        train += own_train
        test += own_test or []
        skipped += passed_over + beside
    if not train:
        raise ValueError(
            f"{sources[0]}: there must be images to train on, but only a test part was found; add a --source for them"
        )
    names = sorted({_class_of(entry) for entry in train})
    unknown = sorted({_class_of(entry) for entry in test} - set(names))
    if unknown:
        raise ValueError(
            f"{sources[-1]}: labels don't match: the test part has the class {unknown[0]!r}, which the training "
            f"part lacks "
            f"(it has {', '.join(names[:10])}{' …' if len(names) > 10 else ''}); name the folders alike"
        )
    if skipped:
        log.warning("%s: %d files are no images, or lie beside the recognized folders; left out", sources[0], skipped)
    return Source(
        description=f"images: {', '.join(path.resolve().name for path in sources)}",
        class_names=tuple(names),
        train=_part(train, names),
        test=_part(test, names) if test else None,
        skipped=skipped,
    )


def load_images(path: Path, scratch: Path) -> Images:
    """Every image below a folder or in a tar, whatever the layout."""
    entries, _ = _entries(path, scratch)
    if not entries:
        raise ValueError(
            f"{path}: must hold images ({' '.join(sorted(IMAGE_SUFFIXES))}), but there is none; check the path"
        )
    return FileImages([entry.blob for entry in entries])


def _parts(entries: list[_Entry], source: Path) -> tuple[list[_Entry], list[_Entry] | None, int]:
    """(train, test or None, images left out) of one source. A single folder around everything is looked through."""
    while True:
        tops = {entry.folders[0] if entry.folders else "" for entry in entries}
        below = {entry.folders[1] for entry in entries if len(entry.folders) > 1}
        parts_here = _part_names(tops, entries)
        if parts_here or len(tops) != 1 or "" in tops or not (below & TRAIN_NAMES or _lone_test_or_train(below)):
            break
        entries = [_Entry(entry.folders[1:], entry.blob) for entry in entries]
    if not parts_here:
        only = next(iter(tops)) if len(tops) == 1 else ""
        if only in TRAIN_NAMES | TEST_NAMES and below and all(len(entry.folders) > 1 for entry in entries):
            # A tar that holds one part alone, such as val.tar with val/<class>/x.jpg.
            inner = [_Entry(entry.folders[1:], entry.blob) for entry in entries]
            return (inner, None, 0) if only in TRAIN_NAMES else ([], inner, 0)
        return entries, None, 0
    train_name, test_names = parts_here
    inside = {
        name: [_Entry(e.folders[1:], e.blob) for e in entries if e.folders and e.folders[0] == name]
        for name in tops
        if name
    }
    # ImageNet's `test` has no class folders, because its labels are secret: it is no part to report on.
    labeled = [name for name in test_names if all(entry.folders for entry in inside[name])]
    if len(labeled) > 1:
        raise ValueError(
            f"{source}: one folder must be the test part, but {' and '.join(labeled)} both have class folders; "
            f"name the parts: --source {source}/{train_name} --source {source}/{labeled[0]}"
        )
    test = inside[labeled[0]] if labeled else None
    return inside[train_name], test, len(entries) - len(inside[train_name]) - len(test or [])


def _part_names(tops: set[str], entries: Sequence[_Entry]) -> tuple[str, list[str]] | None:
    """(the train folder, the possible test folders) where the top level is made of parts, not of classes."""
    train, test = sorted(tops & TRAIN_NAMES), sorted(tops & TEST_NAMES)
    if not train or not test:
        return None
    # Classes may be called "train" and "test": then images lie right in them.
    nested = all(len(entry.folders) > 1 for entry in entries if entry.folders and entry.folders[0] == train[0])
    return (train[0], test) if nested else None


def _lone_test_or_train(names: set[str]) -> bool:
    return len(names) == 1 and bool(names & (TRAIN_NAMES | TEST_NAMES))


def _class_of(entry: _Entry) -> str:
    if not entry.folders:
        raise ValueError(
            f"{entry.blob.name}: every image must lie in the folder of its class, but this one lies beside them; "
            "move it, or give images without labels by --unlabelled"
        )
    return entry.folders[0]


def _part(entries: Sequence[_Entry], names: Sequence[str]) -> Part:
    label_of = {name: label for label, name in enumerate(names)}
    labels = np.array([label_of[_class_of(entry)] for entry in entries], dtype=np.int64)
    return Part(FileImages([entry.blob for entry in entries]), labels)


def _stem(path: Path) -> str:
    return path.name.split(".")[0].lower()


def _entries(path: Path, scratch: Path) -> tuple[list[_Entry], int]:
    """Images in the order of their paths, and the number of other files; hidden files don't count."""
    entries, others = _from_folder(path) if path.is_dir() else _from_tar(path, scratch)
    return sorted(entries, key=lambda entry: (entry.folders, entry.blob.name)), others


def _is_hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _from_folder(root: Path) -> tuple[list[_Entry], int]:
    def refuse(error: OSError) -> None:
        raise ValueError(
            f"{error.filename}: the folder cannot be read ({error.strerror}); check who may read it"
        ) from error

    entries: list[_Entry] = []
    others = 0
    for folder, inner, files in os.walk(root, onerror=refuse, followlinks=True):
        folders = Path(folder).relative_to(root).parts
        inner[:] = sorted(name for name in inner if not _is_hidden([name]))
        for name in sorted(files):
            if _is_hidden([name]):
                continue
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                file = Path(folder, name)
                entries.append(_Entry(folders, Blob(file, str(file))))
            else:
                others += 1
    return entries, others


def _from_tar(path: Path, scratch: Path) -> tuple[list[_Entry], int]:
    plain = _decompressed(path, scratch)
    entries: list[_Entry] = []
    others = end = 0
    try:
        with tarfile.open(plain, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK if member.isreg() else member.offset_data
                parts = tuple(part for part in PurePosixPath(member.name).parts if part not in (".", "/", ".."))
                if member.isdir() or not parts or _is_hidden(parts):
                    continue
                # A hard link has no bytes of its own: it names an earlier member.
                held = tar.getmember(member.linkname) if member.islnk() else member
                if held.isreg() and PurePosixPath(member.name).suffix.lower() in IMAGE_SUFFIXES:
                    blob = Blob(plain, f"{path}: {member.name}", held.offset_data, held.size)
                    entries.append(_Entry(parts[:-1], blob))
                else:
                    others += 1
        with plain.open("rb") as file:
            file.seek(end)
            complete = not any(file.read(_BLOCK)) and plain.stat().st_size > end
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a complete tar file ({error}); it may be truncated: copy it again") from error
    if not complete:
        raise ValueError(
            f"{path}: a tar must end with an empty block, but this one stops early: truncated; copy it again"
        )
    return entries, others


def _decompressed(path: Path, scratch: Path) -> Path:
    """The tar itself: images are read in any order, so a compressed one is unpacked aside for the time of the build."""
    with path.open("rb") as file:
        head = file.read(8)
    opener = next((opener for magic, opener in _COMPRESSED.items() if head.startswith(magic)), None)
    if opener is None:
        return path
    plain = scratch / f"{uuid.uuid4().hex}.tar"
    try:
        with opener(path) as packed, plain.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault, such as being full; a damaged file has no error number
        raise ValueError(
            f"{path}: not a complete compressed tar ({error}); it may be truncated: copy it again"
        ) from error
    return plain
