"""The mailbox's rules, without Ray: numbers, generations, bounds, silence."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import ray

from pretune.execution import group as groups
from pretune.execution.group import Group
from pretune.execution.mailbox import Command, Failed, Lost, Mailbox, Order, Ready, Reported, Returned, Taken, Worker
from pretune.execution.settings import SlotSettings
from trainers.report import EpochReport, Outcome

T = TypeVar("T")
CONTINUE, STOP, SHUTDOWN = Command("continue"), Command("stop"), Command("shutdown")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 10.0))


def worker(rank: int) -> Worker:
    return Worker(rank=rank, pid=100 + rank, started=0.0, node="here", handle=None, placement_group="")


async def joined(ranks: int) -> tuple[Mailbox, int]:
    """A mailbox whose group of the first generation has announced itself, and has been heard by the slot."""
    mailbox = Mailbox(ranks)
    generation = await mailbox.next_generation()
    for rank in range(ranks):
        await mailbox.announce(generation, worker(rank))
    return mailbox, generation


async def waited_at() -> tuple[Mailbox, int, asyncio.Task[Taken]]:
    """A mailbox of one rank, its generation, and that rank's poll for its first command."""
    mailbox, generation = await joined(1)
    waiting = asyncio.create_task(mailbox.take(generation, 0, 0, 5.0))
    await asyncio.sleep(0.05)
    return mailbox, generation, waiting


def test_every_rank_takes_the_same_numbered_commands() -> None:
    async def scenario() -> None:
        mailbox, generation = await joined(2)
        start = Command("start", Order(1, 7, {}, "/trials/0007"))
        for command in (start, CONTINUE, STOP):
            assert await mailbox.send(generation, command)
        for rank in (1, 0):
            taken = [(await mailbox.take(generation, rank, number, 1.0)).command for number in range(3)]
            assert taken == [start, CONTINUE, STOP]

    run(scenario())


def test_a_rank_that_waits_gets_a_command_as_soon_as_it_is_sent() -> None:
    async def scenario() -> None:
        mailbox, generation, waiting = await waited_at()
        assert not waiting.done()
        await mailbox.send(generation, CONTINUE)
        started = time.monotonic()
        assert (await waiting).command == CONTINUE
        assert time.monotonic() - started < 1.0

    run(scenario())


def test_a_poll_ends_at_its_bound_and_tells_for_how_long_the_slot_was_silent() -> None:
    async def scenario() -> None:
        mailbox, generation = await joined(1)
        await mailbox.events(0, 0.0)
        taken = await mailbox.take(generation, 0, 0, 0.2)
        assert taken.command is None
        assert 0.19 < taken.slot_silent_s < 5.0
        assert (await mailbox.events(1, 0.01)).events == ()

    run(scenario())


def test_the_group_is_ready_when_its_last_rank_has_announced_itself() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(2)
        generation = await mailbox.next_generation()
        await mailbox.announce(generation, worker(1))
        assert (await mailbox.events(0, 0.01)).events == ()
        await mailbox.announce(generation, worker(0))
        ((_, event),) = (await mailbox.events(0, 0.01)).events
        assert event == Ready(1, (worker(0), worker(1)))

    run(scenario())


def test_messages_of_an_older_generation_are_void() -> None:
    async def scenario() -> None:
        mailbox, old = await joined(1)
        new = await mailbox.next_generation()
        assert not await mailbox.send(old, CONTINUE)
        assert (await mailbox.take(old, 0, 0, 1.0)).command == SHUTDOWN
        await mailbox.post(Failed(old, 1, 0, "KeyError", ""), 0)
        await mailbox.announce(old, worker(0))
        await mailbox.progress(old, 0)
        news = await mailbox.events(1, 0.01)
        assert news.events == ()
        assert news.silence_s == {}
        assert (await mailbox.take(new, 0, 0, 0.01)).command is None

    run(scenario())


def test_a_group_that_ray_train_gives_up_is_lost_at_once_and_not_only_when_the_next_one_is_up() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(1)
        assert not await mailbox.closed(), "asked before the first group as well, where nothing is lost"
        await mailbox.announce(await mailbox.next_generation(), worker(0))
        for _ in range(2):  # Ray Train asks again where it finds no room for the next group
            await mailbox.closed()
        await mailbox.post(Failed(1, 1, 0, "Connection closed by peer", ""), 0)
        await mailbox.progress(1, 0)
        assert not await mailbox.send(1, CONTINUE)
        assert (await mailbox.take(1, 0, 0, 1.0)).command == SHUTDOWN
        news = await mailbox.events(1, 0.01)
        assert [event for _, event in news.events] == [Lost(1)]
        assert news.silence_s == {}, "nobody who is gone counts as hung"
        assert await mailbox.next_generation() == 2
        assert await mailbox.send(2, CONTINUE)

    run(scenario())


def test_a_new_generation_counts_its_commands_from_zero() -> None:
    async def scenario() -> None:
        mailbox, old = await joined(1)
        await mailbox.send(old, STOP)
        new = await mailbox.next_generation()
        await mailbox.send(new, CONTINUE)
        assert (await mailbox.take(new, 0, 0, 1.0)).command == CONTINUE

    run(scenario())


