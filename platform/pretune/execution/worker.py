"""The loop inside a worker group: take a command, train, report, take the next one. The only file of the platform that
imports torch.

`loop` is Ray Train's training function: it ends when the slot is told to end, not when a trial does. `run_trial` is one
trial in one process, with or without Ray: `launch.py` uses it, too. A trial must not feel what ran before it in the
same process: every global setting and random state is put back before it starts, and memory is given back after it.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypedDict, Unpack

import numpy as np
import torch
import torch.distributed

from pretune.core import packing
from pretune.core.within import Within
from pretune.execution.logfile import TRIAL_LOG, LogFile
from pretune.execution.mailbox import Command, Failed, Order, Reported, Returned, Taken, Worker
from pretune.execution.processes import process_started
from pretune.execution.settings import SlotSettings
from trainers import storage
from trainers.config import TrialConfig
from trainers.files import write_whole
from trainers.report import Checkpoint, EpochReport, Outcome

logger = logging.getLogger(__name__)

POLL_S = 20.0
"""Bound of one long poll for a command."""
CALL_S = 60.0
"""Bound of any other call to the mailbox."""
PULSE_S = 1.0
"""Shortest time between two signs of life."""


class Given(TypedDict):
    """What the training of a trial is given beside its config: arguments of `trainers.train`."""

    folder: Path
    report: Callable[[EpochReport], bool]
    resume: Checkpoint | None
    progress: Callable[[int, int], bool | None]
    device: torch.device


class Train(Protocol):
    """Trains one trial. An instance is made once per process, so what it keeps stays warm."""

    def __call__(self, config: TrialConfig, **given: Unpack[Given]) -> Outcome: ...


class WarmTrainer:
    """`trainers.train` with what outlives a trial: compiled FFCV pipelines, mapped files, opened data sets."""

    def __init__(self, remote: str | None = None) -> None:
        """`remote` is the sweep's URI, if it has one: checkpoints go to `<remote>/trials/<id>/`."""
        from trainers.data.datasets import Dataset
        from trainers.data.loader import Loaders
        from trainers.train import train

        self._train = train
        self._remote = remote
        self._loaders = Loaders()
        self._datasets: dict[tuple[str, str | None], Dataset] = {}

    def __call__(
        self,
        config: TrialConfig,
        *,
        folder: Path,
        report: Callable[[EpochReport], bool],
        resume: Checkpoint | None,
        progress: Callable[[int, int], bool | None],
        device: torch.device,
    ) -> Outcome:
        from trainers.data.data_cache import SEARCH_FILES, open_anywhere
        from trainers.data.datasets import verify

        key = (config.data.path, config.data.manifest)
        if key not in self._datasets:
            dataset = open_anywhere(config.data.path, expected_hash=config.data.manifest)
            verify(dataset, files=SEARCH_FILES, full=False)  # never the report split
            self._datasets[key] = dataset
        return self._train(
            config,
            dataset=self._datasets[key],
            loaders=self._loaders,
            folder=folder if self._remote is None else storage.join(self._remote, "trials", folder.name),
            report=report,
            resume=resume,
            progress=progress,
            device=device,
        )


# ---- one trial in one process ----------------------------------------------------------------------------------------


def run_trial(
    train: Train,
    order: Order,
    *,
    rank: int,
    device: torch.device,
    report: Callable[[EpochReport], bool],
    progress: Callable[[int, int], bool | None],
) -> Outcome:
    """One trial, as if this process were new. Being out of memory is an outcome; any other exception is passed on."""
    config = TrialConfig.model_validate(order.config)
    folder = Path(order.folder)
    folder.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        write_whole(folder / "config.json", json.dumps(config.model_dump(mode="json"), indent=2) + "\n")
    epochs = order.resume.epoch if order.resume else 0
    out_of_memory: str | None = None

    def count(epoch_report: EpochReport) -> bool:
        nonlocal epochs
        epochs = epoch_report.epoch
        return report(epoch_report)

    with trial_log(folder, rank):
        start_clean(config, device)
        try:
            outcome = train(config, folder=folder, report=count, resume=order.resume, progress=progress, device=device)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            # Leaving this block drops the traceback, whose frames hold the tensors.
            out_of_memory = one_line(error)
            logger.warning("out of memory: %s", out_of_memory)
        finally:
            free_memory(device)
    if out_of_memory is not None:
        return Outcome(state="out_of_memory", reason=out_of_memory, epochs=epochs)
    return outcome


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's own type; torch's CPU allocator raises a RuntimeError that can be told by its text only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def bug(error: BaseException) -> str | None:
    """`ValueError at mine.py:12 in forward`: what a further try would raise again. None for what comes from outside:
    files and storages, other processes, the device.
    """
    frames = traceback.extract_tb(error.__traceback__)
    outside = isinstance(error, OSError | TimeoutError) or type(error).__name__ == "AcceleratorError"
    if outside or not frames or any("/torch/distributed/" in frame.filename for frame in frames):
        return None
    return f"{type(error).__name__} at {Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}"


