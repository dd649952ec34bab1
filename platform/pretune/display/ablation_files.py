"""An ablation's files beside the journal: Markdown, LaTeX, CSV, JSON, and a forest plot as PDF and SVG."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretune.analysis.ablation import BUDGETS, Ablation, Interval, collect
from pretune.core.results import SweepResult
from pretune.display.ablation import (
    base_settings,
    effect_cells,
    effect_name,
    legend,
    level_cells,
    level_name,
    markdown,
    remarks,
)
from trainers import storage
from trainers.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLES = ("ablation.md", "ablation.tex", "ablation.csv", "ablation.json")
EFFECTS = "ablation_effects.csv"
PLOTS = ("ablation.pdf", "ablation.svg")
NO_PLOTS = (
    "no plots were written, as matplotlib is not installed; `pip install 'pretune[report]'`, then `pretune show SWEEP "
    "--write`"
)
_COLORS = {"helps": "#1a7f37", "hurts": "#cf222e", "no evidence": "#57606a", "not enough seeds": "#9a6700"}
_OTHERWISE = "#0969da"


def write(result: SweepResult) -> tuple[list[Path], list[str]]:
    """Writes all of them; with a storage URI there as well. Returns where they lie here, and what was left out and why.

    OSError where the disk is full.
    """
    ablation = collect(result, bootstrap=True)
    contents: dict[str, bytes] = {
        "ablation.md": markdown(ablation).encode(),
        "ablation.tex": latex(ablation).encode(),
        "ablation.csv": levels_csv(ablation).encode(),
        "ablation.json": (ablation.model_dump_json(indent=2) + "\n").encode(),
    }
    if ablation.effects:
        contents[EFFECTS] = effects_csv(ablation).encode()
    left_out: list[str] = []
    try:
        contents |= plots(ablation)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        left_out.append(NO_PLOTS.replace("SWEEP", shlex.quote(result.name)))
    for name, content in contents.items():
        write_whole(result.folder / name, content)
        if result.remote is not None:
            storage.write(storage.join(result.remote, name), content)
    return [result.folder / name for name in contents], left_out


# --- tables -----------------------------------------------------------------------------------------------------------


def latex(ablation: Ablation) -> str:
    r"""A table that a paper takes in with `\input`, for the package booktabs; a second one of a grid's effects."""
    parts = [_latex_table(ablation, *level_cells(ablation), label="ablation")]
    if ablation.effects:
        parts.append(_latex_table(ablation, *effect_cells(ablation), label="effects"))
    said = [base_settings(ablation), *remarks(ablation), legend(ablation)]
    notes = [f"% {line}" for text in said for line in text.splitlines()]
    return "\n".join(["% Needs \\usepackage{booktabs}.", *notes, *parts]) + "\n"


def levels_csv(ablation: Ablation) -> str:
    """A row a level, numbers to full precision, and the value of each seed; an empty cell where there is none."""
    paths = list(dict.fromkeys(path for level in ablation.levels for path in level.settings))
    seeds = sorted({seed for level in ablation.levels for seed in level.values})
    head = [
        "level",
        *paths,
        "seeds",
        "mean",
        "std",
        *_ends("mean"),
        "difference",
        "stderr",
        "pairs",
        *_ends("interval"),
    ]
    head += [
        *_ends("bootstrap"),
        "p",
        "verdict",
        "views",
        "seconds",
        "not counted",
        *(f"seed {seed}" for seed in seeds),
    ]
    rows: list[list[object]] = [
        [
            level_name(ablation, level),
            *(_plain(level.settings.get(path)) for path in paths),
            len(level.values),
            level.mean,
            level.std,
            *_pair(level.mean_interval),
            level.difference,
            level.difference_stderr,
            level.pairs,
            *_pair(level.interval),
            *_pair(level.bootstrap),
            level.p,
            level.verdict,
            *(level.budget.get(name) for name in BUDGETS),
            level.refused or "; ".join(f"seed {seed}: {reason}" for seed, reason in level.reasons.items()),
            *(level.values.get(seed) for seed in seeds),
        ]
        for level in ablation.levels
    ]
    return _csv(head, rows)


def effects_csv(ablation: Ablation) -> str:
    """A row for each main effect and interaction of a grid."""
    rows: list[list[object]] = [
        [
            effect_name(ablation, effect),
            len(effect.levels),
            effect.seeds,
            effect.difference,
            *_pair(effect.interval),
            effect.p,
        ]
        for effect in ablation.effects
    ]
    return _csv(["effect", "factors", "seeds", "difference", *_ends("interval"), "p"], rows)


