"""The winner on the report split, once. Each read is counted, and written down before it happens.

The winner is the search's best trial, or the best of the top few that are judged again first (`analysis.candidates`):
that reads `select` alone.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field, ValidationError

from pretune.analysis import candidates, evaluate, evaluating
from pretune.analysis.candidates import Candidate, Judged
from pretune.analysis.optimism import Optimism
from pretune.core.errors import RequestError
from pretune.core.place import Place
from pretune.core.records import Stored
from pretune.core.results import SweepResult, check_understood
from trainers import storage
from trainers.data import report_reads
from trainers.data.lock import HeldError, held
from trainers.data.report_reads import ReportRead
from trainers.evaluation.protocol import ProtocolResult
from trainers.files import why_not_writable, write_whole
from trainers.report import Checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trainers.data.datasets import Dataset

LOCK_S = 10.0
"""How long another process may hold that file; it only writes a few lines meanwhile."""


class Read(Stored):
    """One look at the report split. `metrics` is empty where it was interrupted: it counts all the same."""

    time: str
    trial: int
    checkpoint: Checkpoint
    manifest: str
    metrics: dict[str, float] = Field(default_factory=dict)
    """`report/linear`, `report/full_linear`, …, and `probe/…` of the same encoder on `select`; of data without labels
    `report/health/…` and `health/…`.
    """
    chosen_by: Literal["search", "probe seeds", "seeds"] = "search"
    candidates: tuple[Judged, ...] = ()
    """The trials that were judged again, by several fits of the probe or several runs, best in the search first."""
    optimism: Optimism | None = None
    """How much too good the searched value is; None where the metric is no accuracy."""
    evaluations: tuple[ProtocolResult, ...] = ()
    """What the protocols say that were asked for; the files beside the checkpoint have their tables per class, too."""


class ReportReads(Stored):
    """All looks at the report split through this sweep. The first is the one to publish."""

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


class Request(NamedTuple):
    """What may be read: the best trials, of which one will be, the next ones, and what was read before."""

    candidates: tuple[Candidate, ...]
    others: tuple[Candidate, ...]
    earlier: tuple[Read, ...]
    again: bool
    protocols: tuple[str, ...] = ()


def check(
    result: SweepResult, *, again: bool, top: int = 1, reseeded: bool = False, protocols: Sequence[str] = ()
) -> Request:
    """The best `top` trials, if the report split may be read for one of them; `reseeded`: they will be run again.
    `protocols` are of `pretune eval`, for the winner.

    RequestError while the sweep runs, where nothing can be written into its folder, no trial is complete, the
    checkpoint of one is gone, its metric is no probe that can be fitted again, a protocol is unknown or takes other
    data, a later version has written in its journal what this one does not understand, or the split was read before
    and `again` was not asked for. ValueError where weights that a run started from are gone or others.
    """
    check_understood(result)
    if result.live:
        raise RequestError(f"sweep {result.name!r} runs and its winner may change; finalize it when it has ended")
    if why := why_not_writable(result.folder):
        raise RequestError(
            f"sweep {result.name!r} must be in a folder that can be written to, as each read of the report split is "
            f"written down there, but {why}; change that, or finalize a copy of the sweep"
        )
    best = candidates.best(result, top)
    if not best:
        raise RequestError(candidates.without_winner(result))
    if top > 1 and not reseeded and result.metric not in candidates.REFITTED:
        raise RequestError(
            f"--top {top} fits probes again and chooses by them, so the sweep's metric must be "
            f"{' or '.join(candidates.REFITTED)}, but is {result.metric!r}; leave --top out, or run the best ones "
            f"again with --seeds N"
        )
    found = tuple(candidates.candidate(result, trial) for trial in best)
    earlier = _read(result)
    if earlier and not again:
        raise RequestError(_was_read(result, earlier))
    for one in found:
        one.config.check_init_file()  # what it has to beat starts from it
    if protocols:
        _evaluation(result, found[0], protocols)
    return Request(found, tuple(candidates.runners_up(result, found)), earlier, again, tuple(protocols))


def run(
    result: SweepResult, request: Request, *, probe_seeds: int = 1, retrained: Sequence[Judged] = ()
) -> ReportReads:
    """Full probes of the winner: on `select`, then on `report`; without labels, its health on both. Counts the read
    before it happens.

    The winner is the best of the candidates by the mean of `retrained`, or of `probe_seeds` fits of the probe.
    """
    import torch

    from trainers.data.data_cache import open_anywhere
    from trainers.data.loader import Loaders
    from trainers.data.manifest import DATA_FILES
    from trainers.evaluation import health, probe

    config = request.candidates[0].config
    torch.set_num_threads(config.threads)
    dataset = open_anywhere(config.data.path, expected_hash=config.data.manifest, files=DATA_FILES)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaders = Loaders()
    found = list(retrained)
    correct: list[NDArray[np.bool_]] = []
    several = len(request.candidates) > 1
    if dataset.has_labels and _is_probe(result.metric) and (several or request.others):
        refitted, correct = candidates.refit(
            request.candidates,
            request.others,
            metric=result.metric,
            probe_seeds=probe_seeds if several and not retrained else 1,
            dataset=dataset,
            loaders=loaders,
            device=device,
        )
        if several and not retrained:
            found = refitted
    found = candidates.placed(found, maximize=result.experiment.maximize)
    winner = _winner(request, found)
    config, model = winner.config, candidates.model(winner, device)
    look = partial(health.evaluate, model.embed, dataset=dataset, loaders=loaders, config=config, device=device)
    judge = partial(probe.evaluate, model.encode, dataset=dataset, loaders=loaders, config=config, device=device)
    metrics = judge(full=True) if dataset.has_labels else look()

    read = Read(
        time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        trial=winner.trial,
        checkpoint=winner.checkpoint,
        manifest=dataset.manifest_hash,
        chosen_by="seeds" if retrained else "probe seeds" if found else "search",
        candidates=tuple(found),
    )
    beside = ReportRead(time=read.time, sweep=result.remote or str(result.folder), trial=read.trial)
    with _one_at_a_time(result):
        earlier = _read(result)
        if earlier and not request.again:  # since `check`, by somebody else
            raise RequestError(_was_read(result, earlier))
        recorded = report_reads.record(config.data.path, beside)
        _write(result, winner, (*earlier, read), recorded=recorded)
    if dataset.has_labels:
        metrics |= probe.report_split(model.encode, dataset=dataset, loaders=loaders, config=config, device=device)
    else:
        metrics |= {f"report/{name}": value for name, value in look(split="report").items()}
    optimism = _optimism(result, winner, metrics, dataset, correct) if dataset.has_labels else None
    read = read.model_copy(update={"metrics": metrics, "optimism": optimism})
    told = _told(result, winner, read, place=len(earlier), recorded=recorded)
    if not request.protocols:
        return told
    made = evaluating.run(_evaluation(result, winner, request.protocols), recorded=True)
    short = tuple(one.model_copy(update={"classes": (), "confusion": ()}) for one in made)
    read = read.model_copy(update={"evaluations": short})
    return _told(result, winner, read, place=len(earlier), recorded=recorded)


def _told(result: SweepResult, winner: Candidate, read: Read, *, place: int, recorded: bool) -> ReportReads:
    """Writes what the read at that place has told; others may have read meanwhile."""
    with _one_at_a_time(result):
        reads = list(_read(result))
        reads[place] = read
        return _write(result, winner, tuple(reads), recorded=recorded)


def _evaluation(result: SweepResult, one: Candidate, protocols: Sequence[str]) -> evaluate.Request:
    """RequestError, or a ValueError of the data set's, where a protocol cannot be run for this trial on `report`."""
    target = evaluate.Target(
        name=f"{result.name}/{one.trial}",
        file=one.checkpoint.path,
        checkpoint=one.checkpoint,
        config=one.config,
        sweep=result.remote or str(result.folder),
        trial=one.trial,
        trust_code=True,
    )
    return evaluate.check(target, protocols=protocols, split="report", threads=one.config.threads)