def test_events_stay_until_they_are_acknowledged() -> None:
    async def scenario() -> None:
        mailbox, generation = await joined(1)
        report = Reported(generation, 1, EpochReport(epoch=1, metrics={}))
        ended = Returned(generation, 1, 0, Outcome(state="complete", epochs=1))
        await mailbox.post(report, 0)
        await mailbox.post(ended, 0)
        first = await mailbox.events(1, 0.01)
        assert [event for _, event in first.events] == [report, ended]
        assert (await mailbox.events(1, 0.01)).events == first.events, "an answer that got lost is given again"
        assert (await mailbox.events(first.events[0][0], 0.01)).events == first.events[1:]

    run(scenario())


def test_silence_counts_from_the_last_sign_of_life_and_starts_anew_with_each_command() -> None:
    async def scenario() -> None:
        mailbox, generation = await joined(2)
        await mailbox.send(generation, CONTINUE)
        await asyncio.sleep(0.2)
        await mailbox.progress(generation, 0)
        await mailbox.take(generation, 1, 1, 0.01)
        silence = (await mailbox.events(1, 0.01)).silence_s
        assert silence[0] < 0.15
        assert silence[1] >= 0.2, "an idle poll is no sign of life of the training"
        await mailbox.send(generation, CONTINUE)
        assert max((await mailbox.events(1, 0.01)).silence_s.values()) < 0.15

    run(scenario())


def test_a_closed_mailbox_shuts_down_this_group_and_any_later_one() -> None:
    async def scenario() -> None:
        mailbox, generation, waiting = await waited_at()
        assert not await mailbox.closed()
        await mailbox.close()
        assert (await waiting).command == SHUTDOWN
        assert not await mailbox.send(generation, CONTINUE)
        later = await mailbox.next_generation()
        assert (await mailbox.take(later, 0, 0, 5.0)).command == SHUTDOWN
        assert await mailbox.closed()

    run(scenario())


class Near:
    """A mailbox of this process behind Ray's way of calling an actor; `ray.get` hands on what is there already."""

    def __init__(self, mailbox: Mailbox, loop: asyncio.AbstractEventLoop) -> None:
        self._mailbox, self._loop = mailbox, loop

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._mailbox, name)
        return SimpleNamespace(remote=lambda *arguments: self._loop.run_until_complete(method(*arguments)))


@pytest.fixture
def near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Group, Near]]:
    """A slot's side of a mailbox, and the mailbox; no cluster, no processes, and none is killed."""
    loop = asyncio.new_event_loop()
    mailbox = Near(Mailbox(1), loop)
    monkeypatch.setattr(ray, "get", lambda answer, timeout=None: answer)
    monkeypatch.setattr(ray.cloudpickle, "loads", lambda handle: handle)
    monkeypatch.setattr(groups, "kill", lambda workers: None)
    monkeypatch.setattr(groups, "POLL_S", 0.01)
    group = Group.__new__(Group)
    group.name, group.settings = "slot-near", SlotSettings(sweep_folder=str(tmp_path))
    group._job, group.generation, group.workers, group.preempted = "job", 0, (), False
    group._next_look = math.inf  # nobody asks the cluster for nodes that leave
    group._mailbox, group._acknowledged, group._pending, group._silence_s = mailbox, 0, deque(), {}
    group._starting_since, group._start_s, group._fits, group._records = None, None, 1, tmp_path
    group._thread = threading.current_thread()
    yield group, mailbox
    loop.close()


def all_kinds(generation: int) -> list[Reported | Returned | Failed]:
    return [
        Reported(generation, 1, EpochReport(epoch=1, metrics={})),
        Returned(generation, 1, 0, Outcome(state="complete", epochs=1)),
        Failed(generation, 1, 0, "KeyError", ""),
    ]


def test_a_slot_believes_nothing_of_a_generation_that_it_has_replaced(near: tuple[Group, Near]) -> None:
    group, mailbox = near
    mailbox.announce.remote(mailbox.next_generation.remote(), worker(0))
    assert group.ready() == 1
    for event in all_kinds(1):
        mailbox.post.remote(event, 0)
    group.replace("a test")
    assert group.event() is None, "what the old group has left in the mailbox is not told"
    mailbox.announce.remote(mailbox.next_generation.remote(), worker(0))
    for event in all_kinds(1):
        mailbox.post.remote(event, 0)
    fresh = all_kinds(2)
    for event in fresh:
        mailbox.post.remote(event, 0)
    assert group.ready() == 2
    assert [group.event() for _ in range(4)] == [*fresh, None]


def test_a_slot_hears_of_a_loss_once_and_waits_for_the_next_group(near: tuple[Group, Near]) -> None:
    group, mailbox = near
    mailbox.announce.remote(mailbox.next_generation.remote(), worker(0))
    group.ready()
    mailbox.closed.remote()
    assert group.event() == Lost(1)
    assert group.workers == ()
    assert group.event() is None
    mailbox.announce.remote(mailbox.next_generation.remote(), worker(0))
    assert group.ready() == 2
    assert group.take_start_s() is not None


def test_a_late_event_of_an_older_generation_is_void_even_where_the_mailbox_let_it_through(
    near: tuple[Group, Near],
) -> None:
    group, mailbox = near
    for _ in range(2):
        mailbox.announce.remote(mailbox.next_generation.remote(), worker(0))
    group.ready()
    while group.generation < 2:
        group.event()
    for event in all_kinds(1):
        mailbox._append.remote(event)
    assert group.event() is None
