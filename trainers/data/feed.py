"""Batches on their way to a device, ahead of the step that takes them.

A GPU's batches are rendered straight into page-locked memory (`Loaders.epoch(pinned=True)`). PyTorch's allocator of
such memory hands a block out again once the copies from it are over, so that after the first few steps nothing is
allocated. They are copied on a stream of their own, two batches ahead, while earlier steps compute. On a CPU a batch is
already where it has to be.

Pixels travel as they were rendered, normalized and in float32. Bytes would be a quarter of that and rounded: a jittered
or blurred view is no whole number of levels, so that a run on a GPU would see other images than one on a CPU.

Letters: n = images, S = height and width in pixels.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, Protocol, TypeVar

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


# --- how long they are waited for -------------------------------------------------------------------------------------


class WaitClock(Protocol):
    """Adds up how long batches are waited for."""

    def begin(self) -> None:
        """The last batch is used up, as far as the host is concerned."""

    def end(self) -> None:
        """The next one is there."""

    def seconds(self) -> float:
        """All waits so far. On a GPU this waits until the device has come to the last one's end."""


def timed(batches: Generator[Batch], clock: WaitClock) -> Generator[Batch]:
    """`batches`, in order; `clock` runs while the next one is waited for. They are closed when this is."""
    with closing(batches):
        while True:
            clock.begin()
            batch = next(batches, None)
            if batch is None:
                return
            clock.end()
            yield batch


def wait_clock(device: torch.device) -> WaitClock:
    """The clock of a run on `device`."""
    return DeviceClock(lambda: _mark(device)) if device.type == "cuda" else HostClock()


class HostClock:
    """For a CPU, which does nothing else while it waits."""

    def __init__(self) -> None:
        self._seconds = self._began = 0.0

    def begin(self) -> None:
        self._began = time.perf_counter()

    def end(self) -> None:
        self._seconds += time.perf_counter() - self._began

    def seconds(self) -> float:
        return self._seconds


class Mark(Protocol):
    """A place in what a device has been told to do: as much of `torch.cuda.Event` as is asked for here."""

    def query(self) -> bool:
        """Whether the device has come by."""

    def synchronize(self) -> None:
        """Waits until it has."""

    def elapsed_time(self, later: Any, /) -> float:
        """Milliseconds of the device's own between two marks that it has come by."""


class DeviceClock:
    """For a GPU: how long it had nothing to do because the next batch was not there.

    The host runs ahead of its device, and where it waits meanwhile nothing is lost. So a wait is what lies, on the
    device, between the end of all that it was told before and the moment when the batch was on it. Nobody waits for
    the device to learn that: marks are looked at once it has come by.
    """

    def __init__(self, mark: Callable[[], Mark]) -> None:
        """`mark` puts a mark behind all that the device was told so far."""
        self._mark = mark
        self._began: Mark | None = None
        self._waits: deque[tuple[Mark, Mark]] = deque()
        self._seconds = 0.0

    def begin(self) -> None:
        self._began = self._mark()

    def end(self) -> None:
        if self._began is None:
            raise RuntimeError("a wait must begin before it ends; call begin() before end()")
        self._waits.append((self._began, self._mark()))
        while self._waits and self._waits[0][1].query():
            self._add()

    def seconds(self) -> float:
        while self._waits:
            self._waits[0][1].synchronize()
            self._add()
        return self._seconds

    def _add(self) -> None:
        began, ended = self._waits.popleft()
        self._seconds += began.elapsed_time(ended) / 1e3


def _mark(device: torch.device) -> Mark:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event
