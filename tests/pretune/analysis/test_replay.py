"""One trial again: what the journal says of it against what comes out now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretune.analysis import replay
from pretune.analysis.replay import EpochComparison
from pretune.execution import launch
from trainers.config import TrialConfig
from trainers.report import EpochReport, Outcome

CONFIG = TrialConfig.model_validate({"objective": {"alignment": {}}, "epochs": 9})
TOLD = {1: {"probe/linear": 0.5, "time/epoch_s": 1.0}, 2: {"probe/linear": 0.75, "time/epoch_s": 2.0}}


def training(values: list[float]) -> Callable[..., Outcome]:
    """A stand-in for `launch.run` that reports `values`, one an epoch, for as long as it is told to go on."""

    def run(config: TrialConfig, *, report: Callable[[EpochReport], bool], **_: Any) -> Outcome:
        for epoch, value in enumerate(values, start=1):
            metrics = {"epoch": float(epoch), "probe/linear": value, "time/epoch_s": 7.0}
            if not report(EpochReport(epoch=epoch, metrics=metrics)):
                return Outcome(state="stopped", epochs=epoch)
        return Outcome(state="diverged", epochs=len(values))

    return run


def test_a_trial_is_run_as_far_as_the_journal_goes_and_times_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "run", training([0.5, 0.75, 0.9]))
    compared, outcome = replay.run(CONFIG, TOLD, tmp_path, workers=1)
    assert compared == [
        EpochComparison(1, {"probe/linear": 0.5}, {"probe/linear": 0.5}),
        EpochComparison(2, {"probe/linear": 0.75}, {"probe/linear": 0.75}),
    ]
    assert not any(one.different for one in compared)
    assert outcome.state == "stopped"


def test_the_last_bit_of_a_number_and_a_number_that_is_missing_are_differences() -> None:
    assert EpochComparison(1, {"a": 0.1 + 0.2, "b": 1.0}, {"a": 0.3, "b": 1.0}).different == ["a"]
    assert EpochComparison(1, {"a": 1.0}, {"b": 1.0}).different == ["a", "b"]
