"""Batches on their way to a device, ahead of the step that takes them.

A GPU's batches are rendered straight into page-locked memory (`Loaders.epoch(pinned=True)`). PyTorch's allocator of
such memory hands a block out again once the copies from it are over, so that after the first few steps nothing is
allocated. They are copied on a stream of their own, two batches ahead, while earlier steps compute. On a CPU a batch is
already where it has to be.

Letters: n = images, S = height and width in pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from contextlib import closing
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from trainers.data.loader import Batch

BATCHES_AHEAD = 2
"""Copied or being copied, beyond the one in use: what a run holds on its device is this many plus one."""
Ticket = TypeVar("Ticket")


class Lane(Protocol[Ticket]):
    """Takes batches to a device."""

    def send(self, batch: Batch) -> Ticket:
        """Begin to copy. What the lane holds of the batch stays as it is until the copy is over."""

    def receive(self, ticket: Ticket) -> Batch:
        """The batch on the device: what is computed from now on waits for its copy, the host does not."""


def feed(batches: Generator[Batch], device: torch.device) -> Generator[Batch]:
    """`batches`, in order, on `device`, as of `moved`. They are closed when this is."""
    return ahead(batches, CudaLane(device)) if device.type == "cuda" else _here(batches, device)


def ahead(batches: Generator[Batch], lane: Lane[Ticket], count: int = BATCHES_AHEAD) -> Generator[Batch]:
    """`batches` through a lane, `count` more of them sent than received while there are any."""
    sent: deque[Ticket] = deque()
    with closing(batches):
        for ticket in map(lane.send, batches):
            sent.append(ticket)
            if len(sent) > count:
                yield lane.receive(sent.popleft())
        while sent:
            yield lane.receive(sent.popleft())


def _here(batches: Generator[Batch], device: torch.device) -> Generator[Batch]:
    with closing(batches):
        for batch in batches:
            yield moved(batch, device)


class CudaLane:
    """A stream for copies alone."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(self._stream):
            on_device = moved(batch, self._device)
        return on_device, self._stream.record_event()

    def receive(self, ticket: tuple[Batch, torch.cuda.Event]) -> Batch:
        batch, copied = ticket
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(copied)
        for tensor in (*batch.views, batch.sample_ids):
            tensor.record_stream(computing)  # allotted on the other stream, which may not have it back before this use
        return batch


def moved(batch: Batch, device: torch.device) -> Batch:
    """A batch on `device`: views [n, 3, S, S] in torch's default dtype and channels last, ids [n]. From page-locked
    memory the host does not wait for the copy.
    """

    def on_device(view: Tensor) -> Tensor:
        return view.to(device, torch.get_default_dtype(), non_blocking=True, memory_format=torch.channels_last)

    return Batch(tuple(map(on_device, batch.views)), batch.sample_ids.to(device, non_blocking=True))
