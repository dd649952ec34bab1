"""The winner on `report`: each probe beside `select`, and how often the split was read."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pretune.analysis.finalize import Read, ReportReads
from pretune.display.finalize import table
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