def start_clean(config: TrialConfig, device: torch.device) -> None:
    """Put back every global state that a former trial may have changed. Our own randomness is keyed and has none; what
    a library or a user's code draws has.
    """
    random.seed(config.seed)
    np.random.seed(config.seed)
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = False
    torch.clear_autocast_cache()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def trial_log(folder: Path, rank: int) -> Iterator[None]:
    """Python's logging and warnings of one trial: rank 0 into log.txt; of other ranks, what is a warning or worse, into
    their own file.
    """
    name = TRIAL_LOG if rank == 0 else f"log.rank-{rank}.txt"
    handler = LogFile(folder / name)
    handler.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    except Exception:
        logger.exception("the trial raised on rank %d", rank)
        raise
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()


def choose_device(gpus_per_worker: float) -> torch.device:
    """The GPU that was assigned to this process, with its share of memory as a hard limit, or the CPU."""
    if not gpus_per_worker:
        return torch.device("cpu")
    device = torch.device("cuda", torch.cuda.current_device())
    if gpus_per_worker < 1:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(packing.memory_fraction(gpus_per_worker, total), device)
    return device


def local_device(choice: str, *, rank: int, workers: int) -> torch.device:
    """Without Ray: "cuda" or "cpu", or with "auto" one GPU per worker if there are as many. ValueError if there are
    not.
    """
    gpus = torch.cuda.device_count()
    if choice == "cpu" or (choice == "auto" and gpus < workers):
        return torch.device("cpu")
    if gpus < workers:
        raise ValueError(
            f"device=cuda needs one GPU per worker, but there are {gpus} for workers={workers}; "
            "use fewer, or device=cpu"
        )
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


@contextmanager
def local_group(meeting: str, device: torch.device, rank: int, workers: int, timeout_s: float) -> Iterator[None]:
    """A process group of local processes that meet at a file (a `file://` address)."""
    join_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", meeting, workers, timeout_s, rank)
    yield
    torch.distributed.destroy_process_group()


def join_group(backend: str, meeting: str, workers: int, timeout_s: float, rank: int) -> None:
    """Meets the other processes of this machine at a file (a `file://` address); nobody else can reach them."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    torch.distributed.init_process_group(
        backend, init_method=meeting, rank=rank, world_size=workers, timeout=timedelta(seconds=timeout_s)
    )


# ---- the loop in a worker group --------------------------------------------------------------------------------------


class Abandoned(Exception):  # noqa: N818 - not an error: nobody is left to work for
    """The mailbox is gone, or no slot has asked for a long time."""


class Line:
    """One rank's line to the mailbox: numbered commands in, events out, every wait with a bound."""

    def __init__(self, mailbox: Any, generation: int, rank: int, abandoned_after_s: float) -> None:
        self._mailbox = mailbox
        self._abandoned_after_s = abandoned_after_s
        self._number = 0
        self._pulse = 0.0
        self._answer: Any = None
        self._noticed = False
        self.generation = generation
        self.rank = rank

    def take(self) -> Command:
        """The next command; every rank takes the same ones in the same order. Raises Abandoned."""
        import ray

        asked = time.monotonic()
        while True:
            try:
                taken: Taken = ray.get(
                    self._mailbox.take.remote(self.generation, self.rank, self._number, POLL_S), timeout=POLL_S + CALL_S
                )
            except ray.exceptions.RayActorError as error:
                raise Abandoned("the slot's mailbox is gone") from error
            except ray.exceptions.GetTimeoutError:
                taken = Taken(None, time.monotonic() - asked)
            if taken.command is not None:
                self._number += 1
                return taken.command
            if taken.slot_silent_s > self._abandoned_after_s:
                raise Abandoned(f"no slot has asked for {taken.slot_silent_s:.0f} s")

    def post(self, event: Reported | Returned | Failed) -> None:
        import ray

        try:
            ray.get(self._mailbox.post.remote(event, self.rank), timeout=CALL_S)
        except ray.exceptions.RayActorError as error:
            raise Abandoned("the slot's mailbox is gone") from error

    def pulse(self, epoch: int, step: int) -> bool:
        """A sign of life: called at every step, sent about once a second. True, once, where the answer to an earlier
        one says that this machine, or another one of the group, will be taken away: the answer is not waited for.
        """
        import ray

        now = time.monotonic()
        if now - self._pulse < PULSE_S:
            return False
        self._pulse = now
        if self._answer is not None and not ray.wait([self._answer], timeout=0)[0]:
            return False
        answer, self._answer = self._answer, self._mailbox.progress.remote(self.generation, self.rank)
        try:
            noticed = answer is not None and bool(ray.get(answer, timeout=CALL_S))
        except ray.exceptions.RayActorError:
            return False  # `take` or `post` will find out
        told, self._noticed = self._noticed, noticed
        return noticed and not told


