"""From what was typed to what will run, checked completely: recipe, overrides, data, space. Nothing is started here.

Imports neither Ray, torch nor FFCV. Every complaint is a RequestError: what, rule, value, remedy.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pretune.core import journal, journal_remote, lease, metrics, results
from pretune.core.choices import Compile, Direction, StoppingName
from pretune.core.errors import RequestError
from pretune.core.experiment import NEW_RUNGS, Experiment, Objective, StoppingConfig, local_root
from pretune.core.messages import did_you_mean, validated
from pretune.request import lookup, overrides, usercode
from search_spaces import RECIPES
from trainers import compiling
from trainers import storage as storages
from trainers.changes import value_at
from trainers.config import TimmConfig, TrialConfig
from trainers.files import why_not_writable

if TYPE_CHECKING:
    from pretune.core.search import Space
    from trainers.data.datasets import Dataset

DATA_ROOT = Path("data")
"""Where `pretune data` writes and where built-in data sets are built, from here."""
MOST_OBJECTIVES = 3


def configure(
    recipe: lookup.Recipe,
    *,
    subset: int | str | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    every_steps: int | None = None,
    assignments: Sequence[str] = (),
    compile: Compile | None = None,
    workers: int = 1,
    begun: bool = False,
) -> TrialConfig:
    """The recipe with the command's options and its `--set` applied, to be trained by so many workers, and with parts
    of one's own found and tried. Torch is imported only where there are such parts.

    `begun`: it goes on from a checkpoint, so that weights that it started from need not be there any more.
    """
    changes = overrides.parse(assignments)
    options: dict[str, Any] = {
        "data.subset": subset,
        "epochs": epochs,
        "seed": seed,
        "checkpoint_every_steps": every_steps,
        "compile": compile,
    }
    for path, value in options.items():
        if value is None:
            continue
        if path in changes:
            option = path.removeprefix("data.").replace("_", "-")
            raise RequestError(
                f"--{option} {value} and --set {path}={changes[path]} say the same thing twice; keep one"
            )
        changes[path] = "off" if path == "compile" and value == "auto" else value  # until it is measured
    config = overrides.apply(recipe.config, changes)
    config.check_workers(workers)
    if not begun or config.init is None:
        return with_own_parts(config)
    return with_own_parts(config.with_init(None)).with_init(config.init)


def left_out(recipe: lookup.Recipe, assignments: Sequence[str]) -> list[str]:
    """In words, the recipe's settings that its `--set` leaves out, as a new `kind` does not have them."""
    return overrides.left_out_by(recipe.config, overrides.parse(assignments))


def with_own_parts(config: TrialConfig) -> TrialConfig:
    """`config` with what it names by reference found from anywhere and hashed, if it does what it must on a few random
    rows (`trainers.contracts.check_parts`), and with weights to start from that fit. RequestError in words.
    """
    if not config.own_parts and not isinstance(config.model.backbone, TimmConfig) and config.init is None:
        return config
    config = usercode.checked(config, Path.cwd())
    from trainers.contracts import check_parts
    from trainers.weights.opening import check_init

    try:
        check_parts(config)
        check_init(config)
    except ValueError as error:
        raise RequestError(str(error)) from error
    return config


def with_data(config: TrialConfig, data: str | None, *, root: Path = DATA_ROOT) -> tuple[TrialConfig, Dataset]:
    """`config` bound to the bytes of a data set: its folder and its manifest's hash.

    `data` is a folder, a name below `root`, a URI, or 'digits', built there on first use; None is what the recipe says.
    """
    named = config.data.path if data is None else data
    dataset = open_data(named, expected_hash=config.data.manifest if data is None else None, root=root)
    # A URI stays one: each machine has its own copy.
    where = named if storages.is_uri(named) else str(dataset.folder.resolve())
    place = {"path": where, "manifest": dataset.manifest_hash}
    bound = config.model_copy(update={"data": config.data.model_copy(update=place)})
    check_data(bound, dataset)
    return bound, dataset


