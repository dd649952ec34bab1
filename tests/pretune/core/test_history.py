"""What records add up to, and what records cannot say."""

from __future__ import annotations

import pytest

from pretune.core.experiment import Experiment
from pretune.core.history import History
from pretune.core.records import Asked, Closed, Ended, Epoch, Opened, Record, Resumed, Started
from trainers.config import TrialConfig
from trainers.report import Checkpoint
from trainers.terms import Alignment

OPENED = Opened(
    experiment=Experiment(name="s", space="x", base=TrialConfig(objective={"alignment": Alignment()}), trials=4)
)


def asked(number: int) -> Asked:
    return Asked(number=number, params={}, distributions={}, config={})


def test_a_trial_is_what_its_records_say() -> None:
    checkpoint = Checkpoint(path="/c", sha256="h", epoch=1)
    story: list[Record] = [
        OPENED,
        asked(0),
        Started(number=0, attempt=0, epoch=0),
        Epoch(number=0, epoch=1, metrics={"probe/linear": 0.9}, checkpoint=checkpoint),
        Started(number=0, attempt=1, epoch=1),
        Epoch(number=0, epoch=2, metrics={"probe/linear": 0.7}),
        Epoch(number=0, epoch=3, metrics={"loss/total": 1.0}),
    ]
    trial = History(story).trials[0]
    assert (trial.state, trial.attempts, trial.last_epoch, trial.ended) == ("RUNNING", 2, 3, False)
    assert trial.checkpoint == checkpoint
    # The last measured value, neither the best nor a missing one.
    assert trial.last("probe/linear") == 0.7
    assert trial.last("probe/knn") is None


def test_the_target_follows_the_last_driver() -> None:
    history = History([OPENED, Closed(reason="finished"), Resumed(trials=9)])
    assert (history.target, history.sessions, history.closed) == (9, 2, None)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (asked(3), "asks for trial 3, but 2 comes next"),
        (Started(number=5, attempt=0, epoch=0), "is about trial 5, which was never asked"),
        (Epoch(number=0, epoch=9, metrics={}), "is about trial 0, which has ended"),
        (Epoch(number=1, epoch=1, metrics={}), "epoch 1 of trial 1 after 1"),
    ],
)
def test_records_that_contradict_each_other_are_an_error(record: Record, message: str) -> None:
    history = History([OPENED, asked(0), asked(1), Epoch(number=1, epoch=1, metrics={}), Ended(number=0, state="FAIL")])
    with pytest.raises(ValueError, match=message):
        history.apply(record)
