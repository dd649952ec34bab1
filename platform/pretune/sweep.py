"""A sweep from beginning to end: check, open the journal, start Ray, run trials on warm slots, read the result."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretune.core import journal as journals
from pretune.core import journal_remote, metrics, points, results, study_log
from pretune.core.conductor import Conductor, Listener
from pretune.core.errors import RequestError, SweepFailedError
from pretune.core.experiment import Experiment
from pretune.core.forecast import Forecast
from pretune.core.history import History
from pretune.core.landing import Landing
from pretune.core.packing import Packing
from pretune.core.reader import StoredEpoch
from pretune.core.records import Extended, Opened, Record, Resumed
from pretune.core.requests import Inbox
from pretune.core.results import SweepResult
from pretune.core.retention import Trimming
from pretune.core.search import Space
from pretune.core.study_log import StudyLog
from pretune.execution import logfile
from pretune.request import sources
from trainers import storage
from trainers.config import MOST_EPOCHS, TrialConfig
from trainers.usercode import packages_of

if TYPE_CHECKING:
    from ray import tune

    from pretune.execution.interruption import Interruption

__all__ = ["Listener", "SweepFailedError", "resume", "run"]

MOST_NAMED = 8
"""Changes that an error names."""

MakeTrainable = Callable[[Experiment, Path], "type[tune.Trainable]"]


def run(
    experiment: Experiment,
    *,
    space: Space,
    listener: Listener | None = None,
    address: str | None = None,
    cpus: int | None = None,
    trainable: MakeTrainable | None = None,
    auto_gpus: bool = False,
    forecast: Forecast | None = None,
    packing: Packing | None = None,
) -> SweepResult:
    """Runs `experiment` in its folder and returns what came out.

    Args:
        space: proposes configs; `experiment.space` is its name.
        listener: sees each record of the journal once it is on the disk.
        address: a running Ray cluster ("auto" for the one of this machine); None starts a local one with `cpus` CPUs.
        trainable: what serves trials, given the experiment and its folder; the warm slot if None.
        auto_gpus: each worker gets a GPU where the cluster has any, whatever `experiment` says.
        forecast: what it is said to take, to be kept beside what it will have taken.
        packing: why `experiment` shares GPUs as it does, to be kept, so that `resume` need not measure it again.

    After Ctrl-C, SIGTERM or SIGHUP it returns normally as well, with `closed` == "interrupted" and the signal's name as
    `detail`; `resume` goes on.

    Raises:
        KeyboardInterrupt: such a signal came before there was anything to return.
        RequestError: the request cannot be done. Nothing was run.
        SweepFailedError: trials ran, but no trial can go on; the journal is closed as failed, and `resume` goes on.
    """
    proposer = points.proposer(experiment, space)
    proposer.check()
    folder, remote = experiment.folder, experiment.remote
    with _interruption() as interruption, journal_remote.opened(folder, remote, new=True) as journal:
        with _cluster(interruption, folder, address, cpus) as private:
            if auto_gpus:
                experiment = _with_gpus(experiment, address)
            metrics.check_gpus(experiment.metric, experiment.gpus_per_worker)
            if "cuda_graphs" in experiment.compiles and not experiment.gpus_per_worker:
                raise RequestError(
                    "compile=cuda_graphs needs a GPU for each worker, but trials are to run on CPUs; choose --compile "
                    "on or off, or --gpus-per-worker 1 on a cluster that has GPUs"
                )
            slots = _slots(experiment, address)
            with interruption.shielded():
                opened = journal.append(
                    Opened(
                        experiment=experiment,
                        versions=versions(space, experiment.base),
                        sources=source_hashes(space, experiment.base),
                        host=host(),
                        forecast=forecast,
                        packing=packing,
                    )
                )
            if listener is not None:
                listener.on_event(opened)
            conductor = Conductor(journal, proposer, listener=listener)
            served_by = trainable or partial(_warm_slot, remote=remote, private=private)
            result = _conduct(conductor, folder, remote, slots, served_by, interruption)
        logfile.pack_where_all_went_well(result)
        return result


def resume(
    folder: Path,
    *,
    space: Space,
    remote: str | None = None,
    trials: int | None = None,
    epochs: int | None = None,
    max_hours: float | None = None,
    slots: int | None = None,
    packing: Packing | None = None,
    listener: Listener | None = None,
    address: str | None = None,
    cpus: int | None = None,
    trainable: MakeTrainable | None = None,
) -> SweepResult:
    """Goes on with the sweep in `folder`: unfinished trials first, each from its last checkpoint; finished ones are
    kept.

    `trials` is the number of trials asked for in all from now on, `max_hours` the hours of all its drivers (None: as
    before); trials that time had ended go on, as far as these are enough for them. `epochs` makes each finished trial
    that is shorter so long (see `longer`). `slots` is how many trials run at once (None: as the sweep was asked for),
    `packing` how they share GPUs from now on (None: as before).
    `space` is that of `results.read(folder).experiment.space`. `remote` is the sweep's URI, if it is not the one in its
    journal. The rest is as for `run`.
    """
    folder = folder.expanduser().absolute()
    remote = remote or _remote(folder)
    with _interruption() as interruption, journal_remote.opened(folder, remote, new=False) as journal:
        history = History(journal.records)
        if history.opened is None:
            raise RequestError(f"the sweep in {folder} was never started; run its `pretune sweep` command again")
        experiment, asked = history.opened.experiment, len(history.trials) + len(history.enqueued)
        target = trials or history.target
        if target < asked:
            raise RequestError(f"--trials must be at least {asked}, the number of trials asked so far, but is {trials}")
        extensions = [] if epochs is None else longer(history, epochs)
        extensions += [] if max_hours is None else cut_short(journal.records, max_hours)
        if target == len(history.trials) and not extensions and all(trial.ended for trial in history.trials):
            return results.read(folder, remote=remote)
        proposer = points.proposer(experiment, space)
        proposer.check()
        with _cluster(interruption, folder, address, cpus) as private:
            placed = packing.applied(experiment) if packing is not None else history.placed
            room = _slots(placed.model_copy(update={"trials": target, "slots": slots or placed.slots}), address)
            conductor = Conductor(journal, proposer, listener=listener)
            resumed = Resumed(
                trials=target,
                max_hours=max_hours,
                packing=packing,
                versions=versions(space, experiment.base),
                sources=source_hashes(space, experiment.base),
                host=host(),
            )
            with interruption.shielded():
                conductor.record(resumed)
                for extension in extensions:
                    conductor.extend(extension)
            served_by = trainable or partial(_warm_slot, remote=remote, private=private)
            result = _conduct(conductor, folder, remote, room, served_by, interruption)
        logfile.pack_where_all_went_well(result)
        return result


def longer(history: History, epochs: int) -> list[Extended]:
    """How each COMPLETE trial that is shorter than `epochs` goes on: from its last checkpoint before the decay, so that
    the decay is run anew, at its new place. What follows a checkpoint depends on the schedule's end: the numbers are
    those of this history, not of a run that was as long from the start.

    RequestError where no trial is shorter, such a checkpoint is gone, or the sampler is CMA-ES, whose state is computed
    from the ends of trials.
    """
    assert history.opened is not None
    experiment = history.opened.experiment
    if epochs > MOST_EPOCHS:
        raise RequestError(f"--epochs must be at most {MOST_EPOCHS}, but is {epochs}; lower it")
    if experiment.sampler == "cmaes":
        raise RequestError(
            "--epochs must not be given for sampler 'cmaes', which computes its state from the ends of trials; train "
            "the best trial longer with `pretune train`"
        )
    found: list[Extended] = []
    lengths: list[int] = []
    for trial in history.trials:
        if trial.state != "COMPLETE" or trial.result_of is not None:  # what was not run has no checkpoint either
            continue
        config = TrialConfig.model_validate(trial.config)
        lengths.append(config.epochs)
        if config.epochs >= epochs:
            continue
        limit = config.schedule.last_epoch_before_decay(config.epochs)
        at = max((epoch for epoch in trial.checkpoints if epoch <= limit), default=None)
        if at is None or not storage.exists(trial.checkpoints[at].path):
            where = f"{trial.checkpoints[at].path} is gone" if at is not None else "none was written"
            raise RequestError(
                f"trial {trial.number} must have a checkpoint of epoch {limit} or before, where its decay begins, but "
                f"{where}; restore it, or run a new sweep of {epochs} epochs"
            )
        changed = config.model_copy(update={"epochs": epochs}).model_dump(mode="json")
        found.append(Extended(number=trial.number, config=changed, checkpoint=trial.checkpoints[at]))
    if not lengths:
        raise RequestError("--epochs trains finished trials longer, but none is COMPLETE; leave it out to go on")
    if not found:
        raise RequestError(
            f"--epochs must be above {max(lengths)}, the length of the finished trials, but is {epochs}; raise it"
        )
    return found


def cut_short(records: Sequence[Record | StoredEpoch], max_hours: float) -> list[Extended]:
    """How each trial goes on that time has ended, and that would finish now that the sweep has `max_hours`: from its
    newest checkpoint. None where that is gone, and none with CMA-ES, whose state is computed from the ends of trials.
    """
    history = History()
    landing = Landing(history)
    for record in records:
        history.apply(record)
        landing.see(record)
    assert history.opened is not None
    if history.opened.experiment.sampler == "cmaes":
        return []
    history.max_hours = max_hours
    return [
        Extended(number=trial.number, config=trial.config, checkpoint=checkpoint, continued=True)
        for trial in landing.cut_short()
        if trial.config is not None and (checkpoint := trial.checkpoint) and storage.exists(checkpoint.path)
    ]


def _remote(folder: Path) -> str | None:
    with journals.reading(folder) as records:
        first = next(records, None)
    return first.experiment.remote if isinstance(first, Opened) else None


def _conduct(
    conductor: Conductor,
    folder: Path,
    remote: str | None,
    slots: int,
    served_by: MakeTrainable,
    interruption: Interruption,
) -> SweepResult:
    from pretune.execution.tuning import execute

    log = StudyLog(conductor, Trimming(conductor, conductor.listener), folder / study_log.FILE)
    conductor.listener = log
    try:
        inbox = Inbox(folder, conductor)
        with interruption.shielded():
            conductor.settle()
            inbox.look()
        trainable = served_by(conductor.history.placed, folder)
        execute(conductor, trainable, slots=slots, folder=folder / "tune", inbox=inbox, interruption=interruption)
        interruption.hold()
    except KeyboardInterrupt:
        interruption.hold()
        conductor.close("interrupted", interruption.name)
    except RequestError as error:
        # What the sampler or the space cannot do came to light after trials had run: no longer a wrong request.
        conductor.close("failed", str(error))
        raise SweepFailedError(str(error)) from error
    except BaseException as error:
        # Where the disk is full this fails as well; the first error is the one to show.
        with suppress(OSError):
            conductor.close("failed", f"{type(error).__name__}: {error}")
        raise
    else:
        if not conductor.finished:
            conductor.close("interrupted")
        else:
            conductor.close_finished()
    log.close()
    result = results.read(folder, remote=remote)
    results.write_best(result)
    return result


def _warm_slot(
    experiment: Experiment, folder: Path, *, remote: str | None, private: Path | None
) -> type[tune.Trainable]:
    from ray import tune

    from pretune.execution.slot import Slot, SlotSettings

    settings = SlotSettings(
        sweep_folder=str(folder),
        remote=remote,
        workers=experiment.workers_per_trial,
        cpus_per_worker=experiment.cpus_per_worker,
        gpus_per_worker=experiment.gpus_per_worker,
        hang_timeout_s=experiment.hang_timeout_s,
        max_failures=experiment.max_failures,
        one_machine=None if private is None else str(private),
    )
    slot: type[tune.Trainable] = tune.with_parameters(Slot, settings=settings)
    return slot


@contextmanager
def _interruption() -> Iterator[Interruption]:
    from pretune.execution.interruption import Interruption

    interruption = Interruption()
    with interruption.caught():
        yield interruption


@contextmanager
def _cluster(interruption: Interruption, folder: Path, address: str | None, cpus: int | None) -> Iterator[Path | None]:
    # Ray is imported only once the request is known to be good.
    from pretune.execution.cluster import connected

    with connected(address, cpus=cpus, logs=folder / "logs") as private:
        try:
            yield private
        finally:
            interruption.hold()  # what ends with the cluster ends in order


def _with_gpus(experiment: Experiment, address: str | None) -> Experiment:
    from pretune.execution.cluster import has_gpus

    return experiment.model_copy(update={"gpus_per_worker": 1.0 if has_gpus(address) else 0.0})


def _slots(experiment: Experiment, address: str | None) -> int:
    from pretune.execution.cluster import head_bytes, nodes, slots

    return slots(experiment, nodes(address), head_bytes=head_bytes())


def changes(last: Opened | Resumed, space: Space, base: TrialConfig) -> list[str]:
    """What differs now from when a sweep `last` ran: packages with both versions, and source files."""
    now, files = versions(space, base), source_hashes(space, base)
    packages = {name: was for name, was in last.versions.items() if name in now and now[name] != was}
    return [
        *(f"{name} {was} -> {now[name]}" for name, was in packages.items()),
        *(name for name, was in last.sources.items() if files.get(name) != was),
    ]


def check_unchanged(last: Opened | Resumed, space: Space, base: TrialConfig) -> None:
    """Whether packages, space and code are those that a sweep `last` ran with. RequestError names each change."""
    found = changes(last, space, base)
    if found:
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise RequestError(
            f"since this sweep last ran these changed: {', '.join(found[:MOST_NAMED])}{more}; trials from before and "
            "after may not compare: put them back, or go on all the same with --accept-changes"
        )


def source_hashes(space: Space, base: TrialConfig) -> dict[str, str]:
    """Of each source file that decides what is computed, ours and the user's: see `request.sources`."""
    places = [part.kind.rpartition(":")[0] for part in base.own_parts.values()]
    with suppress(TypeError):  # of a function that was typed in there is no file
        places.insert(0, inspect.getsourcefile(space) or "")
    return {**sources.behind(places), **sources.ours()}


