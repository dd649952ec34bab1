"""Tiny ImageNet in its original folder: wnids.txt, words.txt, train/<wnid>/images/, val/images/ with
val_annotations.txt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from trainers.data.sources.base import Blob, FileImages, Part, Source, existing, image_suffixes, one_folder

_FOLDER = "tiny-imagenet-200"


def load(sources: Sequence[Path]) -> Source:
    """`val` becomes `report`; `test` has no labels and is left out (it may join with `--unlabelled`)."""
    folder = one_folder(sources, "tiny-imagenet", f"the folder {_FOLDER}")
    if (folder / _FOLDER).is_dir():
        folder = folder / _FOLDER
    wnids = sorted(_lines(folder / "wnids.txt"))
    words = (
        dict(line.split("\t", 1) for line in _lines(folder / "words.txt") if "\t" in line)
        if (folder / "words.txt").exists()
        else {}
    )
    label_of = {wnid: label for label, wnid in enumerate(wnids)}

    train: list[Blob] = []
    train_labels: list[int] = []
    for wnid in wnids:
        files = list(_images(existing(folder / "train" / wnid, "the folder of a class in wnids.txt") / "images"))
        train += [Blob(path, str(path)) for path in files]
        train_labels += [label_of[wnid]] * len(files)

    annotations = folder / "val" / "val_annotations.txt"
    label_of_file: dict[str, int] = {}
    for number, line in enumerate(_lines(annotations), start=1):
        name, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in label_of:
            raise ValueError(
                f"{annotations}, line {number}: must name a class of wnids.txt, but says {wnid!r}; copy the file again"
            )
        label_of_file[name] = label_of[wnid]
    files = list(_images(folder / "val" / "images"))
    names = {path.name for path in files}
    for name in sorted(names ^ label_of_file.keys()):
        fault = "has no line there" if name in names else "is missing from val/images"
        raise ValueError(
            f"{annotations}: labels don't match the images: {name} {fault}; copy the original folder completely"
        )
    test_labels = np.array([label_of_file[path.name] for path in files], dtype=np.int64)

    return Source(
        "tiny-imagenet: original folder",
        tuple(words.get(wnid, wnid) for wnid in wnids),
        Part(FileImages(train), np.array(train_labels, dtype=np.int64)),
        Part(FileImages([Blob(path, str(path)) for path in files]), test_labels),
    )


def _lines(path: Path) -> list[str]:
    try:
        text = existing(path, "a file of the original tiny-imagenet folder").read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be text, but is not ({error}); copy it again") from error
    return [line.strip("\r\n") for line in text.splitlines() if line.strip()]


def _images(folder: Path) -> Iterator[Path]:
    for path in sorted(existing(folder, "a folder of the original tiny-imagenet").iterdir()):
        if path.suffix.lower() in image_suffixes() and not path.name.startswith("."):
            if path.exists() and not path.is_file():
                raise ValueError(
                    f"{path}: an image must be a regular file, but this is none; copy the original folder again"
                )
            yield path
