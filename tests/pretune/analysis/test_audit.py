"""What the audit counts, what it says, and whether its intervals are true."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import simulate_audit
from pretune.analysis import audit
from pretune.cli import kinds
from pretune.core import results
from pretune.core.experiment import StoppingConfig
from pretune.display import tables
from tests import toys
from tests.toys import Executor, begin, space


def test_a_winner_is_better_than_all_that_were_let_live_and_the_better_half_at_least_their_median() -> None:
    found = audit.judge([0.9, 0.5, 0.3, None], [0.4, 0.5, 0.8], condemned=20)
    assert found.winners is not None
    assert found.better_half is not None
    assert (found.audited, found.winners.count, found.better_half.count) == (4, 1, 2)
    # Clopper and Pearson's for 1 of 4, as tables have it.
    assert (found.winners.low, found.winners.high) == pytest.approx((0.0063, 0.8059), abs=1e-4)
    as_good = audit.judge([0.8], [0.8], condemned=1).winners
    assert as_good is not None
    assert (as_good.count, as_good.low, as_good.high) == pytest.approx((0, 0.0, 0.975)), "as good is not better"


def test_of_a_metric_to_minimize_the_smaller_one_wins() -> None:
    found = audit.judge([0.1, 0.7], [0.4, 0.6], condemned=2, maximize=False)
    assert found.winners is not None
    assert found.winners.count == 1


def test_where_nothing_can_be_compared_nothing_is_claimed() -> None:
    assert audit.judge([], [0.5], condemned=3) == audit.Audit(3, 0, 1)
    assert audit.judge([0.5], [], condemned=3).winners is None
    assert "none that was let live is complete yet" in str(tables.audit(audit.judge([0.5], [], condemned=3)))


def test_a_sweep_tells_its_audit_where_one_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    base = toys.BASE.model_copy(update={"epochs": 9})
    for name, rule in (("audited", StoppingConfig(audit=0.5)), ("not", StoppingConfig())):
        made = toys.experiment(tmp_path, name=name, trials=40, sampler="random", base=base, stopping=rule)
        conductor = begin(made.folder, made, space)
        Executor(conductor, slots=2, seed=0).run()
        conductor._journal.close()
    result = results.read(tmp_path / "audited")
    found = audit.of(result)
    assert found is not None
    lived = [trial for trial in result.trials if trial.condemned is not None]
    stopped = [trial for trial in result.trials if trial.state == "PRUNED"]
    assert (found.condemned, found.audited) == (len(lived) + len(stopped), len(lived))
    assert kinds.of(result.experiment).as_json(result)["audit"] == found.as_json()
    text = str(tables.audit(found))
    assert f"{len(lived)} of {found.condemned} condemned trials lived on to their end" in text
    assert audit.of(results.read(tmp_path / "not")) is None


def test_the_intervals_cover_the_truth_of_simulated_studies() -> None:
    for what, _, seen, of_how_many in simulate_audit.rows(12, seed=1):
        assert float(seen.removesuffix(" %")) >= 92.0, f"{what}: {seen} of {of_how_many}"
