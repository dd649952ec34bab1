"""The report: everything is in it, nothing breaks it, nothing of the user's is overwritten."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pretune.analysis import account, importance
from pretune.core import results
from pretune.core.forecast import Forecast
from pretune.core.journal import Journal
from pretune.core.records import Asked, Ended, Opened, Started
from pretune.display import document, report
from tests.pretune.cli.command import synthetic_sweep
from tests.pretune.display.searched import searched

STORED = Path(__file__).resolve().parents[2] / "stored" / "sweeps"


@pytest.fixture(autouse=True)
def _few_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "HALVES", 8)
    monkeypatch.setattr(importance, "HALVES_OF_FOREST", 2)


def told(*folders: Path) -> document.Document:
    return report.document([account.of(results.read(folder)) for folder in folders], now=1_700_000_000.0)


def both(*folders: Path) -> tuple[str, str]:
    """The page without plotly's own code, and the Markdown."""
    found = told(*folders)
    page = document.as_html(found)
    return re.sub(r"<script>.*?</script>", "", page, flags=re.S), document.as_markdown(found)


def titles(found: document.Document) -> list[str]:
    return [section.title for section in found.sections]


def test_a_search_is_told_from_the_question_to_the_command(tmp_path: Path) -> None:
    page, markdown = both(searched(tmp_path / "known", trials=40))
    for text in (page, markdown):
        for part in (
            "The question", "The best trials", "95 % interval", "How trials learned, and which were stopped",
            "What matters", "PED-ANOVA", "fANOVA", "What went wrong", "loss/mmd was not finite at step 3",
            "What it cost", "The winner", "objective.alignment.weight", "To do it again",
            "pretune sweep kernels --trials 40 --name known", "768522967fe3", "2.14.1",
        ):  # fmt: skip
            assert part in text, part
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, flags=re.S)[1])  # type: ignore[index]
    kinds = {trace["type"] for figure in figures for trace in figure["data"]}
    assert kinds == {"scatter", "contour", "bar"}
    assert page.count('role="img"') == len(figures)


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    page, _ = both(searched(tmp_path / "known", trials=12))
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href)=["'](?!#)""", page)


def test_what_users_wrote_is_no_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> | `x` [a](http://b) ${1} {{ 2 }}"
    page, markdown = both(searched(tmp_path / "known", trials=40, reason=evil))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 2 }}" in page, "as it was written"
    assert "<script>" not in markdown
    assert "\\[a\\](http://b)" in markdown, "no link"
    assert document.label("<b>x</b> & y") == "&lt;b&gt;x&lt;/b&gt; &amp; y"


@pytest.mark.parametrize("name", ["complete", "interrupted", "ablation"])
def test_stored_sweeps_are_reported(tmp_path: Path, name: str) -> None:
    shutil.copytree(STORED / name, tmp_path / name)
    page, markdown = both(tmp_path / name)
    assert name in page
    assert "What it cost" in markdown
    if name == "complete":
        assert "Nothing is said here: too few trials" in markdown
        assert "the same network, untrained" in markdown
    if name == "ablation":
        assert "The levels" in markdown
        assert "widths=" in markdown


def test_a_sweep_that_runs_says_so_with_the_time(tmp_path: Path) -> None:
    folder = synthetic_sweep(tmp_path / "known", closed=None)
    with Journal(folder, new=False):
        found = told(folder)
    [warning] = found.warnings
    assert re.search(r"known was still running when this was made, at 20\d\d-\d\d-\d\d", warning)


