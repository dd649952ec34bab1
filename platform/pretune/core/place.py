"""Where a sweep lies now. Its journal has paths relative to there, so that a sweep that is moved, copied or renamed is
whole: it goes on from its own checkpoints, and a copy does nothing to the sweep that it was made from.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from trainers import storage
from trainers.report import Checkpoint

_BELOW = re.compile(r"/(?:.*/)?(trials/[^/]+/checkpoints/[^/]+)")
"""A checkpoint's absolute path, as older versions wrote it into the journal; what follows the sweep's folder."""


@dataclass(frozen=True)
class Place:
    """A sweep's `folder`, absolute, and with a storage URI its `remote`, where its checkpoints are."""

    folder: Path
    remote: str | None = None

    @classmethod
    def of(cls, folder: Path, remote: str | None = None) -> Place:
        """`folder` as somebody typed it."""
        absolute = folder.expanduser().absolute()
        return cls(absolute.resolve() if ".." in absolute.parts else absolute, remote)

    def relative(self, checkpoint: Checkpoint) -> Checkpoint:
        """As it is written down: its path from this sweep on; what lies elsewhere is as it is."""
        path = checkpoint.path
        if self.remote is not None and (below := storage.below(path, self.remote)) is not None:
            return checkpoint.model_copy(update={"path": below})
        if Path(path).is_relative_to(self.folder):
            return checkpoint.model_copy(update={"path": Path(path).relative_to(self.folder).as_posix()})
        return checkpoint

    def absolute(self, checkpoint: Checkpoint) -> Checkpoint:
        """Where it lies now, of what was written down; an absolute path is of where the sweep lay then."""
        return checkpoint.model_copy(update={"path": self.path(checkpoint.path)})

    def path(self, path: str) -> str:
        """The same of a checkpoint's path."""
        if path.startswith("/") or storage.is_uri(path):
            match = _BELOW.fullmatch(urlsplit(path).path if storage.is_uri(path) else path)
            if match is None:
                return path
            path = match[1]
        return os.path.join(self.folder, path) if self.remote is None else storage.join(self.remote, path)
