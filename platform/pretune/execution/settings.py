"""What all trials of one slot share: how many workers, what each takes of the cluster, how long anything may last."""

from __future__ import annotations

import math
import os

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pretune.core.experiment import Experiment

_SWEEP = Experiment.model_fields
"""What a sweep says of its slots has its default there."""
HANG_TIMEOUT_S: float = _SWEEP["hang_timeout_s"].default
SLOT_MEMORY = 512 * 2**20
"""What a slot takes of the head, in bytes, beside its workers: its own process, with Ray Train's run, and the mailbox.
About 200 MB were seen where all workers are on its machine, and 430 MB with torch in it, as on a cluster
(benchmarks/README.md). Each sweep measures it anew and prints it."""
PROCESS_GROUP_TIMEOUT_S = 1800.0
"""Of one collective, within an epoch."""


class SlotSettings(BaseModel):
    """What all trials of one slot share. Needs neither Ray nor torch, so that a request can be checked with it.

    Raises ValueError where the workers of one trial could not form a process group.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sweep_folder: str = Field(description="absolute path, on storage that every node sees")
    workers: int = Field(_SWEEP["workers_per_trial"].default, ge=1, description="DDP workers of one trial")
    cpus_per_worker: float = Field(_SWEEP["cpus_per_worker"].default, ge=0.0)
    gpus_per_worker: float = Field(
        _SWEEP["gpus_per_worker"].default,
        ge=0.0,
        description="a fraction is possible with one worker: several trials share a GPU",
    )
    hang_timeout_s: float = Field(
        HANG_TIMEOUT_S, gt=0.0, description="without any sign of life from a worker that should be training"
    )
    max_failures: int = Field(
        _SWEEP["max_failures"].default,
        ge=0,
        description="failures of one trial that are retried from its last checkpoint",
    )
    process_group_timeout_s: float = Field(PROCESS_GROUP_TIMEOUT_S, ge=1.0)
    group_start_timeout_s: float = Field(
        1200.0, gt=0.0, description="to place and start a worker group, nodes that boot included"
    )
    abandoned_after_s: float = Field(
        1800.0, gt=0.0, description="a group that no slot has asked for this long ends by itself"
    )
    recycle_after_trials: int | None = Field(
        None, ge=1, description="replace the group after so many trials, if memory drifts"
    )
    remote: str | None = Field(None, description="the sweep's URI, if checkpoints go to an object store")
    one_machine: str | None = Field(
        None,
        description="a private folder of the machine that all workers are on, if they are: they meet in it, and listen "
        "on the loopback interface alone",
    )
    storage: str | None = Field(None, description="where Ray Train keeps its bookkeeping; default <sweep_folder>/slots")

    @model_validator(mode="after")
    def _can_be_placed(self) -> SlotSettings:
        if not os.path.isabs(self.sweep_folder):
            raise ValueError(
                f"sweep_folder must be an absolute path (workers run elsewhere), but is {self.sweep_folder!r}; "
                "resolve it first"
            )
        if not float(self.gpus_per_worker).is_integer():
            if self.gpus_per_worker > 1:
                raise ValueError(
                    f"gpus_per_worker must be a whole number or below 1, but is {self.gpus_per_worker}; "
                    f"use {math.floor(self.gpus_per_worker)} or {math.ceil(self.gpus_per_worker)}"
                )
            if self.workers > 1:
                raise ValueError(
                    "gpus_per_worker below 1 needs workers=1, because NCCL refuses two ranks of one group on the same "
                    f"GPU, but is {self.gpus_per_worker} with workers={self.workers}; "
                    "use one worker per trial, or whole GPUs"
                )
        if not self.cpus_per_worker and not self.gpus_per_worker:
            raise ValueError(
                "cpus_per_worker and gpus_per_worker are both 0: a worker must ask for something; use cpus_per_worker=1"
            )
        return self

    @property
    def resources_per_worker(self) -> dict[str, float]:
        wanted = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        return {name: amount for name, amount in wanted.items() if amount}
