"""Are the verdicts of `pretune ablate` true? Studies whose truth is known, judged by the code that judges real ones.

    python benchmarks/simulations.py ablation

Noise is that of real curves: `DIFFERENCES` are those between two levels of `sfrik_tiny` on digits, 3 epochs, under 20
equal seeds, whose settings differ by nothing that counts (`objective.mmd.weight` 1 and 1.001; 2026-11-28, 2 cores). A
trial's value is a level's mean, a seed's part, and a part of its own, drawn from these differences with either sign and
a little jitter, so that the difference of two trials has their spread and tails; and it is a share of 500 images, as
the probe's. Heavy tails: the part of its own is Student's t with 3 degrees of freedom instead.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretune.analysis.statistics import bootstrap
from pretune.core import evidence
from pretune.core.design import Design, DesignLevel
from pretune.core.outcomes import Outcomes

# fmt: off
DIFFERENCES = (
    -0.020, 0.010, -0.024, 0.048, -0.030, 0.000, -0.006, 0.002, -0.036, 0.026,
    -0.006, 0.002, 0.016, 0.008, 0.022, -0.006, 0.030, 0.014, 0.002, 0.002,
)
# fmt: on
SEED_STD = 0.016
"""Of what trials of one seed share: the rest of the base's spread over seeds, 0.022."""
MEAN, IMAGES = 0.87, 500
METRIC = "probe/linear"
LEVELS = 3
EFFECT = 0.02
"""The known effect: about one standard deviation of a difference."""


@dataclass(frozen=True)
class Study:
    """One simulated ablation at its end."""

    outcomes: Outcomes
    standings: dict[int, evidence.Standing]

    @property
    def verdicts(self) -> list[evidence.Finding]:
        return [standing.finding for standing in self.standings.values()]


def study(
    rng: np.random.Generator,
    effects: Sequence[float],
    *,
    seeds: int,
    max_seeds: int | None = None,
    heavy: bool = False,
    smallest_effect: float | None = None,
) -> Study:
    """An ablation of levels with these true effects, run as the proposer would: with early looks if `max_seeds`."""
    levels = tuple(DesignLevel(changes={"level": at} if at else {}) for at in range(len(effects) + 1))
    design = Design(levels=levels, seeds=seeds, max_seeds=max_seeds, smallest_effect=smallest_effect)
    shape = (len(levels), design.most_seeds)
    spread = statistics.pstdev(DIFFERENCES) / 2**0.5
    if heavy:
        own = rng.standard_t(3, size=shape) / 3**0.5 * spread
    else:
        centered = np.asarray(DIFFERENCES) - statistics.fmean(DIFFERENCES)
        own = rng.choice(centered, size=shape) * rng.choice([-1.0, 1.0], size=shape) / 2**0.5
        own += rng.normal(0.0, spread / 4, size=shape)
    means = MEAN + np.asarray([0.0, *effects])[:, None]
    values = np.round((means + rng.normal(0.0, SEED_STD, size=shape[1]) + own) * IMAGES) / IMAGES
    ended: dict[tuple[int, int], float | None] = {}
    while True:
        outcomes = Outcomes(design, 0, ended)
        wanted = evidence.seeds_wanted(outcomes, metric=METRIC, maximize=True)
        more = {(at, seed): float(values[at, seed]) for at, count in wanted.items() for seed in range(count)}
        if len(more) == len(ended):
            return Study(outcomes, evidence.standings(outcomes, metric=METRIC, maximize=True))
        ended = {**ended, **more}


def rows(count: int, seed: int) -> Iterator[tuple[str, ...]]:
    """What was looked at, what is wanted, what was seen, of how many studies (or of how many intervals)."""
    nothing = [0.0] * LEVELS
    cases: dict[str, dict[str, Any]] = {
        "A/A, 3 levels, 5 seeds: any helps or hurts": {"seeds": 5},
        "A/A, 3 levels, 3 to 20 seeds with early looks: any helps or hurts": {"seeds": 3, "max_seeds": 20},
        "A/A, the same with heavy tails": {"seeds": 3, "max_seeds": 20, "heavy": True},
        "A/A, 3 levels, 2 to 6 seeds with early looks": {"seeds": 2, "max_seeds": 6},
    }
    for what, options in cases.items():
        rng = np.random.default_rng([seed, len(what)])
        wrong = sum(bool({"helps", "hurts"} & set(study(rng, nothing, **options).verdicts)) for _ in range(count))
        yield what, "at most 5 %", _share(wrong, count), str(count)
    cases = {
        "95 % interval covers a known effect, 3 seeds": {"seeds": 3},
        "95 % interval covers a known effect, 5 seeds": {"seeds": 5},
        "95 % interval covers a known effect, 10 seeds": {"seeds": 10},
        "95 % interval covers a known effect after early looks, 3 to 20 seeds": {"seeds": 3, "max_seeds": 20},
    }
    for what, options in cases.items():
        rng = np.random.default_rng([seed, len(what), options["seeds"]])
        covered = sum(_covers(study(rng, [EFFECT], **options)) for _ in range(count))
        yield what, "93 to 97 %", _share(covered, count), str(count)
    few = max(20, count // 10)
    for pairs in (5, 10, 20):
        rng = np.random.default_rng([seed, pairs, 7])
        covered = sum(_covers(study(rng, [EFFECT], seeds=pairs), resampled=True) for _ in range(few))
        yield f"bootstrap interval covers it, {pairs} seeds", "printed", _share(covered, few), str(few)
    cases = {
        "an effect that is just worth having (0.02), 12 seeds: no evidence": {"seeds": 12},
        "the same after early looks, 3 to 30 seeds": {"seeds": 3, "max_seeds": 30},
    }
    for what, options in cases.items():
        rng = np.random.default_rng([seed, len(what)])
        found = [study(rng, [EFFECT], smallest_effect=EFFECT, **options).verdicts[0] for _ in range(count)]
        yield what, "at most 5 %", _share(found.count("no evidence"), count), str(count)
        yield f"{what}, but: hurts", "at most 2.5 %", _share(found.count("hurts"), count), str(count)
    for seeds in (2, 3, 5, 8, 12, 20):
        rng = np.random.default_rng([seed, seeds])
        seen = sum(study(rng, [EFFECT], seeds=seeds).verdicts == ["helps"] for _ in range(count))
        yield f"power: helps, effect {EFFECT}, {seeds} seeds", "printed", _share(seen, count), str(count)
    rng = np.random.default_rng([seed, 1])
    studies = [study(rng, [EFFECT], seeds=3, max_seeds=20) for _ in range(count)]
    seen = sum(one.verdicts == ["helps"] for one in studies)
    used = statistics.fmean(one.standings[1].look for one in studies)
    what = f"power: helps, effect {EFFECT}, 3 to 20 seeds with early looks ({used:.1f} used in the mean)"
    yield what, "printed", _share(seen, count), str(count)


def _covers(one: Study, *, resampled: bool = False) -> bool:
    differences = list(one.outcomes.differences(1).values())
    if resampled:
        interval = bootstrap(differences)
    else:
        found = evidence.paired(differences)
        interval = None if found is None else found.interval
    return interval is not None and interval[0] <= EFFECT <= interval[1]


def _share(count: int, of: int) -> str:
    return f"{count / of:.1%}"
