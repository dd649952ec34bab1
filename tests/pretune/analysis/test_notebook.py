"""A sweep as values: tables that say what the journal says, configs, and the best trial."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from pretune.analysis.notebook import Sweep
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.journal import Journal
from pretune.core.records import Asked, Attempt, Closed, Ended, Epoch, Extended, Opened, Record, Started
from search_spaces import RECIPES
from trainers.config import TrialConfig
from trainers.report import Checkpoint

BASE = RECIPES["sfrik_tiny"]()
CONFIG = BASE.model_dump(mode="json")


def checkpoint(number: int, epoch: int) -> Checkpoint:
    return Checkpoint(path=f"/trials/{number}/epoch-{epoch}.pt", sha256="0" * 64, epoch=epoch)


def epoch(number: int, epoch: int, value: float) -> Epoch:
    metrics = {"probe/linear": value, "loss/total": 1.0 / epoch}
    return Epoch(number=number, epoch=epoch, metrics=metrics, checkpoint=checkpoint(number, epoch))


RECORDS: list[tuple[float, Record]] = [
    (0.0, Asked(number=0, params={"rate": 0.1, "kernel": "rbf"}, distributions={}, config=CONFIG)),
    (10.0, Started(number=0, attempt=0, epoch=0)),
    (11.0, Asked(number=1, params={"rate": 0.2, "kernel": "energy", "order": 2}, distributions={}, config=CONFIG)),
    (15.0, epoch(0, 1, 0.5)),
    (16.0, Attempt(number=0, failures=1, reason="its slot was lost")),
    (100.0, Started(number=0, attempt=1, epoch=1)),  # after a night in which nothing ran
    (104.0, epoch(0, 2, 0.8)),
    (105.0, Ended(number=0, state="COMPLETE", value=0.8)),
    (106.0, Started(number=1, attempt=0, epoch=0)),
    (108.0, epoch(1, 1, 0.9)),
    (108.0, Ended(number=1, state="PRUNED", reason="not among the best")),
    (109.0, Asked(number=2, params={"rate": 0.3}, distributions={}, config=None)),
    (109.0, Ended(number=2, state="INFEASIBLE", reason="the space refused it")),
]


def sweep(tmp_path: Path, more: list[tuple[float, Record]] | None = None) -> Sweep:
    times: list[float] = []
    experiment = Experiment(name="known", space="kernels", base=BASE, trials=4, storage=str(tmp_path))
    with Journal(tmp_path / "known", new=True, clock=lambda: times[-1]) as journal:
        for time, record in [(0.0, Opened(experiment=experiment)), *RECORDS, *(more or [])]:
            times.append(time)
            journal.append(record)
    return Sweep.read("known", tmp_path)


def test_the_table_of_trials_has_a_row_for_each_with_its_parameters_and_last_metrics(tmp_path: Path) -> None:
    table = sweep(tmp_path).trials
    assert list(table.columns) == [
        *("state", "epochs", "value", "reason", "attempts", "failures", "seconds"),
        *("params.kernel", "params.order", "params.rate"),
        *("loss/total", "probe/linear"),
    ]
    assert table.index.name == "trial"
    assert list(table["state"]) == ["COMPLETE", "PRUNED", "INFEASIBLE"]
    first = table.loc[0]
    assert (first["epochs"], first["value"], first["attempts"], first["failures"]) == (2, 0.8, 2, 1)
    assert (first["params.kernel"], first["params.rate"], first["probe/linear"], first["loss/total"]) == (
        *("rbf", 0.1),
        *(0.8, 0.5),
    )
    # A stopped trial has no value to compare, but its last metrics.
    assert table["value"].isna().tolist() == [False, True, True]
    assert (table.loc[1, "probe/linear"], table.loc[1, "reason"]) == (0.9, "not among the best")
    assert table["params.order"].isna().tolist() == [True, False, True]
    assert list(table.loc[2, ["params.rate", "reason"]]) == [0.3, "the space refused it"]


def test_seconds_are_those_in_which_a_slot_was_busy_with_the_trial(tmp_path: Path) -> None:
    seconds = sweep(tmp_path).trials["seconds"]
    assert seconds[0] == (16.0 - 10.0) + (105.0 - 100.0)
    assert seconds[1] == 2.0
    assert math.isnan(seconds[2])


def test_curves_have_a_row_for_each_trial_and_epoch(tmp_path: Path) -> None:
    curves = sweep(tmp_path).curves
    assert list(curves.columns) == ["trial", "epoch", "loss/total", "probe/linear"]
    assert curves[["trial", "epoch"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 1]]
    assert curves.pivot(index="epoch", columns="trial", values="probe/linear")[0].tolist() == [0.5, 0.8]


def test_a_trial_that_was_made_longer_has_one_curve(tmp_path: Path) -> None:
    longer: list[tuple[float, Record]] = [
        (200.0, Extended(number=0, config={**CONFIG, "epochs": 90}, checkpoint=checkpoint(0, 1))),
        (201.0, Started(number=0, attempt=2, epoch=1)),
        (202.0, epoch(0, 2, 0.7)),
        (203.0, epoch(0, 3, 0.75)),
    ]
    found = sweep(tmp_path, longer)
    assert found.curves[found.curves["trial"] == 0]["probe/linear"].tolist() == [0.5, 0.7, 0.75]
    assert found.config(0).epochs == 90


def test_the_best_trial_carries_its_config_and_checkpoint(tmp_path: Path) -> None:
    found = sweep(tmp_path)
    best = found.best
    assert best is not None
    assert (best.id, best.value, best.state, best.epochs) == (0, 0.8, "COMPLETE", 2)
    assert best.config == found.config(0) == TrialConfig.model_validate(CONFIG)
    assert best.checkpoint == checkpoint(0, 2)
    assert found.trial(1).value is None


def test_a_trial_that_is_not_there_or_was_refused_has_no_config(tmp_path: Path) -> None:
    found = sweep(tmp_path)
    with pytest.raises(RequestError, match=r"the trial must be 0 to 2, but is 7; see `sweep\.trials`"):
        found.config(7)
    with pytest.raises(RequestError, match=r"trial 2 of 'known' has no config \(the space refused it\)"):
        found.config(2)


def test_a_sweep_says_what_it_is(tmp_path: Path) -> None:
    found = sweep(tmp_path)
    assert (found.name, found.metric, found.state) == ("known", "probe/linear", "killed")
    assert (found.folder, found.experiment.space) == (tmp_path / "known", "kernels")
    assert repr(found) == "<Sweep 'known': killed, 3 of 4 trials, best trial 0 with probe/linear 0.8>"
    shown = found._repr_html_()
    assert re.findall(r"<tr><td>(\d)</td><td>([A-Z]+)</td>", shown) == [
        ("0", "COMPLETE"),
        ("1", "PRUNED"),
        ("2", "INFEASIBLE"),
    ]
    assert "<p>Sweep &#x27;known&#x27;: killed" in shown


def test_a_sweep_is_what_it_was_when_it_was_opened(tmp_path: Path) -> None:
    before = sweep(tmp_path)
    with Journal(tmp_path / "known", new=False) as journal:
        journal.append(Closed(reason="finished"))
    assert (before.state, Sweep.read(tmp_path / "known", "elsewhere").state) == ("killed", "finished")


def test_a_sweep_without_trials_has_empty_tables(tmp_path: Path) -> None:
    with Journal(tmp_path / "new", new=True) as journal:
        journal.append(Opened(experiment=Experiment(name="new", space="kernels", base=BASE)))
        found = Sweep.read("new", tmp_path)
        assert found.state == "running"
    assert (len(found.trials), len(found.curves), found.best) == (0, 0, None)
    assert "no trial is complete" in repr(found)
    with pytest.raises(RequestError, match="the trial must be of a sweep that has some, but is 0"):
        found.config(0)
