"""What one sweep is: a frozen value, complete and checked before Ray starts, and the first line of its journal.

Imports neither Ray, torch nor Optuna: a request is refused within a fraction of a second.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from pretune.core.choices import LOCAL_ROOT, MAX_FAILED, Budget, Direction, SamplerName, StoppingKind
from pretune.core.design import Design
from pretune.core.fastest import Fastest
from pretune.core.place import Place
from trainers import storage as storages
from trainers.config import Config, TrialConfig

MOST_TRIALS = 1_000_000
"""Beyond this it is a slip of the hand."""


BRACKETS, MIN_TRIALS = 3, 5
"""Of Hyperband and of the median rule, where nothing else is said."""


class StoppingConfig(Config):
    """When weak trials end (`core.stopping`): asynchronous successive halving, several brackets of it, or the median
    rule. Rungs lie at grace x reduction_factor^k budget units, before a trial's decay.

    `grace` is in units of the sweep's budget. Without it the first rung lies at `grace_share` of the epochs, rounded
    up; where the budget is views or seconds, at what the first trial to get there had used by then. Of the median rule
    it is what a trial is let use before it is judged.

    Defaults are what a stored sweep without that field had; those of a new one are `NEW_RUNGS`.
    """

    enabled: bool = True
    kind: StoppingKind = "asha"
    reduction_factor: float = Field(3.0, gt=1.0, le=100.0, description="one in so many trials passes a rung")
    grace: Annotated[float, Field(gt=0.0)] | None = None
    grace_share: float = Field(0.2, gt=0.0, le=1.0)
    brackets: int | None = Field(
        None, ge=1, le=10, description=f"Hyperband's; default: {BRACKETS}, or as many as differ"
    )
    min_trials: int = Field(
        MIN_TRIALS, ge=1, description="the median rule's: no trial is stopped before so many are complete"
    )
    audit: float = Field(
        0.0, ge=0.0, le=1.0, description="this share of the trials that would be stopped live on, to judge the rule"
    )


NEW_RUNGS = {"reduction_factor": 2.0, "grace_share": 0.125}
"""Of a sweep that says nothing of them. In `benchmarks/search.py` these find as much for their compute as Ray Tune's; a
first rung at a fifth of the epochs, and one in three that passes, find less.
"""


class Objective(Config):
    """A metric that is searched for, and which way of it is better."""

    metric: str = Field(min_length=1)
    maximize: bool = True

    @property
    def direction(self) -> Direction:
        """Which way of the metric is better."""
        return "maximize" if self.maximize else "minimize"

    def is_better(self, one: float, other: float) -> bool:
        """Whether a value is better than another one."""
        return one > other if self.maximize else one < other


class PriorTrial(Config):
    """A trial that another sweep has run to its end: its parameters, what they were drawn from, and its value."""

    params: dict[str, Any]
    distributions: dict[str, str]
    value: float


class WarmStart(Config):
    """What a sweep takes over from another one, `source`: parameters to begin with, and trials for TPE to know."""

    source: str
    points: tuple[dict[str, Any], ...] = ()
    prior: tuple[PriorTrial, ...] = ()


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
    max_hours: float | None = Field(
        None, gt=0.0, allow_inf_nan=False, description="so long its drivers run in all, the last trials' ends included"
    )
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
    warm_start: tuple[WarmStart, ...] = Field((), description="what other sweeps have found; all that is used of them")
    design: Design | None = Field(None, description="what an ablation's points are for")
    fastest: Fastest | None = Field(
        None, description="`--compile auto`: which of its trials' networks are compiled; without it, as `base` says"
    )
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
    beside: tuple[Objective, ...] = Field(
        (),
        max_length=2,
        description="objectives beside `metric`; what no trial beats in all is looked for",
    )
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
        names = [objective.metric for objective in self.objectives]
        if len(set(names)) < len(names):
            raise ValueError(f"each objective must be another metric, but they are {', '.join(names)}; leave one out")
        if self.beside and self.sampler == "cmaes":
            raise ValueError(
                f"sampler 'cmaes' takes one objective, but there are {len(names)} ({', '.join(names)}); use sampler tpe"
            )
        if self.warm_start and self.sampler in ("grid", "cmaes"):
            raise ValueError(f"sampler {self.sampler!r} takes no warm start; use sampler tpe, or random")
        self.base.check_workers(self.workers_per_trial)
        grace, limit = self.stopping.grace, self.base.schedule.last_epoch_before_decay(self.base.epochs)
        if self.stopping.enabled and self.budget == "epochs" and grace is not None and grace > limit:
            raise ValueError(
                f"stopping.grace must be at most {limit}, the last epoch before the learning rate decays (epochs="
                f"{self.base.epochs}, schedule.kind={self.base.schedule.kind!r}), but is {grace:g}; "
                f"lower it or turn stopping off"
            )
        most = self._most_brackets()
        if self.stopping.brackets is not None and most is not None and self.stopping.brackets > most:
            raise ValueError(
                f"stopping.brackets must be at most {most}, as the first rung of the next one lies beyond epoch "
                f"{limit}, the last before the learning rate decays, but is {self.stopping.brackets}; lower it or "
                f"stopping.grace"
            )
        return self

    @property
    def brackets(self) -> int:
        """Of Hyperband: those asked for, else so many as differ, `BRACKETS` at most."""
        most = self._most_brackets()
        return self.stopping.brackets or (BRACKETS if most is None else min(BRACKETS, most))

    def _most_brackets(self) -> int | None:
        """How many brackets differ: one for each rung, and one that stops nothing. None where the budget does not tell
        beforehand.
        """
        if self.budget != "epochs":
            return None
        limit, first = self.base.schedule.last_epoch_before_decay(self.base.epochs), self.stopping.grace
        first = self.grace_epochs if first is None else first
        if first > limit:
            return 1
        # The tolerance makes a level that is reached exactly count, whatever the rounding of the logarithms.
        return 2 + math.floor(math.log(limit / first) / math.log(self.stopping.reduction_factor) + 1e-9)

    @property
    def grace_epochs(self) -> int:
        """Where the first rung lies if nothing else is said: at what this epoch has used of the budget."""
        return math.ceil(self.base.epochs * self.stopping.grace_share - 1e-9)

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
        return self.objectives[0].direction

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """All that is searched for. The first one decides which trial is the best, and by it weak trials end."""
        return (Objective(metric=self.metric, maximize=self.maximize), *self.beside)

    @property
    def compiles(self) -> set[str]:
        """What its trials may have as `compile`, unless the space or a level sets it."""
        return {self.base.compile, *(one.compile for one in (self.fastest.networks if self.fastest else ()))}

    @property
    def warm_points(self) -> list[dict[str, Any]]:
        """What the first trials have of their parameters."""
        return [point for warm in self.warm_start for point in warm.points]

    @property
    def prior(self) -> list[PriorTrial]:
        """What TPE knows before the first trial, oldest first."""
        return [trial for warm in self.warm_start for trial in warm.prior]

    @property
    def random_trials(self) -> int:
        """TPE's random start. A third of the trials, 4 to 10; it does not move when trials are added later."""
        return self.startup_trials or min(10, max(4, self.trials // 3))


def local_root(storage: str) -> Path:
    """The folder on this machine that holds the sweeps of `storage`: itself, or for a URI ./sweeps."""
    return Path(LOCAL_ROOT if storages.is_uri(storage) else storage).expanduser().absolute()
