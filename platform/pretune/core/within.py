"""How far a trial is within an epoch: a small file in its folder, for whoever watches. It is no record: nothing is
decided by it, and where the folder is not on the watcher's disk nothing is shown.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

FILE = "progress.json"
WRITE_S = 1.0
"""Shortest time between two writes."""


class Within:
    """Written by rank 0 while it trains, gone at the end."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = folder / FILE
        self._clock = clock
        self._written = clock()
        self._epoch: int | None = None
        self._steps: int | None = None

    def step(self, epoch: int, step: int) -> None:
        """After each optimizer step, the `step`-th of the run, `epoch` epochs being finished. A disk that is full, or
        slow, is not the trial's concern.
        """
        if epoch != self._epoch:
            # An epoch's first step tells how many those before it had; a run may have gone on from the middle of one.
            self._steps = None if self._epoch is None else (step - 1) // epoch
            self._epoch = epoch
        now = self._clock()
        if now - self._written < WRITE_S:
            return
        self._written = now
        aside = self._path.with_name(f"{FILE}.part")
        with suppress(OSError):
            aside.write_text(json.dumps({"epoch": epoch, "step": step, "steps": self._steps}), encoding="utf-8")
            os.replace(aside, self._path)

    def over(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def read(folder: Path, *, epoch: int, since: float) -> str | None:
    """`42 %` of the epoch after `epoch` finished ones, or `step 120` of the run while its epochs' length is not known;
    None where nothing was written since `since` (Unix seconds), or of another epoch.
    """
    try:
        if (folder / FILE).stat().st_mtime < since:
            return None
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if found["epoch"] != epoch:
            return None
        step, steps = int(found["step"]), found["steps"]
        return f"step {step:,}" if steps is None else f"{min(100, 100 * (step - epoch * steps) // steps)} %"
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None
