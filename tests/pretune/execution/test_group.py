"""A warm worker group without Ray: how long its start may take, what replaces it, whose news counts, how it ends.

The mailbox is the real one; Ray, and the run that Ray Train would make, are stand-ins. `test_slot.py` has real ones.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.exceptions

from pretune.execution import group as module
from pretune.execution import trainrun
from pretune.execution.group import Group, GroupStartError, NoRoomError, kill
from pretune.execution.mailbox import Command, Failed, Lost, Mailbox, Ready, Reported, Worker
from pretune.execution.processes import process_started
from pretune.execution.settings import SlotSettings
from trainers.report import EpochReport

HERE, THERE = "a" * 56, "b" * 56
PLACEMENT = "c" * 36
JOB = "01000000"
GO = Command("continue")


class Method:
    """A method of an actor: `remote` says what `ray.get` is to do."""

    def __init__(self, act: Callable[..., object]) -> None:
        self.remote = lambda *arguments: lambda: act(*arguments)


class MailboxHandle:
    """Ray's handle of a mailbox that lives in the stage's event loop."""

    def __init__(self, stage: Stage, world_size: int) -> None:
        self._stage, self._mailbox = stage, Mailbox(world_size)

    @property
    def is_closed(self) -> bool:
        """Without the question of Ray Train's run, which tells that it has given a group up."""
        return self._mailbox._closed

    def __getattr__(self, name: str) -> Method:
        call = getattr(self._mailbox, name)
        return Method(lambda *arguments: self._stage.wait_for(call(*arguments)))


class WorkerHandle:
    """Ray's handle of a worker: alive, dead, or on a machine that does not answer."""

    def __init__(self, state: str = "alive") -> None:
        self.state = state

    @property
    def __ray_ready__(self) -> Method:
        return Method(self._answer)

    def _answer(self) -> None:
        if self.state == "dead":
            raise ray.exceptions.RayActorError


class Stage:
    """What a group sees of Ray. `lives` are what its fits do one after the other, in their thread; without any left, a
    fit announces `workers`, and two others once one of them is killed, until the mailbox is closed.
    """

    def __init__(self) -> None:
        self.lives: list[Callable[[], object]] = []
        self.fits = 0
        self.actors: set[str] = set()
        self.places_removed: list[str] = []
        self.killed: list[object] = []
        self.submitted: list[tuple[str, tuple[object, ...]]] = []
        self.draining: dict[str, object] = {}
        self.mailbox: Any = None
        self.workers = [self.worker(rank) for rank in (0, 1)]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def worker(
        self, rank: int, *, pid: int = 0, started: float = 0.0, node: str = THERE, state: str = "alive"
    ) -> Worker:
        return Worker(rank, pid, started, node, WorkerHandle(state), PLACEMENT)

    def wait_for(self, call: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(30)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # ---- what workers and Ray Train do -------------------------------------------------------------------------------

    def tell(self, name: str, *arguments: object) -> Any:
        """Calls the mailbox, as a worker does."""
        return getattr(self.mailbox, name).remote(*arguments)()

    def announce(self) -> int:
        """A group that is up: its generation."""
        generation: int = self.tell("next_generation")
        for worker in self.workers:
            self.tell("announce", generation, worker)
        return generation

    def fit(self) -> None:
        self.fits += 1
        if self.lives:
            self.lives.pop(0)()
            return
        while not self.tell("closed"):
            self.announce()
            while not self.mailbox.is_closed and not any(worker.handle in self.killed for worker in self.workers):
                time.sleep(0.01)
            self.workers = [self.worker(rank) for rank in (0, 1)]

    # ---- what the group asks Ray -------------------------------------------------------------------------------------

    def remote(self, what: Any) -> Any:
        """`ray.remote` for the two things that a group makes remote: its mailbox, and a function on another node."""
        where: list[str] = []

        def options(scheduling_strategy: Any, name: str = "", **_: object) -> SimpleNamespace:
            where.append(scheduling_strategy.node_id)
            self.actors.add(name)
            return SimpleNamespace(remote=start)

        def start(*arguments: Any) -> object:
            if what is Mailbox:
                self.mailbox = MailboxHandle(self, *arguments)
                return self.mailbox
            self.submitted.append((where[0], arguments))
            return None

        return SimpleNamespace(options=options)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage()

    def get_actor(name: str) -> None:
        if name not in stage.actors:
            raise ValueError(f"no actor {name}")

    def wait(calls: list[Any], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return calls, []

    monkeypatch.setattr(
        ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: HERE, get_job_id=lambda: JOB)
    )
    monkeypatch.setattr(ray, "remote", stage.remote)
    monkeypatch.setattr(ray, "get", lambda call, timeout=None: call())
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "kill", stage.killed.append)
    monkeypatch.setattr(ray.cloudpickle, "loads", lambda handle: handle)
    monkeypatch.setattr(ray, "get_actor", get_actor)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 1.0, "memory": 1e9})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0, "memory": 1e9})
    monkeypatch.setattr("ray._private.state.state.get_draining_nodes", lambda: stage.draining)
    placement_groups = importlib.import_module("ray.util.placement_group")  # a function of `ray.util` has its name
    monkeypatch.setattr(
        placement_groups, "remove_placement_group", lambda group: stage.places_removed.append(group.id.hex())
    )
    monkeypatch.setattr(trainrun, "make_run", lambda *_: stage)
    monkeypatch.setattr(module, "POLL_S", 0.05)
    yield stage
    stage.close()


