"""What an ablation compares: its levels, its seeds, and when it looks.

`Experiment.points` holds the trials, `Experiment.design` what they are for. An ablation of before 0.3 has no design:
its levels are those of its points.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator

from trainers.config import Config

SEED = "seed"
GROWTH = 1.5
"""From one look to the next there are so many times as many seeds."""

Point = Mapping[str, Any]
"""The changes of one trial, its seed among them."""


class DesignLevel(Config):
    """One row. `changes` are what it has otherwise than the base; `cell` is its level of each factor of a grid."""

    name: str = Field("", description="as it was typed; empty where the changes say it all")
    changes: dict[str, Any] = Field(default_factory=dict)
    cell: dict[str, str] = Field(default_factory=dict)
    refused: str = Field("", description="why it cannot be built; then it has no trials")


class Design(Config):
    """The levels, the base first. With `max_seeds` a comparison that is undecided gets more seeds, up to so many."""

    levels: tuple[DesignLevel, ...] = Field(min_length=1)
    seeds: int = Field(ge=1)
    max_seeds: int | None = None
    smallest_effect: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = Field(
        None, description="the smallest difference worth having; None is 0.01 of a share, 2 % of the base otherwise"
    )

    @model_validator(mode="after")
    def _can_look_again(self) -> Design:
        if self.max_seeds is not None and self.max_seeds <= self.seeds:
            raise ValueError(
                f"max_seeds must be above the {self.seeds} seeds that each level begins with, but is {self.max_seeds}; "
                f"raise it, or begin with fewer"
            )
        return self

    @property
    def most_seeds(self) -> int:
        return self.seeds if self.max_seeds is None else self.max_seeds

    @property
    def looks(self) -> tuple[int, ...]:
        """After how many seeds a comparison is judged; two at least, as one difference has no spread."""
        if self.max_seeds is None:
            return (self.seeds,)
        found = [max(2, self.seeds)]
        while found[-1] < self.max_seeds:
            found.append(min(self.max_seeds, math.ceil(GROWTH * found[-1])))
        return tuple(found)

    def points(self, first_seed: int) -> tuple[dict[str, Any], ...]:
        """Of all trials that there may be. Seeds come outermost: a part of an ablation compares already."""
        return tuple(
            {SEED: first_seed + index, **level.changes}
            for index in range(self.most_seeds)
            for level in self.levels
            if not level.refused
        )


def derived(points: Sequence[Point]) -> Design:
    """The design of an ablation that was written before there were any."""
    changes = {key(point): {path: value for path, value in point.items() if path != SEED} for point in points}
    seeds = {point.get(SEED, 0) for point in points}
    return Design(levels=tuple(DesignLevel(changes=change) for change in changes.values()), seeds=len(seeds))


def key(point: Point) -> str:
    """Equal for trials of one level."""
    return json.dumps({path: value for path, value in point.items() if path != SEED}, sort_keys=True)
