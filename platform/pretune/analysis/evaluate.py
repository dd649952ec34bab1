"""An encoder judged by the papers' protocols: what is asked, checked without torch as far as that goes, and what came
out, which lies beside the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from pretune.analysis import candidates
from pretune.core.errors import RequestError
from pretune.core.messages import did_you_mean, validated
from pretune.core.results import SweepResult
from pretune.execution import run_folder
from pretune.request import overrides, request
from trainers import storage
from trainers.config import TrialConfig
from trainers.data import report_reads
from trainers.data.manifest import Dataset
from trainers.evaluation.protocol import Protocol, ProtocolResult, Split
from trainers.evaluation.protocols import PROTOCOLS
from trainers.files import why_not_writable, write_whole
from trainers.init_file import CONFIG, ENCODER, file_of
from trainers.report import Checkpoint

if TYPE_CHECKING:
    from trainers.evaluation.subject import Subject

CHECKPOINT = ".pt"
"""Ending of a run's checkpoints."""
FOLDER = ".evaluations"
"""Ending of the folder of a checkpoint's results, beside it."""
UNTRAINED = ", untrained"
"""How the names of networks end that a run only starts from."""
MOST_SEEDS = 100


class Target(NamedTuple):
    """What is to be evaluated, found but not read."""

    name: str
    file: str
    """The checkpoint's path or URI."""
    checkpoint: Checkpoint | None = None
    """As the journal has it, of a trial."""
    config: TrialConfig | None = None
    """Of a trial."""
    sweep: str | None = None
    """Folder or URI of the sweep that it is of."""
    trial: int | None = None
    live: bool = False
    """Whether that sweep runs right now."""
    trust_code: bool = False
    """Whether code that it names as its network may be run; a trial's is what the sweep was asked for."""

    @property
    def is_weights(self) -> bool:
        """Whether it is a backbone alone, as torchvision, timm and exports have it, and no checkpoint of a run."""
        return self.checkpoint is None and not self._name.endswith(CHECKPOINT)

    @property
    def place(self) -> str:
        """The folder or URI of its results. Files of weights with other endings may have the same stem."""
        name = self._name
        folder = f"{name if self.is_weights and name != ENCODER else Path(name).stem}{FOLDER}"
        if storage.is_uri(self.file):
            return storage.join(storage.parent_of(self.file), folder)
        return str(Path(self.file).with_name(folder))

    @property
    def _name(self) -> str:
        """Of the file, without what a URI says of its storage."""
        return storage.name_of(self.file) if storage.is_uri(self.file) else Path(self.file).name


class OnData(NamedTuple):
    """A data set to evaluate on."""

    place: str
    """Its folder or URI: beside it reads of `report` are written down."""
    dataset: Dataset | None
    """None of annotated images, which lie at `place` as they were published."""
    hashes: Mapping[str, str] = {}
    """Of what each protocol, by its name, looks at: boxes, say, or masks, too."""

    @property
    def name(self) -> str:
        return storage.name_of(self.place) if storage.is_uri(self.place) else Path(self.place).name

    @property
    def annotations(self) -> Path | None:
        return None if self.dataset is not None else Path(self.place)


@dataclass(frozen=True)
class Request:
    """What will be run, checked."""

    target: Target
    protocols: tuple[Protocol, ...]
    data: tuple[OnData, ...]
    split: Split
    seeds: int
    untrained: bool
    """Whether the same network before any training is judged beside it."""
    place: str
    """The folder or URI that results go to."""
    threads: int = 1
    """Of each worker."""
    workers: int = 1
    """Processes on this machine, each with a GPU where there are any. Results do not depend on them."""


def find(text: str, storages: str, *, trust_code: bool = False) -> Target:
    """What `text` names: a checkpoint's file or URI, a file of weights, an export's folder, the folder of a run of
    `pretune train` (its newest checkpoint), a sweep (its best trial), or SWEEP/TRIAL.

    `trust_code`: whether code that a file names as its network may be run. RequestError where there is no such thing,
    the sweep has no best trial, or the trial has left no checkpoint.
    """
    found = _file(text)
    if found is not None:
        return found._replace(trust_code=trust_code)
    sweep, number = text, None
    match = re.fullmatch(r"(.+)/(\d+)/?", text)
    if match is not None and not _is_sweep(text, storages):
        sweep, number = match[1], int(match[2])
    try:
        result = request.read_sweep(sweep, storages, fresh=True)
    except RequestError as error:
        raise RequestError(f"{error}; a checkpoint's file (.pt) will do as well") from error
    return _trial(result, number)