def stored(result: SweepResult) -> ReportReads | None:
    """What was read before, as far as it is written down here. RequestError where that cannot be read."""
    if not result.reads_file.is_file():
        return None
    try:
        return ReportReads.model_validate_json(result.reads_file.read_bytes())
    except ValidationError as error:
        raise _broken(result, error) from error


def _is_probe(metric: str) -> bool:
    return metric.replace("full_", "") in candidates.REFITTED


def _winner(request: Request, found: Sequence[Judged]) -> Candidate:
    """ValueError where none of `found` has a mean."""
    if not found:
        return request.candidates[0]
    first = min(found, key=lambda one: one.place)
    if first.mean is None or math.isnan(first.mean):
        raise ValueError(
            f"none of the trials {', '.join(str(one.trial) for one in found)} could be judged again "
            f"({first.reason or 'their features are not finite'}); nothing was read on report"
        )
    return next(one for one in request.candidates if one.trial == first.trial)


def _optimism(
    result: SweepResult,
    winner: Candidate,
    metrics: dict[str, float],
    dataset: Dataset,
    correct: Sequence[NDArray[np.bool_]],
) -> Optimism | None:
    """How much too good the searched value is; None where it is no accuracy that `report` has as well."""
    from pretune.analysis import optimism
    from trainers.evaluation import probe

    name = result.metric.removeprefix("probe/")
    reported = metrics.get(f"report/{name}", math.nan)
    if not _is_probe(result.metric) or not result.experiment.maximize or math.isnan(reported):
        return None
    complete = candidates.best(result, len(result.trials))
    full, kind = name.startswith("full_"), name.removeprefix("full_")
    baselines = {"the same encoder untrained": f"report/untrained/{kind}", "raw pixels": f"report/pixels/{kind}"}
    return optimism.gap(
        result.metric,
        [trial.value for trial in complete if trial.value is not None],
        next(place for place, trial in enumerate(complete) if trial.id == winner.trial),
        reported=reported,
        select_images=len(probe.select_subset(dataset, winner.config, full=full).ids),
        report_images=dataset.report_count,
        correct=correct,
        baselines={label: metrics[key] for label, key in baselines.items() if key in metrics},
    )


