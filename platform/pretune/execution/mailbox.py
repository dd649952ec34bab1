"""The slot's mailbox: numbered commands go down, events come up, and it knows how long ago each worker showed a sign of
life.

Every rank takes the same numbered command, so no rank ever waits in a collective for another one's news: a collective
would time out while the slot is idle, and spin on a GPU. All waits are long polls with a bound. The class is plain
asyncio: the slot runs it as a Ray actor that asks for no CPU, tests run it as it is. It imports neither Ray nor torch,
so that its process starts quickly.

A *generation* is one life of the worker group: the number goes up each time the group starts. Messages of an older
generation are void. A *run* is one attempt at one trial: what an older run still says is void, too.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from trainers.report import Checkpoint, EpochReport, Outcome


@dataclass(frozen=True)
class Order:
    """What to train: one attempt at one trial."""

    run: int
    """Unique within the slot: a retry of the same trial is another run."""
    number: int
    """The trial's number in the sweep."""
    config: dict[str, Any]
    """A TrialConfig as JSON values; checked again where it lands."""
    folder: str
    resume: Checkpoint | None = None


@dataclass(frozen=True)
class Command:
    """`start` carries an order; `continue` and `stop` answer a report; `shutdown` ends the group."""

    kind: Literal["start", "continue", "stop", "shutdown"]
    order: Order | None = None


@dataclass(frozen=True)
class Worker:
    """One process of the group, with all that is needed to kill it."""

    rank: int
    pid: int
    started: float
    """When the process started, in clock ticks since boot: a pid that was given to another process in between is told
    apart by it.
    """
    node: str
    handle: Any
    """Ray's handle of the actor. On its way through the mailbox it is pickled: that process would import Ray Train with
    it, while the slot waits.
    """
    placement_group: str
    """Id of the group's placement group, in hexadecimal."""


@dataclass(frozen=True)
class Ready:
    """All ranks of a generation have announced themselves and wait for a command."""

    generation: int
    workers: tuple[Worker, ...]


@dataclass(frozen=True)
class _OfRun:
    """What came of an order: `run` is the order's."""

    generation: int
    run: int


@dataclass(frozen=True)
class Reported(_OfRun):
    """Rank 0 finished an epoch; every rank waits for `continue` or `stop`."""

    report: EpochReport


@dataclass(frozen=True)
class Returned(_OfRun):
    """One rank's training returned."""

    rank: int
    outcome: Outcome


@dataclass(frozen=True)
class Failed(_OfRun):
    """One rank's training raised. The group is not to be trusted any more."""

    rank: int
    summary: str
    """The exception's type and message, one line."""
    traceback: str
    disk_full: bool = False
    bug: str | None = None
    """Type and place of an exception that the same code would raise again; None where another try may go better."""
    begun: bool = True
    """Whether this run had done a step."""


@dataclass(frozen=True)
class Lost:
    """Ray Train gave this generation up, whose worker or machine is gone, and is about to start the next one."""

    generation: int


Event = Ready | Reported | Returned | Failed | Lost


@dataclass(frozen=True)
class Taken:
    """Answer to `take`: the command, or None if the poll's bound passed; and for how long the slot has not been heard
    of, in s.
    """

    command: Command | None
    slot_silent_s: float


@dataclass(frozen=True)
class News:
    """Answer to `events`: new events with their sequence numbers, oldest first, and each rank's silence in seconds."""

    events: tuple[tuple[int, Event], ...]
    silence_s: dict[int, float]


