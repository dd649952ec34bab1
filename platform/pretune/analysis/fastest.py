"""`--compile auto`: whether the network is compiled, measured on this machine before a run and then remembered.

What is found becomes the run's config, and so part of its journal: whatever resumes, repeats or replays a trial has the
same `compile` and measures nothing. Measurements lie in `$PRETUNE_CACHE/compiled`, a small file for each network,
number of workers, processor, GPU, and version of torch.

Trials of a sweep have the `compile` that is fastest for its recipe's network, also where a space changes that.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

from pydantic import ValidationError

from pretune.analysis import measurements, plan
from pretune.core.experiment import Experiment
from pretune.execution import launch
from pretune.execution.family import WorkerFailedError
from trainers import compiling, scratch
from trainers.config import TrialConfig
from trainers.data.data_cache import open_anywhere
from trainers.files import write_whole
from trainers.profiling.compiled import Compiled
from trainers.report import Outcome

if TYPE_CHECKING:
    from pretune.execution.worker import Given

SILENT_S = 600.0
"""Without a step, compiling included: then `off` is what remains."""

Device = Literal["cpu", "cuda"]


def for_sweep(experiment: Experiment, *, auto_gpus: bool, tell: Callable[[str], None]) -> Experiment:
    """`experiment`, of trials on this machine, with the `compile` that is fastest for its base; see `chosen`."""
    _, gpus_per_worker = plan.slots_here(experiment, auto_gpus=auto_gpus)
    device: Device = "cuda" if gpus_per_worker else "cpu"
    base = chosen(experiment.base, workers=experiment.workers_per_trial, device=device, tell=tell)
    return experiment.model_copy(update={"base": base})


def chosen(config: TrialConfig, *, workers: int, device: Device, tell: Callable[[str], None]) -> TrialConfig:
    """`config`, bound to its data, with `compile` as it is fastest on this machine over a run; `off` where nothing
    could be measured. `tell` hears what is done and what was found, in words.
    """
    if missing := compiling.why_not():
        tell(f"compile: off, as torch.compile needs {missing}")
        return config.model_copy(update={"compile": "off"})
    dataset = open_anywhere(config.data.path, expected_hash=config.data.manifest)
    steps = config.epochs * (len(dataset.pretrain_ids(config.data.subset)) // config.batch_size)
    place = _place(config, workers, device)
    found = _known(place)
    if found is None:
        tell("compile: measuring whether compiled steps are faster here; this is done once for a network")
        try:
            found = _measured(config, workers, device)
        except WorkerFailedError as error:
            tell(f"compile: off, as it could not be measured: {str(error).splitlines()[0]}")
            return config.model_copy(update={"compile": "off"})
        with suppress(OSError):  # a cache that cannot be written to costs the next run its time
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, found.model_dump_json(indent=2) + "\n")
    way = found.fastest(steps)
    tell(f"compile: {way}; {_in_words(found)}")
    return config.model_copy(update={"compile": way})


def _in_words(found: Compiled) -> str:
    """`a step takes 12 ms as it is, 9 ms with compile=on (the first one 4 s)`."""
    plain = f"a step takes {1e3 * found.step_s['off']:.3g} ms as it is"
    others = (
        f"{1e3 * found.step_s[way]:.3g} ms with compile={way} (the first one {found.begin_s[way]:.0f} s)"
        for way in found.step_s
        if way != "off"
    )
    return ", ".join([plain, *others])


def _place(config: TrialConfig, workers: int, device: Device) -> Path:
    """The file that remembers."""
    plain = config.model_copy(update={"compile": "off"})
    machine = measurements.gpus() if device == "cuda" else []
    facts = [compiling.network(plain, device, workers), importlib.metadata.version("torch"), machine]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    return compiling.folder() / f"step-{name}.json"


def _known(place: Path) -> Compiled | None:
    with suppress(OSError, ValidationError, ValueError):
        return Compiled.model_validate_json(place.read_text(encoding="utf-8"))
    return None


def _measured(config: TrialConfig, workers: int, device: Device) -> Compiled:
    """In processes of its own. WorkerFailedError where one of them fails."""
    with scratch.folder() as folder:
        told = folder / "compiled.json"
        outcome = launch.run(
            config,
            folder=folder / "run",
            workers=workers,
            device=device,
            make_train=partial(_make, told),
            hang_timeout_s=SILENT_S,
            apart=True,
        )
        if outcome.state != "complete":
            raise WorkerFailedError(f"{outcome.state.replace('_', ' ')}: {outcome.reason}")
        return Compiled.model_validate_json(told.read_text(encoding="utf-8"))


# ---- in each process -------------------------------------------------------------------------------------------------


def _make(told: Path) -> partial[Outcome]:
    return partial(_measure, told)


def _measure(told: Path, config: TrialConfig, **given: Unpack[Given]) -> Outcome:
    from trainers import dist
    from trainers.profiling.compiled import measure

    found = measure(config, given["device"], lambda: given["progress"](0, 0))
    if dist.rank() == 0:
        write_whole(told, found.model_dump_json())
    return Outcome(state="complete", epochs=config.epochs)
