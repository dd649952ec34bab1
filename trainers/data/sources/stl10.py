"""STL-10's binary files: 96x96 RGB, column after column, plane after plane; labels 1 to 10."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainers.data.sources.base import ArrayImages, Part, Source, existing, one_folder

CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
SIDE = 96


def load(sources: Sequence[Path]) -> Source:
    """train_X.bin, train_y.bin, test_X.bin, test_y.bin. The 100,000 images of unlabeled_X.bin join with
    `--unlabelled`.
    """
    folder = one_folder(sources, "stl10", "a folder with train_X.bin …")
    if (folder / "stl10_binary").is_dir():
        folder = folder / "stl10_binary"
    train, test = (_part(folder, name) for name in ("train", "test"))
    return Source("stl10: binary files", CLASSES, train, test)


def load_images(path: Path) -> ArrayImages:
    """Images of a binary file, mapped, not read: the unlabeled ones take 2.7 GB."""
    size = existing(path, "a binary file of STL-10").stat().st_size
    if size == 0 or size % (3 * SIDE * SIDE):
        raise ValueError(
            f"{path}: must be whole images of {3 * SIDE * SIDE} bytes, but has {size} bytes: truncated; copy it again"
        )
    planes: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, 3, SIDE, SIDE)
    return ArrayImages(planes.transpose(0, 3, 2, 1), str(path))


def _part(folder: Path, name: str) -> Part:
    images = load_images(folder / f"{name}_X.bin")
    path = existing(folder / f"{name}_y.bin", "a binary file of STL-10")
    labels = np.fromfile(path, dtype=np.uint8).astype(np.int64)
    if len(labels) != len(images):
        raise ValueError(
            f"{path}: labels don't match the images: {len(labels)} labels for {len(images)} images; copy both again"
        )
    if labels.min() < 1 or labels.max() > len(CLASSES):
        raise ValueError(
            f"{path}: labels must be 1 to {len(CLASSES)}, but range from {labels.min()} to {labels.max()}; copy it "
            f"again"
        )
    return Part(images, labels - 1)
