"""A run made short, so that its steps, probes and checkpoints can be timed: few images, the same work on each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from trainers.config import TrialConfig
from trainers.data.datasets import Dataset
from trainers.data.loader import pretrain_ids
from trainers.data.splits import Integers

PROBED = 2_000
"""Images of `train`, and of `select`, that the probes see at most."""


@dataclass(frozen=True)
class _Shortened(Dataset):
    """A data set of which a run sees few images, from all over its file."""

    images: int = 0

    def pretrain_ids(self, subset: int | str | None = None) -> Integers:
        whole = Dataset(self.folder, self.manifest, self.manifest_hash)
        return _spread(whole.pretrain_ids(subset), self.images)

    @property
    def train_ids(self) -> Integers:
        return _spread(super().train_ids, PROBED)

    @property
    def unlabeled_ids(self) -> Integers:
        return _spread(super().unlabeled_ids, self.images)

    @property
    def select_ids(self) -> Integers:
        return _spread(super().select_ids, PROBED)


def _spread(ids: Integers, count: int) -> Integers:
    return ids if len(ids) <= count else ids[np.linspace(0, len(ids) - 1, count).astype(np.int64)]


def shortened(dataset: Dataset, config: TrialConfig, steps: int) -> Dataset:
    """`dataset` with at most so many steps in an epoch, and at most `PROBED` images for each side of a probe."""
    most = len(pretrain_ids(dataset, config.data)) // config.batch_size
    facts = {field.name: getattr(dataset, field.name) for field in fields(Dataset)}
    return _Shortened(**facts, images=min(steps, most) * config.batch_size)


def calm(config: TrialConfig, dataset: Dataset, *, epochs: int, probe_every: int = 1) -> TrialConfig:
    """So many epochs of `config` that are probed and saved, and neither diverge nor are ended. Of images that are
    probed only the number counts, not from which class they are: few images might have too few of one.
    """
    return config.model_copy(
        update={
            "epochs": epochs,
            "optimizer": config.optimizer.model_copy(update={"learning_rate": 1e-6}),
            "probe": config.probe.model_copy(
                update={
                    "every": probe_every,
                    "labels_per_class": None,
                    "train_images": max(2, _fitted(config, dataset)),
                }
            ),
            "sentinel": None,
            "checkpoint_every": 1,
            "checkpoint_every_steps": None,
        }
    )


@dataclass(frozen=True)
class Probed:
    """Images whose features a probe takes: each epoch's, and what the full ones add."""

    ordinary: float
    full: float


def probed(config: TrialConfig, dataset: Dataset, *, most: int | None = None) -> Probed:
    """Of a run of `config` on `dataset`, or on at most so many images of `train` and of `select`."""
    train, select = dataset.train_count, dataset.select_count
    if most is not None:
        train, select = min(train, most), min(select, most)
    fitted, scored = min(_fitted(config, dataset), train), min(config.probe.select_images, select)
    return Probed(float(max(1, fitted + scored)), float(max(1, train + select)))


def _fitted(config: TrialConfig, dataset: Dataset) -> int:
    """Images that a probe asks for to be fitted on."""
    if config.probe.labels_per_class is None:
        return config.probe.train_images
    return config.probe.labels_per_class * dataset.class_count


def left_out_bytes(metrics: Mapping[str, float], short: Probed, whole: Probed) -> float:
    """What a host holds more at its peak where the full probes see all images: their features, three times while the
    probe is fitted. `metrics` are of a report with health.
    """
    width = metrics.get("health/features/stable_rank", 0.0) / max(1e-9, metrics.get("health/features/whitening", 0.0))
    return 3.0 * 4.0 * round(width) * max(0.0, whole.full - short.full)
