"""What a sweep's end shows of trials that cost differently and of families."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pretune.core import results
from pretune.core.choices import Budget
from pretune.core.experiment import Experiment
from pretune.core.journal import Journal
from pretune.core.records import Asked, Ended, Epoch, Opened, Started
from pretune.display import tables
from tests.pretune.display.screen import shown
from trainers.config import TrialConfig
from trainers.terms import Alignment

BASE = TrialConfig(objective={"alignment": Alignment()}, epochs=3)


def sweep(folder: Path, families: list[tuple[str, list[float], bool]], *, budget: Budget) -> results.SweepResult:
    """Trials of `families`: name, values by epoch, whether it was completed. An epoch takes 40 s."""
    asked = Experiment(name="s", space="mine", base=BASE, trials=9, budget=budget, storage=str(folder))
    with Journal(folder / "s", new=True) as journal:
        journal.append(Opened(experiment=asked))
        for number, (family, values, whole) in enumerate(families):
            config = BASE.model_dump(mode="json")
            journal.append(Asked(number=number, params={"family": family}, distributions={}, config=config))
            journal.append(Started(number=number, attempt=0, epoch=0))
            for epoch, value in enumerate(values, start=1):
                metrics = {"probe/linear": value, "budget/seconds": 40.0 * epoch}
                journal.append(Epoch(number=number, epoch=epoch, metrics=metrics))
            ended = Ended(number=number, state="COMPLETE", value=values[-1]) if whole else None
            journal.append(ended or Ended(number=number, state="PRUNED", reason="weak"))
    return results.read(folder / "s")


FAMILIES = [
    ("simclr", [0.5, 0.7, 0.9], True),
    ("barlow", [0.6, 0.65], False),
    ("simclr", [0.95], False),
    ("barlow", [0.61, 0.66], False),
    ("vicreg", [0.4], False),
]


def test_each_family_shows_its_best_completed_trial_or_in_brackets_how_far_it_got(tmp_path: Path) -> None:
    table = tables.families(sweep(tmp_path, FAMILIES, budget="views"))
    assert table is not None
    lines = shown(table).splitlines()
    rows = [line.split(maxsplit=3) for line in lines[3:] if line.strip()]
    assert [(row[0], row[1], row[2], row[3].strip()) for row in rows] == [
        ("simclr", "2", "1", "0.900"),
        ("barlow", "2", "0", "(0.660 at 2 epochs)"),
        ("vicreg", "1", "0", "(0.400 at 1 epoch)"),
    ]


def test_a_space_without_families_shows_no_such_table(tmp_path: Path) -> None:
    assert tables.families(sweep(tmp_path, [], budget="views")) is None


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_failure_says_what_was_raised_and_the_whole_path_of_its_log(tmp_path: Path, width: int) -> None:
    log = "/storage/of/the/laboratory/sweeps/20261122-0301-kernels/trials/0000/log.txt"
    reason = f"rank 0 raised ValueError: rows must be 3, before its first step; its traceback is in {log}"
    asked = Experiment(name="s", space="mine", base=BASE, trials=1, storage=str(tmp_path))
    with Journal(tmp_path / "s", new=True) as journal:
        journal.append(Opened(experiment=asked))
        journal.append(Asked(number=0, params={"weight": 0.5}, distributions={}, config=BASE.model_dump(mode="json")))
        journal.append(Ended(number=0, state="FAIL", reason=reason))
    text = shown(tables.trials(results.read(tmp_path / "s")), width=width)
    assert log in text
    assert " ".join(text.split()).endswith(reason)


def test_seconds_are_shown_where_epochs_do_not_cost_the_same(tmp_path: Path) -> None:
    by_views = shown(tables.trials(sweep(tmp_path / "a", FAMILIES, budget="views")))
    assert "trained" in by_views
    assert "2 min 00 s" in by_views
    assert "trained" not in shown(tables.trials(sweep(tmp_path / "b", FAMILIES, budget="epochs")))


def test_one_long_command_does_not_push_the_comments_of_the_others_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/nowhere")  # no line that makes the shell know the command
    long = f"pretune show {'folder/' * 20}name"
    told = tables.commands({"pretune show it": "the table", long: "another"}).plain.splitlines()
    assert told[-2:] == ["pretune show it  # the table", f"{long}  # another"]