def loop(setup: dict[str, Any]) -> None:
    """Ray Train's training function. `setup`: mailbox (actor handle), settings (SlotSettings), make_train (makes a
    `Train`; a `WarmTrainer` if None).
    """
    import ray
    import ray.train

    settings: SlotSettings = setup["settings"]
    rank = ray.train.get_context().get_world_rank()
    device = choose_device(settings.gpus_per_worker)
    try:
        line = Line(setup["mailbox"], join(setup["mailbox"], rank), rank, settings.abandoned_after_s)
        make_train = setup["make_train"] or partial(WarmTrainer, settings.remote)
        train: Train = make_train()
        gc.freeze()  # what is imported by now stays: the collection after each trial need not walk through it
        gc.enable()
        ray.get(setup["mailbox"].announce.remote(line.generation, introduce(rank)), timeout=CALL_S)
        serve(line, train, device)
    except (Abandoned, ray.exceptions.ActorDiedError) as error:
        logger.warning("rank %d ends: %s", rank, error)


def introduce(rank: int) -> Worker:
    import ray
    from ray.util import get_current_placement_group

    context = ray.get_runtime_context()
    pid = os.getpid()
    group = get_current_placement_group()
    return Worker(
        rank=rank,
        pid=pid,
        started=process_started(pid) or 0.0,
        node=context.get_node_id(),
        handle=ray.cloudpickle.dumps(context.current_actor),  # type: ignore[no-untyped-call]
        placement_group=group.id.hex() if group else "",
    )


def join(mailbox: Any, rank: int) -> int:
    """The generation of this group, agreed by its ranks: the one collective of the loop itself, when all have just
    arrived.
    """
    import ray

    generation = [ray.get(mailbox.next_generation.remote(), timeout=CALL_S) if rank == 0 else 0]
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.broadcast_object_list(generation, src=0)
    return generation[0]


def serve(line: Line, train: Train, device: torch.device) -> None:
    """Trial after trial until `shutdown`. An exception of a trial is told to the slot, then ends this group."""
    shutdown = False

    def answer() -> bool:
        """After a report: True to go on."""
        nonlocal shutdown
        command = line.take()
        shutdown = command.kind == "shutdown"
        return command.kind == "continue"

    while not shutdown:
        command = line.take()
        if command.kind == "shutdown":
            return
        order = command.order
        if order is None:  # an answer that crossed the trial's own end: there is nothing left to stop or to continue
            continue
        run, begun = order.run, False
        within = Within(Path(order.folder)) if line.rank == 0 else None

        def report(epoch_report: EpochReport, run: int = run) -> bool:
            if line.rank == 0:
                line.post(Reported(line.generation, run, epoch_report))
            return answer()

        def progress(epoch: int, step: int, within: Within | None = within) -> bool:
            nonlocal begun
            begun = True
            if within is not None:
                within.step(epoch, step)
            return line.pulse(epoch, step)

        try:
            outcome = run_trial(train, order, rank=line.rank, device=device, report=report, progress=progress)
        except Abandoned:
            raise
        except Exception as error:
            line.post(
                Failed(
                    line.generation,
                    run,
                    line.rank,
                    one_line(error),
                    traceback.format_exc(),
                    disk_full=storage.is_full(error),
                    bug=bug(error),
                    begun=begun,
                )
            )
            raise
        finally:
            if within is not None:
                within.over()
        line.post(Returned(line.generation, run, line.rank, outcome))
