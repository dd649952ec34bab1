"""The winner on `report`: each probe beside `select`, and how often the split was read."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from rich.console import Group

from pretune.analysis import optimism
from pretune.analysis.candidates import Judged
from pretune.analysis.finalize import Read, ReportReads
from pretune.display.finalize import candidates, gap, summary, table
from tests.pretune.display.screen import shown, words
from trainers.report import Checkpoint


def record(reads: int, on_select: Mapping[str, float] = {}, on_report: Mapping[str, float] = {}) -> ReportReads:
    checkpoint = Checkpoint(path="/epoch-3.pt", sha256="", epoch=3)
    values = {f"probe/{name}": value for name, value in on_select.items()}
    values |= {f"report/{name}": value for name, value in on_report.items()}
    read = Read(time="2026-01-01T00:00:00", trial=7, checkpoint=checkpoint, manifest="0" * 64, metrics=values)
    return ReportReads(sweep="s", metric="probe/linear", searched_value=0.8, report_reads=reads, reads=(read,) * reads)


def test_each_probe_is_shown_on_select_and_on_report() -> None:
    on_select = {"linear": 0.8, "linear_stderr": 0.01}
    on_report = {"linear": 0.75, "linear_stderr": 0.02, "full_linear": 0.9}
    lines = words(table(record(1, on_select, on_report)))
    assert ["trial", "7", "on", "select", "on", "report"] in lines
    assert ["linear", "probe,", "as", "searched", "0.800", "±", "0.010", "0.750", "±", "0.020"] in lines
    assert ["linear", "probe,", "all", "labels", "–", "0.900"] in lines


def test_without_labels_the_health_is_shown_on_select_and_on_report() -> None:
    read = (
        record(1)
        .reads[0]
        .model_copy(update={"metrics": {"health/embedding/std": 0.9, "report/health/embedding/std": 0.8}})
    )
    lines = words(table(record(1).model_copy(update={"reads": (read,)})))
    assert ["embedding,", "std", "0.900", "0.800"] in lines
    assert not any("probe," in line for line in lines)


@pytest.mark.parametrize(
    ("reads", "said"),
    [
        (1, "the report split was read once through this sweep"),
        (3, "the report split was read 3 times through this sweep; only the first was honest"),
    ],
)
def test_how_often_the_split_was_read_is_said(reads: int, said: str) -> None:
    assert said in " ".join(shown(table(record(reads))).split())


def test_the_best_few_are_shown_with_their_places_before_and_now() -> None:
    judged = (
        Judged(trial=7, searched=0.8, values=(0.7, 0.72), mean=0.71, half_width=0.02, place=2),
        Judged(trial=2, searched=0.79, values=(0.75, 0.77), mean=0.76, half_width=0.02, place=1),
        Judged(trial=5, searched=0.78, values=(), reason="trial 4 INFEASIBLE: diverged", place=3),
    )
    read = record(1).reads[0].model_copy(update={"trial": 2, "chosen_by": "seeds", "candidates": judged})
    lines = words(candidates(read, "probe/linear"))
    assert ["2", "0.790", "2", "0.760", "±", "0.020", "1", "up", "1"] in lines
    assert ["7", "0.800", "1", "0.710", "±", "0.020", "2", "down", "1"] in lines
    assert any(line[:4] == ["0", "of", "2;", "trial"] for line in lines)
    assert "mean of 2 seeds" in shown(candidates(read, "probe/linear"))


def test_the_gap_is_said_with_its_interval_and_what_was_expected() -> None:
    found = optimism.gap(
        "probe/linear",
        [0.8, 0.81, 0.83],
        2,
        reported=0.8,
        select_images=200,
        report_images=300,
        baselines={"raw pixels": 0.82},
    )
    text = " ".join(shown(Group(*gap(found))).split())
    assert "select 0.830, report 0.800: the search's score is +0.030 too high [-0.0" in text
    assert "choosing the best of 3 trials on 200 images was expected to add 0.0" in text
    assert "if none of their noise is the same, so at most" in text
    assert "warning: " in text
    read = record(2, {}, {"linear": 0.8, "linear_stderr": 0.02})
    first = read.reads[0].model_copy(update={"optimism": found})
    line = summary(read.model_copy(update={"reads": (first, first)}))
    assert line is not None
    assert line.plain.startswith("finalized: trial 7 on report 0.800 ± 0.020, the search's score +0.030 too high")
    assert "no evidence of a gain; read 2 times" in line.plain
