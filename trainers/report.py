"""What a run tells whoever started it: a report each epoch, and one outcome. Plain values, readable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from trainers import storage

MANIFEST = ".json"
"""Ending of a checkpoint's manifest."""


class Checkpoint(BaseModel):
    """Where a run's whole state lies: `path` is a file that every worker sees, or a URI; `sha256` is of its bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    sha256: str
    epoch: int
    """Epochs finished when it was written."""

    @property
    def manifest(self) -> str:
        """Where this value itself lies, there once all bytes of the file are: beside it, `epoch-0003.pt.json`."""
        if not storage.is_uri(self.path):
            return f"{self.path}{MANIFEST}"
        return storage.join(storage.parent_of(self.path), f"{storage.name_of(self.path)}{MANIFEST}")


class EpochReport(BaseModel):
    """One finished epoch, agreed by all ranks. Metric names are listed in the README and are part of the interface."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    """Epochs finished, counted from 1 over the whole run, resumed or not."""
    metrics: dict[str, float]
    """`probe/linear`, `probe/knn`, `loss/total`, `loss/<name>`, `health/…`, `budget/…`, `time/…`."""
    checkpoint: Checkpoint | None = None
    """The newest checkpoint, if one was written at this epoch."""


class Outcome(BaseModel):
    """How a run ended, as a result: a configuration that diverges or does not fit in memory is no machine's failure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Literal["complete", "stopped", "diverged", "collapsed", "out_of_memory"]
    """`complete`: all epochs done. `stopped`: `report` asked for it. The rest: the configuration's own fault."""
    reason: str = ""
    epochs: int
