"""Two augmented views per image: images/s of our loader against torchvision v2 transforms in a PyTorch DataLoader.

Both read the same data set, use the same augmentations (random resized crop, flip, color jitter with hue, grayscale,
blur, solarize, normalization) with the same probabilities, and the same number of threads or worker processes.
torchvision is measured in both of its forms, on PIL images and on byte tensors, with persistent workers and without
paying for epochs; the faster form counts. Rates are medians over the repeats, which alternate. Run on a quiet machine:

    python benchmarks/loader.py                                         the built-in digits at 32 px
    python benchmarks/loader.py --data data/cifar10 --data data/imagenette
    python benchmarks/loader.py --resampling bicubic                    both resize crops bicubically
"""

from __future__ import annotations

import argparse
import datetime
import io
import itertools
import os
import platform
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
from trainers.data.datasets import Dataset, ensure_builtin, open_dataset
from trainers.data.loader import Loaders
from trainers.settings import Resampling

TARGET_RATIO = 12
"""At 32 px from raw pixels."""
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


class TwoViews(TorchDataset[tuple[Tensor, Tensor]]):
    """The images of `train`, from the bytes that our loader reads too, held in memory."""

    def __init__(self, dataset: Dataset, config: ViewConfig, form: str) -> None:
        reader = Reader(str(dataset.search_file))
        self._records = reader.metadata["f0"][: dataset.train_count].copy()
        sizes = dict(zip(reader.alloc_table["ptr"].tolist(), reader.alloc_table["size"].tolist(), strict=True))
        self._sizes = [sizes[pointer] for pointer in self._records["data_ptr"].tolist()]
        self._bytes = np.memmap(dataset.search_file, dtype=np.uint8, mode="r")
        self._jpeg, self._form = dataset.manifest.encoding == "jpeg", form
        self._views = torchvision_views(config, dataset, form)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        _, width, height, start = (int(value) for value in self._records[index])
        stored = np.array(self._bytes[start : start + self._sizes[index]])
        image: Any
        if self._form == "PIL":
            if self._jpeg:
                image = Image.open(io.BytesIO(stored.tobytes())).convert("RGB")
            else:
                image = Image.fromarray(stored.reshape(height, width, 3))
        elif self._jpeg:
            image = decode_jpeg(torch.from_numpy(stored), mode=ImageReadMode.RGB)
        else:
            image = torch.from_numpy(stored.reshape(height, width, 3)).permute(2, 0, 1).contiguous()
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


def compare(
    dataset: Dataset, *, size: int, resampling: Resampling, workers: int, repeats: int, seconds: float
) -> float:
    """Print one line per loader and the ratio; return it."""
    config, loaders = view(size, resampling), Loaders()
    batch = min(256 if size <= 64 else 32, dataset.train_count)
    sources: dict[str, Callable[[], Iterator[int]]] = {
        "pretune": lambda: our_batches(loaders, dataset, config, batch, workers),
        "torchvision v2, PIL images": lambda: torchvision_batches(dataset, config, "PIL", batch, workers),
        "torchvision v2, byte tensors": lambda: torchvision_batches(dataset, config, "tensor", batch, workers),
    }
    found: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(repeats):
        for name, source in sources.items():
            found[name].append(rate(source(), PREFETCHED * workers + 1, seconds))
    encoding = dataset.manifest.encoding
    what = f"two {resampling} views of {size} px, batch {batch}, {workers} workers"
    print(f"{dataset.manifest.kind}: {encoding} images, {what}")
    for name, rates in found.items():
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        print(f"  {name:<30} {statistics.median(rates):>10,.0f} images/s   ({spread} in {repeats} repeats)")
    ours, *theirs = (statistics.median(rates) for rates in found.values())
    ratio = ours / max(theirs)
    goal = f" (target at 32 px: {TARGET_RATIO})" if size == 32 and encoding == "raw" else ""
    print(f"  ratio to the faster form       {ratio:>10.1f}{goal}", flush=True)
    return ratio


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


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
    print(f"{datetime.date.today()}, {processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
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