def empty(folder: Path, states: list[str]) -> Path:
    """A sweep of trials without parameters that ended so, before their first epoch."""
    with Journal(folder, new=True) as journal:
        source = results.read(synthetic_sweep(folder.parent / "source")).experiment
        journal.append(Opened(experiment=source.model_copy(update={"name": folder.name})))
        for number, state in enumerate(states):
            journal.append(
                Asked(number=number, params={}, distributions={}, config=source.base.model_dump(mode="json"))
            )
            journal.append(Started(number=number, attempt=0, epoch=0))
            if state != "RUNNING":
                value = 0.5 if state == "COMPLETE" else None
                end = {"number": number, "state": state, "reason": "" if value else "because", "value": value}
                journal.append(Ended.model_validate(end))
    return folder


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ([], "No trial was started yet"),
        (["RUNNING"], "No trial was completed"),
        (["COMPLETE"], "No setting varies among the trials"),
        (["INFEASIBLE"] * 12, "all were infeasible"),
        (["FAIL", "PRUNED"], "No trial was completed"),
    ],
)
def test_a_sweep_with_little_to_tell_is_told_all_the_same(tmp_path: Path, states: list[str], said: str) -> None:
    page, markdown = both(empty(tmp_path / "bare", states))
    assert said in page
    assert said in markdown


def test_without_labels_and_where_less_is_better_no_interval_is_made_up(tmp_path: Path) -> None:
    folder = searched(tmp_path / "known", trials=30, metric="loss/total", maximize=False, labels=False)
    found = told(folder)
    assert "looking for the lowest loss/total" in found.lead[0]
    assert "interval" not in found.lead[1]
    curves = next(block for section in found.sections for block in section.blocks if isinstance(block, document.Figure))
    assert curves.data


def test_several_are_compared_with_what_they_differ_in(tmp_path: Path) -> None:
    one = searched(tmp_path / "one", trials=12)
    other = searched(tmp_path / "other", trials=15, seed=1, base={"batch_size": 32})
    page, markdown = both(one, other)
    assert "Side by side" in page
    row = next(line for line in markdown.splitlines() if line.startswith("| batch_size"))
    assert row == "| batch_size | 64 | 32 |"
    assert "| trials | 12 | 15 |" in markdown
    loss = searched(tmp_path / "loss", trials=4, metric="loss/total", maximize=False)
    assert any(
        "different metrics" in block.text
        for block in told(one, loss).sections[0].blocks
        if isinstance(block, document.Text)
    )


def test_forecast_and_fact_stand_there_only_where_there_was_one(tmp_path: Path) -> None:
    result = results.read(synthetic_sweep(tmp_path / "known"))
    assert "Forecast and fact" not in titles(report.document([account.of(result)]))
    said = Forecast(trials=4, epochs=16, slots=1, seconds=3600.0)
    found = report.document([account.of(replace(result, forecast=said))])
    assert "Forecast and fact" in titles(found)
    assert "1 h 00 min" in document.as_markdown(found)


def test_of_a_thousand_trials_the_page_has_less_than_six_megabytes(tmp_path: Path) -> None:
    found = told(searched(tmp_path / "large", trials=1_000, epochs=6))
    page = document.as_html(found)
    assert len(page.encode()) < 6_000_000
    curves = next(
        block
        for section in found.sections
        for block in section.blocks
        if isinstance(block, document.Figure) and block.title == "Learning curves"
    )
    assert "Of " in curves.says
    assert sum(trace["x"].count(None) for trace in curves.data) <= 200


def test_a_file_of_the_users_own_is_not_overwritten_and_a_report_is(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    report.check_target(path)
    path.write_text("<!doctype html><p>mine")
    with pytest.raises(ValueError, match=r"page\.html is there already and is no report"):
        report.check_target(path)
    report.write(told(synthetic_sweep(tmp_path / "known")), tmp_path / "other.html")
    report.check_target(tmp_path / "other.html")
    (tmp_path / "other.md").write_text("# mine")
    with pytest.raises(ValueError, match=r"other\.md is there already"):
        report.check_target(tmp_path / "other.html")
    with pytest.raises(ValueError, match=r"must name a file that ends in \.html"):
        report.check_target(tmp_path / "page.pdf")
    with pytest.raises(ValueError, match="is a file"):
        report.check_target(path / "below.html")


def test_costs_are_split_into_what_they_were_spent_on(tmp_path: Path) -> None:
    spent = account.of(results.read(searched(tmp_path / "known", trials=20))).cost
    assert spent.training == 4.0 * spent.probing
    assert spent.starting > 0.0
    assert spent.other >= 0.0
    assert spent.training + spent.probing + spent.starting + spent.other == pytest.approx(spent.whole)
    assert spent.memory == {"memory/slot_bytes": 3e8}
