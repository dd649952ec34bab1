"""`pretune stop` and `pretune enqueue`, where no driver runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pretune.cli import resume
from pretune.core import results
from pretune.core.journal import Journal, read
from pretune.core.records import Asked, Closed, Epoch, Opened, Started
from tests.pretune.cli.command import pretune, synthetic_sweep

POINT = ["objective.mmd.kernel=rbf", "objective.mmd.kernel.gamma=2", "objective.alignment.weight=0.5"]


@pytest.fixture
def interrupted(here: Path) -> Path:
    """A sweep whose one trial has a report and no end."""
    synthetic_sweep(here / "elsewhere" / "template")
    opened = read(here / "elsewhere" / "template")[0]
    assert isinstance(opened, Opened)
    config = opened.experiment.base.model_dump(mode="json")
    with Journal(here / "sweeps" / "mine", new=True) as journal:
        journal.append(opened.model_copy(update={"versions": {}, "sources": {}}))
        journal.append(Asked(number=0, params={"gamma": 1.0}, distributions={}, config=config))
        journal.append(Started(number=0, attempt=0, epoch=0))
        journal.append(Epoch(number=0, epoch=1, metrics={"probe/linear": 0.25}))
        journal.append(Closed(reason="interrupted"))
    return here / "sweeps" / "mine"


def test_a_trial_is_stopped_and_says_so_everywhere(interrupted: Path) -> None:
    done = pretune("stop", "mine", "0", "--reason", "its  loss\ngoes up")
    assert done.exit_code == 0, done.output
    assert "trial 0 has ended (PRUNED: stopped by hand: its loss goes up); written into its journal" in done.stdout
    assert "stopped by hand: its loss goes up" in pretune("show", "mine").stdout
    assert "told to end: its loss goes up" in pretune("show", "mine", "0").stdout
    again = pretune("stop", "mine", "0")
    assert again.exit_code == 2
    assert "has ended already" in again.stderr
    assert pretune("stop", "mine", "7").exit_code == 2
    assert pretune("stop", "nothing", "0").exit_code == 2


def test_a_trial_that_has_trained_all_its_epochs_is_not_stopped_any_more(interrupted: Path) -> None:
    with Journal(interrupted, new=False) as journal:
        for epoch in range(2, 9):
            journal.append(Epoch(number=0, epoch=epoch, metrics={"probe/linear": 0.25}))
    done = pretune("stop", "mine", "0")
    assert done.exit_code == 0, done.output
    assert "trial 0 has trained all its epochs and is complete when the sweep goes on" in done.stdout
    assert results.read(interrupted).trials[0].state != "PRUNED"


def test_a_configuration_is_handed_in_and_waits_for_the_resume(
    interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = pretune("enqueue", "mine", *POINT)
    assert done.exit_code == 0, done.output
    assert "handed in: " in done.stdout
    assert "pretune resume mine" in done.stdout
    beside = pretune("enqueue", "mine", "optimizer.learning_rate=0.07")
    assert "the sampler does not learn from it" in beside.stdout
    result = results.read(interrupted)
    assert (result.asked, result.enqueued) == (5, 2)
    few = pretune("resume", "mine", "--trials", "2", "--accept-changes")
    assert "--trials must be at least 3" in few.stderr
    # A finished sweep with something handed in is no longer done.
    pretune("stop", "mine", "0")
    with Journal(interrupted, new=False) as journal:
        journal.append(Closed(reason="finished"))
    called: list[Any] = []
    monkeypatch.setattr(resume, "run_sweep", lambda *arguments, **named: called.append(arguments))
    on = pretune("resume", "mine", "--accept-changes")
    assert on.exit_code == 0, on.output
    assert called


def test_what_cannot_be_handed_in_leaves_the_journal_as_it_was(interrupted: Path) -> None:
    before = (interrupted / "journal.jsonl").read_bytes()
    for typed in (["batch_size=0"], ["nothing"], ["objective.mmd.kernel=rbf"], []):
        refused = pretune("enqueue", "mine", *typed)
        assert refused.exit_code == 2, refused.output
    stored = Path(__file__).parents[2] / "stored" / "sweeps" / "ablation"
    assert "is an ablation" in pretune("enqueue", str(stored), "batch_size=8").stderr
    assert (interrupted / "journal.jsonl").read_bytes() == before
