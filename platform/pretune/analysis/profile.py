"""What a run takes on this machine, part by part: measured in processes of its own, by the non-Ray group that
`pretune train --workers` uses, in a temporary folder.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from pretune.core.errors import RequestError
from pretune.execution import family, launch
from trainers import scratch
from trainers.config import TrialConfig
from trainers.files import write_whole
from trainers.profiling.figures import STAGES, Figures
from trainers.report import Outcome

if TYPE_CHECKING:
    from pretune.execution.worker import Given, Train
    from trainers.profiling.measure import Extent

FIGURES = "figures.json"
"""In the folder of the run, written by rank 0."""
_TRACE = "trace"
BEGUN = "Python, imports, workers meet"
"""The first part of start-up."""


class NotProfiledError(RuntimeError):
    """The run ended by itself, a process died or hung. The text says why."""


def check_device(config: TrialConfig, workers: int) -> None:
    """RequestError where this machine cannot train in the precision of `config`, or compile what it asks for. torch is
    imported only where that depends on its processors.
    """
    if config.precision == "float32" and config.compile == "off":
        return
    from pretune.execution import worker
    from trainers.train import check_device

    try:
        check_device(config, worker.local_device("auto", rank=0, workers=workers))
    except ValueError as error:
        raise RequestError(str(error)) from error


def profile(
    config: TrialConfig,
    *,
    workers: int = 1,
    out: Path | None = None,
    tell: Callable[[str], None] = lambda words: None,
    extent: Extent | None = None,
) -> Figures:
    """Measures `config`, bound to its data, in so many processes on this machine. `tell` hears what is measured now.
    `out`, a folder that is new or empty, gets recorded steps.

    NotProfiledError with the reason.
    """
    with scratch.folder() as folder:
        started = time.monotonic()
        begun: list[float] = []

        def progress(stage: int, step: int) -> None:
            if not begun:
                begun.append(time.monotonic() - started)
            tell(STAGES[stage])

        try:
            outcome = launch.run(
                config,
                folder=folder,
                workers=workers,
                progress=progress,
                make_train=partial(_make, folder / _TRACE if out is not None else None, extent),
                apart=True,
            )
        except family.WorkerFailedError as error:
            raise NotProfiledError(str(error)) from error
        if outcome.state != "complete":
            raise NotProfiledError(f"the run {outcome.state.replace('_', ' ')}: {outcome.reason}")
        found = Figures.model_validate_json((folder / FIGURES).read_text(encoding="utf-8"))
        if out is not None:
            shutil.copytree(folder / _TRACE, out, dirs_exist_ok=True)
    return found.model_copy(update={"startup_s": {BEGUN: begun[0], **found.startup_s}})


def keep(figures: Mapping[str, Any], path: Path) -> None:
    """All figures, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(figures, indent=2) + "\n")


# ---- in each process -------------------------------------------------------------------------------------------------


def _make(trace: Path | None, extent: Extent | None) -> Train:
    """What measures in a process. Its imports belong to what start-up takes."""
    import trainers.profiling.measure  # noqa: F401

    return partial(_measure, trace, extent)


def _measure(trace: Path | None, extent: Extent | None, config: TrialConfig, **given: Unpack[Given]) -> Outcome:
    from trainers import dist
    from trainers.data.data_cache import SEARCH_FILES, open_anywhere
    from trainers.data.datasets import verify
    from trainers.data.loader import Loaders
    from trainers.profiling import measure

    started = time.perf_counter()
    dataset = open_anywhere(config.data.path, expected_hash=config.data.manifest)
    verify(dataset, files=SEARCH_FILES, full=False)  # never the report split
    opened_s = time.perf_counter() - started
    try:
        found = measure.measure(
            config,
            dataset=dataset,
            loaders=Loaders(),
            folder=given["folder"],
            device=given["device"],
            tell=lambda stage: given["progress"](stage, 0),
            startup_s={"data set opened and checked": opened_s},
            trace=trace,
            extent=extent,
        )
    except measure.EndedEarlyError as error:
        return error.outcome
    if dist.rank() == 0:
        write_whole(given["folder"] / FIGURES, found.model_dump_json())
    return Outcome(state="complete", epochs=config.epochs)
