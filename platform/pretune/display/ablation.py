"""An ablation's table: for a terminal, as Markdown, and in the files that a driver leaves beside the journal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from pretune.analysis.ablation import Ablation, Level, collect
from pretune.core.results import SweepResult
from pretune.display import format
from pretune.display.screen import Rows
from trainers import storage
from trainers.files import write_whole

FILES = ("ablation.md", "ablation.json")
LEGEND = (
    "std: standard deviation over seeds. to base: mean difference over pairs of equal seeds (same order, views and "
    "initial weights) ± its standard error. No trial is stopped early."
)


def table(result: SweepResult) -> RenderableType:
    """The levels for a terminal: mean, std over seeds, paired difference to the base."""
    ablation = collect(result)
    head, rows = cells(ablation)
    shown = Rows(head, right=head[1:])
    for position, row in enumerate(rows):
        shown.add(*row, style="bold" if position == 0 else "")
    parts: list[RenderableType] = [shown, Text(LEGEND, style="dim")]
    parts += [Text(line, style="yellow") for line in remarks(ablation)]
    return Group(*parts)


def markdown(ablation: Ablation) -> str:
    """The same table in Markdown, for a paper's draft or an issue."""
    head, rows = cells(ablation)
    lines = [f"# {ablation.name}", "", f"Recipe: {ablation.recipe}", ""]
    lines += [_markdown_row(head), _markdown_row([":--", *["--:"] * (len(head) - 1)]), *map(_markdown_row, rows)]
    lines += ["", LEGEND]
    lines += ["", *(f"* {line}" for line in remarks(ablation))] if remarks(ablation) else []
    return "\n".join(lines) + "\n"


def write(result: SweepResult) -> list[Path]:
    """Writes the table as Markdown and as JSON; with a storage URI there as well. Returns where they lie here."""
    found = collect(result)
    paths = [result.folder / name for name in FILES]
    contents = (markdown(found), found.model_dump_json(indent=2) + "\n")
    for path, content in zip(paths, contents, strict=True):
        write_whole(path, content)
        if result.remote is not None:
            storage.write(storage.join(result.remote, path.name), content.encode())
    return paths


def cells(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """Heads and one row per level, the base first; the level's name is the first cell."""
    head = ["level", "seeds", ablation.metric, "std", "to base", "pairs"]
    rows: list[list[str]] = []
    for position, level in enumerate(ablation.levels):
        done = str(level.seeds) if len(level.values) == level.seeds else f"{len(level.values)} of {level.seeds}"
        rows.append(
            [
                _name(ablation, level),
                done,
                "–" if level.mean is None else f"{level.mean:.3f}",
                "–" if level.std is None else f"{level.std:.3f}",
                "" if position == 0 else _difference(level),
                "" if position == 0 else str(level.pairs),
            ]
        )
    return head, rows


def _name(ablation: Ablation, level: Level) -> str:
    """`brownian.weight=0`: what differs from the base; of the base, its values of all factors."""
    base = ablation.levels[0]
    names = format.short_names(base.settings)
    if level is base:
        return f"base: {format.parameters(base.settings, names)}"
    changed = {path: value for path, value in level.settings.items() if value != base.settings[path]}
    return " ".join(f"{names[path]}={format.number(value)}" for path, value in changed.items())


def _difference(level: Level) -> str:
    if level.difference is None:
        return "–"
    error = "" if level.difference_stderr is None else f" ± {level.difference_stderr:.3f}"
    return f"{level.difference:+.3f}{error}"


def remarks(ablation: Ablation) -> list[str]:
    """What is not counted, and why."""
    return [
        f"{_name(ablation, level)}, seed {seed}, is not counted: {reason}"
        for level in ablation.levels
        for seed, reason in level.reasons.items()
    ]


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
