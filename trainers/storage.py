"""Files on a storage that may be a bucket: read, write, list, remove, each tried again with growing waits.

A URI is `s3://bucket/prefix`, `gs://bucket/prefix` or `file:///folder`; what pyarrow takes behind a `?` (such as
`endpoint_override`) is kept. Objects cannot be appended to. S3 itself can write one on the condition that it is absent,
but pyarrow's file systems have no way to ask for it. GCS is written the same way as S3 and was never tried. pyarrow is
imported where a URI is used, not before.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from trainers import files

logger = logging.getLogger(__name__)

SCHEMES = ("s3", "gs", "file")
BOUND_S = 120.0
"""So long a storage may fail before what is done with it fails."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 15.0
BLOCK = 8 * 2**20
"""Bytes that are copied at a time."""

_LASTING_ERRNOS = {errno.ENOSPC, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.EDQUOT}
_LASTING_WORDS = (
    "ACCESS_DENIED",
    "NO_SUCH_BUCKET",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
)

Result = TypeVar("Result")


class StorageError(OSError):
    """The storage refused, or failed for longer than the bound; the text says what and where."""


def is_full(error: BaseException) -> bool:
    """Whether it says that a disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def refuses(error: BaseException) -> bool:
    """Whether it says that files cannot be written or read here: no room, no permission, no bucket. That is no bug."""
    return isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in _LASTING_ERRNOS)


def is_uri(text: str) -> bool:
    return "://" in text


def check_form(uri: str) -> None:
    """ValueError where `uri` has an unknown scheme or names no bucket. Contacts nobody."""
    parts = urlsplit(uri)
    if parts.scheme not in SCHEMES:
        raise ValueError(
            f"storage must be a folder, or a URI that begins with {', '.join(f'{scheme}://' for scheme in SCHEMES)}, "
            f"but is {uri!r}; use one of these"
        )
    if parts.scheme == "file" and (parts.netloc or len(parts.path) < 2):
        raise ValueError(f"storage must be file:/// and an absolute folder, but is {uri!r}; write file:///folder")
    if parts.scheme != "file" and not parts.netloc:
        raise ValueError(f"storage must name a bucket, but is {uri!r}; write {parts.scheme}://bucket/prefix")


def check_usable(uri: str, *, bound_s: float = 10.0) -> None:
    """ValueError where nothing can be written under `uri`: no bucket, no credentials, nobody answers."""
    check_form(uri)
    probe = join(uri, f".check-{uuid.uuid4().hex}")
    try:
        write(probe, b"", bound_s=bound_s)
        remove(probe, bound_s=bound_s)
    except OSError as error:
        raise ValueError(
            f"storage {uri} must be writable, but is not ({error}); check the bucket's name, the region and the "
            f"credentials (AWS_ACCESS_KEY_ID or a profile for s3://, application default credentials for gs://)"
        ) from error


def join(uri: str, *names: str) -> str:
    """`uri` with `names` below it; what stands behind its `?` stays behind."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path="/".join([parts.path.rstrip("/"), *names])))


def name_of(uri: str) -> str:
    """The last part of the path."""
    return urlsplit(uri).path.rstrip("/").rpartition("/")[2]


def parent_of(uri: str) -> str:
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/").rpartition("/")[0]))


def below(uri: str, folder: str) -> str | None:
    """The path from the URI `folder` on to what is below it; None where `uri` is not."""
    parts, above = urlsplit(uri), urlsplit(folder)
    prefix = f"{above.path.rstrip('/')}/"
    if parts[:2] != above[:2] or not parts.path.startswith(prefix):
        return None
    return parts.path.removeprefix(prefix)


def write(uri: str, content: bytes, *, bound_s: float = BOUND_S) -> None:
    """The whole object or none: a bucket shows it once it is complete, a folder as well."""
    _trying(f"write {uri}", lambda: _put(uri, content), bound_s)


def upload(path: Path, uri: str, *, bound_s: float = BOUND_S) -> None:
    """The file as an object. A try that broke off may leave a part of it: whoever refers to it keeps its hash."""
    _trying(f"write {uri}", lambda: _put(uri, path), bound_s)


def read(uri: str, *, bound_s: float = BOUND_S) -> bytes:
    """FileNotFoundError where it is missing."""

    def act() -> bytes:
        system, path = locate(uri)
        with system.open_input_stream(path) as stream:
            return bytes(stream.read())

    return _trying(f"read {uri}", act, bound_s)


