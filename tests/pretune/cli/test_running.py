"""A sweep's end on a terminal: what it found is in sight, however many trials there were."""

from __future__ import annotations

import io
import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from pretune.analysis import baselines
from pretune.cli.running import MOST_LISTED, close
from pretune.core import results
from pretune.core.experiment import Experiment
from pretune.core.journal import Journal
from pretune.core.records import Asked, Closed, Ended, Epoch, Opened, Started
from tests.pretune import found
from trainers.config import TrialConfig
from trainers.terms import Alignment

COMPARED = found.COMPARED.model_copy(update={"trial": 39, "images": 450, "best_stderr": 0.01, "pixels": 0.5})


def finished(folder: Path, count: int) -> results.SweepResult:
    """A sweep of `count` trials, the last of which is the best; each has two lines."""
    base = TrialConfig(objective={"alignment": Alignment()}, epochs=1)
    with Journal(folder, new=True) as journal:
        asked = Experiment(name=folder.name, space="mine", base=base, trials=count, storage=str(folder.parent))
        journal.append(Opened(experiment=asked))
        for number in range(count):
            params = {"objective.alignment.weight": number + 0.5}
            journal.append(Asked(number=number, params=params, distributions={}, config=base.model_dump(mode="json")))
            journal.append(Started(number=number, attempt=0, epoch=0))
            journal.append(Epoch(number=number, epoch=1, metrics={"probe/linear": number / 50}))
            journal.append(Ended(number=number, state="COMPLETE", value=number / 50, reason="told in a line"))
        journal.append(Closed(reason="finished"))
    result = results.read(folder)
    results.write_best(result)
    return result


def ending(result: results.SweepResult, monkeypatch: pytest.MonkeyPatch, **terminal: Any) -> list[str]:
    monkeypatch.setattr(sys, "prefix", "/venv")  # where the tests run may have a path of any length
    monkeypatch.setattr(baselines, "compare", lambda _: COMPARED)
    monkeypatch.setattr(Console, "status", lambda *_: nullcontext())
    monkeypatch.chdir(result.folder.parents[1])
    file = io.StringIO()
    with pytest.raises(typer.Exit):
        close(Console(file=file, color_system=None, **terminal), result)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("lines", [24, 30, 50])
def test_a_long_table_is_limited_to_what_the_terminal_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: int
) -> None:
    told = ending(finished(tmp_path / "sweeps" / "long", 40), monkeypatch, width=90, height=lines, force_terminal=True)
    shown = sum("COMPLETE" in line for line in told)
    taken = sum(max(1, math.ceil(len(line) / 90)) for line in told)
    assert lines - 3 <= taken <= lines - 1, "one line is the shell's, and a trial has two"
    assert f"… {40 - shown} more: pretune show long" in told
    rest = "\n".join(told[-12:])
    assert "best, trial 39: 0.780, alignment.weight=39.5" in rest
    assert "same encoder, untrained" in rest
    assert "pretune finalize long" in rest


def test_a_very_small_terminal_shows_the_best_trial_and_what_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = ending(finished(tmp_path / "sweeps" / "s", 40), monkeypatch, width=90, height=5, force_terminal=True)
    assert sum("COMPLETE" in line for line in told) == 1


def test_a_short_table_is_whole_and_so_is_one_in_a_file_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = ending(finished(tmp_path / "sweeps" / "s", 3), monkeypatch, width=90, height=24, force_terminal=True)
    assert sum("COMPLETE" in line for line in told) == 3
    assert not any("more:" in line for line in told)
    told = ending(finished(tmp_path / "sweeps" / "t", 40), monkeypatch, width=200, height=24, force_terminal=False)
    assert sum("COMPLETE" in line for line in told) == MOST_LISTED