def open_data(text: str, *, expected_hash: str | None = None, root: Path = DATA_ROOT) -> Dataset:
    """The data set that `text` names; of a URI, this machine's copy. RequestError with the command that builds it where
    there is none.
    """
    from trainers.data import data_cache, datasets  # with NumPy, which most commands do without

    if storages.is_uri(text):
        storages.check_form(text)
        return data_cache.open_anywhere(text, expected_hash=expected_hash)
    if text == "digits" and not Path(text).is_dir():
        dataset = datasets.ensure_builtin(text, root)
        return datasets.open_dataset(dataset.folder, expected_hash=expected_hash)
    folder = Path(text)
    if not folder.is_dir() and (root / text).is_dir():
        folder = root / text
    if not folder.is_dir():
        kinds = datasets.kinds()
        build = f"pretune data {text} --source …" if text in kinds else f"pretune data KIND --source … --out {text}"
        raise RequestError(
            f"data {text!r} must be a folder that `pretune data` wrote, or 'digits', but is neither; run: {build}"
        )
    return datasets.open_dataset(folder, expected_hash=expected_hash)


def check_data(config: TrialConfig, dataset: Dataset) -> None:
    """Whether `config` can be trained on, and judged by, this data set."""
    images = len(dataset.pretrain_ids(config.data.subset))
    if images < config.batch_size:
        raise RequestError(
            f"batch_size must be at most the {images} images to pretrain on (the last partial batch is dropped), "
            f"but is {config.batch_size}; lower it with --set batch_size={max(2, images // 4)}, or use more images"
        )
    fewest = min(dataset.manifest.class_counts["train"], default=0)
    wanted = config.probe.labels_per_class
    if dataset.has_labels and wanted is not None and wanted > fewest:
        raise RequestError(
            f"probe.labels_per_class must be at most {fewest}, the images of the smallest class in `train`, "
            f"but is {wanted}; lower it with --set probe.labels_per_class={fewest}"
        )


def views_per_epoch(config: TrialConfig, *, dataset: Dataset) -> int:
    """How many augmented views an epoch is; the last partial batch is dropped."""
    images = dataset.pretrain_ids(config.data.subset) if config.data.images == "all" else dataset.unlabeled_ids
    return len(images) // config.batch_size * config.batch_size * len(config.views)


def check_local_slots(slots: int | None, workers: int, cpus_per_worker: float = 1.0) -> None:
    """Refuse what this machine's CPUs can never hold, before Ray looks more closely."""
    cpus = os.cpu_count() or 1
    need = (slots or 1) * workers * cpus_per_worker
    if need > cpus:
        raise RequestError(
            f"{slots or 1} slot(s) of {workers} worker(s) need {need:g} CPUs at {cpus_per_worker:g} each, but this "
            f"machine has {cpus}; lower --slots or --workers-per-trial, or join a cluster with --address"
        )


def experiment(
    space: lookup.FoundSpace, recipe: lookup.Recipe, base: TrialConfig, *, name: str | None, options: Mapping[str, Any]
) -> Experiment:
    """The sweep; `options` are the fields of `Experiment` that were given (None: its default)."""
    given = {key: value for key, value in options.items() if value is not None}
    stopping = {key: given.pop(f"stopping_{key}") for key in StoppingConfig.model_fields if f"stopping_{key}" in given}
    stopping = _stopping(given.pop("stopping", None), stopping)
    storage = local_root(given.get("storage", Experiment.model_fields["storage"].default))
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise RequestError(
            f"--name must be a folder name of letters, digits, '.', '_' and '-', but is {name!r}; change it"
        )
    values = {
        **given,
        "name": new_name(space.label, storage) if name is None else name,
        "space": space.name,
        "recipe": recipe.name,
        "base": base,
        "stopping": stopping,
    }
    return validated(Experiment, values)


_STOPPING_OPTIONS: dict[StoppingName, tuple[str, ...]] = {
    "asha": ("grace", "reduction_factor", "audit"),
    "hyperband": ("grace", "reduction_factor", "brackets", "audit"),
    "median": ("grace", "min_trials", "audit"),
    "none": (),
}
"""What each rule has a use for."""


