"""What a worker gives to the training of a trial beside its config, for trainings that tests make up.

def __call__(self, config: TrialConfig, **given: Unpack[Given]) -> Outcome:      # a `pretune.execution.worker.Train`
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from trainers.report import Checkpoint, EpochReport

if TYPE_CHECKING:
    import torch


class Given(TypedDict):
    """As for `trainers.train`."""

    folder: Path
    report: Callable[[EpochReport], bool]
    resume: Checkpoint | None
    progress: Callable[[int, int], bool | None]
    device: torch.device
