"""An ablation's tables: for a terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from pretune.analysis.ablation import Ablation, Effect, Interval, Level, collect
from pretune.core.evidence import ALPHA
from pretune.core.results import SweepResult
from pretune.display import format
from pretune.display.screen import Rows

_STYLES = {"helps": "green", "hurts": "red", "no evidence": "", "not enough seeds": "yellow", None: ""}


def table(result: SweepResult) -> RenderableType:
    """The levels for a terminal, a grid's effects, and how to read them."""
    ablation = collect(result)
    head, rows = level_cells(ablation)
    shown = Rows(head, right=head[1:-1], wraps=True)
    for level, row in zip(ablation.levels, rows, strict=True):
        style = "bold" if level is ablation.levels[0] else ""
        shown.add(*row[:-1], Text(row[-1], style=_STYLES[level.finding]), style=style)
    parts: list[RenderableType] = [shown]
    if ablation.effects:
        head, rows = effect_cells(ablation)
        effects = Rows(head, right=head[1:])
        for row in rows:
            effects.add(*row)
        parts += [Text("effects, each mean over the levels of the other factors"), effects]
    parts += [Text(base_settings(ablation)), Text(legend(ablation), style="dim")]
    parts += [Text(line, style="yellow") for line in remarks(ablation)]
    return Group(*parts)


def markdown(ablation: Ablation) -> str:
    """The same tables in Markdown, for a paper's draft or an issue."""
    lines = [f"# {ablation.name}", "", f"Recipe: {ablation.recipe}", "", *_markdown_table(*level_cells(ablation))]
    if ablation.effects:
        lines += ["", "## Effects", "", *_markdown_table(*effect_cells(ablation))]
    lines += ["", base_settings(ablation), "", legend(ablation)]
    lines += ["", *(f"* {line}" for line in remarks(ablation))] if remarks(ablation) else []
    return "\n".join(lines) + "\n"


def level_cells(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """Heads, and the cells of each level's row."""
    digits = digits_of(ablation)
    head = ["level", "seeds", ablation.metric, "to base", "95 %", "p", "verdict"]
    rows: list[list[str]] = []
    for position, level in enumerate(ablation.levels):
        done = str(level.seeds) if len(level.values) == level.seeds else f"{len(level.values)} of {level.seeds}"
        mean = "–" if level.mean is None else f"{level.mean:.{digits}f}"
        if level.mean_interval is not None and level.mean is not None:
            mean += f" ± {level.mean_interval[1] - level.mean:.{digits}f}"
        compared = ["", "", "", ""] if position == 0 else _compared(level, digits)
        rows.append([level_name(ablation, level), "–" if level.refused else done, mean, *compared])
    return head, rows


def effect_cells(ablation: Ablation) -> tuple[list[str], list[list[str]]]:
    """Heads, and the cells of each effect's row."""
    digits = digits_of(ablation)
    head = ["effect", "seeds", f"on {ablation.metric}", "95 %", "p"]
    rows = [
        [
            effect_name(ablation, effect),
            str(effect.seeds),
            f"{effect.difference:+.{digits}f}",
            _interval(effect.interval, digits),
            _p(effect.p),
        ]
        for effect in ablation.effects
    ]
    return head, rows


def level_name(ablation: Ablation, level: Level) -> str:
    """As it was typed, or what differs from the base, `brownian.weight=0`."""
    base = ablation.levels[0]
    if level is base:
        return "base"
    if level.name:
        return level.name
    names = format.short_names(base.settings)
    changed = [path for path, value in level.settings.items() if value != base.settings[path]]
    return " ".join(f"{names[path]}={_value(ablation, level, path)}" for path in changed)


def base_settings(ablation: Ablation) -> str:
    """What the base has of all that the levels change."""
    return f"base: {format.parameters(ablation.levels[0].settings)}"


def _value(ablation: Ablation, level: Level, path: str) -> str:
    """A setting in three digits, if these tell it from the other levels'; else in all."""
    own = level.settings[path]
    others = [other.settings[path] for other in ablation.levels if other.settings[path] != own]
    return str(own) if format.number(own) in map(format.number, others) else format.number(own)


def effect_name(ablation: Ablation, effect: Effect) -> str:
    """`ratio: 0.75 - 0` of a main effect, `ratio 0.75 x mismatch 0.2` of an interaction."""
    names = format.short_names(dict.fromkeys(factor for level in ablation.levels for factor in level.cell))
    if len(effect.levels) == 1:
        ((factor, level),) = effect.levels.items()
        return f"{names[factor]}: {level} against {effect.against[factor]}"
    return " x ".join(f"{names[factor]} {level}" for factor, level in effect.levels.items())


def legend(ablation: Ablation) -> str:
    """How to read the table, in sentences."""
    text = (
        "±: 95 % interval of the mean over seeds. to base: mean difference over pairs of equal seeds (same order, "
        "views and initial weights), with its 95 % interval (Student's t). "
    )
    looks = [f"{look}" for look in ablation.looks]
    if len(looks) > 1:
        text += (
            f"p: paired t test after {', '.join(looks[:-1])} or {looks[-1]} seeds, adjusted for looking again "
            "(spending alpha t², each part on a test of its own) and for the number of rows (Holm). "
        )
    else:
        text += "p: paired t test after all seeds, adjusted for the number of rows (Holm). "
    better = "higher" if ablation.direction == "maximize" else "lower"
    text += f"helps, hurts: p is at most {ALPHA:g}; {better} is better. no evidence: the interval has no room for "
    if ablation.smallest_effect is None:
        text += "a difference worth having (--smallest-effect). "
    else:
        text += f"a difference of {format.number(ablation.smallest_effect)}, the smallest worth having. "
    return text + "No trial is stopped early."


def remarks(ablation: Ablation) -> list[str]:
    """What is not counted, and why."""
    found = list(ablation.notes)
    found += [
        f"{level_name(ablation, level)} cannot be built: {level.refused}" for level in ablation.levels if level.refused
    ]
    found += [
        f"{level_name(ablation, level)}, seed {seed}, is not counted: {reason}"
        for level in ablation.levels
        for seed, reason in level.reasons.items()
    ]
    return found


def digits_of(ablation: Ablation) -> int:
    """Decimals that let differences be seen: three of a share, as many as its spread deserves of any other metric."""
    sizes = [abs(level.difference) for level in ablation.levels if level.difference]
    sizes += [level.std for level in ablation.levels if level.std]
    if not sizes:
        return 3
    magnitude = math.floor(math.log10(max(sizes)))
    return min(6, max(3, 1 - magnitude)) if magnitude < 0 else max(0, 2 - magnitude)


def _compared(level: Level, digits: int) -> list[str]:
    if level.difference is None:
        why = "cannot be built" if level.refused else level.verdict or _end(level)
        return ["–", "–", "–", why]
    return [
        f"{level.difference:+.{digits}f}",
        _interval(level.interval, digits),
        _p(level.p),
        level.verdict or _end(level),
    ]


def _end(level: Level) -> str:
    """Of a level without a value: how its trials ended."""
    states = dict.fromkeys(reason.partition(":")[0].lower() for reason in level.reasons.values())
    return ", ".join(states) or "–"


def _interval(interval: Interval | None, digits: int) -> str:
    return "–" if interval is None else f"[{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]"


def _p(p: float | None) -> str:
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = [":--", *["--:"] * (len(head) - 2), ":--" if head[-1] == "verdict" else "--:"]
    return [_markdown_row(head), _markdown_row(rule), *map(_markdown_row, rows)]


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
