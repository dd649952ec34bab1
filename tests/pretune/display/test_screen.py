"""Tables at any width: no number, name or path is cut, and a file has the width of what is in it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, Group
from rich.text import Text

from pretune.display.screen import Rows, console, height, show
from tests.pretune.display.screen import shown

SETTINGS = "kernel=rbf alignment.weight=0.00449 objective.mmd.kernel.coefficients=0.123"
REMARK = "rank 0 raised ValueError: no, in /storage/of/the/laboratory/sweeps/20261122-0301-kernels/trials/0003/log.txt"


def table(*, remark: str = "") -> Rows:
    rows = Rows(["trial", "state", "probe/linear", "settings"], right=["trial", "probe/linear"], wraps=True)
    rows.add("0", "COMPLETE", "0.8712 ± 0.0123", SETTINGS)
    rows.add("12", "FAIL", "–", "kernel=imq", remark=remark)
    return rows


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 200])
def test_no_word_is_cut_at_any_width(width: int) -> None:
    rows = table(remark=REMARK)
    text = shown(rows, width=width)
    words = [*SETTINGS.split(), *REMARK.split(), "0.8712 ± 0.0123", "COMPLETE", "probe/linear", "kernel=imq"]
    assert [word for word in words if word not in text] == []
    if width >= 60:
        assert [line for line in text.splitlines() if len(line) > width and "/storage" not in line] == []


def test_where_there_is_room_settings_stand_beside_their_trial_and_break_between_words() -> None:
    assert shown(table(remark="weak"), width=80).splitlines() == [
        "",
        "trial  state        probe/linear  settings",
        "─" * 73,
        "    0  COMPLETE  0.8712 ± 0.0123  kernel=rbf alignment.weight=0.00449",
        "                                  objective.mmd.kernel.coefficients=0.123",
        "   12  FAIL                    –  kernel=imq",
        "                                  weak",
        "",
    ]


def test_where_there_is_none_they_stand_below_it() -> None:
    assert shown(table(remark="weak"), width=60).splitlines() == [
        "",
        "trial  state        probe/linear",
        "  settings",
        "─" * 41,
        "    0  COMPLETE  0.8712 ± 0.0123",
        "  kernel=rbf alignment.weight=0.00449",
        "  objective.mmd.kernel.coefficients=0.123",
        "   12  FAIL                    –",
        "  kernel=imq",
        "  weak",
        "",
    ]


def test_a_long_path_in_one_reason_leaves_the_other_rows_as_they_are() -> None:
    lines = shown(table(remark=REMARK), width=80).splitlines()
    assert "    0  COMPLETE  0.8712 ± 0.0123  kernel=rbf alignment.weight=0.00449" in lines
    assert "  rank 0 raised ValueError: no, in" in lines
    assert f"  {REMARK.split()[-1]}" in lines


def test_a_table_of_single_words_puts_the_widest_of_them_on_a_line_of_its_own() -> None:
    rows = Rows(["sweep", "space", "trials"], right=["trials"])
    rows.add("20261122-0301-kernels-on-imagenet", "kernels", "3 of 12")
    assert shown(rows, width=60).splitlines()[3] == "20261122-0301-kernels-on-imagenet  kernels  3 of 12"
    assert shown(rows, width=40).splitlines()[-3:-1] == [
        "20261122-0301-kernels-on-imagenet",
        "  kernels  3 of 12",
    ]


def test_a_table_without_rows_has_its_heads() -> None:
    assert shown(Rows(["a", "b"], wraps=True)).split() == ["a", "b", "────"]


def test_what_is_written_to_a_file_is_as_wide_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr("sys.stdout", file)
    monkeypatch.setenv("COLUMNS", "60")
    show(console(), Group(table(remark=REMARK), Text("a word " * 60)))
    lines = file.getvalue().splitlines()
    assert "    0  COMPLETE  0.8712 ± 0.0123  " + SETTINGS in lines
    assert any(line.endswith(REMARK) for line in lines)
    assert lines[-1] == ("a word " * 60).strip()
    assert [line for line in lines if line != line.rstrip()] == []


def test_its_height_is_what_it_takes_of_the_terminal() -> None:
    narrow = Console(file=io.StringIO(), width=40, force_terminal=True)
    lines = shown(table(), width=40).splitlines()
    assert max(map(len, lines)) > 40, "a word that is wider than the terminal takes two of its lines"
    assert height(narrow, table()) == len(lines) + sum(len(line) > 40 for line in lines)
    assert height(narrow, Text("word " * 20)) == 3
    assert narrow.file.getvalue() == ""  # type: ignore[attr-defined]
