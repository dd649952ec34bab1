"""What one sweep is: a frozen value, complete and checked before Ray starts, and the first line of its journal.

Imports neither Ray, torch nor Optuna: a request is refused within a fraction of a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from pretune.core.choices import LOCAL_ROOT, MAX_FAILED, Budget, Direction, SamplerName
from pretune.core.design import Design
from pretune.core.place import Place
from trainers import storage as storages
from trainers.config import Config, TrialConfig

MOST_TRIALS = 1_000_000
"""Beyond this it is a slip of the hand."""


class StoppingConfig(Config):
    """Asynchronous successive halving. Rungs lie at grace x reduction_factor^k budget units, before a trial's decay.

    `grace` is in units of the sweep's budget. Without it the first rung lies at a fifth of the epochs, rounded up;
    where the budget is views or seconds, at what the first trial to get there had used by then.
    """

    enabled: bool = True
    reduction_factor: float = Field(3.0, gt=1.0, le=100.0, description="one in so many trials passes a rung")
    grace: Annotated[float, Field(gt=0.0)] | None = None


class Experiment(Config):
    """One sweep. `base` is the recipe with all overrides applied; the space varies it trial by trial.

    `space` and `recipe` are kept as they were typed (a shipped name, `module:function`, `file.py:function`); the
    command line resolves them. `trials` counts everything asked, whatever its end. `slots` is how many trials run at
    once; None is what the cluster holds at its configured maximum. `max_failures` is per trial: so many times it is
    tried again after a lost worker, a bug or a lost slot. `startup_trials` are drawn at random before TPE's model is
    used.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    space: str = Field(min_length=1)
    recipe: str = ""
    base: TrialConfig
    data: str = Field("", description="the data set as it was typed; workers open what `base.data` says")
    trials: int = Field(16, ge=1, le=MOST_TRIALS)
    budget: Budget = "epochs"
    slots: int | None = Field(None, ge=1)
    workers_per_trial: int = Field(1, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0.0)
    gpus_per_worker: float = Field(0.0, ge=0.0)
    sampler: SamplerName = "tpe"
    startup_trials: int | None = Field(None, ge=1)
    points: tuple[dict[str, Any], ...] = Field(
        (), description="an ablation's: the changes of `base` for each trial, in order; then nothing is sampled"
    )
    design: Design | None = Field(None, description="what an ablation's points are for")
    trial_seconds: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = Field(
        None, description="of training; a trial is complete with the first value of the metric after them"
    )
    seed: int = Field(0, ge=0)
    stopping: StoppingConfig = StoppingConfig()
    max_failures: int = Field(2, ge=0)
    max_failed: float = Field(MAX_FAILED, ge=0.0, le=1.0, description="a greater share of the trials ends the sweep")
    hang_timeout_s: float = Field(600.0, gt=0.0, description="a worker group that says nothing for so long is replaced")
    metric: str = Field("probe/linear", min_length=1)
    maximize: bool = True
    storage: str = LOCAL_ROOT

    @model_validator(mode="after")
    def _fields_agree(self) -> Experiment:
        if storages.is_uri(self.storage):
            storages.check_form(self.storage)
        if self.workers_per_trial > 1 and 0.0 < self.gpus_per_worker < 1.0:
            raise ValueError(
                f"gpus_per_worker must be 0 or at least 1 with workers_per_trial={self.workers_per_trial} (NCCL "
                f"refuses two ranks on one GPU), but is {self.gpus_per_worker}; use one worker per trial, or whole GPUs"
            )
        self.base.check_workers(self.workers_per_trial)
        grace, limit = self.stopping.grace, self.base.schedule.last_epoch_before_decay(self.base.epochs)
        if self.stopping.enabled and self.budget == "epochs" and grace is not None and grace > limit:
            raise ValueError(
                f"stopping.grace must be at most {limit}, the last epoch before the learning rate decays (epochs="
                f"{self.base.epochs}, schedule.kind={self.base.schedule.kind!r}), but is {grace:g}; "
                f"lower it or turn stopping off"
            )
        return self

    @property
    def folder(self) -> Path:
        """Everything of this sweep lies in here; with a storage URI, the working copy: journal, logs, curves."""
        return local_root(self.storage) / self.name

    @property
    def remote(self) -> str | None:
        """With a storage URI, where the journal's segments, the checkpoints and the best config go."""
        return storages.join(self.storage, self.name) if storages.is_uri(self.storage) else None

    def at(self, place: Place) -> Experiment:
        """The same sweep where it lies now, under the name that it has there: also one that no new sweep may have."""
        if place.remote is not None:
            if place.remote == self.remote:
                return self
            here = {"storage": storages.parent_of(place.remote), "name": storages.name_of(place.remote)}
        elif place.folder == self.folder:
            return self
        else:
            here = {"storage": str(place.folder.parent), "name": place.folder.name}
        return self.model_copy(update=here)

    @property
    def direction(self) -> Direction:
        """Which way of the metric is better."""
        return "maximize" if self.maximize else "minimize"

    @property
    def random_trials(self) -> int:
        """TPE's random start. A third of the trials, 4 to 10; it does not move when trials are added later."""
        return self.startup_trials or min(10, max(4, self.trials // 3))


def local_root(storage: str) -> Path:
    """The folder on this machine that holds the sweeps of `storage`: itself, or for a URI ./sweeps."""
    return Path(LOCAL_ROOT if storages.is_uri(storage) else storage).expanduser().absolute()
