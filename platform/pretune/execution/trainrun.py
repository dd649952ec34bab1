"""The Ray Train run of one slot: how its worker group is placed, connected and restarted, and how the run ends with its
slot.

A file of its own because it imports Ray Train: only a slot's process needs it. That process does without torch where
all workers are on its machine, and so do those that unpickle what is defined here: torch takes two seconds to import.
"""

from __future__ import annotations

import gc
import math
import os
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from pretune.execution import ray_private
from trainers import storage

if TYPE_CHECKING:
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from pretune.execution.settings import SlotSettings
    from pretune.execution.worker import Train

PLACEMENT_ATTEMPT_S = 30.0
"""How long one attempt to place the group may take. Between two attempts the run can be ended."""


def make_run(
    name: str, mailbox: Any, settings: SlotSettings, make_train: Callable[[], Train] | None
) -> DataParallelTrainer:
    """A trainer whose `fit()` returns when the mailbox is closed, and restarts the group whenever a worker is lost."""
    # Ray Train reads these in this process and hands them on to its workers. Its logging would take over the loggers of
    # this process and of the workers; its metrics, its patch of print and its preemption watcher are not used.
    os.environ.update(
        {
            "RAY_CHDIR_TO_TRIAL_DIR": "0",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(min(PLACEMENT_ATTEMPT_S, settings.group_start_timeout_s)),
            "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
            "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
            "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
            "RAY_TRAIN_METRICS_ENABLED": "0",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        }
    )
    # Every node must see this folder: with a bucket, nothing else is shared.
    files, place = None, settings.storage or str(Path(settings.sweep_folder) / "slots")
    if settings.remote is not None and settings.storage is None:
        files, place = storage.locate(storage.join(settings.remote, "slots"))
    run_config: Any = (
        RunConfig(  # the trainer is annotated with the class of the same name of Ray Train's first version
            name=name,
            storage_path=place,
            storage_filesystem=files,
            failure_config=FailureConfig(max_failures=-1),  # the slot counts failures, per trial
            logging_config=LoggingConfig(log_level="CRITICAL"),
        )
    )
    run_config.callbacks = [ray_private.before_each_group(partial(end_with_slot, mailbox))]
    return ray_private.lean_trainer()(
        _loop,
        train_loop_config={"mailbox": mailbox, "settings": settings, "make_train": make_train},
        backend_config=_backend_config(settings),
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker=settings.resources_per_worker,
        ),
        run_config=run_config,
    )


def _loop(setup: dict[str, Any]) -> None:
    gc.disable()  # until all is imported: what is imported stays, and looking through it again and again takes a tenth
    from pretune.execution import worker

    worker.loop(setup)


def _backend_config(settings: SlotSettings) -> BackendConfig:
    # Objects and NumPy arrays travel over gloo even where gradients travel over NCCL.
    backend = "cpu:gloo,cuda:nccl" if settings.gpus_per_worker else "gloo"
    timeout_s = math.ceil(settings.process_group_timeout_s)
    if settings.one_machine is None:
        from ray.train.torch import TorchConfig

        return TorchConfig(backend=backend, timeout_s=timeout_s)
    return OneMachineConfig(backend=backend, timeout_s=timeout_s, folder=settings.one_machine)


@dataclass
class OneMachineConfig(BackendConfig):
    """Workers that meet at a file in `folder`. By an address, rank 0 would listen on all interfaces."""

    backend: str
    timeout_s: int
    folder: str

    @property
    def backend_cls(self) -> type[Backend]:
        return _MeetingAtAFile

    @property
    def train_func_context(self) -> Callable[[], AbstractContextManager[None]]:
        return _on_its_device


class _MeetingAtAFile(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: OneMachineConfig) -> None:  # type: ignore[override]
        meeting = f"file://{backend_config.folder}/group-{uuid.uuid4().hex}"
        size = len(worker_group)
        arguments = (backend_config.backend, meeting, size, float(backend_config.timeout_s))
        ray.get([worker_group.execute_single_async(rank, _join, *arguments, rank) for rank in range(size)])


def _join(backend: str, meeting: str, workers: int, timeout_s: float, rank: int) -> None:
    gc.disable()  # as in `_loop`, which comes next
    from pretune.execution import worker

    worker.join_group(backend, meeting, workers, timeout_s, rank)


def _on_its_device() -> AbstractContextManager[None]:
    """Of a worker: the GPU that Ray has assigned to it is torch's current one, as with Ray's own configuration."""
    from ray.train.torch import TorchConfig

    context: AbstractContextManager[None] = TorchConfig().train_func_context()
    return context


class SlotClosedError(RuntimeError):
    """Raised in Ray Train's run: the slot wants no further worker group."""


def end_with_slot(mailbox: Any) -> None:
    """Asked by Ray Train before each start of a worker group."""
    if ray.get(mailbox.closed.remote(), timeout=60.0):
        raise SlotClosedError("the slot is closing; no further worker group is started")
