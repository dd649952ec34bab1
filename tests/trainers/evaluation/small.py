"""A small data set in memory and a subject that needs no training: what protocols are tried on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from trainers.evaluation.features import Store
from trainers.evaluation.protocol import Data, Split
from trainers.evaluation.subject import Subject
from trainers.settings import ViewConfig

if TYPE_CHECKING:  # FFCV takes seconds to import, and nothing here needs it
    from trainers.data.datasets import Dataset
    from trainers.data.loader import Loaders

CLASSES = 10
CPU = torch.device("cpu")


class Digits:
    """Digits of 8 px: 900 train, 500 select, 397 report; a data set and its loaders."""

    def __init__(self) -> None:
        digits = load_digits()
        self.pixels = torch.from_numpy(digits.images / 16).float()[:, None].expand(-1, 3, -1, -1)
        self.labels: np.ndarray[Any, np.dtype[np.int64]] = digits.target.astype(np.int64)
        self.folder, self.manifest_hash = Path("digits"), "d" * 64
        self.class_count, self.has_labels = CLASSES, True
        self.train_count, self.select_count, self.report_count = 900, 500, 397
        self.train_ids, self.select_ids = np.arange(900), np.arange(900, 1400)
        counts = {"train": np.bincount(self.labels[:900]), "select": np.bincount(self.labels[900:1400])}
        self.manifest = SimpleNamespace(
            split_seed=0, class_names=tuple(map(str, range(CLASSES))), class_counts=counts, counts=None, label_lists={}
        )
        self.looked_at: list[tuple[str, int]] = []
        """(file, images) of each pass."""

    def search_labels(self) -> np.ndarray[Any, Any]:
        return self.labels[:1400]

    def report_labels(self) -> np.ndarray[Any, Any]:
        return self.labels[1400:]

    def images(
        self,
        dataset: object,
        ids: Any,
        *,
        size: int,
        batch_size: int,
        split: str,
        normalization: object,
        crop_pct: float,
        **_: object,
    ) -> Iterator[tuple[Tensor, Any]]:
        assert (size, normalization) == (8, ((0.0,) * 3, (1.0,) * 3))
        self.looked_at.append((split, len(ids)))
        start = 0 if split == "search" else 1400
        resized = int(size / crop_pct)
        for first in range(0, len(ids), batch_size):
            part = ids[first : first + batch_size]
            whole = nn.functional.interpolate(self.pixels[torch.from_numpy(part) + start], resized)
            edge = (resized - size) // 2
            yield whole[:, :, edge : edge + size, edge : edge + size], part

    def augmented(
        self, dataset: object, ids: Any, *, views: Sequence[ViewConfig], batch_size: int, epoch: int, **_: object
    ) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
        """The images, a little brighter from epoch to epoch."""
        for first in range(0, len(ids), batch_size):
            part = ids[first : first + batch_size]
            yield (self.pixels[torch.from_numpy(part)] + 0.01 * epoch,), part


class Pixels(nn.Module):
    """[n, 3, 8, 8] -> [n, 64]: the first channel."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0].flatten(1)


def subject(network: nn.Module | None = None) -> Subject:
    return Subject(
        name="pixels",
        digest="p" * 64,
        size=8,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        resampling="bilinear",
        kind="other",
        sources={"features": network or Pixels()},
    )


def data(digits: Digits, folder: Path, split: Split = "select", **store: Any) -> Data:
    return Data(cast("Dataset", digits), "digits", split, loaders=cast("Loaders", digits), store=Store(folder, **store))


def silent(what: str, done: float) -> None:
    """No progress wanted."""
