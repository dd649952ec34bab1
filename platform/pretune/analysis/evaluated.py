"""What protocols have said of a sweep's checkpoints: results of `pretune eval` and `finalize --protocol`, which lie
beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pretune.analysis import evaluate
from pretune.core.results import SweepResult
from trainers import storage
from trainers.evaluation.protocol import ProtocolResult

MOST_REMOTE = 10
"""So many trials, the best, are asked for in a storage, where each one takes a request."""
_FOLDER = re.compile(rf"epoch-(\d+).*{re.escape(evaluate.FOLDER)}")


@dataclass(frozen=True)
class Evaluated:
    """One result. `epoch`: after how many epochs the checkpoint was written; None of one that is called otherwise."""

    trial: int
    epoch: int | None
    untrained: bool
    result: ProtocolResult

    @property
    def checkpoint(self) -> str:
        """What a table calls it."""
        if self.untrained:
            return f"trial {self.trial}, untrained"
        return f"trial {self.trial}" if self.epoch is None else f"trial {self.trial}, epoch {self.epoch}"


def of(result: SweepResult) -> tuple[Evaluated, ...]:
    """Those of the best trial first, and of a trial those of its longest run. Of a sweep with a storage URI those of
    the best `MOST_REMOTE` trials.

    OSError where the storage fails.
    """
    ranks = {trial.id: rank for rank, trial in enumerate(result.ranked())}
    found = [
        Evaluated(trial, epoch, one.subject.endswith(evaluate.UNTRAINED), one)
        for trial, epoch, place in (_here(result) if result.remote is None else _there(result))
        for one in evaluate.stored(place)
        if trial in ranks
    ]
    return tuple(sorted(found, key=lambda one: (ranks[one.trial], one.untrained, -(one.epoch or 0))))


def _here(result: SweepResult) -> Iterator[tuple[int, int | None, str]]:
    """Trial, epoch and folder of results in the sweep's own folder; a trial's folder begins with its number."""
    for folder in sorted(result.folder.glob(f"trials/*/checkpoints/*{evaluate.FOLDER}")):
        number = re.match(r"\d+", folder.parts[-3])
        if number is not None and folder.is_dir():
            yield int(number[0]), _epoch(folder.name), str(folder)


def _there(result: SweepResult) -> Iterator[tuple[int, int | None, str]]:
    complete = [trial for trial in result.ranked() if trial.state == "COMPLETE" and trial.checkpoint is not None]
    for trial in complete[:MOST_REMOTE]:
        assert trial.checkpoint is not None
        place = evaluate.Target(name="", file=trial.checkpoint.path).place
        name = storage.name_of(place) if storage.is_uri(place) else Path(place).name
        yield trial.id, _epoch(name), place


def _epoch(name: str) -> int | None:
    match = _FOLDER.fullmatch(name)
    return None if match is None else int(match[1])
