"""Two augmented views per image: images/s of our loader against torchvision v2 transforms in a PyTorch DataLoader.

Both read the same data set, use the same augmentations (random resized crop, flip, color jitter with hue, grayscale,
blur, solarize, normalization) with the same probabilities, and the same number of threads or worker processes.
torchvision is measured in both of its forms, on PIL images and on byte tensors, with persistent workers and without
paying for epochs; the faster form counts. Rates are medians over the repeats, which alternate. Run on a quiet machine:

    python benchmarks/loader.py                                         the built-in digits at 32 px
    python benchmarks/loader.py --data data/cifar10 --data data/imagenette
    python benchmarks/loader.py --resampling bicubic                    both resize crops bicubically

In the table of `python -m benchmarks` are images that are made here: random pixels of 32 px, and two photographs that
scikit-learn has, cut and mirrored into 240 JPEG files.
"""

from __future__ import annotations

import argparse
import datetime
import io
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from ffcv.reader import Reader
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data import Dataset as TorchDataset
from torchvision.io import ImageReadMode, decode_jpeg  # type: ignore[import-untyped, unused-ignore]
from torchvision.transforms import v2  # type: ignore[import-untyped, unused-ignore]

from trainers.config import TrialConfig, ViewConfig
from trainers.data.datasets import Dataset, build, ensure_builtin, open_dataset
from trainers.data.loader import Loaders
from trainers.settings import Resampling

OURS = "pretune"
PREFETCHED = 2
"""Batches each worker process makes ahead (PyTorch's default); ours makes three in all."""


def view(size: int, resampling: Resampling) -> ViewConfig:
    return ViewConfig(
        size=size,
        resampling=resampling,
        jitter_probability=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        blur_probability=0.5,
        solarize_probability=0.2,
    )


def torchvision_views(config: ViewConfig, dataset: Dataset, form: str) -> v2.Compose:
    """The same augmentations in torchvision's terms; its blur's kernel reaches three of the largest sigmas."""
    jitter = v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
    taps = 2 * int(np.ceil(3 * config.blur_sigma[1])) + 1
    steps: list[nn.Module] = [
        v2.RandomResizedCrop(
            config.size,
            scale=config.crop_scale,
            ratio=config.crop_ratio,
            interpolation=v2.InterpolationMode(config.resampling),
            antialias=True,
        ),
        v2.RandomHorizontalFlip(config.flip_probability),
        v2.RandomApply([jitter], config.jitter_probability),
        v2.RandomGrayscale(config.grayscale_probability),
        v2.RandomApply([v2.GaussianBlur(taps, config.blur_sigma)], config.blur_probability),
        v2.RandomSolarize(config.solarize_threshold * 255, config.solarize_probability),
    ]
    if form == "PIL":
        steps.append(v2.ToImage())
    return v2.Compose(
        [
            *steps,
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(dataset.manifest.mean), list(dataset.manifest.std)),
        ]
    )


class Stored:
    """Images of a data set's search file by id, from the bytes that our loader reads too, held in memory: Pillow's, or
    byte tensors [3, H, W]."""

    def __init__(self, dataset: Dataset, form: str) -> None:
        reader = Reader(str(dataset.search_file))
        self._records = reader.metadata["f0"].copy()
        sizes = dict(zip(reader.alloc_table["ptr"].tolist(), reader.alloc_table["size"].tolist(), strict=True))
        self._sizes = [sizes[pointer] for pointer in self._records["data_ptr"].tolist()]
        self._bytes = np.memmap(dataset.search_file, dtype=np.uint8, mode="r")
        self._jpeg, self._form = dataset.manifest.encoding == "jpeg", form

    def __getitem__(self, index: int) -> Any:
        _, width, height, start = (int(value) for value in self._records[index])
        stored = np.array(self._bytes[start : start + self._sizes[index]])
        if self._form == "PIL":
            if self._jpeg:
                return Image.open(io.BytesIO(stored.tobytes())).convert("RGB")
            return Image.fromarray(stored.reshape(height, width, 3))
        if self._jpeg:
            return decode_jpeg(torch.from_numpy(stored), mode=ImageReadMode.RGB)
        return torch.from_numpy(stored.reshape(height, width, 3)).permute(2, 0, 1).contiguous()


class TwoViews(TorchDataset[tuple[Tensor, Tensor]]):
    """The images of `train`, each twice augmented."""

    def __init__(self, dataset: Dataset, config: ViewConfig, form: str) -> None:
        self._count, self._images = dataset.train_count, Stored(dataset, form)
        self._views = torchvision_views(config, dataset, form)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self._images[index]
        return self._views(image), self._views(image)


def torchvision_batches(dataset: Dataset, config: ViewConfig, form: str, batch: int, workers: int) -> Iterator[int]:
    images = TwoViews(dataset, config, form)
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_size=batch,
        num_workers=workers,
        sampler=RandomSampler(images, replacement=True, num_samples=10**8),  # one endless epoch
        persistent_workers=True,
        prefetch_factor=PREFETCHED,
    )
    for one, _ in loader:
        yield len(one)


