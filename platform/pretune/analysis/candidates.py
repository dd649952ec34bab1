"""The best few trials of a sweep, judged again before one of them is read on `report`: by probes that are fitted anew
on other images of `train`, or by runs from other seeds. What the search saw is one draw of both.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from pretune.core.errors import RequestError
from pretune.core.records import Stored
from pretune.core.results import SweepResult, TrialResult
from trainers import storage
from trainers.config import TrialConfig
from trainers.report import Checkpoint

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from trainers.data.datasets import Dataset
    from trainers.data.loader import Loaders
    from trainers.evaluation.probe import Encode

REFITTED = ("probe/linear", "probe/knn")
"""What a probe that is fitted again may stand for."""
NOISE_OF = 5
"""Best trials whose probes tell how much of the trials' noise is shared (see `analysis.optimism`)."""


class Candidate(NamedTuple):
    """One of the best trials: what the search saw of it, and the encoder that it left."""

    trial: int
    value: float
    config: TrialConfig
    checkpoint: Checkpoint


class Judged(Stored):
    """A candidate judged again, best in the search first."""

    trial: int
    searched: float
    values: tuple[float, ...]
    """The metric of each refit or run that was completed."""
    mean: float | None = None
    half_width: float | None = None
    """Half of the mean's 95 % t interval over refits or runs; None for one alone."""
    reason: str = ""
    """Why some are missing."""
    place: int = 0
    """Its place by the mean, from 1."""


def best(result: SweepResult, count: int) -> list[TrialResult]:
    """The best `count` complete trials, fewer where there are fewer; none whose result is that of another one."""
    own = (
        trial
        for trial in result.ranked()
        if trial.state == "COMPLETE" and trial.value is not None and trial.result_of is None
    )
    return list(itertools.islice(own, count))


def without_winner(result: SweepResult) -> str:
    """That no trial of `result` is complete, and how one becomes so."""
    named = shlex.quote(str(result.folder))
    onward = (
        f"look at the reasons with `pretune show {named}`, and add trials with `pretune resume {named} --trials "
        f"{result.asked + 8}`"
        if result.closed in ("finished", "exhausted")
        else f"go on with `pretune resume {named}`"
    )
    return f"sweep {result.name!r} has no complete trial; {onward}"


def candidate(result: SweepResult, trial: TrialResult) -> Candidate:
    """RequestError where its last checkpoint is gone."""
    assert trial.value is not None
    if trial.checkpoint is None or not storage.exists(trial.checkpoint.path):
        place = "was never written" if trial.checkpoint is None else f"{trial.checkpoint.path} is gone"
        again = "choose among fewer with a smaller --top"
        if trial.id == result.best:
            again = f"train it again with `pretune train {shlex.quote(str(result.folder / 'best.json'))}`"
        raise RequestError(f"the checkpoint of trial {trial.id} {place}; {again}")
    return Candidate(trial.id, trial.value, TrialConfig.model_validate(trial.config), trial.checkpoint)


def runners_up(result: SweepResult, taken: Sequence[Candidate]) -> list[Candidate]:
    """The next best trials up to `NOISE_OF` in all, as far as their checkpoints are there."""
    found = []
    for trial in best(result, NOISE_OF)[len(taken) :]:
        with suppress(RequestError, ValueError):
            found.append(candidate(result, trial))
    return found


def judged(trial: int, searched: float, values: Sequence[float], reason: str = "") -> Judged:
    """With the mean of `values` and its interval."""
    if not values:
        return Judged(trial=trial, searched=searched, values=(), reason=reason)
    mean, half = math.fsum(values) / len(values), None
    if len(values) > 1:
        from scipy.stats import t

        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
        half = float(t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
    return Judged(trial=trial, searched=searched, values=tuple(values), mean=mean, half_width=half, reason=reason)


def placed(found: Sequence[Judged], *, maximize: bool) -> list[Judged]:
    """The same in the same order, with their places by the mean: of equal ones the better in the search is first, those
    without a number are last.
    """
    sign = -1.0 if maximize else 1.0

    def key(index: int) -> float:
        mean = found[index].mean
        return math.inf if mean is None or math.isnan(mean) else sign * mean

    order = sorted(range(len(found)), key=key)
    return [one.model_copy(update={"place": order.index(index) + 1}) for index, one in enumerate(found)]


def refit(
    candidates: Sequence[Candidate],
    others: Sequence[Candidate],
    *,
    metric: str,
    probe_seeds: int,
    dataset: Dataset,
    loaders: Loaders,
    device: torch.device,
) -> tuple[list[Judged], list[NDArray[np.bool_]]]:
    """`probe_seeds` probes of each candidate, fitted on as many draws of images of `train` and scored on all of
    `select`; and which images of the probe's part of it these and `others` tell right with the search's own fit, [n]
    each.
    """
    from trainers.evaluation import probe

    name = metric.replace("full_", "")
    look = partial(probe.refits, dataset=dataset, loaders=loaders, device=device)
    found, correct = [], []
    for one in candidates:
        refits = look(encoder(one, device), draws=probe_seeds, config=one.config)
        found.append(judged(one.trial, one.value, refits.scores[name]))
        correct.append(refits.correct[name])
    for one in others:
        with suppress(ValueError, OSError):  # damaged, or its code is not what it was: the others tell enough
            correct.append(look(encoder(one, device), draws=1, config=one.config).correct[name])
    return found, correct


def encoder(one: Candidate, device: torch.device) -> Encode:
    """Its network, in evaluation mode. ValueError where the checkpoint is damaged."""
    encode: Encode = model(one, device).encode
    return encode


def model(one: Candidate, device: torch.device) -> Any:
    """The trained model, in evaluation mode."""
    from trainers import checkpoint
    from trainers.model import trained_model

    return trained_model(one.config, checkpoint.load(one.checkpoint)["model"]).to(device).eval()
