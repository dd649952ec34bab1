"""Does the audit's interval cover what it claims to: of all trials that the rule condemned, the share of winners?

A study here is a sweep of trials that all run to their end in the simulation, so that the truth is known: each has a
final value and, on the rungs, that value with noise. The program's own rule condemns, its own draw says which of the
condemned live on, and `analysis.audit` judges them. Its intervals are exact ones, for few trials wide: they may cover
more than they claim, never less.

    python benchmarks/simulations.py audit
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import numpy as np

from pretune.analysis import audit
from pretune.core import stopping
from pretune.core.experiment import Experiment, StoppingConfig
from trainers.config import TrialConfig
from trainers.terms import Alignment

EPOCHS = 9
SETTINGS = [(60, 0.05, 0.5), (60, 0.3, 0.5), (200, 0.05, 1.5), (200, 0.2, 0.2), (200, 0.2, 1.5)]
"""Trials of a study, the share that is audited, the noise of a rung's value against the spread of the final ones."""


def experiment(share: float) -> Experiment:
    base = TrialConfig(objective={"alignment": Alignment()}, epochs=EPOCHS, batch_size=64)
    rule = StoppingConfig(grace=1.0, audit=share)
    return Experiment(name="simulated", space="simulated", base=base, stopping=rule)


def study(made: Experiment, trials: int, noise: float, rng: np.random.Generator) -> tuple[bool, bool] | None:
    """Whether the intervals for winners and for the better half cover the truth; None where nothing was audited."""
    rule = stopping.of(made)
    assert rule is not None
    condemned, ends, let_live = list[float](), list[float | None](), list[float]()
    for number, final in enumerate(rng.normal(size=trials)):
        seen = final + noise * rng.normal(size=EPOCHS) / np.sqrt(np.arange(1, EPOCHS + 1))
        stops = (
            rule.observe(number, epoch, {made.metric: seen[epoch - 1]}, last_epoch=EPOCHS - 1)
            for epoch in range(1, EPOCHS)
        )
        if not any(stop is not None for stop in stops):
            let_live.append(float(final))
            continue
        condemned.append(float(final))
        if stopping.is_audited(made, number):
            ends.append(float(final))
    found = audit.judge(ends, let_live, condemned=len(condemned))
    if found.winners is None or found.better_half is None:
        return None
    best, median = max(let_live), statistics.median(let_live)
    truths = (
        sum(final > best for final in condemned) / len(condemned),
        sum(final >= median for final in condemned) / len(condemned),
    )
    winners, half = (
        share.low <= truth <= share.high
        for share, truth in zip((found.winners, found.better_half), truths, strict=True)
    )
    return winners, half


def rows(count: int, seed: int) -> Iterator[tuple[str, ...]]:
    """What, wanted, seen, of how many; each setting in `count` studies."""
    rng = np.random.default_rng(seed)
    for trials, share, noise in SETTINGS:
        made = experiment(share)
        found = [
            one
            for number in range(count)
            if (one := study(made.model_copy(update={"seed": 1000 * seed + number}), trials, noise, rng)) is not None
        ]
        for position, what in enumerate(("winners", "the better half")):
            covered = sum(one[position] for one in found)
            text = f"{what}: {trials} trials, {share:.0%} audited, noise {noise:g}: the interval covers the truth"
            yield text, "95 % or more", f"{100 * covered / max(1, len(found)):.1f} %", f"{len(found)}"