def _file(text: str) -> Target | None:
    """What `text` names where that is a file, the folder of an export or that of a run."""
    if Path(text).is_file() or (storage.is_uri(text) and Path(storage.name_of(text)).suffix):
        if storage.is_uri(text):
            return Target(name=Path(storage.name_of(text)).stem, file=text)
        return Target(name=Path(text).stem, file=str(Path(text).absolute()))
    if (Path(text) / ENCODER).is_file():
        file_of(text, Path.cwd())  # half an export is refused
        return Target(name=Path(text).absolute().name, file=str(Path(text).absolute() / ENCODER))
    if (Path(text) / run_folder.METRICS).is_file():
        return _run(Path(text).absolute())
    if (Path(text) / CONFIG).is_file():
        raise RequestError(
            f"{text} must be a folder that `pretune export` or `pretune import` wrote, but has no {ENCODER}; write it "
            "again, or name a sweep or a checkpoint"
        )
    return None


def check(
    target: Target,
    *,
    protocols: Sequence[str],
    assignments: Sequence[str] = (),
    source: str | None = None,
    data: Sequence[str] = (),
    split: Split = "select",
    seeds: int = 1,
    untrained: bool = False,
    out: Path | None = None,
    threads: int = 1,
    workers: int = 1,
) -> Request:
    """The request, if it can be run. RequestError, or a ValueError of the data set's, where it can not.

    Without `data` it is the data set that the encoder was trained on.
    """
    if not 1 <= seeds <= MOST_SEEDS:
        raise RequestError(f"--seeds must be 1 to {MOST_SEEDS}, but is {seeds}; change it")
    wanted = _protocols(protocols, assignments, source)
    if split == "report" and target.live:
        raise RequestError(
            f"sweep {target.sweep} runs, and its choices must not depend on `report`; evaluate on `select`, or wait "
            "until it has ended"
        )
    if untrained and target.is_weights:
        raise RequestError(
            f"--untrained needs a checkpoint, which says what its network started from, but {target.file} holds "
            "weights alone; leave it out"
        )
    place = target.place if out is None else str(out.absolute())
    if not storage.is_uri(place) and (why := why_not_writable(Path(place))):
        raise RequestError(f"results are written to {place}, but {why}; name another folder with --out")
    for protocol in wanted:
        if protocol.elsewhere and not data:
            raise RequestError(f"protocol {protocol.name!r} is about other data: name them with --data A --data B")
    kinds = {protocol.annotated is not None for protocol in wanted}
    if len(kinds) > 1:
        raise RequestError(
            f"protocols {', '.join(_names_of(wanted, annotated=True))} take annotated images and "
            f"{', '.join(_names_of(wanted, annotated=False))} do not; evaluate by them in two commands"
        )
    if kinds == {True}:
        found = tuple(_annotated(text) for text in data)
        if not found:
            raise RequestError(
                f"protocol {wanted[0].name!r} needs images with {wanted[0].annotated}; name where they are with --data"
            )
    else:
        found = tuple(_on(text) for text in data) or (_own_data(target),)
    names = [one.name for one in found]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise RequestError(
            f"--data must name data sets of different names, but {', '.join(sorted(repeated))} comes twice; name each "
            "once, or evaluate on those of one name in two commands"
        )
    found = tuple(one._replace(hashes=_hashes(one, wanted, split)) for one in found)
    if workers > 1:
        _check_workers(workers, wanted, found)
    return Request(target, wanted, found, split, seeds, untrained, place, threads, workers)


