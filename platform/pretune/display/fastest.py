"""Which networks of a sweep are compiled: what was measured of each, and what was chosen."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from pretune.core.fastest import Fastest, Network, in_words, step_in_words
from pretune.display import document
from pretune.display.document import Block
from pretune.display.screen import Rows
from trainers.profiling.compiled import Way

_NAMES: dict[Way, str] = {"off": "as it is", "on": "on", "cuda_graphs": "cuda_graphs"}
_TEXTS = ("network", "compile", "")
"""Heads of columns without numbers."""


def whole(found: Fastest | None) -> list[RenderableType]:
    """What was measured, and the choice; nothing where nobody asked for it."""
    if found is None:
        return []
    names = head(found)
    shown = Rows(names, right=[name for name in names if name not in _TEXTS], wraps=True)
    for row in rows(found):
        shown.add(*row)
    return [*([shown] if is_table(found) else []), Text(line(found), style="dim")]


def blocks(found: Fastest) -> list[Block]:
    """The same, for a report."""
    told: list[Block] = [document.Text(f"{line(found)}.")]
    if is_table(found):
        names = head(found)
        numbers = tuple(place for place, name in enumerate(names) if name not in _TEXTS)
        told.append(document.Table(names, rows(found), right=numbers))
    return told


def is_table(found: Fastest) -> bool:
    """Whether there is more to tell than a line says."""
    return len(found.networks) > 1 or bool(found.networks and found.left_out)


def line(found: Fastest) -> str:
    """`compile: on for 2 networks, off for 1`; of a single one also what was measured."""
    said = in_words(found)
    if found.left_out:
        more = "each `pretune plan` with the same arguments measures more, which the next sweep knows"
        return f"{said} ({found.why}); {more}"
    if is_table(found) or not found.networks:
        return said
    [one] = found.networks
    return f"{said}; {_problem(one) if one.found is None else step_in_words(one.found)}"


def head(found: Fastest) -> tuple[str, ...]:
    """Of the columns that `rows` has."""
    steps = [name for way in _ways(found) for name in (_NAMES[way], *(["first step"] if way != "off" else []))]
    return ("network", "trials like it", *steps, "compile", "")


def rows(found: Fastest) -> list[tuple[str, ...]]:
    """A row for each network that was measured: of each way a step, and what compiling takes before it."""
    ways = _ways(found)
    return [
        (
            one.words or "all",
            f"{100 * one.share:.0f} %",
            *(cell for way in ways for cell in _cells(one, way)),
            one.compile,
            _problem(one),
        )
        for one in found.networks
    ]


def _ways(found: Fastest) -> list[Way]:
    return [way for way in _NAMES if any(one.found is not None and way in one.found.step_s for one in found.networks)]


def _cells(one: Network, way: Way) -> list[str]:
    if one.found is None or way not in one.found.step_s:
        return ["–"] if way == "off" else ["–", "–"]
    step = f"{1e3 * one.found.step_s[way]:.3g} ms"
    return [step] if way == "off" else [step, f"{one.found.begin_s[way]:.0f} s"]


def _problem(one: Network) -> str:
    return f"could not be measured: {one.problem}" if one.problem else ""
