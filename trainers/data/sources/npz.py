"""Arrays in .npz files: `images` (uint8, [n, h, w, 3] or grey [n, h, w]) and `labels` (integers, [n], from 0)."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.data.sources.base import ArrayImages, ChainedImages, Images, Part, Source, as_labels, as_pixels, existing
from trainers.data.sources.layout import role

_ERRORS = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError)


def load(sources: Sequence[Path], *, kind: str = "npz", class_names: tuple[str, ...] | None = None) -> Source:
    """One file, several, or folders of them; files named as a test part (test, val, dev …) or report… are that part.

    `class_names` may also come from an array of strings of that name inside the files.
    """
    if not sources:
        raise ValueError(f"{kind} needs --source: a .npz file, several, or a folder of them; name it")
    files = [file for path in sources for file in _files(existing(path, f"the source of {kind}"), kind)]
    test = [file for file in files if role(file.stem) == "test" or file.stem.lower().startswith("report")]
    train = [file for file in files if file not in test]
    if not train:
        raise ValueError(
            f"{files[0]}: there must be files to train on, but all are named as a test part; rename one to train.npz"
        )
    names = class_names or next((found for file in files if (found := _class_names(file))), None)
    train_part = _part(train, None if names is None else len(names))
    classes = len(names) if names else int(train_part.labels.max(initial=0)) + 1
    test_part = _part(test, classes) if test else None
    return Source(
        description=f"{kind}: {', '.join(file.name for file in files)}",
        class_names=names or tuple(str(label) for label in range(classes)),
        train=train_part,
        test=test_part,
    )


def load_images(path: Path) -> Images:
    """`images` alone; labels, if any, are ignored."""
    return ArrayImages(as_pixels(read_arrays(path, "images")[0], str(path)), str(path))


def read_arrays(path: Path, *keys: str) -> list[NDArray[Any]]:
    """Arrays of a .npz file, decoded completely. Never unpickles. ValueError where the file or a key is not as it
    must be.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if isinstance(archive, np.ndarray):
                raise ValueError("it holds a single array, not named ones")
            missing = [key for key in keys if key not in archive.files]
            if not missing:
                return [archive[key] for key in keys]
            held = ", ".join(archive.files) or "nothing"
    except _ERRORS as error:
        raise ValueError(
            f"{path}: not a complete .npz file of plain arrays ({error}); it may be truncated: copy it again, or "
            f"save it with np.savez"
        ) from error
    raise ValueError(
        f"{path}: must hold the arrays {', '.join(keys)}, but lacks {', '.join(missing)} (it holds {held}); rename them"
    )


def _files(path: Path, kind: str) -> list[Path]:
    if path.is_file():
        if path.suffix != ".npz":
            raise ValueError(
                f"{path}: the source of {kind} must be .npz files, but this is {path.suffix or 'without a suffix'}"
            )
        return [path]
    files = sorted(path.glob("*.npz"))
    if not files:
        raise ValueError(f"{path}: the folder must hold .npz files, but there is none; check the path")
    return files


def _class_names(path: Path) -> tuple[str, ...] | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if not isinstance(archive, np.ndarray) and "class_names" in archive.files:
                return tuple(str(name) for name in archive["class_names"].tolist())
    except _ERRORS as error:
        raise ValueError(
            f"{path}: not a complete .npz file of plain arrays ({error}); it may be truncated: copy it again"
        ) from error
    return None


def _part(files: Sequence[Path], classes: int | None) -> Part:
    images: list[Images] = []
    labels: list[NDArray[np.int64]] = []
    for file in files:
        pixels, marks = read_arrays(file, "images", "labels")
        images.append(ArrayImages(as_pixels(pixels, str(file)), str(file)))
        labels.append(as_labels(marks, len(pixels), str(file), classes=classes))
    return Part(ChainedImages(images), np.concatenate(labels))
