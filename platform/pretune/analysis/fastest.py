"""`--compile auto`: whether networks are compiled, measured on this machine before a run and then remembered.

What is found becomes the run's config, or part of the sweep's first record: whatever resumes, repeats or replays a
trial has the same `compile` and measures nothing. Measurements lie in `$PRETUNE_CACHE/compiled`, a small file for each
network (`core.shape`), number of workers, processor, GPU, and version of torch.

Of a sweep the networks are measured that its space or its levels are seen to have, those of most trials first, within
bounds of number and time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

from pydantic import ValidationError

from pretune.analysis import measurements, plan
from pretune.core import corners
from pretune.core import shape as shapes
from pretune.core.experiment import Experiment
from pretune.core.fastest import Fastest, Network, step_in_words
from pretune.core.search import Space
from pretune.core.shape import Shape
from pretune.execution import launch, measuring
from pretune.execution.family import WorkerFailedError
from trainers import compiling, scratch
from trainers.config import TrialConfig
from trainers.files import write_whole
from trainers.profiling.compiled import Compiled
from trainers.report import Outcome
from trainers.settings import DataConfig

if TYPE_CHECKING:
    from pretune.execution.worker import Given

SILENT_S = 600.0
"""Without a step, compiling included: then `off` is what remains."""
MOST_NETWORKS, MEASURING_S = 6, 300.0
"""Of a sweep so many are measured at once, and no other is begun after so long."""
LEAST_TRIALS = 0.5
"""A network that fewer trials are expected to have is not measured: rather none of them will."""

Device = Literal["cpu", "cuda"]
Told = Callable[[str], None]


def for_sweep(
    experiment: Experiment, space: Space, *, auto_gpus: bool, clock: Callable[[], float] = time.monotonic, tell: Told
) -> Experiment:
    """`experiment`, of trials on this machine, with the `compile` that is fastest for each network that they have, over
    all trials that have it. `tell` hears what is measured now, and where nothing can be.

    RequestError where the space raises something that is no refusal.
    """
    if missing := compiling.why_not():
        tell(f"compile: off, as torch.compile needs {missing}")
        return experiment
    _, gpus_per_worker = plan.slots_here(experiment, auto_gpus=auto_gpus)
    device: Device = "cuda" if gpus_per_worker else "cpu"
    workers = experiment.workers_per_trial
    configs = [] if experiment.points else corners.random_draws(experiment, space)
    configs = configs or plan.glanced(experiment, space)
    steps = partial(_steps, experiment, cache(plan.images))
    by_network: dict[Shape, list[TrialConfig]] = {}
    for config in configs:
        if config.compile == "off" and steps(config):  # else the space asks for it itself, or nothing is trained
            by_network.setdefault(shapes.network(config), []).append(config)
    memory = _Memory(workers, device)
    networks: list[Network] = []
    left_out: Counter[str] = Counter()
    began, measured = clock(), 0
    for network, alike in sorted(by_network.items(), key=lambda one: -len(one[1])):
        place, share = memory.place(network), len(alike) / len(configs)
        found, problem = _known(place), ""
        # Where a space has so many that a draw meets one once, hardly a trial will meet it again.
        met = bool(experiment.points) or len(alike) > 1 or len(by_network) == 1
        expected = share * experiment.trials if met else 0.0
        if found is None and (why := _why_left_out(expected, measured, clock() - began)):
            left_out[why] += 1
            continue
        words = shapes.in_words(network, list(by_network)) if len(by_network) > 1 else ""
        if found is None:
            measured += 1
            tell(f"compile: measuring {words or 'whether compiled steps are faster here'}, once for a network")
            try:
                found = _measured(alike[0], workers, device, place)
            except WorkerFailedError as error:
                problem = str(error).splitlines()[0]
        # As seconds add up, so of all their trials together: each might be the first one that compiles.
        way = "off" if found is None else found.fastest(round(statistics.fmean(map(steps, alike))))
        networks.append(Network(config=alike[0], words=words, share=share, compile=way, found=found, problem=problem))
    whys = ", ".join(f"{count} {why}" for why, count in left_out.items())
    fastest = Fastest(networks=tuple(networks), left_out=left_out.total(), why=whys)
    return experiment.model_copy(update={"fastest": fastest})


def _steps(experiment: Experiment, images: Callable[[DataConfig], int], config: TrialConfig) -> int:
    """Of a whole trial, on the sweep's data; 0 where that does not have what the trial is to train on."""
    amount = {"subset": config.data.subset, "images": config.data.images}
    try:
        return config.epochs * (images(experiment.base.data.model_copy(update=amount)) // config.batch_size)
    except ValueError:
        return 0


def _why_left_out(trials: float, measured: int, seconds: float) -> str:
    """Why the next network, which so many trials are expected to have, is not measured; empty where it is."""
    if trials < LEAST_TRIALS:
        return "that rather no trial will have"
    if measured == MOST_NETWORKS:
        return f"beyond the {MOST_NETWORKS} that are measured at once"
    return f"after the {MEASURING_S:.0f} s that measuring may take" if seconds > MEASURING_S else ""


def chosen(config: TrialConfig, *, workers: int, device: Device, tell: Told) -> TrialConfig:
    """`config`, bound to its data, with `compile` as it is fastest on this machine over a run; `off` where nothing
    could be measured. `tell` hears what is done and what was found, in words.
    """
    if missing := compiling.why_not():
        tell(f"compile: off, as torch.compile needs {missing}")
        return config.model_copy(update={"compile": "off"})
    steps = config.epochs * (plan.images(config.data) // config.batch_size)
    place = _Memory(workers, device).place(shapes.network(config))
    found = _known(place)
    if found is None:
        tell("compile: measuring whether compiled steps are faster here, once for a network")
        try:
            found = _measured(config, workers, device, place)
        except WorkerFailedError as error:
            tell(f"compile: off, as it could not be measured: {str(error).splitlines()[0]}")
            return config.model_copy(update={"compile": "off"})
    way = found.fastest(steps)
    tell(f"compile: {way}; {step_in_words(found)}")
    return config.model_copy(update={"compile": way})


class _Memory:
    """The files that remember what so many workers take on this machine."""

    def __init__(self, workers: int, device: Device) -> None:
        machine = measurements.gpus() if device == "cuda" else []
        self._facts = [device, workers, importlib.metadata.version("torch"), machine]
        self._folder = compiling.folder()

    def place(self, network: Shape) -> Path:
        name = hashlib.sha256(json.dumps([network.key, *self._facts]).encode()).hexdigest()[:32]
        return self._folder / f"step-{name}.json"


def _known(place: Path) -> Compiled | None:
    with suppress(OSError, ValidationError, ValueError):
        return Compiled.model_validate_json(place.read_text(encoding="utf-8"))
    return None


def _measured(config: TrialConfig, workers: int, device: Device, place: Path) -> Compiled:
    """In processes of its own, and kept. WorkerFailedError where one of them fails."""
    share = measuring.machine_bytes() / workers if device == "cpu" else None
    with scratch.folder() as folder:
        told = folder / "compiled.json"
        outcome = launch.run(
            config,
            folder=folder / "run",
            workers=workers,
            device=device,
            make_train=partial(_make, told, share),
            hang_timeout_s=SILENT_S,
            apart=True,
        )
        if outcome.state != "complete":
            raise WorkerFailedError(f"{outcome.state.replace('_', ' ')}: {outcome.reason}")
        found = Compiled.model_validate_json(told.read_text(encoding="utf-8"))
    with suppress(OSError):  # a cache that cannot be written to costs the next run its time
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, found.model_dump_json(indent=2) + "\n")
    return found


# ---- in each process -------------------------------------------------------------------------------------------------


def _make(told: Path, host_bytes: float | None) -> partial[Outcome]:
    if host_bytes is not None:
        measuring.limit_memory(host_bytes)
    return partial(_measure, told)


def _measure(told: Path, config: TrialConfig, **given: Unpack[Given]) -> Outcome:
    from trainers import dist
    from trainers.profiling.compiled import measure

    found = measure(config, given["device"], lambda: given["progress"](0, 0))
    if dist.rank() == 0:
        write_whole(told, found.model_dump_json())
    return Outcome(state="complete", epochs=config.epochs)
