"""One training without Ray: in this process, or in W local processes (`family.py`). `pretune train` uses it.

Each process runs `worker.run_trial`, as a worker of a slot does, so a trial that is replayed here takes the same path.
The parent relays: rank 0's reports go up, the parent's answer goes down to every rank, and every wait has a bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pretune.execution.family import Device, Family, Member, Returned
from pretune.execution.mailbox import Order
from pretune.execution.settings import HANG_TIMEOUT_S, PROCESS_GROUP_TIMEOUT_S
from trainers.config import TrialConfig
from trainers.report import Checkpoint, EpochReport, Outcome

if TYPE_CHECKING:
    from pretune.execution.worker import Train


class _Reported(NamedTuple):
    report: EpochReport


class _Progressed(NamedTuple):
    epoch: int
    step: int


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

    Raises ValueError where workers and batch size do not fit, WorkerFailedError if a process dies, hangs or raises.
    With one worker everything runs in this process, and what the training raises is passed on as it is; unless `apart`,
    which gives one worker a process of its own, too.
    """
    config.check_workers(workers)
    order = Order(run=0, number=0, config=config.model_dump(mode="json"), folder=str(folder.resolve()), resume=resume)
    if workers > 1 or apart:
        training = _Training(order, make_train)
        with Family(training, workers, device=device, process_group_timeout_s=process_group_timeout_s) as family:
            return _watched(family, report, progress, hang_timeout_s)

    from pretune.execution import worker

    train = (make_train or worker.WarmTrainer)()
    chosen = worker.local_device(device, rank=0, workers=1)
    return worker.run_trial(train, order, rank=0, device=chosen, report=report, progress=progress)


def _watched(
    family: Family,
    report: Callable[[EpochReport], bool],
    progress: Callable[[int, int], bool | None],
    hang_timeout_s: float,
) -> Outcome:
    """Relays until every rank has ended."""
    outcomes: dict[int, Outcome] = {}
    for rank, message in family.messages(hang_timeout_s):
        if isinstance(message, _Reported):
            family.answer(report(message.report))
        elif isinstance(message, _Progressed) and rank == 0:
            progress(message.epoch, message.step)
        elif isinstance(message, Returned):
            outcomes[rank] = message.value
            if outcomes[rank].state == "out_of_memory":  # the other ranks wait in a collective that this one left
                return outcomes[rank]
    return outcomes[0]


class _Training:
    """What each process of a training does."""

    def __init__(self, order: Order, make_train: Callable[[], Train] | None) -> None:
        self._order, self._make_train = order, make_train

    def __call__(self, member: Member) -> Outcome:
        from pretune.execution import worker

        last = 0.0

        def answer(epoch_report: EpochReport) -> bool:
            if member.rank == 0:
                member.tell(_Reported(epoch_report))
            return bool(member.answer())

        def pulse(epoch: int, step: int) -> None:
            nonlocal last
            if time.monotonic() - last >= worker.PULSE_S:
                last = time.monotonic()
                member.tell(_Progressed(epoch, step))

        train = (self._make_train or worker.WarmTrainer)()
        member.tell(_Progressed(0, 0))
        return worker.run_trial(
            train, self._order, rank=member.rank, device=member.device, report=answer, progress=pulse
        )