def reads(asked: Request) -> list[str]:
    """In words, for each data set how often its report split was read."""
    said = []
    for on in asked.data:
        if on.dataset is None:
            said.append(
                f"reads of the test images of {on.name} are not counted, as nothing is written beside images that lie "
                "as they were published; who compares encoders by them chooses by them"
            )
            continue
        known = report_reads.known(on.place)
        count = f"{len(known)} time(s) through {len({read.sweep for read in known})} sweep(s) or checkpoint(s)"
        said.append(
            f"the report split of {on.name} was read {count}; who compares encoders by it chooses by it"
            if known
            else f"this read of the report split of {on.name} could not be written down beside the data"
        )
    return said


def load(target: Target) -> Subject:
    """ValueError where the file is damaged, or another one than the journal says."""
    from trainers.evaluation import subject

    if target.is_weights:
        return subject.from_weights(target.file, name=target.name, trust_code=target.trust_code)
    return subject.subject(target.checkpoint or target.file, name=target.name, trust_code=target.trust_code)


def stored(place: str) -> list[ProtocolResult]:
    """All results in a folder or at a URI, in the order of their names; files that are no results are left out."""
    if storage.is_uri(place):
        files = [storage.join(place, name) for name in storage.names(place)]
    else:
        files = [str(path) for path in Path(place).glob("*.json")]
    found = []
    for file in sorted(files):
        with suppress(RequestError):
            if file.endswith(".json") and (result := read_result(file)) is not None:
                found.append(result)
    return found


def write(file: str, content: bytes) -> None:
    """A file of results, at a path or URI, as a whole."""
    if storage.is_uri(file):
        storage.write(file, content)
        return
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(file), content)


def join(place: str, name: str) -> str:
    return storage.join(place, name) if storage.is_uri(place) else str(Path(place) / name)


# --- what is evaluated ------------------------------------------------------------------------------------------------


def _is_sweep(text: str, storages: str) -> bool:
    if storage.is_uri(text) or storage.is_uri(storages):
        return False  # a name that is all digits is a trial's
    try:
        request.sweep_folder(text, Path(storages))
    except RequestError:
        return False
    return True


def _run(folder: Path) -> Target:
    written = [report.checkpoint for report in run_folder.read(folder) if report.checkpoint is not None]
    kept = [checkpoint for checkpoint in written if Path(checkpoint.path).is_file()]
    if not kept:
        raise RequestError(f"the run in {folder} has no checkpoint; go on with it, or name another one")
    return Target(name=folder.name, file=kept[-1].path)


def _trial(result: SweepResult, number: int | None) -> Target:
    if number is None:
        if result.experiment.points:
            raise RequestError(
                f"{result.name!r} compares levels and looks for no best trial; name one: {result.name}/0 to "
                f"{result.name}/{len(result.trials) - 1}"
            )
        if result.best is None:
            others = f", or name one of the others: {result.name}/TRIAL" if result.trials else ""
            raise RequestError(f"{candidates.without_winner(result)}{others}")
        number = result.best
    if not result.trials:
        raise RequestError(f"trial must be one of {result.name!r}, but that has none yet; see `pretune show`")
    if number >= len(result.trials):
        raise RequestError(
            f"trial must be 0 to {len(result.trials) - 1} in {result.name!r}, but is {number}; see `pretune show`"
        )
    trial = result.trials[number]
    if trial.result_of is not None:
        trial = result.trials[trial.result_of]
    if trial.checkpoint is None or not storage.exists(trial.checkpoint.path):
        what = "was never written" if trial.checkpoint is None else f"{trial.checkpoint.path} is gone"
        raise RequestError(
            f"the checkpoint of trial {number} of {result.name!r} {what}; name another one: {result.name}/TRIAL"
        )
    return Target(
        name=f"{result.name}/{number}",
        file=trial.checkpoint.path,
        checkpoint=trial.checkpoint,
        config=TrialConfig.model_validate(trial.config),
        sweep=result.remote or str(result.folder),
        trial=number,
        live=result.live,
        trust_code=True,
    )


def _own_data(target: Target) -> OnData:
    """The data set that it was trained on."""
    config = target.config
    if target.is_weights:
        raise RequestError(f"{target.file} does not say what images it was trained on; name some with --data")
    if config is None:  # it is in the checkpoint alone, which takes torch
        from trainers import checkpoint, encoder

        config = encoder.config_of(checkpoint.find(target.file))
    return _on(config.data.path, expected_hash=config.data.manifest)


