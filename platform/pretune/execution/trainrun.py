"""The Ray Train run of one slot: how its worker group is placed, connected and restarted, and how the run ends with its
slot.

A file of its own because it imports Ray Train, and with it torch: only a slot's process and Ray Train's controller need
it.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from pretune.execution import ray_private, worker
from trainers import storage

if TYPE_CHECKING:
    from pretune.execution.settings import SlotSettings
    from pretune.execution.worker import Train

PLACEMENT_ATTEMPT_S = 30.0
"""How long one attempt to place the group may take. Between two attempts the run can be ended."""


def make_run(name: str, mailbox: Any, settings: SlotSettings, make_train: Callable[[], Train] | None) -> TorchTrainer:
    """A trainer whose `fit()` returns when the mailbox is closed, and restarts the group whenever a worker is lost."""
    # Ray Train reads these in this process and hands them on to its controller and workers. Its logging would take over
    # the root logger of the workers; its metrics, its patch of print and its preemption watcher are not used.
    os.environ.update(
        {
            "RAY_CHDIR_TO_TRIAL_DIR": "0",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(min(PLACEMENT_ATTEMPT_S, settings.group_start_timeout_s)),
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
        RunConfig(  # TorchTrainer is annotated with the class of the same name of Ray Train's first version
            name=name,
            storage_path=place,
            storage_filesystem=files,
            failure_config=FailureConfig(max_failures=-1),  # the slot counts failures, per trial
            logging_config=LoggingConfig(log_level="CRITICAL"),
        )
    )
    run_config.callbacks = [ray_private.before_each_group(partial(end_with_slot, mailbox))]
    return ray_private.lean_trainer()(
        worker.loop,
        train_loop_config={
            "mailbox": mailbox,
            "settings": settings,
            "make_train": make_train or partial(worker.WarmTrainer, settings.remote),
        },
        torch_config=_torch_config(settings),
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker=settings.resources_per_worker,
        ),
        run_config=run_config,
    )


def _torch_config(settings: SlotSettings) -> TorchConfig:
    # Objects and NumPy arrays travel over gloo even where gradients travel over NCCL.
    backend = "cpu:gloo,cuda:nccl" if settings.gpus_per_worker else "gloo"
    timeout_s = math.ceil(settings.process_group_timeout_s)
    if settings.one_machine is None:
        return TorchConfig(backend=backend, timeout_s=timeout_s)
    return OneMachineConfig(backend=backend, timeout_s=timeout_s, folder=settings.one_machine)


@dataclass
class OneMachineConfig(TorchConfig):
    """Workers that meet at a file in `folder`. By an address, rank 0 would listen on all interfaces."""

    folder: str = ""

    @property
    def backend_cls(self) -> type[Backend]:
        return _MeetingAtAFile


class _MeetingAtAFile(TorchConfig().backend_cls):  # type: ignore[misc] # Ray Train names it by this property alone
    def on_start(self, worker_group: Any, backend_config: OneMachineConfig) -> None:
        meeting = f"file://{backend_config.folder}/group-{uuid.uuid4().hex}"
        size = len(worker_group)
        arguments = (backend_config.backend, meeting, size, float(backend_config.timeout_s))
        ray.get([worker_group.execute_single_async(rank, worker.join_group, *arguments, rank) for rank in range(size)])


class SlotClosedError(RuntimeError):
    """Raised in Ray Train's controller: the slot wants no further worker group."""


def end_with_slot(mailbox: Any) -> None:
    """Asked in Ray Train's controller before each start of a worker group; the mailbox is told its pid by the way."""
    if ray.get(mailbox.closed.remote(os.getpid()), timeout=60.0):
        raise SlotClosedError("the slot is closing; no further worker group is started")
