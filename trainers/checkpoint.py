"""A run's whole state in one file: written aside, hashed, renamed; verified before it is believed.

Where the folder is a URI the file is uploaded, and a manifest with its hash after it: data first, manifest last.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import struct
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from pydantic import ValidationError

from trainers import files, scratch, storage
from trainers.config import TrialConfig
from trainers.report import MANIFEST, Checkpoint
from trainers.upgrade import upgrade_config

FORMAT = 1
"""Version of the file's layout, raised when older files can no longer be read."""

FREE = (
    "epochs",
    "probe",
    "threads",
    "deterministic",
    "checkpoint_every",
    "checkpoint_every_steps",
    "data.path",
    "data.manifest",
)
"""Settings that may change when a run goes on: length, judging and place. The manifest is checked apart."""


UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError,
    OverflowError, MemoryError, struct.error,
)  # fmt: skip
"""What torch.load raises with `weights_only=True` on bytes that are not what it writes, or that name what is run."""


class DamagedError(ValueError):
    """A checkpoint's bytes are gone, or are not those that were written."""


class DiskFullError(OSError):
    """There is no room for a checkpoint: nobody's failure, and nothing to try again before somebody makes room."""


def _unjudged() -> None:
    """The default for `judged`."""


def save(
    folder: Path | str,
    state: Mapping[str, Any],
    *,
    epoch: int,
    step: int | None = None,
    judged: Callable[[], float | None] = _unjudged,
) -> Checkpoint:
    """Write `state` to `<folder>/epoch-0003.pt` (3 finished epochs); returns where it lies and what its bytes hash to.

    A manifest lies beside it (`epoch-0003.pt.json`: this value, with the file's name as path), written last. With
    `step`, the optimizer steps done, it is of the epoch after these, `epoch-0003-step-0000047.pt`, and nobody else
    hears of it (see `newest_within`).

    `state` holds tensors and plain containers and values only, as `torch.load(weights_only=True)` must read it. The
    name appears only once all bytes are on disk: a crash leaves no half-written checkpoint behind. A `folder` that is
    text is a URI.

    `judged` is called when all bytes are on the disk, before the name and the manifest are, which gets the score that
    it answers (see `score`). It may wait for whoever judges this state; what it raises leaves no checkpoint behind.

    DiskFullError says how much is needed. OSError where a storage fails for longer than its bound.
    """
    if isinstance(folder, str):
        with scratch.folder() as local:
            written = save(local, state, epoch=epoch, step=step)
            name = Path(written.path).name
            storage.upload(Path(written.path), storage.join(folder, name))
        try:
            score = judged()
        except BaseException:
            _remove(folder, name)
            raise
        saved = written.model_copy(update={"path": storage.join(folder, name)})
        storage.write(saved.manifest, _manifest_text(saved, score).encode())
        return saved
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"epoch-{epoch:04d}.pt" if step is None else f"epoch-{epoch:04d}-step-{step:07d}.pt")
    with _saying_how_much(folder, state):
        with files.opened_whole(path) as file:
            hashing = _HashingFile(file)
            try:
                torch.save({"format": FORMAT, **state}, cast(IO[bytes], hashing))
            except RuntimeError as error:  # torch's writer puts its own complaint in the place of the file's
                raise hashing.error or error from None
            file.flush()
            os.fsync(file.fileno())
            score = judged()
        saved = Checkpoint(path=str(path), sha256=hashing.sha256(), epoch=epoch)
        files.write_whole(Path(saved.manifest), _manifest_text(saved, score))
    return saved


def _manifest_text(saved: Checkpoint, score: float | None) -> str:
    """What lies beside a checkpoint: the value without a folder, which may be moved, and its score where it has one."""
    _, name = _place(saved.path)
    found = saved.model_copy(update={"path": name}).model_dump(mode="json")
    return json.dumps(found if score is None else {**found, _SCORE: score})


