"""How many trials share one GPU, or the processors of a machine without any: what follows from what was measured.

Counts are tried in turn, each about twice the one before, until more at once no longer gain enough or find no room.
What was tried is kept in the sweep's first record, so that a sweep that goes on measures nothing again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pretune.core.experiment import Experiment

MOST = 64
"""Trials on one card. More is a slip of the hand: each process holds a context of its own there."""
MOST_TRIED = 16
"""Processes that are measured at once."""
GAIN = 1.05
"""More at once must be so many times faster together."""
MARGIN = 0.9
"""Of a memory, what processes may take that share it."""
CONTEXT_BYTES = 600 * 2**20
"""What a process holds of a GPU beside its tensors (context, kernels, libraries), which no cap of torch's counts."""
_SHARES = 10_000
"""Ray counts parts of a GPU or CPU in ten-thousandths, and rounds to the nearest: six times 1/6 would not fit."""


class Together(BaseModel):
    """So many copies of one shape that ran at once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    copies: int = Field(ge=1)
    images_per_s: float = Field(description="of all of them, while all trained")
    bytes: float = Field(description="the most that one of them held: of the GPU, or of the host where there is none")
    mps: bool = Field(False, description="under NVIDIA's Multi-Process Service")


class Packing(BaseModel):
    """How the trials of a sweep share what it runs on, and why so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(ge=1)
    on: Literal["gpu", "machine"]
    slots: int | None = Field(None, ge=1, description="trials at once in all, as of the experiment")
    gpus_per_worker: float = Field(0.0, ge=0.0)
    cpus_per_worker: float = Field(1.0, gt=0.0)
    mps: bool = False
    tried: tuple[Together, ...] = Field((), description="none where the number was given")
    why: str = Field("", description="why no more were tried")

    def applied(self, experiment: Experiment) -> Experiment:
        """`experiment` with its slots and what each of their workers takes."""
        names = ("slots", "gpus_per_worker", "cpus_per_worker")
        return experiment.model_copy(update={name: getattr(self, name) for name in names})

    @property
    def ratio(self) -> float | None:
        """How many times as fast as one alone; None where that was not measured."""
        chosen = [one for one in self.tried if (one.copies, one.mps) == (self.count, self.mps)]
        if not chosen or self.tried[0].copies != 1:
            return None
        return chosen[0].images_per_s / self.tried[0].images_per_s


def given(experiment: Experiment, count: int, *, on: Literal["gpu", "machine"], cpus: float) -> Packing:
    """So many trials on each card; or on a machine of `cpus` processors, which they then share out evenly where that
    leaves each worker less than the experiment says.
    """
    if on == "gpu":
        return Packing(
            count=count,
            on=on,
            slots=experiment.slots,
            gpus_per_worker=part(count),
            cpus_per_worker=experiment.cpus_per_worker,
        )
    each = min(experiment.cpus_per_worker, part(count, of=cpus))
    return Packing(count=count, on=on, slots=count, cpus_per_worker=each)


def measured(
    experiment: Experiment, tried: Sequence[Together], *, on: Literal["gpu", "machine"], cpus: float, why: str
) -> Packing:
    """As many as the best of `tried`, the first of which is one alone."""
    best = chosen(tried)
    found = given(experiment, best.copies, on=on, cpus=cpus)
    return found.model_copy(update={"mps": best.mps, "tried": tuple(tried), "why": why})


def part(count: int, *, of: float = 1.0) -> float:
    """The share of each, of which `count` fit into `of` as Ray counts."""
    return math.floor(_SHARES * of / count + 1e-9) / _SHARES


def memory_fraction(gpus_per_worker: float, total_bytes: float) -> float:
    """How much of a GPU's memory the tensors of a process may take that has such a share of it: what all that share it
    hold beside their tensors is taken off, so that each can have its own part whatever the others do. On a card so
    small that this leaves less than half of the share it is that half.
    """
    return max(gpus_per_worker - CONTEXT_BYTES / total_bytes, 0.5 * gpus_per_worker)


def fitting(total_bytes: float, each_bytes: float) -> int:
    """Processes that a memory holds, with a margin; 0 where it does not hold one."""
    return int(MARGIN * total_bytes // max(1.0, each_bytes))


def following(tried: Sequence[Together], most: int) -> int | None:
    """How many copies to measure after `tried`, of `most` that there is room for; None where that is enough."""
    last = tried[-1]
    if last.copies >= most or (len(tried) > 1 and last.images_per_s < GAIN * tried[-2].images_per_s):
        return None
    return min(2 * last.copies, most)


def chosen(tried: Sequence[Together]) -> Together:
    """The first of `tried` that none after it beats by enough. Those under MPS come last: it, too, has to pay."""
    best = tried[0]
    for one in tried[1:]:
        if one.images_per_s >= GAIN * best.images_per_s:
            best = one
    return best


def in_words(packing: Packing) -> str:
    """`3 trials per card, 1.9 times one alone, with MPS`."""
    place = "card" if packing.on == "gpu" else "machine"
    parts = [f"{packing.count} trial{'' if packing.count == 1 else 's'} per {place}"]
    if packing.ratio is not None and packing.count > 1:
        parts.append(f"{packing.ratio:.2g} times one alone")
    if packing.mps:
        parts.append("with MPS")
    return ", ".join(parts)