@contextmanager
def _one_at_a_time(result: SweepResult) -> Iterator[None]:
    try:
        with held(result.reads_file, wait_s=LOCK_S):
            yield
    except HeldError as error:
        raise RequestError(
            f"another process has been writing to {result.reads_file} for {LOCK_S:g} s; end it, then finalize again"
        ) from error


def _place(result: SweepResult) -> Place:
    return Place.of(result.folder, result.remote)


def _was_read(result: SweepResult, earlier: tuple[Read, ...]) -> str:
    return (
        f"the report split was read before for sweep {result.name!r} ({len(earlier)} time(s), first "
        f"{earlier[0].time}; {result.reads_file}); it is honest only once. To read it nevertheless, and have that "
        "counted, add --again"
    )


def _read(result: SweepResult) -> tuple[Read, ...]:
    """What was read before, here or, with a storage URI, anywhere: the longer of the two counts."""
    found = [result.reads_file.read_bytes()] if result.reads_file.is_file() else []
    if result.remote is not None:
        with suppress(FileNotFoundError):
            found.append(storage.read(storage.join(result.remote, result.reads_file.name)))
    place = _place(result)
    try:
        reads = max((ReportReads.model_validate_json(text).reads for text in found), key=len, default=())
        return tuple(read.model_copy(update={"checkpoint": place.absolute(read.checkpoint)}) for read in reads)
    except ValidationError as error:
        raise _broken(result, error) from error


def _broken(result: SweepResult, error: ValidationError) -> RequestError:
    return RequestError(
        f"{result.reads_file} must be what `pretune finalize` wrote, but is not ({error.errors()[0]['msg']}); restore "
        "it: it says how often the report split was read"
    )


def _write(result: SweepResult, winner: Candidate, reads: tuple[Read, ...], *, recorded: bool) -> ReportReads:
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
    write_whole(result.reads_file, text)
    if result.remote is not None:
        storage.write(storage.join(result.remote, result.reads_file.name), text.encode())
    return found