@pytest.fixture
def make(stage: Stage, tmp_path: Path) -> Iterator[Callable[..., Group]]:
    made: list[Group] = []

    def make(**settings: Any) -> Group:
        made.append(Group(SlotSettings(**{"sweep_folder": str(tmp_path), "workers": 2, **settings})))
        return made[-1]

    yield make
    for group in made:
        group.close(timeout_s=3.0)


def event_of(group: Group) -> object:
    """Its next event, within a few polls."""
    for _ in range(100):
        event = group.event()
        if event is not None:
            return event
    raise AssertionError("no event")


# ---- start -----------------------------------------------------------------------------------------------------------


def test_a_group_is_ready_when_all_its_workers_are_up(make: Callable[..., Group], stage: Stage) -> None:
    stage.lives = [lambda: None]
    group = make()
    assert (group.generation, group.workers) == (0, ())
    assert group.ready() == 1
    assert [worker.rank for worker in group.workers] == [0, 1]
    assert group.ready() == 1, "and stays so"
    assert stage.fits == 2, "a run that ended while it started was started again"


def test_the_seconds_of_a_start_are_told_once(make: Callable[..., Group], stage: Stage) -> None:
    group = make()
    group.ready()
    start_s = group.take_start_s()
    assert start_s is not None
    assert 0.0 < start_s < 30.0
    assert group.take_start_s() is None
    stage.tell("closed")
    assert event_of(group) == Lost(1)
    stage.announce()
    assert group.ready() == 2
    assert group.take_start_s() is not None, "of a group that Ray Train restarts by itself as well"


def test_a_start_beyond_its_bound_says_what_was_asked_for_and_what_there_is(
    make: Callable[..., Group], stage: Stage
) -> None:
    stage.lives = [lambda: time.sleep(0.6)]
    group = make(group_start_timeout_s=0.2, workers=3, cpus_per_worker=2, gpus_per_worker=1)
    with pytest.raises(NoRoomError) as error:
        group.ready()
    assert str(error.value) == (
        "no worker group within 0.2 s: 3 workers of 2 CPU + 1 GPU each were asked for, the cluster holds 4 CPU of "
        "which 1 free, 1 GPU of which 0 free; add nodes, or run fewer trials at once with --slots. They are asked for "
        "again until there is room"
    )


def test_a_start_that_fails_again_and_again_is_given_up_with_the_last_error(
    make: Callable[..., Group], stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="pretune.execution.group")

    def fail() -> None:
        raise KeyError(f"no such backend, fit {stage.fits}")

    stage.lives = [fail] * 9
    group = make()
    with pytest.raises(GroupStartError) as error:
        group.ready()
    assert not isinstance(error.value, NoRoomError), "this is somebody's failure"
    assert str(error.value) == (
        f"the worker group of {group.name} ended while it started, 3 times: 'no such backend, fit 3'"
    )
    assert isinstance(error.value.__cause__, KeyError)
    assert caplog.text.count("Ray Train's run ended") == 3
    stage.lives = []
    assert group.ready() == 1, "the next trial may try again"


