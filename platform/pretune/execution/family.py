"""W local processes that form one process group and do one piece of work together, without Ray.

They are started together and none outlives the others: where one raises, dies or is silent for too long, all are ended
and the parent is told why. What they tell goes up to the parent, and its answers go down to all.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from pretune.execution.settings import PROCESS_GROUP_TIMEOUT_S
from trainers import scratch, storage

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    import torch

Device = Literal["auto", "cpu", "cuda"]

POLL_S = 1.0
"""How often the parent looks whether a process was silent for too long."""
START_S = 600.0
"""How long a process may take until its first sign of life: imports, and meeting the others."""
ANSWER_S = 600.0
"""How long a process waits for the parent's answer: the parent only decides, it computes nothing."""


class WorkerFailedError(RuntimeError):
    """A process raised, died or hung. The text holds its traceback, where there is one."""


class HungError(WorkerFailedError):
    """For too long a process gave no sign of life."""


class Member:
    """One process, as its own work sees it."""

    def __init__(self, line: Connection, rank: int, device: torch.device) -> None:
        self.rank, self.device = rank, device
        self._line = line

    def tell(self, message: Any) -> None:
        """It must pickle. Also a sign of life."""
        self._line.send(message)

    def answer(self) -> Any:
        """The parent's next answer, which all ranks get. TimeoutError where there is none for long."""
        if not self._line.poll(ANSWER_S):
            raise TimeoutError(f"the parent gave no answer within {ANSWER_S:g} s")
        return self._line.recv()


class Started(NamedTuple):
    """The first message of each rank: it has met the others."""


class Returned(NamedTuple):
    """The last message of each rank."""

    value: Any


class _Failed(NamedTuple):
    summary: str
    traceback: str


class Family:
    """The processes, each of which calls `work` with itself; `work` must pickle. `auto` takes one GPU per worker if
    there are enough, else the CPU. Leaving the context ends those that still run.
    """

    def __init__(
        self,
        work: Callable[[Member], Any],
        workers: int,
        *,
        device: Device = "auto",
        process_group_timeout_s: float = PROCESS_GROUP_TIMEOUT_S,
    ) -> None:
        self._stack = contextlib.ExitStack()
        context = multiprocessing.get_context("spawn")
        self._processes: list[BaseProcess] = []
        self._lines: list[Connection] = []
        self._finished = False
        meeting = f"file://{self._stack.enter_context(scratch.folder())}/group"
        for rank in range(workers):
            ours, theirs = context.Pipe()
            arguments = (theirs, work, rank, workers, device, meeting, process_group_timeout_s)
            process = context.Process(target=_child, args=arguments, name=f"rank-{rank}", daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._lines.append(ours)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Processes that have finished get a moment to end; any other one is killed: it may wait in a collective for
        ever.
        """
        for process in self._processes:
            process.join(10.0 if self._finished else 0.0)
            process.kill()
            process.join(10.0)
        for line in self._lines:
            line.close()
        self._stack.close()

    def messages(self, hang_timeout_s: float | None) -> Iterator[tuple[int, Any]]:
        """(rank, what it tells) until every rank has returned. WorkerFailedError where one raises or dies, HungError
        where one is silent for longer than `hang_timeout_s`; None waits for as long as all live.
        """
        running = set(range(len(self._lines)))
        heard = [time.monotonic() + max(0.0, START_S - (hang_timeout_s or START_S))] * len(self._lines)
        while running:
            waiting: dict[Any, int] = {self._lines[rank]: rank for rank in running}
            for line in wait(list(waiting), timeout=POLL_S):
                rank = waiting[line]
                message = self._receive(rank)
                heard[rank] = time.monotonic()
                if isinstance(message, _Failed):
                    raise WorkerFailedError(f"rank {rank} raised {message.summary}\n{message.traceback}".rstrip())
                if isinstance(message, Returned):
                    running.discard(rank)
                yield rank, message
            for rank in running:
                silence = time.monotonic() - heard[rank]
                if hang_timeout_s is not None and silence > hang_timeout_s:
                    raise HungError(f"rank {rank} hung: no sign of life for {silence:.0f} s")
        self._finished = True

    def answer(self, value: Any) -> None:
        """To every rank."""
        for line in self._lines:
            with contextlib.suppress(BrokenPipeError):  # a rank that died is told of by its own line
                line.send(value)

    def _receive(self, rank: int) -> Any:
        try:
            return self._lines[rank].recv()
        except (EOFError, ConnectionResetError) as error:
            process = self._processes[rank]
            process.join(5.0)
            raise WorkerFailedError(f"rank {rank} died with exit code {process.exitcode}") from error


def _child(
    line: Connection,
    work: Callable[[Member], Any],
    rank: int,
    workers: int,
    device: Device,
    meeting: str,
    process_group_timeout_s: float,
) -> None:
    """One process: meets the others, works, and tells the parent how that ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which ends its children

    from pretune.execution import worker

    try:
        chosen = worker.local_device(device, rank=rank, workers=workers)
        with worker.local_group(meeting, chosen, rank, workers, process_group_timeout_s):
            member = Member(line, rank, chosen)
            member.tell(Started())
            member.tell(Returned(work(member)))
    except Exception as error:
        # Of a full disk the summary says all.
        line.send(_Failed(worker.one_line(error), "" if storage.refuses(error) else traceback.format_exc()))
        raise SystemExit(1) from error
