"""Protocols x checkpoints: read from beside the checkpoints, the best trial first, as HTML, Markdown and LaTeX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pretune.analysis import account, evaluate, evaluated, importance
from pretune.core import results
from pretune.display import protocols, report
from pretune.display.document import Table, as_html, as_markdown
from tests.pretune.display.searched import searched
from trainers.evaluation.protocol import ProtocolResult, Score


def result(subject: str, value: float, *, split: Any = "select", seeds: int = 1, **numbers: Any) -> ProtocolResult:
    score = Score(
        measure="knn20/top1", value=value, per_seed=(value,) * seeds, interval=(value - 0.02, value + 0.02), count=297
    )
    return ProtocolResult(
        protocol={"name": "knn", "version": 1, "temperature": 0.07, **numbers},
        subject=subject,
        digest="0" * 64,
        data="digits_100%",
        manifest="1" * 64,
        split=split,
        seeds=tuple(range(seeds)),
        fitted=997,
        scores=(score, score.model_copy(update={"measure": "knn5/top1", "interval": None})),
    )


def write(sweep: Path, trial: int, epoch: int, name: str, found: ProtocolResult) -> None:
    folder = sweep / "trials" / f"{trial:04d}" / "checkpoints" / f"epoch-{epoch:04d}{evaluate.FOLDER}"
    evaluate.write(str(folder / f"{name}.json"), found.model_dump_json().encode())


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(importance, "HALVES", 4)
    monkeypatch.setattr(importance, "HALVES_OF_FOREST", 2)
    return searched(tmp_path / "known", trials=12)


def test_results_beside_the_checkpoints_are_found_the_best_trials_first(sweep: Path) -> None:
    found = results.read(sweep)
    complete = [trial.id for trial in found.ranked() if trial.state == "COMPLETE"]
    best, next_one = complete[:2]
    write(sweep, next_one, 4, "knn-a", result("known/1", 0.7))
    write(sweep, best, 6, "knn-a", result("known/0", 0.8))
    write(sweep, best, 6, "knn-b", result("known/0, untrained", 0.3))
    (sweep / "trials" / f"{best:04d}" / "checkpoints" / f"epoch-0006{evaluate.FOLDER}" / "mine.json").write_text("{}")
    write(sweep, 999, 1, "knn-a", result("of no trial", 0.1))
    told = evaluated.of(found)
    assert [one.checkpoint for one in told] == [
        f"trial {best}, epoch 6",
        f"trial {best}, untrained",
        f"trial {next_one}, epoch 4",
    ]
    head, rows, left_out = protocols.table(told)
    assert head == [*protocols.FIXED, *(one.checkpoint for one in told)]
    assert rows[0][:6] == ["knn", "knn20/top1", "digits_100%", "select", "297", "1"]
    assert rows[0][6:] == ["0.8000 [0.7800, 0.8200]", "0.3000 [0.2800, 0.3200]", "0.7000 [0.6800, 0.7200]"]
    assert rows[1][6] == "0.8000"
    assert left_out == 0


def told(*found: tuple[int, ProtocolResult]) -> list[evaluated.Evaluated]:
    return [evaluated.Evaluated(trial, 3, False, one) for trial, one in found]


def test_results_that_differ_in_a_number_or_in_seeds_have_rows_of_their_own() -> None:
    found = told(
        (0, result("a", 0.5)),
        (0, result("a", 0.6, temperature=0.1)),
        (0, result("a", 0.7, seeds=3)),
        (0, result("a", 0.8, split="report")),
    )
    _, rows, _ = protocols.table(found)
    shown = [(row[0], row[3], row[5], row[6][:6]) for row in rows if row[1] == "knn20/top1"]
    assert shown == [
        ("knn, temperature 0.07", "select", "1", "0.5000"),
        ("knn, temperature 0.1", "select", "1", "0.6000"),
        ("knn, temperature 0.07", "select", "3", "0.7000"),
        ("knn, temperature 0.07", "report", "1", "0.8000"),
    ]
    assert "read once" in str(protocols.blocks(found))
    (table,) = [block for block in protocols.blocks(found) if isinstance(block, Table)]
    assert [row[0] for row in table.rows[:4]] == ["knn, temperature 0.07", "", "knn, temperature 0.1", ""]


def test_more_checkpoints_than_fit_are_counted() -> None:
    found = told(*((trial, result("a", 0.5)) for trial in range(9)))
    head, _, left_out = protocols.table(found)
    assert (len(head), left_out) == (len(protocols.FIXED) + protocols.CHECKPOINTS, 3)
    assert "The 3 checkpoints of the lowest trials are left out" in str(protocols.blocks(found))


def test_the_table_for_latex_has_booktabs_and_escapes() -> None:
    text = protocols.latex(told((0, result("a", 0.5))))
    assert text.startswith("% Needs \\usepackage{booktabs}.")
    assert r"knn & knn20/top1 & digits\_100\% & select & 297 & 1 & 0.5000 [0.4800, 0.5200] \\" in text
    assert r" & knn5/top1 & digits\_100\% & select & 297 & 1 & 0.5000 \\" in text.splitlines()
    assert [line for line in text.splitlines() if line.endswith("rule")] == [r"\toprule", r"\midrule", r"\bottomrule"]


def test_a_report_has_the_table_where_there_are_results_and_else_not(sweep: Path) -> None:
    assert "By the papers" not in as_markdown(report.document([account.of(results.read(sweep))]))
    best = results.read(sweep).best
    assert best is not None
    write(sweep, best, 6, "knn-a", result("known/0", 0.8))
    document = report.document([account.of(results.read(sweep))])
    for text in (as_markdown(document), as_html(document)):
        assert "By the papers&#39; protocols" in text or "By the papers' protocols" in text
        assert "0.8000 [0.7800, 0.8200]" in text.replace("\\[", "[").replace("\\]", "]")
        assert r"\toprule" in text
