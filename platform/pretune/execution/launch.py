"""One training without Ray: in this process, or in W local processes that form one process group. `pretune train` uses
it.

Each process runs `worker.run_trial`, as a worker of a slot does, so a trial that is replayed here takes the same path.
The parent relays: rank 0's reports go up, the parent's answer goes down to every rank, and every wait has a bound.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pretune.execution.mailbox import Order
from pretune.execution.settings import HANG_TIMEOUT_S, PROCESS_GROUP_TIMEOUT_S
from trainers import scratch, storage
from trainers.config import TrialConfig
from trainers.report import Checkpoint, EpochReport, Outcome

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from pretune.execution.worker import Train

logger = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]

POLL_S = 1.0
"""How often the parent looks whether a process was silent for too long."""
START_S = 600.0
"""How long a process may take until its first sign of life: imports, and meeting the others."""
ANSWER_S = 600.0
"""How long a process waits for the parent's answer to a report: the parent only decides, it computes nothing."""


class TrainingFailedError(RuntimeError):
    """A process of the training raised, died or hung. The text holds its traceback, where there is one."""


class HungError(TrainingFailedError):
    """For too long a process did no step."""


class _Reported(NamedTuple):
    report: EpochReport


class _Progressed(NamedTuple):
    epoch: int
    step: int


class _Returned(NamedTuple):
    outcome: Outcome


class _Failed(NamedTuple):
    summary: str
    traceback: str


def _go_on(report: EpochReport) -> bool:
    return True


def _ignore(epoch: int, step: int) -> None:
    """The default for `progress`."""


def run(
    config: TrialConfig,
    *,
    folder: Path,
    workers: int = 1,
    device: Device = "auto",
    resume: Checkpoint | None = None,
    report: Callable[[EpochReport], bool] = _go_on,
    progress: Callable[[int, int], bool | None] = _ignore,
    make_train: Callable[[], Train] | None = None,
    process_group_timeout_s: float = PROCESS_GROUP_TIMEOUT_S,
    hang_timeout_s: float = HANG_TIMEOUT_S,
    apart: bool = False,
) -> Outcome:
    """Train `config` into `folder`; `report` answers True to go on and is called in this process, as is `progress`
    (about once a second). `auto` takes one GPU per worker if there are enough, else the CPU. `make_train` defaults to
    `worker.WarmTrainer`.

    Raises ValueError where workers and batch size do not fit, TrainingFailedError if a process dies, hangs or raises.
    With one worker everything runs in this process, and what the training raises is passed on as it is; unless `apart`,
    which gives one worker a process of its own, too.
    """
    config.check_workers(workers)
    order = Order(run=0, number=0, config=config.model_dump(mode="json"), folder=str(folder.resolve()), resume=resume)
    if workers > 1 or apart:
        with _Family(order, workers, device, make_train, process_group_timeout_s) as family:
            return family.watch(report, progress, hang_timeout_s)

    from pretune.execution import worker

    train = (make_train or worker.WarmTrainer)()
    chosen = worker.local_device(device, rank=0, workers=1)
    return worker.run_trial(train, order, rank=0, device=chosen, report=report, progress=progress)


class _Family:
    """The processes of one training, started together and never left behind."""

    def __init__(
        self,
        order: Order,
        workers: int,
        device: Device,
        make_train: Callable[[], Train] | None,
        process_group_timeout_s: float,
    ) -> None:
        self._stack = contextlib.ExitStack()
        context = multiprocessing.get_context("spawn")
        self._processes: list[BaseProcess] = []
        self._lines: list[Connection] = []
        self._finished = False
        meeting = f"file://{self._stack.enter_context(scratch.folder())}/group"
        for rank in range(workers):
            ours, theirs = context.Pipe()
            arguments = (theirs, order, rank, workers, device, make_train, meeting, process_group_timeout_s)
            process = context.Process(target=_child, args=arguments, name=f"rank-{rank}", daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._lines.append(ours)

    def __enter__(self) -> _Family:
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

    def watch(
        self,
        report: Callable[[EpochReport], bool],
        progress: Callable[[int, int], bool | None],
        hang_timeout_s: float,
    ) -> Outcome:
        """Relay until every rank has ended. Raises TrainingFailedError."""
        outcomes: dict[int, Outcome] = {}
        heard = [time.monotonic() + max(0.0, START_S - hang_timeout_s)] * len(self._lines)
        while len(outcomes) < len(self._lines):
            waiting = {self._lines[rank]: rank for rank in range(len(self._lines)) if rank not in outcomes}
            for line in wait(list(waiting), timeout=POLL_S):
                rank = waiting[line]  # type: ignore[index]
                message = self._receive(rank)
                heard[rank] = time.monotonic()
                if isinstance(message, _Reported):
                    answer = report(message.report)
                    for other in self._lines:
                        with contextlib.suppress(BrokenPipeError):  # a rank that died is told of by its own line
                            other.send(answer)
                elif isinstance(message, _Progressed) and rank == 0:
                    progress(message.epoch, message.step)
                elif isinstance(message, _Returned):
                    outcomes[rank] = message.outcome
                    if (
                        message.outcome.state == "out_of_memory"
                    ):  # the other ranks wait in a collective that this one left
                        return message.outcome
                elif isinstance(message, _Failed):
                    raise TrainingFailedError(f"rank {rank} raised {message.summary}\n{message.traceback}".rstrip())
            silent = {rank: time.monotonic() - heard[rank] for rank in waiting.values()}
            for rank, silence in silent.items():
                if rank not in outcomes and silence > hang_timeout_s:
                    raise HungError(f"rank {rank} hung: no sign of life for {silence:.0f} s")
        self._finished = True
        return outcomes[0]

    def _receive(self, rank: int) -> Any:
        try:
            return self._lines[rank].recv()
        except (EOFError, ConnectionResetError) as error:
            process = self._processes[rank]
            process.join(5.0)
            raise TrainingFailedError(f"rank {rank} died with exit code {process.exitcode}") from error


def _child(
    line: Connection,
    order: Order,
    rank: int,
    workers: int,
    device: Device,
    make_train: Callable[[], Train] | None,
    meeting: str,
    process_group_timeout_s: float,
) -> None:
    """One process of the training: meets the others, trains, and tells the parent what happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which ends its children

    from pretune.execution import worker

    last = 0.0

    def answer(epoch_report: EpochReport) -> bool:
        if rank == 0:
            line.send(_Reported(epoch_report))
        if not line.poll(ANSWER_S):
            raise TimeoutError(f"the parent gave no answer within {ANSWER_S:g} s")
        return bool(line.recv())

    def pulse(epoch: int, step: int) -> None:
        nonlocal last
        if time.monotonic() - last >= worker.PULSE_S:
            last = time.monotonic()
            line.send(_Progressed(epoch, step))

    try:
        chosen = worker.local_device(device, rank=rank, workers=workers)
        with worker.local_group(meeting, chosen, rank, workers, process_group_timeout_s):
            train = (make_train or worker.WarmTrainer)()
            line.send(_Progressed(0, 0))
            outcome = worker.run_trial(train, order, rank=rank, device=chosen, report=answer, progress=pulse)
            line.send(_Returned(outcome))
    except Exception as error:
        # Of a full disk the summary says all.
        line.send(_Failed(worker.one_line(error), "" if storage.refuses(error) else traceback.format_exc()))
        raise SystemExit(1) from error
