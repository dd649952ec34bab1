"""A sweep played through before it runs: how many epochs, how long, on whose curves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pretune.analysis import curves
from pretune.analysis.curves import Length, play
from pretune.core.journal import FILE
from tests import toys

HALVED = {"stopping": {"reduction_factor": 3.0, "grace": 1.0}}
LENGTH = Length(epochs=9, last_epoch=8, probe_every=1, start=0.5, epoch=2.0, probe=1.0, end=4.0, views=100.0)


def test_without_curves_nothing_is_stopped_and_the_time_is_that_of_the_longest_slot(tmp_path: Path) -> None:
    asked = toys.experiment(tmp_path, trials=5)
    trial = 0.5 + 9 * 3.0 + 4.0
    found = play(asked, [LENGTH], [], trials=5, slots=1, cold=20.0)
    assert (found.epochs, found.complete) == (45, 5)
    assert found.time == pytest.approx(20.0 + 5 * trial)
    assert play(asked, [LENGTH], [], trials=5, slots=2, cold=20.0).time == pytest.approx(20.0 + 3 * trial)
    assert play(asked, [LENGTH], [], trials=5, slots=9).time == pytest.approx(trial)


def test_probes_cost_where_they_are_made(tmp_path: Path) -> None:
    asked = toys.experiment(tmp_path, trials=1)
    seldom = replace(LENGTH, probe_every=4)  # in epochs 4, 8, and the last
    assert play(asked, [seldom], [], trials=1, slots=1).time == pytest.approx(0.5 + 9 * 2.0 + 3 * 1.0 + 4.0)


def test_curves_that_never_cross_leave_one_in_three_on_each_rung(tmp_path: Path) -> None:
    asked = toys.experiment(tmp_path, trials=90, **HALVED)
    ranked = [dict.fromkeys(range(1, 10), float(rank)) for rank in range(500)]
    found = play(asked, [LENGTH], ranked, trials=90, slots=4)
    # All see epoch 1, about a third epoch 3; the last rung (9) lies within the decay, so that those go on to the end.
    assert 90 + 0.2 * 90 * 2 < found.epochs < 90 + 0.6 * 90 * 8
    assert found.epochs < 0.6 * 90 * 9
    assert 0 < found.complete < 45


def test_a_long_sweep_of_long_trials_is_played_in_proportion(tmp_path: Path) -> None:
    asked = toys.experiment(tmp_path, trials=100_000)
    long = replace(LENGTH, epochs=1000, last_epoch=800, probe_every=10)
    found = play(asked, [long], curves.modeled(asked, 1000), trials=100_000, slots=8)
    assert 100_000 * 10 < found.epochs < 100_000 * 1000
    none = play(asked, [long], [], trials=100_000, slots=8)
    assert none.epochs == 100_000 * 1000
    assert none.time == pytest.approx(100_000 / 8 * (0.5 + 2000 + 100 + 4), rel=0.01)


def test_minimized_metrics_are_played_alike(tmp_path: Path) -> None:
    up, down = (toys.experiment(tmp_path, trials=40, maximize=maximize, **HALVED) for maximize in (True, False))
    found = [play(one, [LENGTH], curves.modeled(one, 9), trials=40, slots=2).epochs for one in (up, down)]
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_what_earlier_curves_say_comes_true(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("second", 1)):
        asked = toys.experiment(tmp_path, name=name, seed=seed, trials=40, sampler="random", **HALVED)
        conductor = toys.begin(tmp_path / name, asked, toys.space)
        said = None
        if name == "second":
            known = curves.earlier(asked)
            assert len(known) > 20
            length = replace(LENGTH, epochs=6, last_epoch=asked.base.schedule.last_epoch_before_decay(6))
            said = play(asked, [length], known, trials=40, slots=2).epochs
        toys.Executor(conductor, slots=2, seed=seed).run()
    took = sum(trial.last_epoch for trial in conductor.history.trials)
    assert said == pytest.approx(took, rel=0.3)


def test_only_curves_of_the_same_data_and_metric_are_taken_and_broken_journals_are_passed_over(tmp_path: Path) -> None:
    asked = toys.experiment(tmp_path, name="other", trials=8)
    conductor = toys.begin(tmp_path / "one", toys.experiment(tmp_path, name="one", trials=8), toys.space)
    toys.Executor(conductor, slots=1, seed=0).run()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / FILE).write_bytes(b"nothing of ours\n" * 3)
    assert len(curves.earlier(asked)) >= curves.LEAST_CURVES
    assert curves.earlier(asked.model_copy(update={"metric": "probe/knn"})) == []
    assert curves.earlier(asked.model_copy(update={"maximize": False})) == []
    data = asked.base.data.model_copy(update={"manifest": "a" * 64})
    assert curves.earlier(asked.model_copy(update={"base": asked.base.model_copy(update={"data": data})})) == []
    assert curves.earlier(asked.model_copy(update={"storage": str(tmp_path / "none")})) == []
