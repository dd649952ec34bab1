"""Protocols x checkpoints as a table: for a report, as HTML and Markdown, and for a paper."""

from __future__ import annotations

from collections.abc import Sequence

from pretune.analysis.evaluated import Evaluated
from pretune.display import evaluation
from pretune.display.ablation_files import latex_text
from pretune.display.document import Block, Code, Points, Table, Text
from trainers.evaluation.protocol import ProtocolResult, Score

FIXED = ("protocol", "measure", "data", "split", "images", "seeds")
CHECKPOINTS = 6
"""Columns; more would be wider than a page."""


def blocks(found: Sequence[Evaluated]) -> list[Block]:
    """A sentence, the table, what a reader has to know of the protocols, and the table in LaTeX, folded away."""
    head, rows, left_out = table(found)
    shown = [
        Text(
            "Encoders judged by published protocols, frozen unless the protocol says otherwise. Each cell is the mean "
            "over seeds with its 95 % interval; shares are of 1."
        )
    ]
    if left_out:
        shown.append(Text(f"The {left_out} checkpoints of the lowest trials are left out here.", tone="note"))
    if any(one.result.split == "report" for one in found):
        shown.append(
            Text(
                "Images of `report` are there to be read once: who compares several checkpoints by them chooses by "
                "them.",
                tone="note",
            )
        )
    results = [one.result for one in found]
    return [
        *shown,
        Table(head, _named_once(rows), right=tuple(range(len(FIXED), len(head)))),
        Points(evaluation.notes(results)),
        Code(latex(found), folded="The table for LaTeX"),
    ]


def table(found: Sequence[Evaluated]) -> tuple[list[str], list[list[str]], int]:
    """Its head, its rows, and how many checkpoints have no column. Results that differ in a number of their protocol
    or in their seeds are in rows of their own.
    """
    names = evaluation.labels([one.result for one in found])
    checkpoints = list(dict.fromkeys(one.checkpoint for one in found))
    columns = checkpoints[:CHECKPOINTS]
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for one in found:
        for score in one.result.scores if one.checkpoint in columns else ():
            row = (names[evaluation.key(one.result)], *_row(one.result, score))
            cells.setdefault(row, {})[one.checkpoint] = _cell(score)
    rows = [[*row, *(of_row.get(name, "–") for name in columns)] for row, of_row in cells.items()]
    return [*FIXED, *columns], rows, len(checkpoints) - len(columns)


def latex(found: Sequence[Evaluated]) -> str:
    r"""A table that a paper takes in with `\input`, for the package booktabs."""
    head, rows, _ = table(found)
    notes = evaluation.notes([one.result for one in found])
    return "\n".join(
        [
            "% Needs \\usepackage{booktabs}.",
            *(f"% {note}" for note in notes),
            rf"\begin{{tabular}}{{{'l' * len(FIXED)}{'r' * (len(head) - len(FIXED))}}}",
            r"\toprule",
            _latex_row(head),
            r"\midrule",
            *map(_latex_row, _named_once(rows)),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _named_once(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Each protocol, whose name may be long with numbers, in the first of its rows alone."""
    before = ["", *(row[0] for row in rows)]
    return [["" if row[0] == above else row[0], *row[1:]] for row, above in zip(rows, before, strict=False)]


def _row(result: ProtocolResult, score: Score) -> tuple[str, ...]:
    return score.measure, result.data, result.split, f"{score.count:,}", str(len(result.seeds))


def _cell(score: Score) -> str:
    if score.interval is None:
        return f"{score.value:.4f}"
    low, high = score.interval
    return f"{score.value:.4f} [{low:.4f}, {high:.4f}]"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(latex_text, cells)) + r" \\"