def stopping_name(name: StoppingName | None, *, off: bool) -> StoppingName | None:
    """What `--stopping` and `--no-stopping` say together. RequestError where they contradict."""
    if off and name not in (None, "none"):
        raise RequestError(f"--no-stopping and --stopping {name} contradict; keep one")
    return "none" if off else name


def _stopping(name: StoppingName | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The rule of that name, as fields of `StoppingConfig`. RequestError for a `given` one that it has no use for."""
    known = get_args(StoppingName)
    name = name or ("asha" if given.get("enabled", True) else "none")
    if name not in known:
        raise RequestError(f"--stopping must be one of {', '.join(known)}, but is {name!r}; choose one")
    unused = next((key for key in given if key != "enabled" and key not in _STOPPING_OPTIONS[name]), None)
    if unused is not None:
        users = ", ".join(kind for kind, options in _STOPPING_OPTIONS.items() if unused in options)
        raise RequestError(
            f"--{unused.replace('_', '-')} {given[unused]:g} is of no use with --stopping {name}; leave it out, or "
            f"choose --stopping {users}"
        )
    return {"enabled": False} if name == "none" else {"kind": name, **NEW_RUNGS, **given}


def objectives(metric: str | Sequence[str] | None, direction: str | Sequence[str] | None) -> list[Objective]:
    """What is searched for: `metric`, one or up to three, each with its `direction`, if not given as it suggests.

    RequestError for more of them, or for other than one direction for each.
    """
    names = [metric] if isinstance(metric, str) else list(metric or ())
    names = names or [metrics.DEFAULT]
    ways = [direction] if isinstance(direction, str) else list(direction or ())
    if len(names) > MOST_OBJECTIVES:
        raise RequestError(
            f"--metric may be given up to {MOST_OBJECTIVES} times, but was given {len(names)} times "
            f"({', '.join(names)}); leave some out"
        )
    if ways and len(ways) != len(names):
        raise RequestError(
            f"--direction must be given once for each --metric, in their order, or not at all, but there are "
            f"{len(ways)} for {len(names)} ({', '.join(names)}); give {len(names)}"
        )
    ways = ways or [*map(metrics.direction, names)]
    if unknown := [way for way in ways if way not in get_args(Direction)]:
        raise RequestError(f"--direction must be maximize or minimize, but is {unknown[0]!r}")
    return [
        Objective.model_construct(metric=name, maximize=way == "maximize")
        for name, way in zip(names, ways, strict=True)
    ]


def measuring(base: TrialConfig, names: Sequence[str]) -> TrialConfig:
    """The config with the protocols that are searched for measured at each probe. RequestError for an unknown one."""
    asked = [found for name in names if (found := metrics.protocol(name)) is not None]
    if not asked:
        return base
    known = tuple(dict.fromkeys([*base.probe.protocols, *asked]))
    return base.model_copy(update={"probe": base.probe.model_copy(update={"protocols": known})})


def checked(
    space: lookup.FoundSpace,
    recipe: lookup.Recipe,
    base: TrialConfig,
    *,
    name: str | None = None,
    data: str | None = None,
    local: bool = True,
    **options: Any,
) -> Experiment:
    """The sweep or ablation that is ready to be run: all that can be refused before Ray starts was looked at, the cheap
    things first, and `base` is bound to its data.

    `data` is as for `with_data`; `local` is a cluster of this machine alone; `options` are as for `experiment`, except
    that the seed is the base's, the budget, if not given, is the one the space is made for, and `metric` and
    `direction` are as for `objectives`.
    """
    from pretune.core import points

    first, *beside = objectives(options.pop("metric", None), options.pop("direction", None))
    base = measuring(base, [objective.metric for objective in (first, *beside)])
    asked = experiment(
        space,
        recipe,
        base,
        name=name,
        options={
            **options,
            "data": base.data.path if data is None else data,
            "seed": base.seed,
            "budget": options.get("budget") or space.budget,
            "metric": first.metric,
            "maximize": first.maximize,
            "beside": tuple(beside),
        },
    )
    if local:
        compiling.check(base)
        check_local_slots(asked.slots, asked.workers_per_trial, asked.cpus_per_worker)
    check_folder_is_new(asked)
    check_storage(asked)
    proposed = points.proposer(asked, space.function).check()
    for objective in asked.objectives:
        metrics.check(objective.metric, proposed)
    bound, dataset = with_data(base, data)
    for objective in asked.objectives:
        metrics.check_labels(objective.metric, bound, dataset.folder, dataset.class_count)
    for point in points.distinct(asked.points):
        check_data(overrides.apply(bound, point), dataset)
    return asked.model_copy(update={"base": bound})


def warmed(asked: Experiment, space: Space, sweeps: Sequence[str]) -> tuple[Experiment, list[str]]:
    """`asked`, with what the `sweeps` of these names have found, and in words what is used of each. RequestError where
    one cannot be read, has no complete trial, or the sampler takes no warm start.
    """
    from pretune.request import warm_start

    if not sweeps:
        return asked, []
    if asked.sampler in ("grid", "cmaes"):
        raise RequestError(
            f"--warm-start takes --sampler tpe or random, but the sampler is {asked.sampler}; choose one of these"
        )
    found = [read_sweep(text, asked.storage) for text in dict.fromkeys(sweeps)]
    for text, result in zip(dict.fromkeys(sweeps), found, strict=True):
        results.check_understood(result)
        if result.best is None:
            raise RequestError(
                f"--warm-start {text}: no trial of it is complete, so there is nothing to take over; leave it out"
            )
    taken, notes = warm_start.warm_start(asked, space, found)
    return asked.model_copy(update={"warm_start": taken}), notes


def recipe_or_best(text: str, storage: str) -> lookup.Recipe:
    """A RECIPE, or the best config of the sweep of that name. RequestError where there is neither."""
    if text.endswith(".json") or (usercode.is_reference(text) and not storages.is_uri(text)) or text in RECIPES:
        return lookup.recipe(text)
    try:
        result = read_sweep(text, storage)
    except RequestError as error:
        try:
            return lookup.recipe(text)
        except RequestError as unknown:
            raise RequestError(f"{unknown}; nor is it a sweep: {error}") from error
    best = results.best_config_path(result.folder)
    if result.experiment.points:
        raise RequestError(
            f"sweep {text!r} is an ablation and has no best config: its trials are levels and seeds; name its recipe, "
            f"{result.experiment.recipe or 'or a config'}, and --set the level that you want to go on with"
        )
    if not best.is_file():
        raise RequestError(
            f"sweep {text!r} has no best config yet ({best.name} is missing); let a trial complete first"
        )
    return lookup.recipe(str(best))


def check_folder_is_new(asked: Experiment) -> None:
    """Whether the sweep's name is free: one whose driver was killed before its first record leaves it so."""
    if (asked.folder / journal.FILE).exists() and journal.begun(asked.folder):
        raise RequestError(
            f"a sweep named {asked.name!r} exists in {asked.folder.parent}; choose another --name, or go on with "
            f"`pretune resume {asked.name}`"
        )


def check_storage(asked: Experiment) -> None:
    """Whether the storage lets us write, before anything is built or started; of a bucket, whether it is there."""
    if why := why_not_writable(asked.folder):
        raise RequestError(
            f"{asked.folder.parent} must be a folder that can be written to, but {why}; choose another with --storage"
        )
    if asked.remote is not None:
        storages.check_usable(asked.storage)


def varied_by_the_space(space: Space, base: TrialConfig, assignments: Sequence[str], *, draws: int = 8) -> list[str]:
    """The `--set` paths whose value the space itself replaces, seen in a few random draws."""
    import optuna

    from pretune.core.parameters import Names, SpaceTrial
    from pretune.core.search import called

    paths = list(overrides.parse(assignments))
    if not paths:
        return []
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    varied: dict[str, None] = {}
    names = Names()
    for _ in range(draws):
        trial = SpaceTrial(study.ask(), names)
        # A draw that the space refuses says nothing here; `checked` has looked at refusals.
        with suppress(ValueError, optuna.TrialPruned):
            config = called(space, trial, base)
            varied.update({path: None for path in paths if value_at(config, path) != value_at(base, path)})
    return [path for path in paths if path in varied]


def new_name(label: str, folder: Path) -> str:
    """`<label>-<day>-<time>`, with a number behind it where that exists."""
    stem = f"{label}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (stem if count == 0 else f"{stem}-{count + 1}" for count in range(1000))
    return next(name for name in names if not (folder / name).exists())


def sweep_folder(text: str, storage: Path) -> Path:
    """The folder of the sweep called `text`: a path, or a name below `storage`."""
    for folder in (Path(text), storage / text):
        if (folder / journal.FILE).is_file() or (folder / journal.LOCK).is_file():
            return folder.expanduser().absolute()
    known = sorted(path.parent.name for path in storage.glob(f"*/{journal.FILE}"))
    if not known:
        raise RequestError(
            f"there is no sweep {text!r}: {storage} holds none; start one with `pretune sweep`, or give its folder"
        )
    raise RequestError(f"there is no sweep {text!r} in {storage}; {did_you_mean(text, known)}")


def sweep_to_change(text: str, storage: str) -> results.SweepResult:
    """As `read_sweep` with `fresh`. RequestError too where a newer version has written what this one does not know."""
    result = read_sweep(text, storage, fresh=True)
    results.check_understood(result)
    return result


def read_sweeps(storage: str) -> tuple[list[results.SweepResult], list[results.Unreadable]]:
    """All sweeps right below `storage`, a folder or a URI; and those that were not started or cannot be read, which
    hide no other one. Of those behind a URI the journals are brought into their working copies under ./sweeps.
    RequestError where the storage itself cannot be read.
    """
    if not storages.is_uri(storage):
        return results.sweeps(Path(storage))
    storages.check_form(storage)
    try:
        names = [
            name
            for name in storages.folders(storage)
            # A URI does without quoting only such names, and a sweep has no other.
            if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)
            and storages.names(storages.join(storage, name, journal_remote.FOLDER))
        ]
    except storages.StorageError as error:
        raise RequestError(str(error)) from error
    found, unreadable = [], []
    for name in names:
        try:
            found.append(read_sweep(name, storage))
        except (OSError, ValueError) as error:
            unreadable.append(results.Unreadable(local_root(storages.join(storage, name)) / name, str(error)))
    return found, unreadable


