"""Arrays in .npz files: `images` (uint8, [n, h, w, 3] or gray [n, h, w]) and `labels` (integers, [n], from 0)."""

from __future__ import annotations

import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from trainers.data.sources.base import (
    ArrayImages,
    ChainedImages,
    Channels,
    Images,
    Part,
    Source,
    as_labels,
    as_pixels,
    existing,
)
from trainers.data.sources.layout import role

ERRORS = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError)
"""What reading a file that is no whole .npz raises."""

ARRAYS = ("images", "labels", "test_images", "test_labels")
"""What the arrays of a file may be; the last two, a test part inside it, are read only where they are asked for."""
_WORDS = {
    "images": {"image", "images", "img", "imgs", "x", "data"},
    "labels": {"label", "labels", "y", "target", "targets"},
}


def load(
    sources: Sequence[Path],
    *,
    kind: str = "npz",
    class_names: tuple[str, ...] | None = None,
    channels: Channels = "auto",
    arrays: Mapping[str, str] | None = None,
) -> Source:
    """One file, several, or folders of them; files named as a test part (test, val, dev …) or report… are that part.

    `class_names` may also come from an array of strings of that name inside the files. `arrays` says by which key a
    file holds what (see `ARRAYS`), where it is not called so.
    """
    keys = dict(arrays or {})
    if unknown := sorted(keys.keys() - set(ARRAYS)):
        raise ValueError(f"--array must name one of {', '.join(ARRAYS)}, but names {unknown[0]}; write NAME=KEY")
    if ("test_images" in keys) != ("test_labels" in keys):
        raise ValueError("--array must name test_images and test_labels, or neither, but names one; add the other")
    if not sources:
        raise ValueError(f"{kind} needs --source: a .npz file, several, or a folder of them; name it")
    files = [file for path in sources for file in _files(existing(path, f"the source of {kind}"), kind)]
    test = [file for file in files if role(file.stem) == "test" or file.stem.lower().startswith("report")]
    train = [file for file in files if file not in test]
    if "test_images" in keys:
        train, test = files, []
    if not train:
        raise ValueError(
            f"{files[0]}: there must be files to train on, but all are named as a test part; rename one to train.npz"
        )
    names = class_names or next((found for file in files if (found := _class_names(file))), None)
    pair = (keys.get("images", "images"), keys.get("labels", "labels"))
    train_part = _part(train, None if names is None else len(names), pair, channels)
    classes = len(names) if names else int(train_part.labels.max(initial=0)) + 1
    if names is None and len(train_part.labels) and (least := int(train_part.labels.min(initial=classes))) > 0:
        raise ValueError(
            f"{', '.join(map(str, train))}: labels must be numbered from 0, but range from {least} to {classes - 1}; "
            f"subtract {least}"
        )
    test_part = _part(test, classes, pair, channels) if test else None
    if "test_images" in keys:
        test_part = _part(train, classes, (keys["test_images"], keys["test_labels"]), channels)
    known = {*pair, *keys.values(), "class_names"}
    left = sorted({key for file in files for key in _keys(file)} - known)
    return Source(
        description=f"{kind}: {', '.join(file.name for file in files)}",
        class_names=names or tuple(str(label) for label in range(classes)),
        train=train_part,
        test=test_part,
        notes=(f"arrays that are not read: {', '.join(left)}",) if left else (),
    )


def load_images(path: Path, channels: Channels = "auto", key: str = "images") -> Images:
    """`images` alone; labels, if any, are ignored."""
    return ArrayImages(as_pixels(read_arrays(path, key)[0], str(path), channels, asked_by="--layout"), str(path))


@contextmanager
def opened(path: Path) -> Iterator[NpzFile]:
    """The arrays of a file by name; none that Python would have to unpickle. Raises `ERRORS` where it is no such file,
    and where an array of it is read that is damaged.
    """
    with path.open("rb") as file:
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise ValueError("it holds a single array, not named ones")
        with found:
            yield found


def read_arrays(path: Path, *keys: str) -> list[NDArray[Any]]:
    """Arrays of a .npz file, decoded completely. Never unpickles. ValueError where the file or a key is not as it
    must be.
    """
    try:
        with opened(path) as archive:
            missing = [key for key in keys if key not in archive.files]
            if not missing:
                return [archive[key] for key in keys]
            held = ", ".join(archive.files) or "nothing"
    except ERRORS as error:
        if "Object arrays" in str(error):  # NumPy's word for what only unpickling would read
            raise ValueError(
                f"{path}: must hold arrays of numbers and text, but {' or '.join(keys)} holds Python objects; save "
                f"images of one shape as uint8, labels as integers, names as text"
            ) from error
        raise ValueError(
            f"{path}: not a complete .npz file of plain arrays ({error}); it may be truncated: copy it again, or "
            f"save it with np.savez"
        ) from error
    unlabelled = f", or give its images without labels by --unlabelled {path}" if missing == list(keys[1:2]) else ""
    raise ValueError(
        f"{path}: must hold the arrays {', '.join(keys)}, but lacks {', '.join(missing)} (it holds {held}); rename "
        f"them, or say which they are with --array NAME=KEY, such as {_suggested(held.split(', '))}{unlabelled}"
    )


def _suggested(held: Sequence[str]) -> str:
    """The options that fit the names of a file's arrays best. Nothing is read by them unless they are typed."""
    picked = []
    for name in ARRAYS:
        part, _, what = name.rpartition("_")
        fitting = [
            key
            for key in held
            if set(re.findall(r"[a-z]+", key.lower())) & _WORDS[what] and (role(key) or "train") == (part or "train")
        ]
        if fitting:
            picked.append(f"--array {name}={min(fitting, key=lambda key: 'test' not in key.lower())}")
    # Half a test part is none.
    whole = picked if len(picked) != 3 else picked[:2]
    return " ".join(whole) if len(whole) > 1 else "--array images=KEY --array labels=KEY"


def _files(path: Path, kind: str) -> list[Path]:
    if not path.is_dir():
        if path.suffix.lower() != ".npz" or not path.is_file():
            what = (path.suffix or "without a suffix") if path.is_file() else "no regular file"
            remedy = "save the array with np.savez(FILE, images=…, labels=…)" if what == ".npy" else "check the path"
            raise ValueError(f"{path}: the source of {kind} must be .npz files, but this is {what}; {remedy}")
        return [path]
    files = sorted(
        file
        for file in path.iterdir()
        if file.suffix.lower() == ".npz" and file.is_file() and not file.name.startswith(".")
    )
    if not files:
        raise ValueError(f"{path}: the folder must hold .npz files, but there is none; check the path")
    return files


def _class_names(path: Path) -> tuple[str, ...] | None:
    if "class_names" not in _keys(path):
        return None
    return tuple(str(name) for name in read_arrays(path, "class_names")[0].tolist())


def _keys(path: Path) -> list[str]:
    """The names of a file's arrays."""
    try:
        with opened(path) as archive:
            return list(archive.files)
    except ERRORS as error:
        raise ValueError(
            f"{path}: not a complete .npz file of plain arrays ({error}); it may be truncated: copy it again"
        ) from error


def _part(files: Sequence[Path], classes: int | None, keys: tuple[str, str], channels: Channels) -> Part:
    images: list[Images] = []
    labels: list[NDArray[np.int64]] = []
    for file in files:
        pixels, marks = read_arrays(file, *keys)
        images.append(ArrayImages(as_pixels(pixels, str(file), channels, asked_by="--layout"), str(file)))
        labels.append(as_labels(marks, len(pixels), str(file), classes=classes))
    return Part(ChainedImages(images), np.concatenate(labels))
