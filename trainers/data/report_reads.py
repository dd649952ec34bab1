"""Who has read a data set's report split: a file beside the data, one line for each read, written before it happens.

A split that many sweeps read chooses among them, however honest each one is.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from trainers import storage

FILE = "report_reads.jsonl"


class ReportRead(BaseModel):
    """One read of the report split. `sweep` is the folder or URI of the sweep whose trial was judged; of a checkpoint
    that is named by its file, that, and `trial` is None.
    """

    model_config = ConfigDict(frozen=True)

    time: str
    sweep: str
    trial: int | None


def known(place: str) -> list[ReportRead]:
    """All reads of the data set in this folder or at this URI, oldest first; a line that is torn is left out."""
    content = b""
    with suppress(FileNotFoundError):
        content = (
            storage.read(storage.join(place, FILE)) if storage.is_uri(place) else (Path(place) / FILE).read_bytes()
        )
    reads: list[ReportRead] = []
    for line in content.splitlines():
        with suppress(ValidationError):
            reads.append(ReportRead.model_validate_json(line))
    return reads


def record(place: str, read: ReportRead) -> bool:
    """Writes `read` down. False where nothing can be written there: shared data are often for reading only."""
    line = read.model_dump_json().encode() + b"\n"
    try:
        if storage.is_uri(place):
            before = b"".join(one.model_dump_json().encode() + b"\n" for one in known(place))
            storage.write(storage.join(place, FILE), before + line)
        else:
            file = os.open(Path(place) / FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                os.write(file, line)  # in one piece, behind what others append
                os.fsync(file)
            finally:
                os.close(file)
    except OSError:
        return False
    return True
