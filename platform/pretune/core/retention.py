"""What stays on the disk of a trial that was stopped or failed: its best checkpoint. The loop bounds those of others.

A sweep stops most of its trials, and neither a stopped one nor one that has failed too often ever goes on. (One that
only the hours have ended may, and keeps its newest.) The driver removes their other checkpoints once the end is
written; what a killed driver left is removed when the sweep is resumed.
"""

from __future__ import annotations

import logging
import math
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from pretune.core import landing
from pretune.core.history import TrialHistory
from pretune.core.records import Ended, Record
from trainers import storage
from trainers.report import WITHIN_EPOCHS, Checkpoint

if TYPE_CHECKING:
    from pretune.core.conductor import Conductor, Listener

logger = logging.getLogger(__name__)

RUNNING, FINISHED = 6, 3
"""Checkpoints of a trial at most: while it runs the two newest, the one that is written before an older one goes, the
best, the last before the decay and one within an epoch; in the end the newest, the best and the last before the decay.
"""
STATES = ("PRUNED", "INFEASIBLE", "FAIL")
"""Ends after which nothing goes on from an older checkpoint: only a complete trial is trained longer."""


class Trimming:
    """A listener that removes checkpoints of trials that are stopped or failed, and passes on what it hears."""

    def __init__(self, conductor: Conductor, listener: Listener | None) -> None:
        self._history, self._experiment = conductor.history, conductor.experiment
        self._listener = listener
        # Trials are trimmed as they end: before the newest that needed nothing none does. That saves a large sweep a
        # question to its storage for each epoch. Of a trial that was made longer `ended_at` is its first end.
        over = [trial for trial in self._history.trials if trial.state in STATES]
        for trial in sorted(over, key=lambda trial: (trial.extended, trial.ended_at or 0), reverse=True):
            if not self._trim(trial) and len(trial.checkpoints) > 1 and not trial.extended:
                break

    def on_event(self, record: Record) -> None:
        if self._listener is not None:
            self._listener.on_event(record)
        if isinstance(record, Ended) and record.state in STATES:
            self._trim(self._history.trials[record.number])

    def _trim(self, trial: TrialHistory) -> bool:
        """Whether there was something to remove."""
        try:
            return trim(trial, self._experiment.metric, maximize=self._experiment.maximize)
        except OSError as error:  # a sweep does not end because something is left lying about
            logger.warning("checkpoints of trial %d stay: %s", trial.number, error)
            return True


def trim(trial: TrialHistory, metric: str, *, maximize: bool) -> bool:
    """Remove all checkpoints of `trial` but the best by `metric`, also those within epochs; the newest where none was
    judged, or time has ended it. Returns whether there was something to remove.
    """
    left = {epoch: pointer for epoch, pointer in trial.checkpoints.items() if storage.exists(pointer.path)}
    sign = 1.0 if maximize else -1.0
    scores = {epoch: sign * trial.epochs.get(epoch, {}).get(metric, -sign * math.inf) for epoch in left}
    newest = landing.ended(trial)
    best = max(left, key=lambda epoch: (0.0 if newest else scores[epoch], epoch), default=0)
    others = [pointer for epoch, pointer in left.items() if epoch != best]
    places = [place for pointer in others for place in (pointer.path, pointer.manifest)]
    for folder in {_folder(pointer.path) for pointer in trial.checkpoints.values()}:
        places += _within_epochs(folder)
    for place in places:
        storage.remove(place, bound_s=10.0)
    return bool(places)


def _folder(path: str) -> str:
    return storage.parent_of(path) if storage.is_uri(path) else str(Path(path).parent)


def _within_epochs(folder: str) -> list[str]:
    """What was written within epochs, which no record names."""
    if storage.is_uri(folder):
        names = storage.names(folder, bound_s=10.0)
        return [storage.join(folder, name) for name in names if fnmatch(name, WITHIN_EPOCHS)]
    return [str(path) for path in Path(folder).glob(WITHIN_EPOCHS)]


def size(pointer: Checkpoint) -> int | None:
    """Bytes of a checkpoint; None where it lies in an object store, or is gone."""
    try:
        return None if storage.is_uri(pointer.path) else Path(pointer.path).stat().st_size
    except OSError:
        return None


def bound(size: int, *, trials: int, slots: int) -> int:
    """Bytes that the checkpoints of a sweep take at most, each of `size`, if no trial is stopped."""
    return size * (trials * FINISHED + slots * (RUNNING - FINISHED))
