"""What `pretune eval` prints: a table of protocols, data sets and subjects; the same as Markdown and for LaTeX; what
was taken for what, as a picture.
"""

from __future__ import annotations

import io
import json
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from pretune.display import format
from pretune.display.screen import Rows
from trainers.evaluation.protocol import ProtocolResult, Score, digest

NO_PICTURES = "no confusion matrix was drawn, as matplotlib is not installed; pip install 'pretune[evaluate]'"
NAMED = 40
"""Classes up to which a picture names each."""
LETTERS = 32
"""Of a class's name in a picture; of a longer one the beginning is shown."""
HEADS = ("subject", "data", "split", "protocol", "measure", "value", "95 %", "images", "seeds")
NUMBERS = HEADS[5:]
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def table(results: Sequence[ProtocolResult]) -> Group:
    """Each score of each result, and below what a reader has to know of them."""
    grid = Rows(HEADS, right=NUMBERS)
    for row in rows(results):
        grid.add(*row)
    parts: list[RenderableType] = [grid]
    heads, lines = across(results)
    if lines:
        whole = Rows(heads, right=heads[2:])
        for line in lines:
            whole.add(*line)
        parts.append(whole)
    parts += [Text(note, style="dim") for note in notes(results)]
    return Group(*parts)


def rows(results: Sequence[ProtocolResult]) -> list[list[str]]:
    """Cells below `HEADS`; what a row shares with the one above is left out."""
    found = []
    called = labels(results)
    for result in results:
        before = [result.subject, result.data, result.split, called[key(result)]]
        for score in result.scores:
            found.append([*before, score.measure, *_numbers(result, score)])
            before = [""] * 4
    return found


def across(results: Sequence[ProtocolResult]) -> tuple[list[str], list[list[str]]]:
    """(heads, rows) of the first measure of each subject and protocol over data sets, and its mean over them; no rows
    where nothing was judged on more than one.
    """
    names = list(dict.fromkeys(result.data for result in results))
    called = labels(results)
    found: dict[tuple[str, str], dict[str, float]] = {}
    for result in results:
        label = f"{called[key(result)]}: {result.scores[0].measure} on {result.split}"
        found.setdefault((result.subject, label), {})[result.data] = result.scores[0].value
    lines = []
    for head, values in found.items():
        if len(values) < 2:
            continue
        mean = sum(values.values()) / len(values)
        lines.append([*head, *(format.score(values.get(name)) for name in names), format.score(mean)])
    return ["subject", "protocol", *names, "mean"], lines


def protocol(result: ProtocolResult) -> str:
    """`linear`, or `linear (mean)` where it looks at other than features."""
    source = result.protocol.get("source", "features")
    return result.name if source == "features" else f"{result.name} ({source})"


def labels(results: Sequence[ProtocolResult]) -> Mapping[str, str]:
    """What each protocol is called, by its `key`: where several share a name, with the numbers that differ."""
    kinds: dict[str, dict[str, ProtocolResult]] = {}
    for result in results:
        kinds.setdefault(protocol(result), {})[key(result)] = result
    called: dict[str, str] = {}
    for name, variants in kinds.items():
        fields = dict.fromkeys(field for one in variants.values() for field in one.protocol)
        differing = [
            field for field in fields if len({json.dumps(one.protocol.get(field)) for one in variants.values()}) > 1
        ]
        for its, one in variants.items():
            numbers = ", ".join(f"{field} {format.number(one.protocol.get(field))}" for field in differing)
            called[its] = f"{name}, {numbers}" if numbers else name
    return called


def key(result: ProtocolResult) -> str:
    """Equal for equal protocols with equal numbers."""
    return json.dumps(result.protocol, sort_keys=True)


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
    parts = [_markdown_table(HEADS, rows(results))]
    heads, lines = across(results)
    if lines:
        parts.append(_markdown_table(heads, lines))
    return "\n\n".join([*parts, *notes(results)]) + "\n"


def _markdown_table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rule = ["---:" if head in NUMBERS else "---" for head in heads]
    lines = (heads, rule, *body)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


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


def confusion(result: ProtocolResult) -> bytes:
    """The confusion matrix as a PNG, equal for equal numbers: each row a class, as shares of its images.
    ModuleNotFoundError without matplotlib.
    """
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    names = [_shortened(one.name) for one in result.classes]
    shares = np.zeros((len(names), len(names)))
    for true, taken, count in result.confusion:
        shares[true, taken] = count / result.classes[true].count
    with (
        matplotlib.rc_context({"text.usetex": False, "text.parse_math": False, "font.size": 8.0}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing")  # shown as a box
        beside = 0.12 * max(map(len, names), default=0) if len(names) <= NAMED else 0.0  # inches that names take
        side = min(14.0, 3.0 + 0.28 * min(len(names), NAMED) + beside)
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.subplots()
        drawn = axes.imshow(shares, vmin=0.0, vmax=1.0, cmap="Blues", interpolation="nearest")
        if len(names) <= NAMED:
            axes.set_xticks(range(len(names)), names, rotation=90)
            axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("taken for")
        axes.set_ylabel("class")
        title = f"{result.subject}: {protocol(result)} on {result.data}, {result.split}"
        figure.suptitle(textwrap.fill(title, int(9 * side)), fontsize=9.0)
        figure.colorbar(drawn, ax=axes, shrink=0.7, label="share of the class's images")
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    return content.getvalue()


def _shortened(name: str) -> str:
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"


def picture_name(result: ProtocolResult) -> str:
    """Of the file of its confusion matrix: another one for each subject, protocol with its numbers, data and split."""
    stem = re.sub(r"[^\w.-]+", "-", f"{result.subject}-{result.name}-{result.data}-{result.split}")
    numbers = {**result.protocol, "subject": result.digest, "manifest": result.manifest, "seeds": result.seeds}
    return f"{stem}-{digest(numbers)[:8]}-confusion.png"


def _numbers(result: ProtocolResult, score: Score) -> list[str]:
    interval = "–" if score.interval is None else " to ".join(f"{bound:.4f}" for bound in score.interval)
    return [f"{score.value:.4f}", interval, f"{score.count:,}", str(len(result.seeds))]


def _escaped(text: str) -> str:
    return re.sub(r"[\\~^&%$#_{}]", lambda found: _LATEX.get(found[0], "\\" + found[0]), text)
