"""Sweeps of many trials as their journals tell them, written in a moment: nothing was run."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from pretune.core.experiment import Experiment
from pretune.core.journal import Journal
from pretune.core.parameters import written
from pretune.core.records import Asked, Closed, Ended, Epoch, Opened, Started
from search_spaces import RECIPES
from trainers.changes import with_changes

KERNELS = ("rbf", "energy", "laplace")
RUNGS = {1: 0.30, 3: 0.40}
"""Below these scores a trial is stopped at these epochs."""
GAMMA, WEIGHT = FloatDistribution(0.1, 10.0, log=True), FloatDistribution(0.001, 1.0, log=True)
DISTRIBUTIONS = {
    "objective.mmd.kernel": written(CategoricalDistribution(KERNELS), KERNELS),
    "objective.mmd.kernel.gamma": written(GAMMA),
    "objective.alignment.weight": written(WEIGHT),
    "warmup": written(IntDistribution(1, 8)),
    "model.projector.widths": written(CategoricalDistribution(["[32, 32]", "[64]"]), [[32, 32], [64]]),
}


def searched(
    folder: Path,
    *,
    trials: int,
    epochs: int = 9,
    metric: str = "probe/linear",
    maximize: bool = True,
    labels: bool = True,
    closed: str | None = "finished",
    seed: int = 0,
    reason: str = "loss/mmd was not finite at step 3",
    base: Mapping[str, Any] | None = None,
) -> Path:
    """A sweep in which `gamma` matters most (best at its upper end), then the weight, and `warmup` not at all. One in
    twenty trials is infeasible, about half are stopped early.
    """
    rng = random.Random(seed)
    config = with_changes(RECIPES["sfrik_tiny"](), {"epochs": epochs})
    config = with_changes(config, dict(base or {}))
    experiment = Experiment(
        name=folder.name, space="kernels", recipe="sfrik_tiny", base=config, data="digits", trials=trials,
        metric=metric, maximize=maximize, storage=str(folder.parent), slots=4,
    )  # fmt: skip
    whole = config.model_dump(mode="json")
    clock = iter(1_700_000_000.0 + 2.0 * step for step in range(100_000_000))
    with mock.patch("os.fsync"), Journal(folder, new=True, clock=lambda: next(clock)) as journal:
        command = f"/opt/bin/pretune sweep kernels --trials {trials} --name {folder.name}"
        versions = {"pretune": "0.3.0", "torch": "2.14.1"}
        host = {"node": "node", "system": "Linux 6.1.0", "machine": "x86_64", "command": command}
        journal.append(Opened(experiment=experiment, host=host, versions=versions, sources={"space": "768522967fe3"}))
        for number in range(trials):
            params = _params(rng)
            drawn = {name: DISTRIBUTIONS[name] for name in params}
            own = {**whole, "objective": {**whole["objective"], "alignment": {**whole["objective"]["alignment"]}}}
            own["objective"]["alignment"]["weight"] = params["objective.alignment.weight"]
            journal.append(Asked(number=number, params=params, distributions=drawn, config=own))
            journal.append(Started(number=number, attempt=0, epoch=0))
            if rng.random() < 0.05:
                journal.append(Ended(number=number, state="INFEASIBLE", reason=reason))
                continue
            final, state, value = _score(params, rng), "COMPLETE", 0.0
            for epoch in range(1, epochs + 1):
                value = final * (1.0 - 0.6**epoch) + 0.005 * rng.gauss(0.0, 1.0)
                told = {metric: value if maximize else 1.0 - value, "time/epoch_s": 4.0, "time/probe_s": 1.0}
                told |= {f"{metric}_stderr": 0.012} if labels else {}
                told |= {"time/group_start_s": 20.0, "memory/slot_bytes": 3e8} if number < 4 and epoch == 1 else {}
                journal.append(Epoch(number=number, epoch=epoch, metrics=told))
                if value < RUNGS.get(epoch, -math.inf) * (1.0 - 0.6**epoch) + 0.1 * (epoch == 3):
                    state = "PRUNED"
                    break
            said = f"{metric} {value:.4g} at {epoch} epochs is not among the best 1 of 4" if state == "PRUNED" else ""
            kept = told[metric] if state == "COMPLETE" else None
            journal.append(Ended.model_validate({"number": number, "state": state, "value": kept, "reason": said}))
        if closed is not None:
            journal.append(Closed.model_validate({"reason": closed}))
    return folder


def _params(rng: random.Random) -> dict[str, Any]:
    params: dict[str, Any] = {"objective.mmd.kernel": rng.choice(KERNELS)}
    if params["objective.mmd.kernel"] != "energy":
        params["objective.mmd.kernel.gamma"] = 10.0 ** rng.uniform(-1.0, 1.0)
    params["objective.alignment.weight"] = 10.0 ** rng.uniform(-3.0, 0.0)
    params["warmup"] = rng.randint(1, 8)
    params["model.projector.widths"] = rng.choice([[32, 32], [64]])
    return params


def _score(params: Mapping[str, Any], rng: random.Random) -> float:
    gamma = params.get("objective.mmd.kernel.gamma")
    of_kernel = 0.45 if gamma is None else 0.35 + 0.2 * (math.log10(gamma) + 1.0)
    weight = math.log10(params["objective.alignment.weight"])
    return of_kernel + 0.15 * (1.0 - abs(weight + 1.0) / 2.0) + 0.02 * rng.gauss(0.0, 1.0)
