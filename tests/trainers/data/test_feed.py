"""Batches ahead of their step, through a lane whose copies come late and whose memory is used again at once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Generator
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from torch import Tensor

from trainers.data.feed import BATCHES_AHEAD, DeviceClock, ahead, feed, moved, timed, wait_clock
from trainers.data.loader import Batch

COUNT = 40


class Ring:
    """Memory for batches as a page-locked allocator has it: few blocks, each used again once its copy is over."""

    def __init__(self) -> None:
        self.blocks = 0
        self._free: SimpleQueue[Tensor] = SimpleQueue()

    def take(self) -> Tensor:
        if self._free.empty():
            self.blocks += 1
            return torch.empty(2, 3, 4, 4)
        return self._free.get()

    def give(self, block: Tensor) -> None:
        block.fill_(torch.nan)
        self._free.put(block)


class SlowLane:
    """Copies in a thread of its own, one after another, each after a delay, and gives the memory back to be filled."""

    def __init__(self, ring: Ring, seed: int) -> None:
        self.sent = self.received = self.most = 0
        self._ring, self._rng = ring, random.Random(seed)
        self._work: SimpleQueue[tuple[Batch, list[Tensor], threading.Event]] = SimpleQueue()
        threading.Thread(target=self._copy, daemon=True).start()

    def _copy(self) -> None:
        while True:
            batch, found, copied = self._work.get()
            threading.Event().wait(self._rng.choice([0.0, 0.0, 0.002, 0.005]))
            found.append(batch.views[0].clone())
            self._ring.give(batch.views[0])
            copied.set()

    def send(self, batch: Batch) -> tuple[Batch, list[Tensor], threading.Event]:
        self.sent += 1
        self.most = max(self.most, self.sent - self.received)
        ticket: tuple[Batch, list[Tensor], threading.Event] = (batch, [], threading.Event())
        self._work.put(ticket)
        return ticket

    def receive(self, ticket: tuple[Batch, list[Tensor], threading.Event]) -> Batch:
        self.received += 1
        batch, found, copied = ticket
        assert copied.wait(10)
        return Batch((found[0],), batch.sample_ids)


def batches(ring: Ring, count: int = COUNT) -> Generator[Batch]:
    for number in range(count):
        yield Batch((ring.take().fill_(number),), torch.tensor([number]))


@pytest.mark.parametrize("seed", range(3))
def test_copies_that_come_late_lose_and_mix_nothing_though_memory_is_used_again(seed: int) -> None:
    ring = Ring()
    lane = SlowLane(ring, seed)
    found = list(ahead(batches(ring), lane))
    assert [int(ids) for _, ids in found] == list(range(COUNT))
    for number, (views, _) in enumerate(found):
        assert views[0].eq(number).all()
    assert lane.most == BATCHES_AHEAD + 1
    assert ring.blocks <= BATCHES_AHEAD + 2, "nothing is allotted per step"


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_fewer_batches_than_would_be_ahead_all_come(count: int) -> None:
    ring = Ring()
    assert [int(ids) for _, ids in ahead(batches(ring, count), SlowLane(ring, 0))] == list(range(count))


def test_who_leaves_early_ends_the_loader_too() -> None:
    ring = Ring()
    loader = batches(ring)
    feeding = ahead(loader, SlowLane(ring, 0))
    next(feeding)
    feeding.close()
    with pytest.raises(StopIteration):
        next(loader)


def test_what_a_loader_raises_reaches_the_loop() -> None:
    def broken() -> Generator[Batch]:
        yield from batches(Ring(), 1)
        raise ValueError("an image does not decode")

    with pytest.raises(ValueError, match="does not decode"):
        list(ahead(broken(), SlowLane(Ring(), 0)))


def test_on_a_cpu_a_batch_is_where_it_has_to_be() -> None:
    view = torch.randn(2, 4, 4, 3).permute(0, 3, 1, 2)
    (found,) = feed((one for one in [Batch((view,), torch.arange(2))]), torch.device("cpu"))
    assert found.views[0].data_ptr() == view.data_ptr()
    assert found.views[0].is_contiguous(memory_format=torch.channels_last)


def test_a_batch_is_moved_to_torchs_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        found = moved(Batch((torch.randn(2, 3, 4, 4, dtype=torch.float32),), torch.arange(2)), torch.device("cpu"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.views[0].dtype == torch.float64
    assert found.sample_ids.dtype == torch.int64


# --- how long they are waited for ---


def slow(count: int, seconds: float) -> Generator[Batch]:
    for batch in batches(Ring(), count):
        time.sleep(seconds)
        yield batch


def test_a_cpu_waits_while_the_next_batch_is_made_and_not_while_one_is_used() -> None:
    clock = wait_clock(torch.device("cpu"))
    for _ in timed(slow(5, 0.01), clock):
        time.sleep(0.02)
    assert 0.05 <= clock.seconds() < 0.1


class Device:
    """Works off what it is told, on a clock of its own: each mark is come by once all before it is done."""

    def __init__(self) -> None:
        self.now = self.busy_until = 0.0

    def work(self, seconds: float) -> None:
        self.busy_until = max(self.now, self.busy_until) + seconds

    def mark(self) -> DeviceMark:
        return DeviceMark(self, max(self.now, self.busy_until))


class DeviceMark:
    def __init__(self, device: Device, at: float) -> None:
        self.device, self.at = device, at

    def query(self) -> bool:
        return self.device.now >= self.at

    def synchronize(self) -> None:
        self.device.now = max(self.device.now, self.at)

    def elapsed_time(self, later: Any, /) -> float:
        assert self.query(), "asked before the device came by"
        assert later.query(), "asked before the device came by"
        return 1e3 * float(later.at - self.at)


@pytest.mark.parametrize(
    ("loader_s", "step_s", "waited_s"),
    [
        (2.0, 10.0, 2.0),  # the host waits for each batch while the device still works: only the first one counts
        (10.0, 2.0, 10.0 + 3 * 8.0),
        (0.0, 1.0, 0.0),
    ],
)
def test_a_device_waits_only_while_it_has_nothing_to_do(loader_s: float, step_s: float, waited_s: float) -> None:
    device = Device()

    def loaded() -> Generator[Batch]:
        for batch in batches(Ring(), 4):
            device.now += loader_s
            yield batch

    clock = DeviceClock(device.mark)
    for _ in timed(loaded(), clock):
        device.work(step_s)
    assert clock.seconds() == pytest.approx(waited_s)


def test_who_leaves_a_timed_loop_early_ends_the_loader_too() -> None:
    loader = batches(Ring())
    timing = timed(loader, wait_clock(torch.device("cpu")))
    next(timing)
    timing.close()
    with pytest.raises(StopIteration):
        next(loader)


@pytest.mark.gpu
def test_on_a_gpu_a_late_batch_is_waited_for_and_one_that_is_there_is_not() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    late, early = wait_clock(device), wait_clock(device)
    for _ in timed(feed(slow(10, 0.02), device), late):
        pass
    for _ in timed(feed(slow(10, 0.0), device), early):
        torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call]
    assert 0.1 < late.seconds() < 1.0
    assert early.seconds() < 0.05


@pytest.mark.gpu
def test_on_a_gpu_batches_are_those_of_the_cpu() -> None:
    device = torch.device("cuda", torch.cuda.current_device())

    def pinned() -> Generator[Batch]:
        for number in range(COUNT):
            yield Batch((torch.full((64, 3, 32, 32), float(number)).pin_memory(),), torch.tensor([number]))

    for number, (views, ids) in enumerate(feed(pinned(), device)):
        torch.cuda._sleep(1_000_000)  # type: ignore[no-untyped-call]
        assert views[0].device == device
        assert int(ids) == number
        assert views[0].eq(number).all()
