"""What is known of this machine: what a shape takes there, measured by `pretune plan` or told by a sweep that ran.

Lies in `$PRETUNE_CACHE/measured`, by default `~/.cache/pretune/measured`: a small file for each shape, number of
workers and slots, machine, and versions of packages and of pretune's own source. Nothing else is believed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from pretune.core import journal, retention
from pretune.core import shape as shapes
from pretune.core.reader import StoredEpoch
from pretune.core.records import Asked
from pretune.core.results import SweepResult
from pretune.core.shape import Shape
from pretune.execution.measuring import Measurement
from pretune.request import sources
from trainers.config import TrialConfig
from trainers.data import data_cache
from trainers.files import write_whole

DRIVER = Path("/proc/driver/nvidia/gpus")
MOST_LEARNED = 200
"""Trials of a sweep that are looked at when it ends."""
_PACKAGES = ("torch", "ray", "ffcv", "numpy", "numba", "timm")


def folder() -> Path:
    """Where they lie. The environment says where, never what."""
    return data_cache.cache().parent / "measured"


class Known:
    """The measurements of trials with so many workers, so many of which run at once."""

    def __init__(self, *, workers: int, gpus_per_worker: float, slots: int) -> None:
        self._place = json.dumps([workers, gpus_per_worker, slots, _machine(), _versions()])

    def of(self, shape: Shape) -> Measurement | None:
        """None where there is none that can be believed."""
        path = self._path(shape)
        with suppress(OSError, ValidationError, ValueError, KeyError, TypeError):
            return Measurement.model_validate(json.loads(path.read_text(encoding="utf-8")))
        return None

    def keep(self, shape: Shape, found: Measurement) -> None:
        """A cache that cannot be written to costs the next plan its time, and nothing else."""
        with suppress(OSError):
            folder().mkdir(parents=True, exist_ok=True)
            write_whole(self._path(shape), found.model_dump_json(indent=2) + "\n")

    def _path(self, shape: Shape) -> Path:
        return folder() / f"{hashlib.sha256(f'{self._place} {shape.key}'.encode()).hexdigest()[:32]}.json"


def learn(result: SweepResult, *, slots: int) -> None:
    """Keeps what the trials of a sweep took that has just ended on this machine, so many at once."""
    asked = result.experiment
    known = Known(workers=asked.workers_per_trial, gpus_per_worker=asked.gpus_per_worker, slots=slots)
    for shape, found in told(result.folder).items():
        known.keep(shape, found)


def told(folder: Path) -> dict[Shape, Measurement]:
    """What the trials of the sweep in `folder` took, by shape: of those that reported memory."""
    seen: dict[int, _Seen] = {}
    by_shape: dict[Shape, _Seen] = {}
    with journal.reading(folder) as records:
        for record in records:
            if isinstance(record, Asked) and record.config is not None and record.number < MOST_LEARNED:
                with suppress(ValidationError):
                    config = TrialConfig.model_validate(record.config)
                    seen[record.number] = by_shape.setdefault(shapes.of(config), _Seen(config.batch_size))
            elif isinstance(record, StoredEpoch) and record.number in seen:
                seen[record.number].add(record)
        return {shape: found for shape, of_shape in by_shape.items() if (found := of_shape.measurement()) is not None}


@dataclass
class _Seen:
    """Numbers of all trials of one shape, by name."""

    batch_size: int
    numbers: dict[str, list[float]] = field(default_factory=dict)
    checkpoint: int | None = None
    report: int = 0

    def add(self, record: StoredEpoch) -> None:
        metrics = record.read_metrics()
        for name, value in _named(metrics):
            self.numbers.setdefault(name, []).append(value)
        self.report = max(self.report, len(json.dumps(metrics)))
        if self.checkpoint is None and record.has_checkpoint:
            self.checkpoint = retention.size(record.read_checkpoint())

    def measurement(self) -> Measurement | None:
        """None where they do not say enough: of an older version, or of trials that ended in their first epoch."""
        numbers = self.numbers
        if not {"rate", "host"} <= numbers.keys():
            return None
        middle = {name: statistics.median(values) for name, values in numbers.items()}
        probe_s = middle.get("probe", 0.0)
        return Measurement(
            start_s=middle.get("group"),
            cold_s=middle.get("cold"),
            warm_s=middle.get("warm", 0.0),
            step_s=self.batch_size / middle["rate"],
            epoch_s=0.0,  # in the rate
            probe_s=probe_s,
            full_probe_s=max(0.0, middle.get("full probe", probe_s) - probe_s),
            save_s=0.0,
            host_bytes=max(numbers["host"]),
            gpu_bytes=max(numbers["gpu"]) if "gpu" in numbers else None,
            checkpoint_bytes=self.checkpoint,
            report_bytes=self.report,
        )


def _named(metrics: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Numbers of one epoch, under what they are here."""
    full = any(name.startswith("probe/full_") for name in metrics)
    cold = "time/group_start_s" in metrics
    for name, here in (
        ("time/images_per_s", "rate"),
        ("time/probe_s", "full probe" if full else "probe"),
        ("time/first_step_s", "cold" if cold else "warm"),
        ("time/group_start_s", "group"),
        ("memory/host_peak_bytes", "host"),
        ("memory/gpu_peak_bytes", "gpu"),
    ):
        if name in metrics:
            yield here, metrics[name]


@lru_cache(maxsize=1)
def _machine() -> tuple[str, ...]:
    """What of it decides how fast it is: type of processor, how many, memory, GPUs."""
    names: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("model name")][:1]
    with suppress(OSError):
        names += [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")]
    return platform.machine(), *names, str(os.cpu_count()), *gpus()


def gpus() -> list[str]:
    """The models of this machine's GPUs, as NVIDIA's driver names them: torch takes seconds to say the same. At most as
    many as CUDA_VISIBLE_DEVICES lets be used.
    """
    found = []
    for path in sorted(DRIVER.glob("*/information")):
        with suppress(OSError):
            lines = path.read_text(errors="replace").splitlines()
            found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return found
    visible = itertools.takewhile(lambda one: one not in ("", "-1"), map(str.strip, named.split(",")))
    return found[: sum(1 for _ in visible)]


@lru_cache(maxsize=1)
def _versions() -> tuple[str, ...]:
    found = [platform.python_version()]
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    own = {name: hashed for name, hashed in sources.ours().items() if name.startswith("trainers/")}
    return *found, hashlib.sha256(json.dumps(own).encode()).hexdigest()
