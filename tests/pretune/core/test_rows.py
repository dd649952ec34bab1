"""Handouts and rows on their way through Ray Tune, which flattens what it carries and adds keys of its own."""

from __future__ import annotations

import math
from typing import Any

import pytest
from ray.tune.utils import flatten_dict

from pretune.core.rows import Handout, Row
from trainers.report import Checkpoint

POINTER = Checkpoint(path="s3://bucket/s/trials/0003/epoch-0002.pt", sha256="ab", epoch=2)
HANDOUT = Handout(
    number=3,
    config={"epochs": 4, "views": [{"size": 16}], "model": {"masking": None}},
    params={"objective.mmd.weight": 0.5},
    folder="0003-epochs-8",
    resume=POINTER,
    attempt=1,
)
TUNES_OWN: dict[str, Any] = {
    "trial_id": "7a1b_00004",
    "date": "2026-01-01_00-00-00",
    "timestamp": 1767225600,
    "pid": 4242,
    "hostname": "here",
    "node_ip": "10.0.0.1",
    "config": HANDOUT.to_config(),
}
"""What a trial of Tune's has for a result before its first row."""
ADDED = TUNES_OWN | {
    "training_iteration": 2,
    "time_this_iter_s": 0.5,
    "time_total_s": 1.0,
    "time_since_restore": 1.0,
    "iterations_since_restore": 2,
    "should_checkpoint": True,
    "checkpoint_dir_name": None,
    "perf": {"cpu_util_percent": 12.0},
}
"""What Tune writes into each result."""


def through_tune(row: Row) -> dict[str, Any]:
    """A row as scheduler and searcher are given it."""
    result: dict[str, Any] = flatten_dict(row.to_result() | ADDED)
    return result


@pytest.mark.parametrize(
    "row",
    [
        Row(number=3, epoch=0),
        Row(
            number=3,
            epoch=2,
            metrics={"probe/linear": 0.5, "loss/total": 1.0, "budget/views": 2e6, "checkpoint/path": 1.0, "plain": 2.0},
            checkpoint=POINTER,
            reason="rank 1 was lost",
            traceback="Traceback ...",
            failures=1,
            group_starts=2,
        ),
        Row(number=3, epoch=2, outcome="out_of_memory", metrics={"probe/linear": 0.5}, checkpoint=POINTER),
    ],
)
def test_a_row_is_the_same_behind_tune_which_adds_nothing_to_it(row: Row) -> None:
    back = Row.from_result(3, through_tune(row))
    assert back == row
    # The journal keeps metrics in the order in which they were told.
    assert list(back.metrics) == list(row.metrics)


def test_a_row_keeps_a_metric_that_is_no_number() -> None:
    back = Row.from_result(3, through_tune(Row(number=3, epoch=1, metrics={"loss/total": math.nan})))
    assert math.isnan(back.metrics["loss/total"])


@pytest.mark.parametrize(
    "outcome", ["complete", "diverged", "collapsed", "out_of_memory", "failed", "disk_full", "no_room"]
)
def test_every_outcome_but_running_tells_tune_that_the_trial_is_done(outcome: Any) -> None:
    assert Row(number=0, epoch=1).to_result()["done"] is False
    assert Row(number=0, epoch=1, outcome=outcome).to_result()["done"] is True


def test_before_its_first_row_a_trial_runs_in_no_epoch() -> None:
    assert Row.from_result(3, flatten_dict(TUNES_OWN)) == Row(number=3, epoch=0)


def test_an_outcome_that_nobody_knows_is_refused_by_name() -> None:
    result = Row(number=3, epoch=1).to_result() | {"outcome": "bored"}
    with pytest.raises(ValueError, match=r"one of running, complete, .*no_room, but trial 3 has 'bored'"):
        Row.from_result(3, result)


@pytest.mark.parametrize("resume", [None, POINTER])
def test_a_handout_is_the_same_behind_tune_whatever_else_is_in_the_config(resume: Checkpoint | None) -> None:
    handout = Handout(number=3, config={"epochs": 4}, params={}, folder="0003", resume=resume)
    assert Handout.from_config(handout.to_config() | {"trial_resources": 1}) == handout
    assert Handout.from_config(HANDOUT.to_config()) == HANDOUT