class Mailbox:
    """See the module's text. `world_size` ranks talk to one slot."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._generation = 0
        self._workers: dict[int, Worker] = {}
        self._commands: list[Command] = []
        self._events: list[tuple[int, Event]] = []
        self._sequence = 0
        self._alive: dict[int, float] = {}
        self._slot_heard = time.monotonic()
        self._closed = False
        self._noticed = False
        self._lost = False
        self._changed = asyncio.Condition()

    # ---- what workers call -------------------------------------------------------------------------------------------

    async def next_generation(self) -> int:
        """Called by rank 0 of a group that has just started. The first generation is 1."""
        async with self._changed:
            self._generation += 1
            self._noticed = self._lost = False
            self._workers = {}
            self._commands = []
            self._alive = {}
            self._changed.notify_all()
            return self._generation

    async def announce(self, generation: int, worker: Worker) -> None:
        """A rank is up and waits for its first command; with the last rank, the slot gets `Ready`."""
        if not self._current(generation):
            return
        self._workers[worker.rank] = worker
        self._alive[worker.rank] = time.monotonic()
        if len(self._workers) == self._world_size:
            await self._append(Ready(generation, tuple(self._workers[rank] for rank in sorted(self._workers))))

    async def take(self, generation: int, rank: int, number: int, timeout_s: float) -> Taken:
        """The command with this number (counted from 0 in each generation), or no command after `timeout_s`.

        A group that was replaced, and every group once the mailbox is closed, is told to shut down.
        """

        def over() -> bool:
            return self._closed or not self._current(generation)

        await self._wait(lambda: over() or len(self._commands) > number, timeout_s)
        silent = time.monotonic() - self._slot_heard
        if over():
            return Taken(Command("shutdown"), silent)
        if len(self._commands) > number:
            self._alive[rank] = time.monotonic()
            return Taken(self._commands[number], silent)
        return Taken(None, silent)

    async def progress(self, generation: int, rank: int) -> bool:
        """A sign of life from inside an epoch; True where one of the group's machines will be taken away."""
        if self._current(generation):
            self._alive[rank] = time.monotonic()
        return self._noticed

    async def post(self, event: Reported | Returned | Failed, rank: int) -> None:
        """An event for the slot; void if the group was replaced meanwhile."""
        if self._current(event.generation):
            self._alive[rank] = time.monotonic()
            await self._append(event)

    # ---- what the slot calls -----------------------------------------------------------------------------------------

    async def send(self, generation: int, command: Command) -> bool:
        """Number a command and hand it to every rank. False if that generation is over: the slot will hear of the next
        one.
        """
        self._slot_heard = time.monotonic()
        if not self._current(generation) or self._closed:
            return False
        async with self._changed:
            self._commands.append(command)
            self._alive = dict.fromkeys(range(self._world_size), time.monotonic())
            self._changed.notify_all()
        return True

    async def events(self, after: int, timeout_s: float) -> News:
        """Events after sequence number `after` (which acknowledges the older ones), at the latest after `timeout_s`."""
        self._slot_heard = time.monotonic()
        self._events = [entry for entry in self._events if entry[0] > after]
        await self._wait(lambda: bool(self._events) or self._closed, timeout_s)
        now = self._slot_heard = time.monotonic()
        return News(tuple(self._events), {rank: now - at for rank, at in self._alive.items()})

    async def notice(self, generation: int) -> None:
        """A machine of this group will be taken away: its workers hear of it with their next sign of life."""
        self._noticed = self._noticed or generation == self._generation

    async def pid(self) -> int:
        """Of this process."""
        return os.getpid()

    async def close(self) -> None:
        """From now on every command is `shutdown`, for this group and any later one."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def closed(self) -> bool:
        """Asked by Ray Train's run before it starts a group: the last one is over."""
        if self._generation and not self._lost:
            self._lost, self._alive = True, {}
            await self._append(Lost(self._generation))
        return self._closed

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _current(self, generation: int) -> bool:
        return generation == self._generation and not self._lost

    async def _append(self, event: Event) -> None:
        async with self._changed:
            self._sequence += 1
            self._events.append((self._sequence, event))
            self._changed.notify_all()

    async def _wait(self, condition: Callable[[], bool], timeout_s: float) -> None:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(condition), timeout_s)
            except TimeoutError:
                return