# ---- news ------------------------------------------------------------------------------------------------------------


def reported(generation: int, run: int = 1, epoch: int = 1) -> Reported:
    return Reported(generation, run, EpochReport(epoch=epoch, metrics={}))


def test_events_come_in_order_and_each_once(make: Callable[..., Group], stage: Stage) -> None:
    group = make()
    group.ready()
    assert group.send(GO)
    told = [reported(1, epoch=epoch) for epoch in (1, 2, 3)]
    for event in told:
        stage.tell("post", event, 0)
    assert [event_of(group) for _ in told] == told
    assert group.event() is None


def test_a_group_that_was_restarted_takes_no_command_and_its_older_news_are_void(
    make: Callable[..., Group], stage: Stage
) -> None:
    group = make()
    group.ready()
    stage.tell("post", reported(1), 0)
    assert event_of(group) == reported(1)
    stage.tell("post", Failed(1, 1, 0, "lost", ""), 0)
    group.replace("it failed")
    assert group.workers == ()
    assert group.ready() == 2
    assert group.send(GO)
    assert group.event() is None, "what generation 1 still said was not for this one"


def test_a_run_that_ended_is_started_again_when_its_news_are_asked_for(
    make: Callable[..., Group], stage: Stage
) -> None:
    heard = threading.Event()
    stage.lives = [lambda: (stage.announce(), heard.wait(10.0))]
    group = make()
    assert group.ready() == 1
    heard.set()
    group._thread.join(10.0)
    ready = event_of(group)
    assert isinstance(ready, Ready)
    assert (ready.generation, stage.fits) == (2, 2)


def test_the_silence_of_the_quietest_rank_counts_from_the_last_command(
    make: Callable[..., Group], stage: Stage
) -> None:
    group = make()
    group.ready()
    group.send(GO)
    assert group.longest_silence_s == 0.0
    time.sleep(0.2)
    stage.tell("progress", 1, 0)
    assert group.event() is None
    assert 0.2 <= group.longest_silence_s < 5.0, "rank 1 said nothing"
    stage.tell("progress", 1, 1)
    assert group.event() is None
    assert group.longest_silence_s < 0.2


# ---- lost workers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


@pytest.fixture
def started(child: subprocess.Popen[bytes]) -> float:
    started = process_started(child.pid)
    assert started is not None
    return started


def test_a_process_knows_how_long_ago_it_was_started() -> None:
    before = time.monotonic()
    program = "import time; time.sleep(0.2); from pretune.execution.processes import age_s; print(age_s())"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert 0.2 <= float(told.stdout) <= time.monotonic() - before + 0.02  # the system counts in hundredths


def test_the_workers_of_a_group_that_is_replaced_are_killed(
    make: Callable[..., Group], stage: Stage, child: subprocess.Popen[bytes], started: float
) -> None:
    """By Ray's handle; a process of this machine that survives it, by its pid; of another machine, from there."""
    stage.workers = [
        stage.worker(0, pid=child.pid, started=started, node=HERE),
        stage.worker(1, pid=77, started=5.0, node=THERE),
    ]
    group = make()
    group.ready()
    handles = [worker.handle for worker in stage.workers]
    group.replace("it hung")
    assert stage.killed == handles
    assert child.wait(10) == -9
    assert stage.submitted == [(THERE, (77, 5.0))]
    assert group.ready() == 2
    assert not [worker for worker in group.workers if worker.handle in handles]


def test_a_pid_that_was_given_to_another_process_is_not_killed(
    stage: Stage, child: subprocess.Popen[bytes], started: float
) -> None:
    worker = stage.worker(0, pid=child.pid, started=started - 1, node=HERE)
    kill((worker,), grace_s=0.05)
    assert stage.killed == [worker.handle]
    assert child.poll() is None


def test_nobody_is_killed_where_no_group_is_up(stage: Stage) -> None:
    kill(())
    assert stage.killed == []


