"""`pretune report` on the command line."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from pretune.analysis import importance
from pretune.display import document
from tests.pretune.cli.command import pretune, synthetic_sweep
from trainers import storage


@pytest.fixture(autouse=True)
def _few_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "HALVES", 4)
    monkeypatch.setattr(importance, "HALVES_OF_FOREST", 2)


def test_the_report_lies_in_the_sweeps_folder_and_is_made_anew(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    for _ in range(2):
        found = pretune("report", "known")
        assert found.exit_code == 0, found.output
        assert found.stdout.splitlines()[0] == "sweeps/known/report.html"
    page = (here / "sweeps" / "known" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert (here / "sweeps" / "known" / "report.md").read_text(encoding="utf-8").count("# Sweep known") == 1
    assert pretune("show", "known").exit_code == 0


def test_it_lies_where_out_says_and_several_lie_here(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "one")
    synthetic_sweep(here / "sweeps" / "two")
    assert pretune("report", "one", "--out", "new/page.html").exit_code == 0
    assert (here / "new" / "page.md").is_file()
    found = pretune("report", "one", "two")
    assert found.stdout.splitlines()[0] == "report-one-two.html"
    assert "Side by side" in (here / "report-one-two.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "no sweep"),
        (["known", "known"], "named twice"),
        (["known", "--out", "mine.html"], "is there already and is no report"),
        (["known", "--out", "page.txt"], "ends in .html"),
        (["known", "broken"], "is corrupt"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(here: Path, arguments: list[str], said: str) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    broken = synthetic_sweep(here / "sweeps" / "broken") / "journal.jsonl"
    content = broken.read_bytes()
    broken.write_bytes(content[:-20] + bytes([content[-20] ^ 4]) + content[-19:])
    (here / "mine.html").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*") if path.is_file()}
    found = pretune("report", *arguments)
    assert found.exit_code == 2
    assert said in found.stderr
    assert before == {path: path.stat().st_mtime_ns for path in here.rglob("*") if path.is_file()}


def test_without_the_extra_it_says_what_to_install(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    monkeypatch.setattr(document, "find_spec", lambda name: None if name == "plotly" else find_spec(name))
    found = pretune("report", "known")
    assert found.exit_code == 2
    assert "pip install 'pretune[report]'" in found.stderr


def test_a_sweep_in_a_bucket_is_reported_beside_its_working_copy(here: Path, bucket: str) -> None:
    synthetic_sweep(here / "elsewhere" / "known")
    lines = (here / "elsewhere" / "known" / "journal.jsonl").read_bytes()
    remote = storage.join(bucket, "known")
    storage.write(storage.join(remote, "journal", "00000001-00000000.jsonl"), lines)
    found = pretune("report", remote)
    assert found.exit_code == 0, found.output
    assert (here / "sweeps" / "known" / "report.html").is_file()
