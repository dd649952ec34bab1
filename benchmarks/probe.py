"""What judging costs: probe and health after an epoch, as a share of that epoch, at CIFAR-10's size.

    python benchmarks/probe.py [--backbone resnet18 --batch-size 64 --sample 256] [--threads 1] [--data data/cifar10]

The epoch: two views of 45,000 images of 32 px (CIFAR-10's training part less `select`), batches of 256, SFRIK's loss.
The probe: the defaults of a search, fitted on 10,000 images of `train`, scored on 5,000 of `select`. Nothing runs for a
whole epoch:

* a training step is the median over `--steps` steps of the real loop, after two to warm up, times an epoch's steps;
* extracting features with the real encoder is timed on `--sample` images and scaled to 15,000;
* the rest of the probe (both fits, both scores, reading) is run at full size by `probe.evaluate`, with one cheap
  random convolution of the same width in the encoder's place: it is counted in full, and reading twice;
* health is run as it is, on 1,024 images and 1,024 views.

Printed is their sum over the epoch; the aim is below 15 %. Without `--data`, 20,000 images of ten noisy patterns are
written to a temporary folder first. The ratio is of one process on one machine, whatever else runs there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from search_spaces.recipes.sfrik import sfrik_cifar10
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.data.datasets import Dataset, build, open_dataset
from trainers.data.loader import Loaders
from trainers.evaluation import health, probe
from trainers.model import build_model
from trainers.report import EpochReport
from trainers.train import train

EPOCH_IMAGES = 45_000
TARGET = 0.15


class EnoughError(Exception):
    """Ends the training loop once its steps are timed."""


def main() -> None:
    """Print the parts and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet_tiny", help="resnet_tiny, resnet18, resnet34 or resnet50")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--sample", type=int, default=2048, help="images to time the encoder on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        dataset = open_dataset(arguments.data) if arguments.data else synthetic(Path(scratch))
        config = configured(arguments.backbone, arguments.batch_size, arguments.threads)
        measure(config, dataset, Path(scratch), steps=arguments.steps, sample=arguments.sample)


def configured(backbone: str, batch_size: int, threads: int) -> TrialConfig:
    """SFRIK's recipe for CIFAR-10 at that size."""
    changes = {
        "model.backbone.kind": backbone,
        "model.projector.widths": [512, 512],
        "batch_size": batch_size,
        "threads": threads,
    }
    return with_changes(sfrik_cifar10(), changes)


def synthetic(folder: Path) -> Dataset:
    """Ten smooth patterns under strong noise, 20,000 images."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, 20_000)
    patterns = np.kron(generator.normal(size=(10, 4, 4, 3)), np.ones((1, 8, 8, 1)))
    images = 128 + 20 * patterns[labels] + 50 * generator.normal(size=(20_000, 32, 32, 3))
    source = folder / "train.npz"
    np.savez(source, images=images.clip(0, 255).astype(np.uint8), labels=labels.astype(np.int64))
    return build("npz", source=[source], out=folder / "data", select_images=5000, report_images=500)


class Parts(NamedTuple):
    """Seconds, scaled to an epoch and to all images."""

    epoch: float
    features: float
    fits: float
    health: float

    @property
    def judging(self) -> float:
        return self.features + self.fits + self.health


class Work:
    """An epoch's parts, to be timed one after the other in this process, again and again."""

    def __init__(self, config: TrialConfig, dataset: Dataset, scratch: Path) -> None:
        torch.set_num_threads(config.threads)
        self.config, self.dataset, self._scratch = config, dataset, scratch
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.epoch_steps = EPOCH_IMAGES // config.batch_size
        self.images = config.probe.train_images + config.probe.select_images
        self.model = build_model(config).to(self.device).eval()
        self._loaders = Loaders()
        self._cheap = cheap_encoder(self.model.feature_count, self.device)
        self._common: dict[str, Any] = {
            "dataset": dataset,
            "loaders": self._loaders,
            "config": config,
            "device": self.device,
        }

    def warm_up(self, sample: int) -> None:
        """Everything once, so that it is loaded and compiled."""
        self._extract(sample)
        self._fit()
        self._look()

    def parts(self, *, steps: int, sample: int) -> Parts:
        step = step_seconds(self.config, self.dataset, self._loaders, self._scratch, self.device, steps=steps)
        torch.set_num_threads(self.config.threads)
        return Parts(
            epoch=step * self.epoch_steps,
            features=seconds(lambda: self._extract(sample)) * self.images / sample,
            fits=seconds(self._fit),
            health=seconds(self._look),
        )

    def _extract(self, sample: int) -> object:
        ids = self.dataset.train_ids[:sample]
        return probe.extract(lambda x: (self.model.encode(x),), ids, **self._common)

    def _fit(self) -> object:
        return probe.evaluate(self._cheap, **self._common)

    def _look(self) -> object:
        return health.evaluate(self.model.embed, **self._common)


