"""`pretune finalize --seeds`: runs that go on where they were ended, before anything is read on report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pretune import sweep as sweeps
from pretune.analysis import finalize
from pretune.core import results
from pretune.core.experiment import Experiment
from pretune.core.points import unvaried
from tests import toys
from tests.pretune.analysis.test_finalize import data, no_refits, on, quick_probes, sweep_of
from tests.pretune.cli.command import pretune
from trainers.data import datasets, report_reads

__all__ = ["data", "no_refits", "quick_probes"]


def run_for(trials: int) -> Any:
    """In the place of `sweep.run` and `sweep.resume`: toy trials, of which so many end before Ctrl-C."""

    def run(experiment: Any, **given: Any) -> results.SweepResult:
        new = isinstance(experiment, Experiment)
        folder = experiment.folder if new else experiment
        conductor = toys.begin(folder, experiment, unvaried) if new else toys.again(folder, unvaried)
        done = 0
        while (handout := conductor.next()) is not None:
            if done == trials:
                break
            conductor.started(handout.number)
            conductor.reported(toys.row(handout, 1, metrics={"probe/linear": 0.1 * handout.number}))
            conductor.ended(toys.row(handout, 1, outcome="complete"))
            done += 1
        whole = conductor.finished
        conductor.close("finished" if whole else "interrupted", "" if whole else "SIGINT")
        conductor._journal.close()
        return results.read(folder)

    return run


@pytest.mark.usefixtures("quick_probes", "no_refits")
def test_ctrl_c_ends_the_runs_before_anything_is_read_and_the_same_command_goes_on(
    tmp_path: Path, data: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = sweep_of(tmp_path, on(data), 3)
    command = ("finalize", str(result.folder), "--top", "2", "--seeds", "2")

    monkeypatch.setattr(sweeps, "run", run_for(1))
    ended = pretune(*command)
    assert ended.exit_code == 130, ended.output
    assert "nothing was read on report, and the same command goes on" in ended.stderr
    assert not result.reads_file.exists()
    assert report_reads.known(str(data.folder)) == []

    monkeypatch.setattr(sweeps, "run", None)  # what was begun goes on
    monkeypatch.setattr(sweeps, "resume", run_for(9))
    done = pretune(*command)
    assert done.exit_code == 0, done.output
    assert "mean of 2 seeds" in done.stdout
    found = finalize.stored(result)
    assert found is not None
    (read,) = found.reads
    assert (read.trial, read.chosen_by) == (1, "seeds"), "the later run of each seed scores more"
    assert [one.values for one in read.candidates] == [pytest.approx((0.0, 0.2)), pytest.approx((0.1, 0.3))]
    assert results.read(tmp_path / "sweeps" / "known-top2-seeds2").closed == "finished"

    monkeypatch.setattr(sweeps, "resume", None)  # nothing is left to run
    assert pretune(*command).exit_code == 2, "it was read before"
    assert pretune(*command, "--again").exit_code == 0


def test_slots_without_seeds_are_refused(tmp_path: Path, data: datasets.Dataset) -> None:
    result = sweep_of(tmp_path, on(data), 1)
    told = pretune("finalize", str(result.folder), "--slots", "2")
    assert told.exit_code == 2
    assert "add --seeds N" in told.stderr
