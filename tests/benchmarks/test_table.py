"""The benchmarks' table: what it declares, what becomes of a row, and of one that fails."""

from __future__ import annotations

import ast
import json
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks import __main__ as table
from benchmarks.bounded import ROOT, lines_of
from benchmarks.rows import HEAD, Comparison, Target, line

SECONDS = Comparison("ours is quick", "theirs", "s", Target("times", 10.0), "theirs is quick, too")


def told(*lines: object, then: str = "") -> list[str]:
    """A command that prints these as lines of JSON."""
    program = [f"print({json.dumps(json.dumps(one))}, flush=True)" for one in lines]
    return [sys.executable, "-c", "\n".join([*program, then])]


@pytest.mark.parametrize("name", table.PARTS)
def test_each_row_has_an_alternative_and_a_target_or_a_reason(name: str) -> None:
    part = table.PARTS[name]
    assert part.rows
    assert 0 < part.limit_s <= 600
    for comparison in part.rows.values():
        assert comparison.what
        assert comparison.alternative
        assert comparison.target is not None or comparison.reason


@pytest.mark.parametrize("name", table.PARTS)
def test_each_part_is_a_script_that_yields_the_rows_of_the_table(name: str) -> None:
    # Read, not imported: some take seconds to import.
    tree = ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text())
    (rows,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "rows")
    assert len(rows.args.args) == len(rows.args.defaults)
    assert any(isinstance(node, ast.Yield) for node in ast.walk(rows))
    written = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert written >= table.PARTS[name].rows.keys()


def test_row_names_are_in_one_part_each() -> None:
    names = [row for part in table.PARTS.values() for row in part.rows]
    assert len(names) == len(set(names))


def test_a_row_has_medians_the_ratio_of_each_pair_and_whether_the_target_is_met() -> None:
    cells = SECONDS.cells([1.0, 1.1, 0.9, 1.0, 1.0], [10.0, 12.0, 9.0, 20.0, 11.0], "two cores", 61.0)
    assert line(cells) == (
        "| ours is quick (two cores) | 1 s | theirs: 11 s | 11 times (10 times to 20 times of 5) | at least 10 times "
        "| met | 61 s |"
    )
    assert len(cells) == len(HEAD)


def test_a_missed_target_stands_there_with_the_reason() -> None:
    assert SECONDS.met([1.0], [9.9]) is False
    assert SECONDS.cells([1.0], [9.9], "", 1.0)[5] == "**missed**: theirs is quick, too"


@pytest.mark.parametrize(
    ("comparison", "ours", "theirs", "ratios", "met"),
    [
        (Comparison("", "", "images/s", Target("times", 5.0)), [50.0], [10.0], [5.0], True),
        (Comparison("", "", "s", Target("times", 5.0)), [2.0], [10.0], [5.0], True),
        (Comparison("", "", "bytes", Target("times", 5.1)), [2.0], [10.0], [5.0], False),
        (Comparison("", "", "s", Target("share", 0.1)), [1.0], [20.0], [0.05], True),
        (Comparison("", "", "s", Target("share", 0.1)), [1.0], [5.0], [0.2], False),
        (Comparison("", "", "s", Target("seconds", 1.0)), [0.5], [2.0], [4.0], True),
        (Comparison("", "", "s", Target("seconds", 1.0)), [1.5], [3.0], [2.0], False),
        (Comparison("", "", "s", None, "why"), [1.0], [3.0], [3.0], None),
        # Not as many runs on both sides: each of the alternative's to our median.
        (Comparison("", "", "s", Target("times", 5.0)), [1.0, 2.0, 9.0], [10.0, 20.0], [5.0, 10.0], True),
        (Comparison("", "", "s", Target("times", 5.0)), [2.0], [10.0, 20.0, 30.0], [5.0, 10.0, 15.0], True),
    ],
)
def test_a_ratio_says_how_many_times_better_ours_is_and_a_share_how_much_it_takes(
    comparison: Comparison, ours: list[float], theirs: list[float], ratios: list[float], met: bool | None
) -> None:
    assert comparison.ratios(ours, theirs) == ratios
    assert comparison.met(ours, theirs) is met


def test_a_toy_part_tells_its_row_and_one_that_ends_before_its_last_row_says_why() -> None:
    other = Comparison("the other one", "theirs", "s", None, "no target")
    part = table.Part(60.0, {"quick": SECONDS, "other": other})
    command = told(["quick", [1.0], [20.0], ""], then="raise ValueError('out of | luck')")
    (first, measured), (second, measured_too) = table.rows(part, command)
    assert (first[3], first[5], measured) == ("20 times (one run)", "met", True)
    assert line(second[:-1]) == "| the other one | – | theirs | – |  | **failed**: ValueError: out of / luck |"
    assert not measured_too


def test_a_part_that_takes_too_long_is_ended_and_said_to_be() -> None:
    began = time.monotonic()
    ((cells, measured),) = table.rows(table.Part(1.0, {"quick": SECONDS}), told(then="import time; time.sleep(60)"))
    assert (cells[5], measured) == ("**failed**: not done after 1 s", False)
    assert time.monotonic() - began < 30


def test_a_command_that_is_given_up_ends_with_what_it_started() -> None:
    program = """
import subprocess, sys, time
started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(started.pid, flush=True)
time.sleep(60)
"""
    lines = lines_of([sys.executable, "-c", program], limit_s=60.0)
    pid = int(next(lines))
    lines.close()
    deadline = time.monotonic() + 10.0
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running(pid), "what the command had started"


def running(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_the_table_is_printed_and_a_failed_row_is_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table, "PARTS", {"toy": table.Part(60.0, {"quick": SECONDS})})
    for failed in (False, True):
        cells = SECONDS.failed("why", 1.0) if failed else SECONDS.cells([1.0], [20.0], "", 1.0)
        monkeypatch.setattr(table, "rows", lambda part, command, found=(cells, not failed): [found])
        monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", "toy"])
        assert table.main() == int(failed)
        printed = capsys.readouterr()
        assert printed.out.splitlines()[-3:] == [line(HEAD), line(["---"] * len(HEAD)), line(cells)]
        assert line(cells) in printed.err
        assert "`python -m benchmarks --only toy`" in printed.out
        assert f"torch {metadata.version('torch')}" in printed.out


def test_what_a_script_prints_is_no_row(capfd: pytest.CaptureFixture[str]) -> None:
    script = (
        "import sys, types\n"
        "from benchmarks import __main__ as table\n"
        "def rows():\n"
        "    print('of its own')\n"
        "    yield 'quick', [1.0], [2.0], ''\n"
        "sys.modules['benchmarks.toy'] = types.SimpleNamespace(rows=rows)\n"
        "table.tell('toy')\n"
    )
    assert [json.loads(one) for one in lines_of([sys.executable, "-c", script], limit_s=60.0)] == [
        ["quick", [1.0], [2.0], ""]
    ]