def untrained(target: Target) -> Subject:
    from trainers import checkpoint, encoder
    from trainers.evaluation import subject

    found = encoder.load_trained(target.checkpoint or checkpoint.find(target.file), trust_code=target.trust_code)
    return subject.untrained(found.config, found.preparation, name=f"{target.name}{UNTRAINED}")


def _on(text: str, *, expected_hash: str | None = None) -> OnData:
    dataset = request.open_data(text, expected_hash=expected_hash)
    if not storage.is_uri(text):
        return OnData(str(dataset.folder), dataset)
    from trainers.data.data_cache import open_anywhere
    from trainers.data.manifest import DATA_FILES

    return OnData(text, open_anywhere(text, expected_hash=dataset.manifest_hash, files=DATA_FILES))


def _annotated(text: str) -> OnData:
    if storage.is_uri(text) or not Path(text).exists():
        raise RequestError(f"annotated images must be in a folder or file of this machine, but {text} is none")
    return OnData(str(Path(text).absolute()), None)


def _hashes(on: OnData, protocols: Sequence[Protocol], split: Split) -> dict[str, str]:
    """What each protocol is to look at, by hash. ValueError where it will not do."""
    found = {}
    for protocol in protocols:
        if on.dataset is None:
            found[protocol.name] = protocol.check_annotated(Path(on.place), split)
        else:
            protocol.check(on.dataset)
            found[protocol.name] = on.dataset.manifest_hash
    return found


def _check_workers(workers: int, protocols: Sequence[Protocol], data: Sequence[OnData]) -> None:
    """ValueError where work cannot be divided among so many."""
    for protocol in protocols:
        for on in data:
            protocol.check_workers(workers, on.dataset)

    import torch

    gpus = torch.cuda.device_count()
    if 0 < gpus < workers:
        raise RequestError(
            f"--workers must be at most {gpus}, the GPUs of this machine, as each worker takes one, but is {workers}; "
            "lower it, or set CUDA_VISIBLE_DEVICES= to evaluate on the CPU"
        )


# --- protocols --------------------------------------------------------------------------------------------------------


def _protocols(names: Sequence[str], assignments: Sequence[str], source: str | None) -> tuple[Protocol, ...]:
    """Each protocol with what `--set NAME.field=value` says of it."""
    changes: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name in names:
        if name not in PROTOCOLS:
            raise RequestError(f"there is no protocol {name!r}; {did_you_mean(name, sorted(PROTOCOLS))}")
    for path, value in overrides.parse(assignments).items():
        name, dot, field = path.partition(".")
        if not dot or name not in changes:
            raise RequestError(
                f"--set {path} must begin with the name of a protocol that is asked for ({', '.join(names)}), such as "
                f"{names[0]}.source=features"
            )
        changes[name][field] = value
    if source is not None:
        for values in changes.values():
            values.setdefault("source", source)
    return tuple(_protocol(PROTOCOLS[name], values) for name, values in changes.items())


def _names_of(protocols: Sequence[Protocol], *, annotated: bool) -> list[str]:
    return [one.name for one in protocols if (one.annotated is not None) == annotated]


def _protocol(kind: type[Protocol], values: Mapping[str, Any]) -> Protocol:
    if fixed := {"name", "version"} & values.keys():
        raise RequestError(f"--set {fixed.pop()}: what a protocol is called, and its version, cannot be changed")
    return validated(kind, values)


# --- results ----------------------------------------------------------------------------------------------------------


def read_result(file: str) -> ProtocolResult | None:
    """None where there is none; RequestError where the file is no result."""
    try:
        text = storage.read(file) if storage.is_uri(file) else Path(file).read_bytes()
    except FileNotFoundError:
        return None
    try:
        return ProtocolResult.model_validate_json(text)
    except ValidationError as error:
        raise RequestError(
            f"{file} must be a result that `pretune eval` wrote, but is not ({error.errors()[0]['msg']}); move it "
            "away, and it is made again"
        ) from error
