"""How many trials share one GPU, or this machine where it has none, found by running copies of a trial at once.

They are of the shape that most trials have. How many there is memory for is told by the largest shape of the space.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pretune.analysis import measurements
from pretune.core import packing
from pretune.core import shape as shapes
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.packing import Packing, Together
from pretune.core.results import SweepResult
from pretune.execution import mps
from pretune.execution.measuring import Measurement, NotFittingError, NotMeasuredError, machine_bytes, measure
from pretune.execution.settings import SLOT_MEMORY
from trainers.config import TrialConfig

MEASURING_S = 150.0
"""No other count is begun after so long, where nothing else is said."""

Told = Callable[[str], None]


@dataclass(frozen=True)
class Machine:
    """What trials share: the processors and memory of one machine, and its cards, if it has any."""

    cards: int
    cpus: float
    host_bytes: float

    @property
    def on(self) -> Literal["gpu", "machine"]:
        """What packing is a number of trials on."""
        return "gpu" if self.cards else "machine"


def here(*, cards: int | None = None) -> Machine:
    """This machine, with so many of its cards; all that may be used if None."""
    return Machine(
        cards=len(measurements.gpus()) if cards is None else cards,
        cpus=float(os.cpu_count() or 1),
        host_bytes=machine_bytes(),
    )


Asked = Packing | Literal["auto"] | None


def asked(
    experiment: Experiment,
    pack: str | int | None,
    *,
    gpus_per_worker: float | None,
    local: bool,
    machine: Machine | None = None,
) -> tuple[Experiment, Asked]:
    """`experiment` so packed, and how; "auto" is measured later, and changes nothing yet. `gpus_per_worker` is what was
    asked for beside it, `local` whether it runs on this machine alone, of which `machine` is what it may use (all if
    None). RequestError where it cannot be.
    """
    if pack is None:
        return experiment, None
    count = _count(pack)
    if gpus_per_worker is not None:
        raise RequestError(
            f"--pack {pack} and --gpus-per-worker {gpus_per_worker:g} both say how many trials share a GPU; keep one"
        )
    if experiment.workers_per_trial > 1:
        raise RequestError(
            f"--pack {pack} needs trials of one worker, because NCCL refuses two of one trial on a GPU, but "
            f"--workers-per-trial is {experiment.workers_per_trial}; leave one of the two out"
        )
    if not local:
        if count is None:
            raise RequestError(
                "--pack auto measures on this machine, not on those of a cluster; run `pretune plan … --pack auto` on "
                "one of its machines, and give the number that it finds"
            )
        found = packing.given(experiment, count, on="gpu", cpus=1.0)
        return found.applied(experiment), found
    if count is None:
        return experiment, "auto"
    found = given(experiment, count, machine or here())
    return found.applied(experiment), found


def asked_again(
    result: SweepResult, pack: str | None, *, slots: int | None, local: bool
) -> tuple[Experiment, Asked, Machine]:
    """As `asked`, of a sweep that goes on, with `slots` if they are given anew: its trials stay on GPUs, or on none.
    Also what they share.
    """
    placed = result.placed
    on_gpus = placed.gpus_per_worker > 0.0
    machine = here() if on_gpus else here(cards=0)
    if pack is None:
        return placed, None, machine
    if local and on_gpus and not machine.cards:
        raise RequestError(
            f"--pack {pack} is how many trials share a GPU, on which sweep {result.name!r} trains, but this machine "
            "has none; leave it out"
        )
    if not local and not on_gpus:
        raise RequestError(
            f"--pack {pack} is how many trials share a GPU, but sweep {result.name!r} trains on CPUs; say with --slots "
            "how many run at once"
        )
    experiment = placed.model_copy(update={"slots": slots or (placed.slots if on_gpus else None)})
    return *asked(experiment, pack, gpus_per_worker=None, local=local, machine=machine), machine


def given(experiment: Experiment, count: int, machine: Machine) -> Packing:
    """So many trials on each card of `machine`, or on it. RequestError where its processors or the slots that were
    asked for do not go with that.
    """
    if not machine.cards and experiment.slots is not None:
        raise RequestError(
            f"--pack {count} is how many trials share this machine, as it has no GPU, and so is --slots "
            f"{experiment.slots}; keep one"
        )
    wanted = count * machine.cards * experiment.cpus_per_worker
    if experiment.slots is None and wanted > machine.cpus + 1e-9:
        raise RequestError(
            f"--pack {count} on {machine.cards} GPU(s) takes {wanted:g} processors, {experiment.cpus_per_worker:g} a "
            f"worker, but this machine has {machine.cpus:g}; lower it, or give each less with --cpus-per-worker "
            f"{packing.part(count * machine.cards, of=machine.cpus):g}"
        )
    return packing.given(experiment, count, on=machine.on, cpus=machine.cpus)


def _count(pack: str | int) -> int | None:
    """None for auto."""
    if pack == "auto":
        return None
    try:
        count = int(pack)
    except ValueError:
        count = 0
    if not 1 <= count <= packing.MOST:
        raise RequestError(
            f"--pack must be auto, or a whole number from 1 to {packing.MOST}, but is {pack!r}; change it"
        )
    return count


def measured(
    experiment: Experiment,
    configs: Sequence[TrialConfig],
    machine: Machine,
    *,
    clock: Callable[[], float],
    tell: Told,
    limit_s: float = MEASURING_S,
) -> Packing:
    """As many trials as are fastest together, of those that there is room for; under MPS where that may be used and is
    faster. `configs` are what the trials may be, `tell` hears what is measured now. After `limit_s` no other count is
    begun.

    RequestError where not even one can be measured.
    """
    search = _Search(experiment, configs, machine, clock, tell, limit_s)
    alone = search.alone()
    most, bound = search.room(alone)
    tried = [_together(alone, copies=1)]
    why = search.more(tried, most) or f"no more: {bound}"
    if machine.cards and most > 1:
        why += f"; {search.served(tried, most)}"
    return packing.measured(experiment, tried, on=machine.on, cpus=machine.cpus, why=why)


class _Search:
    """One search for the best number."""

    def __init__(
        self,
        experiment: Experiment,
        configs: Sequence[TrialConfig],
        machine: Machine,
        clock: Callable[[], float],
        tell: Told,
        limit_s: float,
    ) -> None:
        self._experiment, self._machine, self._clock, self._tell = experiment, machine, clock, tell
        by_shape = {shapes.of(config): config for config in configs}
        common, _ = Counter(map(shapes.of, configs)).most_common(1)[0]
        largest = max(by_shape, key=lambda shape: shape.work)
        self._common, self._largest = (common, by_shape[common]), (largest, by_shape[largest])
        self._limit_s, self._deadline = limit_s, clock() + limit_s

    def alone(self) -> Measurement:
        """What one of the usual shape takes. RequestError where that cannot be measured."""
        try:
            return self._run(1)
        except (NotFittingError, NotMeasuredError) as error:
            raise RequestError(
                f"--pack auto measures a few steps of a trial, which failed: {error}; give a number, such as --pack 2, "
                "or leave it out"
            ) from error

    def room(self, alone: Measurement) -> tuple[int, str]:
        """How many can be at once, and by what that is bounded: all of them might be of the largest shape."""
        largest, fits = self._largest_bytes(alone)
        asked, machine = self._experiment, self._machine
        cards = max(1, machine.cards)
        host = largest.host_bytes - (largest.mapped_bytes or 0.0) + SLOT_MEMORY
        bounds = [
            (math.ceil(asked.trials / cards), f"there are {asked.trials} trials"),
            (int(machine.cpus / asked.cpus_per_worker / cards + 1e-9), f"{machine.cpus:g} processors"),
            (packing.fitting(machine.host_bytes, host) // cards, f"each takes {host / 1e9:.1f} GB of memory"),
            (packing.MOST_TRIED, "so many at most are measured"),
        ]
        if asked.slots is not None:
            bounds.append((math.ceil(asked.slots / cards), f"--slots {asked.slots}"))
        if largest.gpu_bytes is not None:
            each, free = largest.gpu_bytes + packing.CONTEXT_BYTES, largest.gpu_room_bytes or 0.0
            bounds.append(
                (packing.fitting(free, each), f"each takes up to {each / 1e9:.1f} GB of the card's {free / 1e9:.0f} GB")
            )
        if not fits:
            bounds.append((1, "the largest trials of the space do not fit even alone"))
        most, why = min(bounds, key=lambda bound: bound[0])
        return max(1, most), why

    def _largest_bytes(self, alone: Measurement) -> tuple[Measurement, bool]:
        """What one of the largest shape takes, and whether it fits at all. What cannot be measured takes what the usual
        one does, in proportion to the images of a step.
        """
        (common, _), (largest, config) = self._common, self._largest
        if largest == common:
            return alone, True
        try:
            found = self._run(1, (largest, config))
        except NotFittingError:
            return alone, False
        except NotMeasuredError:
            ratio = max(1.0, largest.rows / common.rows)
            gpu = None if alone.gpu_bytes is None else alone.gpu_bytes * ratio
            return alone.model_copy(update={"host_bytes": alone.host_bytes * ratio, "gpu_bytes": gpu}), True
        host = max(found.host_bytes - (found.mapped_bytes or 0.0), alone.host_bytes - (alone.mapped_bytes or 0.0))
        gpu = None if found.gpu_bytes is None else max(found.gpu_bytes, alone.gpu_bytes or 0.0)
        return found.model_copy(update={"host_bytes": host, "mapped_bytes": 0.0, "gpu_bytes": gpu}), True

    def more(self, tried: list[Together], most: int, *, under_mps: bool = False) -> str:
        """Adds to `tried` for as long as more gain enough. Says why there are no more; nothing where `most` is why."""
        while (count := packing.following(tried, most)) is not None:
            if self._clock() > self._deadline:
                return f"no more were tried after {self._limit_s:.0f} s"
            try:
                found = self._run(count, under_mps=under_mps)
            except NotFittingError:
                return f"{count} do not fit into memory"
            except NotMeasuredError as error:
                return f"{count} could not be measured: {error}"
            tried.append(_together(found, copies=count, under_mps=under_mps))
        if len(tried) > 1 and tried[-1].images_per_s < packing.GAIN * tried[-2].images_per_s:
            gain = 100.0 * (tried[-1].images_per_s / tried[-2].images_per_s - 1.0)
            return f"{tried[-1].copies} at once are {gain:+.0f} % faster than {tried[-2].copies}"
        return ""

    def served(self, tried: list[Together], most: int) -> str:
        """Adds what the best number of `tried`, and more, are under MPS, and says what came of it."""
        best = packing.chosen(tried)
        count = min(most, max(2, best.copies))
        try:
            with mps.serving():
                first = _together(self._run(count, under_mps=True), copies=count, under_mps=True)
                if not mps.used():
                    return "without MPS: no process could reach its service"
                under = [first]
                if first.images_per_s >= packing.GAIN * best.images_per_s:
                    self.more(under, most, under_mps=True)
                tried.extend(under)
        except mps.NotServedError as error:
            return f"without MPS: {error}"
        except (NotFittingError, NotMeasuredError) as error:
            return f"without MPS: a trial under it failed: {error}"
        return "with MPS" if packing.chosen(tried).mps else "without MPS, which is not faster"

    def _run(
        self, copies: int, chosen: tuple[shapes.Shape, TrialConfig] | None = None, *, under_mps: bool = False
    ) -> Measurement:
        shape, config = chosen or self._common
        self._tell(
            f"{copies} of {shapes.in_words(shape, [self._common[0], self._largest[0]])} at once"
            f"{' under MPS' if under_mps else ''}"
        )
        share = packing.part(copies) if self._machine.cards else 0.0
        found = measure(
            config,
            workers=1,
            gpus_per_worker=share,
            copies=copies,
            host_bytes=self._machine.host_bytes,
            together=chosen is None,
        )
        if self._machine.cards <= 1 and not under_mps:  # as a plan would measure so many slots
            measurements.Known(workers=1, gpus_per_worker=share, slots=copies).keep(shape, found)
        return found


def _together(found: Measurement, *, copies: int, under_mps: bool = False) -> Together:
    assert found.images_per_s is not None, "it was asked for"
    held = found.host_bytes - (found.mapped_bytes or 0.0) if found.gpu_bytes is None else found.gpu_bytes
    return Together(copies=copies, images_per_s=found.images_per_s, bytes=held, mps=under_mps)
