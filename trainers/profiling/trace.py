"""A few steps of real training, recorded call by call by PyTorch's profiler.

The file is Chrome's trace format, which Perfetto (ui.perfetto.dev) opens; below `tensorboard/` it lies once more for
each worker, under the names that PyTorch's handler for TensorBoard gives.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, tensorboard_trace_handler

from trainers import dist
from trainers.profiling.step import finish

TRACE, TENSORBOARD = "trace.json.gz", "tensorboard"


class Recorder:
    """Records from the end of step `first` on, `count` steps of a run, whose `progress` it is."""

    def __init__(self, device: torch.device, *, first: int, count: int) -> None:
        # What the recorder has to say of itself (that there is no GPU, say) is nothing that went wrong.
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        cuda = [ProfilerActivity.CUDA] if device.type == "cuda" else []
        self._profile = profile(activities=[ProfilerActivity.CPU, *cuda])
        self._device, self._first, self._last, self._count = device, first, first + count, count
        self.done = False

    def __call__(self, epoch: int, step: int) -> bool:
        if step == self._first:
            finish(self._device)
            self._profile.start()
        elif step == self._last:
            finish(self._device)
            self._profile.stop()
            self.done = True
        return False

    def write(self, folder: Path) -> None:
        """Rank 0's trace as `trace.json.gz`, and each rank's for TensorBoard."""
        rank = dist.rank()
        handler = tensorboard_trace_handler(str(folder / TENSORBOARD), worker_name=f"rank-{rank}", use_gzip=True)
        handler(self._profile)
        if rank == 0:
            (written,) = (folder / TENSORBOARD).glob("rank-0.*")
            shutil.copyfile(written, folder / TRACE)

    def collectives_s(self) -> float:
        """Of each step, the seconds in which a collective was under way."""
        spans = [
            (event.time_range.start, event.time_range.end)
            for event in self._profile.events() or ()  # type: ignore[no-untyped-call]
            if _is_collective(event)
        ]
        return covered(spans) / 1e6 / self._count


def _is_collective(event: Any) -> bool:
    """Of NCCL what the device does, as the host merely asks for it; gloo works on the host."""
    on_device = event.device_type == DeviceType.CUDA
    return bool(event.name.startswith("gloo:") or (on_device and event.name.startswith("nccl")))


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How long at least one of `spans` (start, end) was under way."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
