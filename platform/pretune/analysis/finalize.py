"""The winner on the report split, once. Each read is counted, and written down before it happens."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from pretune.core.errors import RequestError
from pretune.core.place import Place
from pretune.core.results import SweepResult, check_understood
from trainers import storage
from trainers.config import TrialConfig
from trainers.data import report_reads
from trainers.data.lock import HeldError, held
from trainers.data.report_reads import ReportRead
from trainers.files import why_not_writable, write_whole
from trainers.report import Checkpoint

FILE = "finalize.json"
LOCK_S = 10.0
"""How long another process may hold that file; it only writes a few lines meanwhile."""


class Read(BaseModel):
    """One look at the report split. `metrics` is empty where it was interrupted: it counts all the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    time: str
    trial: int
    checkpoint: Checkpoint
    manifest: str
    metrics: dict[str, float] = {}
    """`report/linear`, `report/full_linear`, …, and `probe/…` of the same encoder on `select`; of data without labels
    `report/health/…` and `health/…`.
    """


class ReportReads(BaseModel):
    """All looks at the report split through this sweep. The first is the one to publish."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    sweep: str
    metric: str
    searched_value: float
    """What the search saw of the newest read's trial: the value it was chosen by, so a little too good."""
    report_reads: int
    reads: tuple[Read, ...]
    of_the_data: tuple[ReportRead, ...] = ()
    """All reads of this data set's report split that are written down beside it, through whichever sweep."""
    recorded: bool = True
    """Whether the newest read could be written down there."""


class Winner(NamedTuple):
    """What will be read: the best trial's config and last checkpoint, and what was read before."""

    trial: int
    value: float
    config: TrialConfig
    checkpoint: Checkpoint
    earlier: tuple[Read, ...]
    again: bool


def path(result: SweepResult) -> Path:
    """Where the reads are written down."""
    return result.folder / FILE


def check(result: SweepResult, *, again: bool) -> Winner:
    """The winner, if the report split may be read for it.

    RequestError while the sweep runs, where nothing can be written into its folder, no trial is complete, its
    checkpoint is gone, a later version has written in its journal what this one does not understand, or the split was
    read before and `again` was not asked for.
    """
    check_understood(result)
    if result.live:
        raise RequestError(f"sweep {result.name!r} runs and its winner may change; finalize it when it has ended")
    if why := why_not_writable(result.folder):
        raise RequestError(
            f"sweep {result.name!r} must be in a folder that can be written to, as each read of the report split is "
            f"written down there, but {why}; change that, or finalize a copy of the sweep"
        )
    best = result.best_trial
    if best is None or best.value is None or best.config is None:
        raise RequestError(
            f"sweep {result.name!r} has no complete trial; go on with `pretune resume "
            f"{shlex.quote(str(result.folder))}`"
        )
    if best.checkpoint is None or not storage.exists(best.checkpoint.path):
        place = "was never written" if best.checkpoint is None else f"{best.checkpoint.path} is gone"
        raise RequestError(
            f"the checkpoint of trial {best.id} {place}; "
            f"train it again with `pretune train {shlex.quote(str(result.folder / 'best.json'))}`"
        )
    earlier = _read(result)
    if earlier and not again:
        raise RequestError(_was_read(result, earlier))
    return Winner(best.id, best.value, TrialConfig.model_validate(best.config), best.checkpoint, earlier, again)


def run(result: SweepResult, winner: Winner) -> ReportReads:
    """Full probes of the winner: on `select`, then on `report`; without labels, its health on both. Counts the read
    before it happens.
    """
    import torch

    from trainers import checkpoint
    from trainers.data.data_cache import open_anywhere
    from trainers.data.loader import Loaders
    from trainers.data.manifest import DATA_FILES
    from trainers.evaluation import health, probe
    from trainers.model import trained_model

    config = winner.config
    torch.set_num_threads(config.threads)
    dataset = open_anywhere(config.data.path, expected_hash=config.data.manifest, files=DATA_FILES)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = trained_model(config, checkpoint.load(winner.checkpoint)["model"]).to(device).eval()
    loaders = Loaders()
    look = partial(health.evaluate, model.embed, dataset=dataset, loaders=loaders, config=config, device=device)
    judge = partial(probe.evaluate, model.encode, dataset=dataset, loaders=loaders, config=config, device=device)
    metrics = judge(full=True) if dataset.has_labels else look()

    read = Read(
        time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        trial=winner.trial,
        checkpoint=winner.checkpoint,
        manifest=dataset.manifest_hash,
    )
    beside = ReportRead(time=read.time, sweep=result.remote or str(result.folder), trial=read.trial)
    with _one_at_a_time(result):
        earlier = _read(result)
        if earlier and not winner.again:  # since `check`, by somebody else
            raise RequestError(_was_read(result, earlier))
        recorded = report_reads.record(config.data.path, beside)
        _write(result, winner, (*earlier, read), recorded=recorded)
    if dataset.has_labels:
        metrics |= probe.report_split(model.encode, dataset=dataset, loaders=loaders, config=config, device=device)
    else:
        metrics |= {f"report/{name}": value for name, value in look(split="report").items()}
    with _one_at_a_time(result):  # others may have read meanwhile
        reads = list(_read(result))
        reads[len(earlier)] = read.model_copy(update={"metrics": metrics})
        return _write(result, winner, tuple(reads), recorded=recorded)


@contextmanager
def _one_at_a_time(result: SweepResult) -> Iterator[None]:
    try:
        with held(path(result), wait_s=LOCK_S):
            yield
    except HeldError as error:
        raise RequestError(
            f"another process has been writing to {path(result)} for {LOCK_S:g} s; end it, then finalize again"
        ) from error


def _place(result: SweepResult) -> Place:
    return Place.of(result.folder, result.remote)


def _was_read(result: SweepResult, earlier: tuple[Read, ...]) -> str:
    return (
        f"the report split was read before for sweep {result.name!r} ({len(earlier)} time(s), first "
        f"{earlier[0].time}; {path(result)}); it is honest only once. To read it nevertheless, and have that "
        "counted, add --again"
    )


def _read(result: SweepResult) -> tuple[Read, ...]:
    """What was read before, here or, with a storage URI, anywhere: the longer of the two counts."""
    found = [path(result).read_bytes()] if path(result).is_file() else []
    if result.remote is not None:
        with suppress(FileNotFoundError):
            found.append(storage.read(storage.join(result.remote, FILE)))
    place = _place(result)
    try:
        reads = max((ReportReads.model_validate_json(text).reads for text in found), key=len, default=())
        return tuple(read.model_copy(update={"checkpoint": place.absolute(read.checkpoint)}) for read in reads)
    except ValidationError as error:
        raise RequestError(
            f"{path(result)} must be what `pretune finalize` wrote, but is not ({error.errors()[0]['msg']}); restore "
            "it: it says how often the report split was read"
        ) from error


def _write(result: SweepResult, winner: Winner, reads: tuple[Read, ...], *, recorded: bool) -> ReportReads:
    found = ReportReads(
        sweep=result.name,
        metric=result.metric,
        searched_value=winner.value,
        report_reads=len(reads),
        reads=reads,
        of_the_data=tuple(report_reads.known(winner.config.data.path)),
        recorded=recorded,
    )
    place = _place(result)
    written = tuple(read.model_copy(update={"checkpoint": place.relative(read.checkpoint)}) for read in reads)
    text = json.dumps(found.model_copy(update={"reads": written}).model_dump(mode="json"), indent=2) + "\n"
    write_whole(path(result), text)
    if result.remote is not None:
        storage.write(storage.join(result.remote, FILE), text.encode())
    return found
