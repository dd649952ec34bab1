"""What an ablation leaves beside its journal: tables that a paper takes in, numbers for a program, and plots."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pretune.analysis import ablation
from pretune.display.ablation import markdown
from pretune.display.ablation_files import effects_csv, latex, levels_csv, plots, write
from tests.pretune.analysis.ablations import asked, run

WEIGHT = "objective.variance.weight"


def grid(folder: Path) -> Any:
    design = asked(f"{WEIGHT}=0", "epochs=9", grid=True, seeds=3)
    return run(
        folder, design, lambda level, seed: None if (level, seed) == (0, 2) else 0.5 + level / 50 + seed / 99 * level
    )


def test_all_tables_and_plots_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = grid(tmp_path / "a")
    written, left_out = write(result)
    tables = [f"ablation.{kind}" for kind in ("md", "tex", "csv", "json")]
    names = [*tables, "ablation_effects.csv", "ablation.pdf", "ablation.svg"]
    assert ([path.name for path in written], left_out) == (names, [])
    assert (result.folder / "ablation.md").read_text(encoding="utf-8") == markdown(ablation.collect(result))
    told = json.loads((result.folder / "ablation.json").read_text())
    assert told["levels"][2]["difference"] == pytest.approx(ablation.collect(result).levels[2].difference)
    assert (result.folder / "ablation.pdf").read_bytes().startswith(b"%PDF")
    assert "variance.weight=0" in (result.folder / "ablation.svg").read_text()


def test_without_matplotlib_the_rest_is_written_and_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    written, left_out = write(grid(tmp_path / "a"))
    assert [path.name for path in written][-1] == "ablation_effects.csv"
    assert "pip install 'pretune[report]'" in left_out[0]
    assert "pretune show a --write" in left_out[0]


def test_plots_of_equal_numbers_are_equal_and_none_is_too_few(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = ablation.collect(grid(tmp_path / "a"))
    assert plots(found) == plots(found)
    nothing = ablation.collect(run(tmp_path / "b", asked(f"{WEIGHT}=0"), []))
    assert b"no pairs of seeds" in plots(nothing)["ablation.svg"]


def test_latex_escapes_what_it_would_stumble_over(tmp_path: Path) -> None:
    design = asked(levels=["50% & a_b $x^2$ {#}~\\:epochs=9"], seeds=2)
    text = latex(ablation.collect(run(tmp_path / "a", design, [0.5, 0.61, 0.5, 0.62])))
    assert r"50\% \& a\_b \$x\textasciicircum{}2\$ \{\#\}\textasciitilde{}\textbackslash{} & 2 & " in text
    assert r" & $+0.115$ & {}$[+0.051, +0.179]$ & " in text
    assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == 1
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {row.count(" & ") for row in rows} == {6}


def test_csv_has_every_number_in_full(tmp_path: Path) -> None:
    found = ablation.collect(grid(tmp_path / "a"))
    rows = list(csv.DictReader(io.StringIO(levels_csv(found))))
    assert [float(row["mean"]) for row in rows] == [level.mean for level in found.levels]
    assert (rows[0]["difference"], rows[0]["seed 2"], rows[0]["not counted"]) == (
        "",
        "",
        "seed 2: INFEASIBLE: diverged: loss/total",
    )
    assert (rows[1][WEIGHT], rows[1]["epochs"]) == ("25.0", "9")
    effects = list(csv.DictReader(io.StringIO(effects_csv(found))))
    assert [row["factors"] for row in effects] == ["1", "1", "2"]
    assert float(effects[0]["difference"]) == found.effects[0].difference
