"""How a journal's records are written down: its lines.

One JSON object per line: `{"crc32":"xxxxxxxx","record":{...}}`. The checksum covers the record's bytes and the
checksum of the line before, so a line that is changed, missing or out of place is noticed. A crash can only tear the
last line. A last line that is there as a whole and does not fit its checksum is no torn one: the disk, or somebody,
changed what may have been acted upon.
"""

from __future__ import annotations

import gc
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Self

from pretune.core.errors import RequestError

_START, _SUFFIX = b'{"crc32":"%08x","record":', b"}\n"
HEAD = len(_START % 0)
"""Where the record begins in its line."""
_TAIL = -len(_SUFFIX)


def line_of(body: bytes, previous: int) -> tuple[bytes, int]:
    """The line of a record's bytes, and its checksum; `previous` is that of the line before."""
    checksum = zlib.crc32(body, previous)
    return _START % checksum + body + _SUFFIX, checksum


@contextmanager
def collecting_no_garbage() -> Iterator[None]:
    """While a journal is gone through. Python looks for garbage among all that it holds each time so much was made, and
    of records none is: it doubles the time.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def verified(content: bytes, previous: int) -> tuple[int, int]:
    """How many bytes of `content` are good lines that follow a line with checksum `previous`; the checksum then."""
    checksum, size = previous, 0
    for line in content.splitlines(keepends=True):
        found = body_of(line, checksum)
        if found is None:
            break
        _, checksum = found
        size += len(line)
    return size, checksum


def whole_lines(path: Path) -> bytes:
    """The journal's bytes without a torn last line. RequestError where another line is corrupt or missing."""
    with Lines.opened(path) as lines:
        for _ in lines:
            pass
    return path.read_bytes()[: lines.size]


class Lines:
    """The lines of a journal, one after another: iterating gives the bytes of each record, and iterating again those
    that came since. `checksum` is that of the last one given, `size` the number of bytes up to its end, `count` how
    many were given, `last` the last one's line.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.checksum, self.size, self.count = 0, 0, 0
        self.last = b""

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator[Self]:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise RequestError(
                f"no sweep in {path.parent}: {path.name} is missing; `pretune show` lists the sweeps there are"
            ) from None
        with file:
            yield cls(path, file)

    def __iter__(self) -> Iterator[bytes]:
        """RequestError where a line is corrupt; a torn last one is left out."""
        # Not what is appended from now on: the line that was last would not be whole.
        end = os.fstat(self.file.fileno()).st_size
        # A buffer of its own: that of the last time has what has been cut off and written anew since.
        with open(os.dup(self.file.fileno()), "rb") as file:
            file.seek(self.size)
            crc32 = zlib.crc32
            for line in file:
                size = self.size + len(line)
                if size > end:
                    line, size = line[: end - self.size], end
                    if not line:
                        return
                # As `body_of`, but it takes a third of the time to call that for each line.
                body = line[HEAD:_TAIL]
                checksum = crc32(body, self.checksum)
                if not (line.startswith(_START % checksum) and line.endswith(_SUFFIX)):
                    rest = end - self.size - len(line)
                    if not rest and _is_torn(line, self.checksum):
                        return
                    after = file.read(rest)
                    position = self.count + 1
                    count = position + after.count(b"\n") + (not after.endswith(b"\n") and bool(after))
                    raise RequestError(
                        f"{self.path}: line {position} of {count} is corrupt (its checksum does not fit, or that of a "
                        f"line missing before it); restore the file from a copy, or cut it before that "
                        f"line and lose what follows"
                    )
                self.checksum, self.size, self.last = checksum, size, line
                self.count += 1
                yield body


def body_of(line: bytes, previous: int) -> tuple[bytes, int] | None:
    """The record's bytes and their checksum; None where the line is torn or its checksum does not fit."""
    body = line[HEAD:_TAIL]
    checksum = zlib.crc32(body, previous)
    whole = line.startswith(_START % checksum) and line.endswith(_SUFFIX)
    return (body, checksum) if whole else None


def _is_torn(line: bytes, previous: int) -> bool:
    """Whether a last line that is no good was never written whole: its end is missing, or blocks of it are still zeros.

    A whole line of which a single bit was flipped is not torn, be it the line feed's, or one that makes a space zero.
    """
    if not line.endswith(b"\n"):
        return body_of(line[:-1] + b"\n", previous) is None
    return line.startswith(b"\0") or b"\0\0" in line
