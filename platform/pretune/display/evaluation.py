"""What `pretune eval` prints: a table of protocols, data sets and subjects; the same as Markdown and for LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from pretune.display import format
from pretune.display.screen import Rows
from trainers.evaluation.protocol import ProtocolResult, Score

HEADS = ("subject", "data", "split", "protocol", "measure", "value", "95 %", "images", "seeds")
NUMBERS = HEADS[5:]
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def table(results: Sequence[ProtocolResult]) -> Group:
    """Each score of each result, and below what a reader has to know of them."""
    grid = Rows(HEADS, right=NUMBERS)
    for row in rows(results):
        grid.add(*row)
    parts: list[RenderableType] = [grid]
    parts += [Text(note, style="dim") for note in notes(results)]
    return Group(*parts)


def rows(results: Sequence[ProtocolResult]) -> list[list[str]]:
    """Cells below `HEADS`; what a row shares with the one above is left out."""
    found = []
    for result in results:
        before = [result.subject, result.data, result.split, protocol(result)]
        for score in result.scores:
            found.append([*before, score.measure, *_numbers(result, score)])
            before = [""] * 4
    return found


def protocol(result: ProtocolResult) -> str:
    """`linear`, or `linear (mean)` where it looks at other than features."""
    source = result.protocol.get("source", "features")
    return result.name if source == "features" else f"{result.name} ({source})"


def notes(results: Sequence[ProtocolResult]) -> list[str]:
    """Of the protocols: versions, numbers, what was fitted on; each said once."""
    said: dict[str, None] = {}
    for result in results:
        numbers = ", ".join(
            f"{name} {format.number(value)}"
            for name, value in result.protocol.items()
            if name not in ("name", "version", "source")
        )
        said[f"{result.name} version {result.protocol['version']}: {numbers}"] = None
        said[f"{result.name} on {result.data}: fitted on {result.fitted:,} images"] = None
        said |= dict.fromkeys(result.notes)
    return list(said)


def markdown(results: Sequence[ProtocolResult]) -> str:
    lines = [HEADS, ["---:" if head in NUMBERS else "---" for head in HEADS], *rows(results)]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n\n".join([text, *notes(results)]) + "\n"


def latex(results: Sequence[ProtocolResult]) -> str:
    r"""A table that a paper takes in with `\input`, for the package booktabs."""
    columns = "".join("r" if head in NUMBERS else "l" for head in HEADS)
    body = [" & ".join(map(_escaped, row)) + r" \\" for row in rows(results)]
    return "\n".join(
        [
            *(f"% {note}" for note in notes(results)),
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(_escaped, HEADS)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _numbers(result: ProtocolResult, score: Score) -> list[str]:
    interval = "–" if score.interval is None else " to ".join(f"{bound:.4f}" for bound in score.interval)
    return [f"{score.value:.4f}", interval, f"{score.count:,}", str(len(result.seeds))]


def _escaped(text: str) -> str:
    return re.sub(r"[\\~^&%$#_{}]", lambda found: _LATEX.get(found[0], "\\" + found[0]), text)