def test_dead_ranks_are_those_whose_process_is_gone_here_or_whose_actor_died_elsewhere(
    make: Callable[..., Group], stage: Stage, child: subprocess.Popen[bytes], started: float
) -> None:
    stage.workers = [
        stage.worker(0, pid=child.pid, started=started, node=HERE),
        stage.worker(1, pid=child.pid, started=started - 1, node=HERE),
        stage.worker(2, state="alive"),
        stage.worker(3, state="dead"),
    ]
    group = make(workers=4)
    group.ready()
    assert group.dead_ranks() == [1, 3]


def test_a_machine_that_does_not_answer_is_not_said_to_be_lost(
    make: Callable[..., Group], stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.workers = [stage.worker(rank, state="dead") for rank in (0, 1)]
    group = make()
    group.ready()
    monkeypatch.setattr(ray, "wait", lambda calls, **_: ([], calls))
    assert group.dead_ranks() == []


def test_workers_hear_once_that_their_machine_will_be_taken_away(make: Callable[..., Group], stage: Stage) -> None:
    group = make()
    group.ready()
    stage.draining = {HERE: 0}
    group._next_look = 0.0
    assert group.event() is None
    assert (group.preempted, stage.tell("progress", 1, 0)) == (False, False), "it is not theirs"
    stage.draining = {THERE: 0}
    group._next_look = 0.0
    assert group.event() is None
    assert (group.preempted, stage.tell("progress", 1, 0)) == (True, True)
    stage.draining = {}
    stage.announce()
    assert isinstance(event_of(group), Ready)
    assert (group.preempted, stage.tell("progress", 2, 0)) == (False, False), "the next group is elsewhere"


# ---- end -------------------------------------------------------------------------------------------------------------


def test_closing_ends_the_run_and_its_mailbox_and_can_be_said_twice(make: Callable[..., Group], stage: Stage) -> None:
    group = make()
    group.ready()
    group.close()
    assert not group._thread.is_alive()
    assert group.workers == ()
    assert stage.killed == [stage.mailbox], "workers that end by themselves are not killed"
    group.close()
    assert stage.killed == [stage.mailbox]


def test_a_run_that_does_not_end_by_itself_loses_its_workers(make: Callable[..., Group], stage: Stage) -> None:
    ended = threading.Event()

    def stubborn() -> None:
        stage.announce()
        ended.wait(30)

    stage.lives = [stubborn]
    group = make()
    group.ready()
    handles = [worker.handle for worker in group.workers]
    started = time.monotonic()
    group.close(timeout_s=0.3)
    ended.set()
    assert time.monotonic() - started < 5.0, "every wait has a bound"
    assert stage.killed == [*handles, stage.mailbox]


def test_where_the_group_lies_is_noted_while_it_lives(make: Callable[..., Group], tmp_path: Path) -> None:
    group = make()
    group.ready()
    note = tmp_path / "slots" / f"{group.name}.placement"
    assert note.read_text() == f"{JOB} {PLACEMENT}"
    group.close()
    assert not note.exists()


def test_the_place_of_a_slot_that_died_is_given_back_and_a_living_ones_is_not(
    make: Callable[..., Group], stage: Stage, tmp_path: Path
) -> None:
    stage.actors.add("slot-living")
    (tmp_path / "slots").mkdir()
    for name, place in (("slot-living", "1" * 36), ("slot-dead", "2" * 36)):
        (tmp_path / "slots" / f"{name}.placement").write_text(f"{JOB} {place}")
    group = make()
    group.ready()
    assert stage.places_removed == ["2" * 36]
    assert {path.stem for path in (tmp_path / "slots").glob("*.placement")} == {"slot-living", group.name}


@pytest.mark.parametrize("note", [f"02000000 {'3' * 36}", "3" * 36, ""])
def test_the_places_of_the_sweep_that_this_one_is_a_copy_of_are_left_alone(
    note: str, make: Callable[..., Group], stage: Stage, tmp_path: Path
) -> None:
    (tmp_path / "slots").mkdir()
    (tmp_path / "slots" / "slot-of-another-driver.placement").write_text(note)
    group = make()
    group.ready()
    assert stage.places_removed == []
    assert [path.stem for path in (tmp_path / "slots").glob("*.placement")] == [group.name]
