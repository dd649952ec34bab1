"""Weights that a run starts from, as its config holds them: where they lie and what their bytes hash to.

Read here is nothing but the hash, so that a request is checked, shown and compared without torch; `trainers.weights`
opens the file. A run that finds other bytes than it was requested with refuses.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from trainers import storage
from trainers.usercode import ChangedError

ENCODER = "encoder.safetensors"
"""The weights in the folder of an export."""
CONFIG = "config.json"
"""What lies beside them: which network they are of, and how images are prepared for it."""


class InitFile(BaseModel):
    """A file of weights: safetensors, a state dict that torch reads with `weights_only=True`, or a checkpoint of ours.

    Of an export's folder it is the file in it. In `--set model.backbone.init=FILE` the path alone is enough.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    sha256: str | None = Field(None, description="of its bytes; filled in when a run is requested")

    def completed(self, folder: Path | None = None) -> Self:
        """A copy that is found from anywhere, a relative path lying in `folder`, and that knows its file's hash.

        ValueError where there is no such file; ChangedError where there was one, as its hash is known, or its bytes are
        not those of the hash.
        """
        try:
            path = file_of(self.path, folder)
        except ValueError as error:
            if self.sha256 is None:
                raise
            raise ChangedError(str(error)) from error
        status = path.stat()
        found = _sha256(path, status.st_mtime_ns, status.st_size)
        check_unchanged(path, found, self.sha256)
        return self.model_copy(update={"path": str(path), "sha256": found})


def _from_a_path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


Init = Annotated[InitFile, BeforeValidator(_from_a_path)]


def file_of(text: str, folder: Path | None = None) -> Path:
    """The file that a path names, which may be an export's folder. ValueError where there is none."""
    if storage.is_uri(text):
        raise ValueError(
            f"weights must be a file that every worker sees, but {text} is a URI; copy it to a shared folder and name "
            "that"
        )
    path = Path(text).expanduser()
    if not path.is_absolute():
        if folder is None:
            raise ValueError(
                f"{path} must be a whole path here, as whoever runs it works in another folder; write "
                f"{Path.cwd() / path}"
            )
        path = folder / path
    path = path.resolve()
    if path.is_dir():
        if path.name.startswith(".") and path.name.endswith(".part"):
            raise ValueError(f"{path} is an export that was not finished; write it again with `pretune export`")
        if not (path / ENCODER).is_file():
            raise ValueError(
                f"{path} must be a folder that `pretune export` or `pretune import` wrote, but has no {ENCODER}; name "
                "the file of weights itself"
            )
        if not (path / CONFIG).is_file():
            raise ValueError(
                f"{path} must be a whole export, but has no {CONFIG}, which says how images are prepared; copy or "
                "write it again"
            )
        path /= ENCODER
    if not path.is_file():
        raise ValueError(f"there is no file {path} on this machine; check the path")
    return path


def check_unchanged(path: Path, found: str, expected: str | None) -> None:
    """ChangedError where the bytes of a file are not those that a run was requested with."""
    if expected is not None and found != expected:
        raise ChangedError(
            f"{path} must have sha256 {expected[:12]}…, as when this run was requested, but has {found[:12]}…; put the "
            "file back, or begin a new run"
        )


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, modified_ns: int, size: int) -> str:
    """Of the file as it was then: a sweep asks for each of its trials."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