def read_sweep(text: str, storage: str, *, fresh: bool = False) -> results.SweepResult:
    """The sweep called `text`, from its journal alone.

    A sweep named by a URI is first brought into its working copy under ./sweeps; one with a storage URI that is named
    by its local folder only if `fresh`: reading what is here needs no network. RequestError also where the two differ.
    """
    remote: str | None
    if storages.is_uri(text) or storages.is_uri(storage):
        remote = text if storages.is_uri(text) else storages.join(storage, text)
        storages.check_form(remote)
        folder = local_root(remote) / storages.name_of(remote)
    else:
        folder = sweep_folder(text, Path(storage))
        remote = results.read(folder).remote if fresh else None
        if remote is not None and storages.name_of(remote) != folder.name:
            raise RequestError(
                f"{folder} is the working copy of the sweep in {remote} and must have its name, but was renamed or "
                f"copied; name the sweep by that URI, or by the one that it was copied to"
            )
    if remote is None:
        return results.read(folder)
    try:
        if not journal.is_locked(folder):
            journal_remote.fetch(remote, folder)
        live = lease.is_live(storages.join(remote, lease.FILE))
    except storages.StorageError as error:
        raise RequestError(str(error)) from error
    result = results.read(folder, remote=remote)
    return replace(result, live=result.live or live)
