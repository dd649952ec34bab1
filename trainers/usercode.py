"""Code of one's own, by reference: `file.py:Name`, `module:Name`, or the name that an installed package gave it.

A config holds the reference, the settings, and the sha256 of the file (`Own`); whoever runs it loads the code, here and
nowhere else. So a config is read, shown and compared without running anybody's code, and a run that finds another file
than the one it was requested with refuses. Of a module that the file imports the hash knows nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import linecache
import math
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

Group = Literal["pretune.terms", "pretune.spaces", "pretune.recipes"]
"""The entry points under which a package offers what is then named as if it were shipped."""
FORMS = "file.py:Name or module:Name"
_HASH = "__pretune_sha256__"
"""Where a module that was read from a file keeps the hash of it."""


class ChangedError(ValueError):
    """A file is not the one that a run was requested with."""


class LostError(ValueError):
    """Something in a config that would not arrive in the process that runs it."""


class SettingsError(ValueError):
    """Settings that a class of one's own does not take: pydantic's `error`, of validating `model` at `path`."""

    def __init__(self, model: type[BaseModel], error: ValidationError, path: str = "") -> None:
        super().__init__(f"{path or model.__name__}: {error}")
        self.model, self.error, self.path = model, error, path


# ---- references ------------------------------------------------------------------------------------------------------


def is_reference(text: object) -> bool:
    """Whether `text` has the form of a reference rather than of a shipped name."""
    return isinstance(text, str) and ":" in text


def anchored(reference: str, folder: Path) -> str:
    """`file.py:Name` with its whole path, so that it means the same from anywhere; other names unchanged."""
    place, colon, name = reference.rpartition(":")
    return f"{(folder / place).resolve()}{colon}{name}" if place.endswith(".py") else reference


def reference_to(thing: Callable[..., Any]) -> str:
    """The reference by which a function or class is found again: in its file if `load` read it or it lies in no
    package, else in its module. ValueError where there is none.
    """
    module = vars(sys.modules[thing.__module__])
    file: str | None = module.get("__file__")
    if "<locals>" in thing.__qualname__ or (file is None and thing.__module__ == "__main__"):
        name = thing.__qualname__.rpartition(".")[2]
        raise ValueError(
            f"{name} lies in no file in which another process would find it; move it to the top of one and name it, "
            f"for example 'mine.py:{name}'"
        )
    in_a_package = "." in thing.__module__ or "__path__" in module
    if file is None or not file.endswith(".py") or in_a_package:
        return f"{thing.__module__}:{thing.__qualname__}"
    return f"{Path(file).resolve()}:{thing.__qualname__}"


def plain(value: Any) -> Any:
    """JSON for what pydantic has none for: NumPy's numbers and arrays as Python's, anything else as its text."""
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def is_plain(value: object) -> bool:
    """Whether JSON can say it as it is."""
    if type(value) in _PLAIN:  # most are: first
        return True
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


_PLAIN = {str, int, bool, type(None)}


def alike(given: object, told: object) -> bool:
    """Whether two values are one; a list and a tuple of the same are. What does not compare, as an array, is not."""
    if isinstance(given, list | tuple) and isinstance(told, list | tuple):
        return len(given) == len(told) and all(alike(one, other) for one, other in zip(given, told, strict=True))
    try:
        return bool(given == told)
    except Exception:  # whatever comparing it raises
        return False


def where(thing: Any) -> str:
    """`Spread (/home/me/mine.py:12)`: a class or function, and the line where it begins."""
    name = getattr(thing, "__qualname__", repr(thing))
    try:
        return f"{name} ({inspect.getsourcefile(thing)}:{inspect.getsourcelines(thing)[1]})"
    except (TypeError, OSError):  # made by a call, or typed in: there is no line
        return f"{name} ({getattr(thing, '__module__', 'nowhere')})"


# ---- loading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What a reference names, and the sha256 of the file that it is in."""

    thing: Any
    sha256: str | None
    """None where there is no file: of what is compiled."""