def load(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state that `save` wrote, tensors on the CPU.

    DamagedError naming the file if it is missing or if its bytes are not those that were written; ValueError if its
    layout is unknown.
    """
    path = checkpoint.path
    if not storage.exists(path):
        raise DamagedError(f"checkpoint {path} must be a file, but is missing; go on from another one or start again")
    with tempfile.TemporaryFile() if storage.is_uri(path) else Path(path).open("rb") as file:
        if storage.is_uri(path):
            found = storage.download(path, file)
        else:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != checkpoint.sha256:
            raise DamagedError(
                f"checkpoint {path} must have sha256 {checkpoint.sha256}, but has {found}: "
                "it is damaged or was replaced; go on from another one or start again"
            )
        file.seek(0)
        try:
            state = plain(file)
        except UNREADABLE as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DamagedError(
                f"checkpoint {path} must hold tensors and plain values alone, as `pretune train` writes them, but does "
                f"not ({said}); nothing in it was run: take another one"
            ) from error
    known = state.get("format") if isinstance(state, dict) else None
    if known != FORMAT:
        remedy = "continue it with the version of pretune that wrote it"
        if known is None:
            remedy = "it is none of pretune's: of other people's weights `pretune import` makes a folder to go on with"
        raise ValueError(f"checkpoint {path} must have format {FORMAT}, but has {known!r}; {remedy}")
    return cast(dict[str, Any], state)


def plain(file: IO[bytes]) -> Any:
    """What `torch.save` has written: tensors, on the CPU, and plain values; nothing is run. Raises one of `UNREADABLE`
    where it is anything else.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        return torch.load(file, map_location="cpu", weights_only=True)


def find(place: Path | str) -> Checkpoint:
    """The checkpoint at `place`, a file or a URI, as the manifest beside it has it; a file without one is believed.

    DamagedError where there is no such file.
    """
    where, name = _place(place)
    known = _manifest(where, name)
    if known is not None:
        return known
    path = storage.join(where, name) if isinstance(where, str) else str(where / name)
    if not storage.exists(path):
        raise DamagedError(f"checkpoint {path} must be a file, but there is none; check the path")
    match = _AT_END.fullmatch(name)
    if isinstance(where, str):
        with tempfile.TemporaryFile() as file:
            found = storage.download(path, file)
    else:
        with (where / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    return Checkpoint(path=path, sha256=found, epoch=int(match[1]) if match else 0)


def score(checkpoint: Checkpoint) -> float | None:
    """What whoever judged this checkpoint's state said of it, which the state cannot hold: it is written meanwhile."""
    return cast(float | None, _manifest_values(*_place(checkpoint.path)).get(_SCORE))


def check_resumable(state: Mapping[str, Any], config: TrialConfig, manifest_hash: str) -> None:
    """Refuse to go on with another data set, or with settings under which `state` would not have come about.

    ValueError lists each setting that differs, with both values. Those of `FREE` may differ. What an older version
    called otherwise, or had not yet as a setting, is no difference.
    """
    if state["manifest"] != manifest_hash:
        raise ValueError(
            f"a run must go on with the data it began with, manifest {state['manifest']}, but the data at "
            f"{config.data.path} has manifest {manifest_hash}; give the original data set or start again"
        )
    before, now = _flat(_as_written_today(state["config"])), _flat(config.model_dump(mode="json"))
    changes = [
        f"{key}: {before.get(key)!r} -> {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not any(key == free or key.startswith(f"{free}.") for free in FREE)
    ]
    if changes:
        raise ValueError(
            f"a run must go on with the settings it began with (only {', '.join(FREE)} may change), but these differ: "
            f"{'; '.join(changes)}; restore them or start again"
        )


def _as_written_today(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config with today's names, and the defaults of settings that are newer than it."""
    upgraded = upgrade_config(config)
    try:
        return TrialConfig.model_validate(upgraded).model_dump(mode="json")
    except ValidationError:  # it has settings that there are no more: they are among those that differ
        return upgraded


def retain(folder: Path | str, *, epoch: int, count: int = 2, kept: Collection[int] = ()) -> None:
    """Of the checkpoints of `folder` up to `epoch`, remove all but the newest `count` and those of the epochs `kept`.

    The last but one stays, so that whoever has not yet heard of the newest can still go on. What lies after `epoch` is
    of another, later attempt and left alone.
    """
    found = [(number, name) for number, name in _whole_epochs(folder) if number <= epoch]
    for number, name in found[: max(0, len(found) - count)]:
        if number not in kept:
            _remove(folder, name)


def earlier(folder: Path | str, *, than: int) -> list[Checkpoint]:
    """The checkpoints in `folder` of fewer epochs than `than`, the newest first, as their manifests have them."""
    found = [name for number, name in _whole_epochs(folder) if number < than]
    return [manifest for name in reversed(found) if (manifest := _manifest(folder, name)) is not None]


def newest_within(folder: Path | str, *, epoch: int) -> Checkpoint | None:
    """The newest checkpoint that was written within the epoch after `epoch` finished ones; None where there is none.

    A run is a function of its config, so going on from here or from the end of `epoch` comes to the same: this only
    saves work, and what cannot be read may be passed over.
    """
    found = [
        (int(match[2]), name)
        for name in _names(folder)
        if (match := _WITHIN.fullmatch(name.removesuffix(MANIFEST))) and name.endswith(MANIFEST)
        if int(match[1]) == epoch
    ]
    return _manifest(folder, max(found)[1].removesuffix(MANIFEST)) if found else None


def remove_within(folder: Path | str, *, but: Checkpoint | None = None) -> None:
    """Remove the checkpoints that were written within epochs, except `but`."""
    kept = None if but is None else Path(but.path).name
    for name in _names(folder):
        if _WITHIN.fullmatch(name) and name != kept:
            _remove(folder, name)


_AT_END = re.compile(r"epoch-(\d+)\.pt")
_WITHIN = re.compile(r"epoch-(\d+)-step-(\d+)\.pt")


def _whole_epochs(folder: Path | str) -> list[tuple[int, str]]:
    """(epochs finished, name) of the checkpoints at the ends of epochs, oldest first."""
    matches = [(_AT_END.fullmatch(name), name) for name in _names(folder)]
    return sorted((int(match[1]), name) for match, name in matches if match is not None)


_SCORE = "score"
"""In a manifest, beside the fields of `Checkpoint`."""


def _manifest(folder: Path | str, name: str) -> Checkpoint | None:
    """What lies beside the checkpoint of that name, at the place where it lies now: the folder may have been moved."""
    values = _manifest_values(folder, name)
    if not values:
        return None
    values.pop(_SCORE, None)
    place = storage.join(folder, name) if isinstance(folder, str) else str(folder / name)
    return Checkpoint.model_validate({**values, "path": place})


def _manifest_values(folder: Path | str, name: str) -> dict[str, Any]:
    """Empty where there is no manifest."""
    beside = f"{name}{MANIFEST}"
    if isinstance(folder, str):
        uri = storage.join(folder, beside)
        text = storage.read(uri) if storage.exists(uri) else None
    else:
        text = (folder / beside).read_bytes() if (folder / beside).is_file() else None
    return {} if text is None else cast(dict[str, Any], json.loads(text))


def _place(path: Path | str) -> tuple[Path | str, str]:
    """The folder or URI that a checkpoint lies in, and its name there."""
    if isinstance(path, str) and storage.is_uri(path):
        return storage.parent_of(path), storage.name_of(path)
    return Path(path).absolute().parent, Path(path).name


def _names(folder: Path | str) -> list[str]:
    if isinstance(folder, str):
        return storage.names(folder)
    return [path.name for path in folder.glob("epoch-*")]


def _remove(folder: Path | str, name: str) -> None:
    for each in (f"{name}{MANIFEST}", name):
        storage.remove(storage.join(folder, each) if isinstance(folder, str) else str(folder / each))


@contextmanager
def _saying_how_much(folder: Path, state: Mapping[str, Any]) -> Iterator[None]:
    """Turns "no space left" into how much is needed and free."""
    try:
        yield
    except OSError as error:
        if not storage.is_full(error):
            raise
        needed, free = sum(tensor.nbytes for tensor in tensors(state)), shutil.disk_usage(folder).free
        raise DiskFullError(
            error.errno,
            f"the disk is full: a checkpoint in {folder} needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; "
            "make room, then go on",
        ) from error


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


class _HashingFile:
    """A file for `torch.save`, which writes from front to back: the hash needs no second reading."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.error: OSError | None = None
        """What the file raised."""

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()

    def sha256(self) -> str:
        return self._hash.hexdigest()


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as {"views.0.size": 32, …}."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= _flat(item, f"{prefix}.{key}" if prefix else key)
    return flat
