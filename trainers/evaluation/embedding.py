"""Features of any number of images, batch by batch: of a data set's, and of images that are in none.

Letters: n = images, T = a thumbnail's side in pixels, p = features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from trainers import dist
from trainers.data.own_images import OwnImage, rendered
from trainers.encoder import BATCH_SIZE

if TYPE_CHECKING:
    from trainers.data.loader import Loaders
    from trainers.data.manifest import Dataset
    from trainers.evaluation.protocol import Data
    from trainers.evaluation.subject import Subject

Features = NDArray[np.floating[Any]]
_AS_THEY_ARE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
_AT_ONCE = 64  # thumbnails


def of_images(subject: Subject, images: Sequence[OwnImage], *, threads: int = 1) -> Iterator[Features]:
    """Features [m, p] of image after image, prepared as the images that the subject was trained on: those of
    `trainers.Encoder.features`, bit for bit. The subject's networks are where they compute.

    ValueError, naming it, where an image is broken (BrokenImageError) or of another kind.
    """
    device = _device(subject)
    for pixels in rendered(
        images,
        size=subject.size,
        mean=subject.mean,
        deviation=subject.std,
        resampling=subject.resampling,
        batch_size=BATCH_SIZE,
        white=subject.white,
        max_side=subject.max_side,
        threads=threads,
    ):
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device, torch.get_default_dtype())
        yield subject.encode(batch).cpu().numpy()


def of_images_divided(
    subject: Subject,
    data: Data,
    *,
    device: torch.device,
    report: Callable[[float], None],
    images: Sequence[OwnImage],
) -> Iterator[Features]:
    """`of_images`, computed on `device` by all ranks in turn; `together.divided` calls it."""
    subject.to(device)
    count = -(-len(images) // BATCH_SIZE)
    places = dist.own_batches(np.arange(len(images)), BATCH_SIZE)
    own = of_images(subject, [images[place] for place in places], threads=data.threads)
    for number, features in enumerate(dist.in_order(own, count)):
        yield features
        report((number + 1) / count)


def of_data(
    subject: Subject,
    dataset: Dataset,
    ids: NDArray[np.int64],
    *,
    loaders: Loaders,
    file: Literal["search", "report"],
    threads: int = 1,
) -> Iterator[Features]:
    """Features [m, p] of the rows `ids` of a data set's file, normalized as the images that the subject was trained
    on. Sets torch's number of threads.
    """
    device = _device(subject)
    for images, _ in subject.images(dataset, ids, loaders=loaders, file=file, threads=threads):
        batch = images.to(device, torch.get_default_dtype(), memory_format=torch.channels_last)
        yield subject.encode(batch).cpu().numpy()


def thumbnails_of_images(images: Sequence[OwnImage], side: int, *, white: int) -> list[NDArray[np.uint8]]:
    """The middle of each image, [T, T, 3], T = `side`."""
    mean, deviation = _AS_THEY_ARE
    batches = rendered(
        images, size=side, mean=mean, deviation=deviation, resampling="bilinear", batch_size=_AT_ONCE, white=white
    )
    return [_bytes(one) for batch in batches for one in batch]


def thumbnails_of_data(
    dataset: Dataset, ids: NDArray[np.int64], side: int, *, loaders: Loaders, file: Literal["search", "report"]
) -> list[NDArray[np.uint8]]:
    """The same of rows of a data set's file."""
    batches = loaders.images(
        dataset,
        ids,
        size=side,
        batch_size=_AT_ONCE,
        threads=torch.get_num_threads(),
        split=file,
        normalization=_AS_THEY_ARE,
    )
    return [_bytes(one.permute(1, 2, 0).numpy()) for batch, _ in batches for one in batch]


def _bytes(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)
    return found


def _device(subject: Subject) -> torch.device:
    first = next(subject.network.parameters(), None)  # none, where raw pixels are the features
    return torch.device("cpu") if first is None else first.device