def _csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    return text.getvalue()


def _ends(of: str) -> list[str]:
    return [f"{of} low", f"{of} high"]


def _pair(interval: Interval | None) -> list[float | None]:
    return [None, None] if interval is None else list(interval)


def _plain(value: object) -> object:
    return json.dumps(value) if isinstance(value, dict | list | tuple | bool) else value


def _latex_table(ablation: Ablation, head: Sequence[str], rows: Sequence[Sequence[str]], *, label: str) -> str:
    columns = "l" + "r" * (len(head) - 2) + ("l" if head[-1] == "verdict" else "r")
    lines = [
        f"\\begin{{tabular}}{{{columns}}}  % {ablation.name}: {label}".replace("\n", " "),
        "  \\toprule",
        f"  {_latex_row(head)}",
        "  \\midrule",
        *(f"  {_latex_row(row)}" for row in rows),
        "  \\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines)


_LATEX = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
    "|": r"\textbar{}",
    "²": "$^2$",
    "\n": " ",
}


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(latex_text(cell) for cell in cells) + r" \\"


def latex_text(text: str) -> str:
    """Signs of numbers are minus signs; an interval's bracket must not be taken for an argument of the row before."""
    escaped = "".join(_LATEX.get(letter, letter) for letter in text)
    number = text[:1] in "+-" and text[1:].replace(".", "").isdigit()
    if number:
        return f"${escaped}$"
    if text.startswith("["):
        return f"{{}}${escaped}$"
    return escaped


# --- plots ------------------------------------------------------------------------------------------------------------


def plots(ablation: Ablation) -> dict[str, bytes]:
    """The forest plot as PDF and as SVG, equal for equal numbers. ModuleNotFoundError without matplotlib."""
    import matplotlib

    found: dict[str, bytes] = {}
    settings: dict[Any, Any] = {"svg.hashsalt": "pretune", "svg.fonttype": "none", "pdf.fonttype": 42, "font.size": 9.0}
    with matplotlib.rc_context({"text.usetex": False, "text.parse_math": False, **settings}):
        figure = forest(ablation)
        for name in PLOTS:
            kind = name.rpartition(".")[2]
            content = io.BytesIO()
            metadata = {"CreationDate": None} if kind == "pdf" else {"Date": None}
            figure.savefig(content, format=kind, bbox_inches="tight", metadata=metadata)
            found[name] = content.getvalue()
    return found


def forest(ablation: Ablation) -> Figure:
    """Each level's difference to the base with its 95 % interval, each seed's as a dot; below, a grid's effects."""
    from matplotlib.figure import Figure

    base = ablation.levels[0].values
    levels = [level for level in ablation.levels[1:] if level.difference is not None]
    count = len(levels) + len(ablation.effects)
    figure = Figure(figsize=(6.5, 1.0 + 0.32 * max(1, count)))
    axes = figure.subplots()
    labels: list[str] = []
    for row, level in enumerate(levels):
        assert level.difference is not None, "those without are left out"
        color = _COLORS.get(level.finding or "", _OTHERWISE)
        dots = [value - base[seed] for seed, value in level.values.items() if seed in base]
        axes.plot(dots, [row] * len(dots), "|", color=color, alpha=0.5, markersize=9)
        _draw(axes, row, level.difference, level.interval, color)
        labels.append(
            f"{level_name(ablation, level)}\n{level.verdict}" if level.verdict else level_name(ablation, level)
        )
    for row, effect in enumerate(ablation.effects, start=len(levels)):
        _draw(axes, row, effect.difference, effect.interval, _OTHERWISE)
        labels.append(effect_name(ablation, effect))
    axes.axvline(0.0, color="black", linewidth=0.8)
    worth = ablation.smallest_effect
    if worth is not None:
        axes.axvspan(-worth, worth, color="black", alpha=0.07, linewidth=0.0)
    axes.set_yticks(range(count), labels)
    axes.set_ylim(max(1, count) - 0.5, -0.5)
    better = "higher" if ablation.direction == "maximize" else "lower"
    axes.set_xlabel(f"difference in {ablation.metric} to the base ({better} is better)")
    if not count:
        axes.text(0.5, 0.5, "no pairs of seeds to compare yet", ha="center", va="center", transform=axes.transAxes)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def _draw(axes: Axes, row: int, difference: float, interval: Interval | None, color: str) -> None:
    if interval is not None:
        axes.plot(interval, [row, row], "-", color=color, linewidth=1.6)
    axes.plot([difference], [row], "o", color=color, markersize=5)