def versions(space: Space, base: TrialConfig) -> dict[str, str]:
    """What changes results beside the config and the source files: the packages' versions, also of those that space and
    parts of `base` are from, and a hash of the file that the space is in, as older versions wrote it.
    """
    names = (
        "pretune",
        "torch",
        "torchvision",
        "ray",
        "optuna",
        "cmaes",
        "ffcv",
        "numpy",
        "numba",
        "timm",
        "scikit-learn",
    )
    found: dict[str, str] = {"python": platform.python_version()}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    modules = [space.__module__] + [part.kind.rpartition(":")[0] for part in base.own_parts.values()]
    found |= packages_of([module for module in modules if module.partition(".")[0] not in ("pretune", "search_spaces")])
    with suppress(TypeError, OSError):  # of a function that was typed in there is no file
        source = Path(inspect.getsourcefile(space) or "").read_bytes()
        found["space"] = hashlib.sha256(source).hexdigest()[:12]
    return found


def host() -> dict[str, str]:
    """Facts about the driver's machine, for the reader of a journal."""
    uname: Any = platform.uname()
    return {
        "node": uname.node,
        "system": f"{uname.system} {uname.release}",
        "machine": uname.machine,
        "command": shlex.join(sys.argv),
        **({} if (commit := sources.commit()) is None else {"commit": commit}),
    }
