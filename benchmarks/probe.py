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
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        config = with_changes(
            sfrik_cifar10(),
            {
                "model.backbone.kind": arguments.backbone,
                "model.projector.widths": [512, 512],
                "batch_size": arguments.batch_size,
                "threads": arguments.threads,
            },
        )
        measure(config, dataset, Path(scratch), steps=arguments.steps, sample=arguments.sample)


def synthetic(folder: Path) -> Dataset:
    """Ten smooth patterns under strong noise, 20,000 images."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, 20_000)
    patterns = np.kron(generator.normal(size=(10, 4, 4, 3)), np.ones((1, 8, 8, 1)))
    images = 128 + 20 * patterns[labels] + 50 * generator.normal(size=(20_000, 32, 32, 3))
    source = folder / "train.npz"
    np.savez(source, images=images.clip(0, 255).astype(np.uint8), labels=labels.astype(np.int64))
    return build("npz", source=[source], out=folder / "data", select_images=5000, report_images=500)


def measure(config: TrialConfig, dataset: Dataset, scratch: Path, *, steps: int, sample: int) -> None:
    """Time every part in this process, one after the other."""
    torch.set_num_threads(config.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaders = Loaders()
    common: dict[str, Any] = {"dataset": dataset, "loaders": loaders, "config": config, "device": device}

    step = step_seconds(config, dataset, loaders, scratch, device, steps=steps)
    epoch_steps = EPOCH_IMAGES // config.batch_size
    epoch = step * epoch_steps

    model = build_model(config).to(device).eval()
    ids = dataset.train_ids[:sample]
    images = config.probe.train_images + config.probe.select_images
    extraction = seconds(lambda: probe.extract(lambda x: (model.encode(x),), ids, **common)) * images / len(ids)
    fits = seconds(lambda: probe.evaluate(cheap_encoder(model.feature_count, device), **common))
    looks = seconds(lambda: health.evaluate(model.embed, **common))

    share = (extraction + fits + looks) / epoch
    fitted, scored = probe.train_subset(dataset, config), probe.select_subset(dataset, config)
    rows = (
        ("training", epoch, f"{epoch_steps} steps of {1000 * step:.0f} ms"),
        ("features", extraction, f"{images:,} images, scaled from {len(ids):,}"),
        ("fit, score", fits, f"{len(fitted.ids):,} and {len(scored.ids):,} images"),
        ("health", looks, f"{health.ROWS:,} images, as many views"),
    )
    name = config.model.backbone.kind
    print(f"{name}, {model.feature_count} features, 32 px, {device}, {config.threads} thread(s)")
    for part, taken, what in rows:
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
    """How long `work` takes the second time, when everything it needs is loaded and compiled."""
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