def our_batches(loaders: Loaders, dataset: Dataset, config: ViewConfig, batch: int, workers: int) -> Iterator[int]:
    trial = TrialConfig(
        views=(config, config), objective={"alignment": {"weight": 1.0}}, batch_size=batch, threads=workers
    )
    for epoch in itertools.count():
        for views, _ in loaders.epoch(dataset, trial, epoch=epoch, rank=0, world_size=1):
            yield len(views[0])


def rate(batches: Iterator[int], ahead: int, seconds: float) -> float:
    """Images per second, once what was prepared ahead is used up."""
    for _ in range(ahead):
        next(batches)
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        images += next(batches)
    return images / (time.perf_counter() - start)


def rates(
    dataset: Dataset, *, size: int, resampling: Resampling, workers: int, repeats: int, seconds: float
) -> dict[str, list[float]]:
    """Images per second of each loader, `OURS` first, in turns."""
    config, loaders = view(size, resampling), Loaders()
    batch = batch_of(dataset, size)
    sources: dict[str, Callable[[], Iterator[int]]] = {
        OURS: lambda: our_batches(loaders, dataset, config, batch, workers),
        "torchvision v2, PIL images": lambda: torchvision_batches(dataset, config, "PIL", batch, workers),
        "torchvision v2, byte tensors": lambda: torchvision_batches(dataset, config, "tensor", batch, workers),
    }
    found: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(repeats):
        for name, source in sources.items():
            found[name].append(rate(source(), PREFETCHED * workers + 1, seconds))
    return found


def faster(found: dict[str, list[float]]) -> str:
    """Which form of torchvision's is the faster one."""
    return max(found.keys() - {OURS}, key=lambda name: statistics.median(found[name]))


def batch_of(dataset: Dataset, size: int) -> int:
    return min(256 if size <= 64 else 32, dataset.train_count)


def compare(dataset: Dataset, *, size: int, resampling: Resampling, workers: int, repeats: int, seconds: float) -> None:
    """Print one line per loader and the ratio."""
    found = rates(dataset, size=size, resampling=resampling, workers=workers, repeats=repeats, seconds=seconds)
    encoding = dataset.manifest.encoding
    what = f"two {resampling} views of {size} px, batch {batch_of(dataset, size)}, {workers} workers"
    print(f"{dataset.manifest.kind}: {encoding} images, {what}")
    for name, each in found.items():
        spread = f"{min(each):,.0f} to {max(each):,.0f}"
        print(f"  {name:<30} {statistics.median(each):>10,.0f} images/s   ({spread} in {repeats} repeats)")
    ratio = statistics.median(found[OURS]) / statistics.median(found[faster(found)])
    print(f"  ratio to the faster form       {ratio:>10.1f}", flush=True)


def rows(repeats: int = 5, seconds: float = 2.0) -> Iterator[tuple[str, list[float], list[float], str]]:
    """For the table: images per second at 32 px from raw pixels and at 224 px from JPEG files."""
    torch.set_num_threads(1)
    workers = len(os.sched_getaffinity(0))
    sizes: dict[str, tuple[Callable[[Path], Dataset], int]] = {
        "views at 32 px": (pixels, 32),
        "views at 224 px": (photographs, 224),
    }
    for name, (make, size) in sizes.items():
        with tempfile.TemporaryDirectory() as scratch:
            found = rates(
                make(Path(scratch)), size=size, resampling="bilinear", workers=workers, repeats=repeats, seconds=seconds
            )
            yield name, found[OURS], found[faster(found)], f"{workers} workers"


def pixels(folder: Path, count: int = 5000) -> Dataset:
    """Random images of 32 px; what they show costs no loader anything."""
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(count) % 10)
    return build("npz", source=[folder / "images.npz"], out=folder / "data")


def photographs(folder: Path, cuts: int = 120) -> Dataset:
    """JPEG files of 375 x 500 pixels, as many of ImageNet's are: scikit-learn's two sample photographs, each cut at so
    many places and every other time mirrored."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    for number, photograph in enumerate(load_sample_images().images):
        place = folder / "files" / f"photograph-{number}"
        place.mkdir(parents=True)
        for cut in range(cuts):
            height, width, _ = photograph.shape
            top, left = rng.integers(0, (height - 375 + 1, width - 500 + 1))
            image = photograph[top : top + 375, left : left + 500]
            Image.fromarray(image[:, ::-1] if cut % 2 else image).save(place / f"{cut}.jpg", quality=90)
    return build("images", source=[folder / "files"], out=folder / "data")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, action="append", default=[], help="a folder that `pretune data` wrote; repeatable"
    )
    parser.add_argument("--size", type=int, help="pixels of a view (default: 32 for raw data sets, 224 for JPEG)")
    parser.add_argument("--resampling", choices=get_args(Resampling), default="bilinear", help="of the crops")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="threads, or processes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as scratch:
        datasets = [open_dataset(path) for path in arguments.data] or [ensure_builtin("digits", Path(scratch))]
        for dataset in datasets:
            compare(
                dataset,
                size=arguments.size or (32 if dataset.manifest.encoding == "raw" else 224),
                resampling=arguments.resampling,
                workers=arguments.workers,
                repeats=arguments.repeats,
                seconds=arguments.seconds,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