def load(reference: str, *, sha256: str | None = None) -> Found:
    """The object that `reference` names; a file by its whole path. Each version of a file is run once per process.

    ValueError where file, module or name is missing, and with the user's own traceback where it cannot be imported;
    ChangedError, and nothing is run, where the file is not the one of that `sha256`.
    """
    place, name = parsed(reference)
    module, digest = _from_file(Path(place), sha256) if place.endswith(".py") else (_module(place), None)
    thing: Any = module
    for step in name.split("."):
        if not hasattr(thing, step):
            known = [key for key, value in vars(thing).items() if getattr(value, "__module__", "") == module.__name__]
            raise ValueError(f"{place} has no {step!r}; known: {', '.join(known)}{guess(step, known)}")
        thing = getattr(thing, step)
    if digest is None:
        digest = _digest(thing, module)
        _check_unchanged(place, digest, sha256)
    return Found(thing, digest)


def parsed(reference: str) -> tuple[str, str]:
    """Place and name. ValueError where it is no reference."""
    place, _, name = reference.rpartition(":")
    if not place or not all(step.isidentifier() for step in name.split(".")):
        raise ValueError(f"{reference!r} must be {FORMS}, for example mine.py:Spread")
    return place, name


def guess(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` where a known name is near, else nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def own_traceback(error: BaseException, *, ours: Collection[str] = ()) -> str:
    """The traceback without frames of this file, of the files `ours`, and of the import machinery: it starts in the
    user's file."""
    report = traceback.TracebackException.from_exception(error, limit=None)
    ours = {__file__, *ours}
    own = [frame for frame in report.stack if frame.filename not in ours and not frame.filename.startswith("<frozen")]
    own = [frame for frame in own if not Path(frame.filename).is_relative_to(Path(importlib.__file__).parent)]
    report.stack = traceback.StackSummary.from_list(own)
    report.__cause__, report.__context__ = None, None
    return "".join(report.format()).rstrip()


def place_of(error: BaseException, thing: Any) -> str:
    """`line 12 of /home/me/mine.py, `: where the file of a class or function raised `error`, or called what did; empty
    where it did neither."""
    frame = _frame_of(error, thing)
    return "" if frame is None else f"line {frame.lineno} of {frame.filename}, "


def line_of(error: BaseException, thing: Any) -> str:
    """The text of that line."""
    frame = _frame_of(error, thing)
    return "" if frame is None else (frame.line or "")


def _frame_of(error: BaseException, thing: Any) -> traceback.FrameSummary | None:
    file = inspect.getsourcefile(thing)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return frames[-1] if frames else None


def put_on_path(folder: Path) -> None:
    """Let files import what lies beside them."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _check_unchanged(place: object, digest: str | None, sha256: str | None) -> None:
    if sha256 is not None and digest != sha256:
        found = "there is no such file" if digest is None else f"has {digest[:12]}…"
        raise ChangedError(
            f"{place} must have sha256 {sha256[:12]}…, as when this run was requested, but {found}; put the file back, "
            "or begin a new run"
        )


def _from_file(path: Path, sha256: str | None) -> tuple[ModuleType, str]:
    if not path.is_absolute():
        raise ValueError(
            f"{path} must be a whole path here, as whoever runs it works in another folder; write "
            f"{Path.cwd() / path}, or in Python f'{{Path(__file__).parent}}/{path.name}:…'"
        )
    if not path.is_file():
        _check_unchanged(path, None, sha256)
        raise ValueError(f"there is no file {path} on this machine; check the path, or name a module that is installed")
    source = path.read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    _check_unchanged(path, digest, sha256)
    # Registered under a name that shadows nothing: dataclasses and pydantic look their module up.
    name = f"_pretune_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    known = sys.modules.get(name)
    if known is not None and vars(known).get(_HASH) == digest:
        return known, digest
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    put_on_path(path.parent)
    linecache.checkcache(str(path))
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec"), vars(module))  # these bytes, which were hashed
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be loaded:\n{own_traceback(error)}") from error
    vars(module)[_HASH] = digest
    return module, digest


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # The module itself (or a package above it) is missing; another name means a broken import inside it.
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ValueError(f"there is no module {error.name!r}; install it, or give file.py:Name") from error
        raise ValueError(f"{name} cannot be loaded:\n{own_traceback(error)}") from error
    except Exception as error:
        raise ValueError(f"{name} cannot be loaded:\n{own_traceback(error)}") from error


def _digest(thing: Any, module: ModuleType) -> str | None:
    try:
        path = inspect.getsourcefile(thing)
    except TypeError:
        path = module.__file__
    return None if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()


# ---- installed packages ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plugin:
    """What an installed package offers under a name."""

    name: str
    reference: str
    """`module:Name`."""
    package: str
    version: str


def plugins(group: Group) -> dict[str, Plugin]:
    """By name, what installed packages offer in a group. Nothing of theirs is imported.

    Of two packages that offer the same name the first in the alphabet has it.
    """
    found: dict[str, Plugin] = {}
    for entry in importlib.metadata.entry_points(group=group):
        package, version = ("unknown", "") if entry.dist is None else (entry.dist.name, entry.dist.version)
        plugin = Plugin(entry.name, entry.value.partition("[")[0].strip(), package, version)
        if entry.name not in found or package < found[entry.name].package:
            found[entry.name] = plugin
    return dict(sorted(found.items()))


def packages_of(modules: Sequence[str]) -> dict[str, str]:
    """Name and version of each installed package that one of these modules belongs to."""
    roots = {root for module in modules if (root := module.partition(".")[0]).isidentifier() and root[0] != "_"}
    if not roots:  # files have no package, and the list of all packages is long
        return {}
    names = {name for root in roots for name in importlib.metadata.packages_distributions().get(root, ())}
    return {name: importlib.metadata.version(name) for name in sorted(names)}


# ---- as a config holds it --------------------------------------------------------------------------------------------


class Own(BaseModel):
    """A part that a config names by reference. Every other key is a setting of its code, which alone knows what it
    takes; what is not given keeps the default that the code has, and the hash says which code.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    kind: str
    source_sha256: str | None = Field(None, description="of the file it is in; filled in when a run is requested")

    @field_validator("kind")
    @classmethod
    def _is_a_reference(cls, kind: str) -> str:
        parsed(kind)
        return kind

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def load(self) -> Any:
        """The object. Errors as of `load`."""
        return load(self.kind, sha256=self.source_sha256).thing

    def completed(self, folder: Path | None = None) -> Self:
        """A copy that is found from anywhere, a relative file lying in `folder`, and that knows its file's hash."""
        kind = self.kind if folder is None else anchored(self.kind, folder)
        found = load(kind, sha256=self.source_sha256)
        return self.model_copy(update={"kind": kind, "source_sha256": found.sha256})


def parameters(function: Any) -> list[str]:
    """Names of what a function takes, or of what a class is made from; none of what cannot be called."""
    return list(inspect.signature(function).parameters) if callable(function) else []


def check_call(function: Any, *given: object, settings: Mapping[str, Any], **named: object) -> None:
    """ValueError unless `function` can be called with the arguments `given` and `named`, and the settings by name."""
    if not callable(function):
        raise ValueError(f"{function!r} must be a function or a class, but is {type(function).__name__}; name one")
    signature = inspect.signature(function)
    try:
        signature.bind(*given, **named, **settings)
    except TypeError as error:
        known = [name for name in list(signature.parameters)[len(given) :] if name not in named]
        word = next((name for name in settings if name not in known), "")
        raise ValueError(
            f"{where(function)} cannot be called with {', '.join(settings) or 'no settings'}: {error}; known settings: "
            f"{', '.join(known) or 'none'}{guess(word, known)}"
        ) from error


@contextmanager
def named(path: str, *, key: str = "kind") -> Iterator[None]:
    """What is wrong with the part at `path` is said with that path in front, and the `key` that names the part, in an
    error of the same kind.
    """
    try:
        yield
    except SettingsError as error:
        raise SettingsError(error.model, error.error, path) from error
    except ChangedError as error:
        raise ChangedError(f"{path}.{key}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}.{key}: {error}") from error
