"""What has come out of an ablation's trials so far, by level and seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from pretune.core.design import SEED, Design, Point, key


@dataclass(frozen=True)
class Outcomes:
    """What has come out of the trials of `design`, whose seeds count from `first_seed`."""

    design: Design
    first_seed: int
    ended: Mapping[tuple[int, int], float | None]
    """By level and seed, of each trial that has ended: its value, None where there is none."""

    def value(self, level: int, seed: int) -> float | None:
        return self.ended.get((level, seed))

    @cached_property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.design.most_seeds)

    def values(self, level: int, *, first: int | None = None) -> dict[int, float]:
        """By seed, of the `first` seeds alone."""
        found = ((seed, self.value(level, seed)) for seed in self.seeds[:first])
        return {seed: value for seed, value in found if value is not None}

    def differences(self, level: int, *, first: int | None = None) -> dict[int, float]:
        """To the base, by the seeds that both have a value of."""
        base = self.values(0, first=first)
        return {seed: value - base[seed] for seed, value in self.values(level, first=first).items() if seed in base}

    def has_ended(self, level: int, seeds: int) -> bool:
        """Whether the trials of a level and of the base have ended in the first `seeds` seeds."""
        return all((at, seed) in self.ended for seed in self.seeds[:seeds] for at in (0, level))


class Places:
    """Which level and seed a trial is of."""

    def __init__(self, design: Design) -> None:
        self.design = design
        self._levels = {key(level.changes): at for at, level in enumerate(design.levels) if not level.refused}

    def of(self, point: Point) -> tuple[int, int]:
        return self._levels[key(point)], int(point.get(SEED, 0))