def download(uri: str, file: IO[bytes], *, bound_s: float = BOUND_S) -> str:
    """Copies the object into `file`, which is emptied first; returns the sha256. FileNotFoundError: it is missing."""

    def act() -> str:
        system, path = locate(uri)
        file.seek(0)
        file.truncate()
        hashing = hashlib.sha256()
        with system.open_input_stream(path) as stream:
            while block := stream.read(BLOCK):
                hashing.update(block)
                file.write(block)
        return hashing.hexdigest()

    return _trying(f"read {uri}", act, bound_s)


def exists(place: str, *, bound_s: float = BOUND_S) -> bool:
    """Whether `place`, a URI or a path, is a file."""
    if not is_uri(place):
        return Path(place).is_file()

    def act() -> bool:
        system, path = locate(place)
        return bool(system.get_file_info(path).is_file)

    return _trying(f"look for {place}", act, bound_s)


def names(uri: str, *, bound_s: float = BOUND_S) -> list[str]:
    """The names of the files right below `uri`, sorted; none where there is no such folder."""

    def act() -> list[str]:
        from pyarrow import fs

        system, path = locate(uri)
        found = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.is_file)

    return _trying(f"list {uri}", act, bound_s)


def folders(uri: str, *, bound_s: float = BOUND_S) -> list[str]:
    """The names of the folders right below `uri`, sorted; none where there is no such folder."""

    def act() -> list[str]:
        from pyarrow import fs

        system, path = locate(uri)
        found = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)

    return _trying(f"list {uri}", act, bound_s)


def sizes(uri: str, *, bound_s: float = BOUND_S) -> dict[str, int]:
    """The bytes of each file below `uri`, at any depth, by its path from there; none where there is no such folder."""

    def act() -> dict[str, int]:
        from pyarrow import fs

        system, path = locate(uri)
        root = path.rstrip("/") + "/"
        found = system.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
        return {info.path.removeprefix(root): info.size or 0 for info in found if info.is_file}

    return _trying(f"list {uri}", act, bound_s)


def remove_below(uri: str, *, bound_s: float = BOUND_S) -> None:
    """Removes the folder at `uri` with all that is in it, if it is there."""

    def act() -> None:
        from pyarrow import fs

        system, path = locate(uri)
        if system.get_file_info(path).type == fs.FileType.Directory:
            system.delete_dir(path)

    _trying(f"remove {uri}", act, bound_s)


def remove(place: str, *, bound_s: float = BOUND_S) -> None:
    """Removes the file at `place`, a URI or a path, if it is there."""
    if not is_uri(place):
        return Path(place).unlink(missing_ok=True)

    def act() -> None:
        system, path = locate(place)
        if system.get_file_info(path).is_file:
            system.delete_file(path)

    return _trying(f"remove {place}", act, bound_s)


def locate(uri: str) -> tuple[Any, str]:
    """pyarrow's file system of `uri`, and the path in it."""
    from pyarrow import fs

    check_form(uri)
    system, path = fs.FileSystem.from_uri(uri)
    return system, path


def _put(uri: str, content: bytes | Path) -> None:
    system, path = locate(uri)
    if urlsplit(uri).scheme != "file":
        return _fill(system, path, content)
    system.create_dir(path.rpartition("/")[0], recursive=True)
    with files.opened_whole(Path(path)) as aside:
        _fill(system, aside.name, content)


def _fill(system: Any, path: str, content: bytes | Path) -> None:
    with system.open_output_stream(path) as stream:
        if isinstance(content, bytes):
            stream.write(content)
        else:
            with content.open("rb") as file:
                while block := file.read(BLOCK):
                    stream.write(block)


def _trying(what: str, act: Callable[[], Result], bound_s: float) -> Result:
    """`act`, again and again with growing waits while it raises an OSError that may pass, for at most `bound_s`."""
    since, wait_s, tries = time.monotonic(), FIRST_WAIT_S, 0
    while True:
        tries += 1
        try:
            return act()
        except FileNotFoundError:
            raise
        except OSError as error:
            spent_s = time.monotonic() - since
            if _lasts(error) or spent_s + wait_s > bound_s:
                raise StorageError(
                    f"cannot {what}: tried {tries} time(s) in {spent_s:.1f} s; the last error was: {error}"
                ) from error
            logger.warning("cannot %s (%s); again in %.2g s", what, error, wait_s)
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def _lasts(error: OSError) -> bool:
    """Whether trying again is of no use."""
    return error.errno in _LASTING_ERRNOS or any(word in str(error) for word in _LASTING_WORDS)