def rows(runs: int = 5) -> Iterator[tuple[str, list[float], list[float], str]]:
    """For the table: probe and health against the epoch's training, with the tiny ResNet."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Work(configured("resnet_tiny", 256, threads=1), synthetic(Path(scratch)), Path(scratch))
        work.warm_up(1024)
        found = [work.parts(steps=5, sample=1024) for _ in range(runs)]
    yield (
        "probe and health",
        [parts.judging for parts in found],
        [parts.epoch for parts in found],
        "`resnet_tiny`, 45,000 images of 32 px, 1 thread, scaled from samples",
    )


def measure(config: TrialConfig, dataset: Dataset, scratch: Path, *, steps: int, sample: int) -> None:
    """Print the parts, in this process, one after the other."""
    work = Work(config, dataset, scratch)
    sample = min(sample, dataset.train_count)
    work.warm_up(sample)
    found = work.parts(steps=steps, sample=sample)
    fitted, scored = probe.train_subset(dataset, config), probe.select_subset(dataset, config)
    step = found.epoch / work.epoch_steps
    lines = (
        ("training", found.epoch, f"{work.epoch_steps} steps of {1000 * step:.0f} ms"),
        ("features", found.features, f"{work.images:,} images, scaled from {sample:,}"),
        ("fit, score", found.fits, f"{len(fitted.ids):,} and {len(scored.ids):,} images"),
        ("health", found.health, f"{health.ROWS:,} images, as many views"),
    )
    name, share = config.model.backbone.kind, found.judging / found.epoch
    print(f"{name}, {work.model.feature_count} features, 32 px, {work.device}, {config.threads} thread(s)")
    for part, taken, what in lines:
        print(f"{part:12}{taken:10.1f} s   {what}")
    print(f"probe and health / epoch = {100 * share:.1f} % (aim: below {100 * TARGET:.0f} %)")
    if share >= TARGET:
        sys.exit(1)


def step_seconds(
    config: TrialConfig, dataset: Dataset, loaders: Loaders, scratch: Path, device: torch.device, *, steps: int
) -> float:
    """The median time of a step of the real training loop, loading included."""
    ends: list[float] = []

    def progress(epoch: int, step: int) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
        if len(ends) == steps + 3:
            raise EnoughError

    def go_on(report: EpochReport) -> bool:
        return True

    try:
        train(config, dataset=dataset, loaders=loaders, folder=scratch, report=go_on, progress=progress, device=device)
    except EnoughError:
        return statistics.median(np.diff(ends[2:]).tolist())
    raise ValueError(f"--steps must be below the run's {len(ends)} steps, but is {steps}; lower it")


def cheap_encoder(width: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """[n, 3, S, S] -> [n, width]: correlated, informative features that cost next to nothing."""
    filters = 0.1 * torch.randn(width, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
    return lambda images: torch.relu(torch.nn.functional.conv2d(images, filters, stride=8)).mean((2, 3))


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
