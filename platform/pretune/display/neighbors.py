"""The nearest neighbors of some images as a picture: a row for each, the image itself on the left."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretune.core.errors import RequestError

SUFFIXES = (".png", ".pdf")
_CELL, _TEXT = 1.15, 0.42  # inches: an image's side, and the room for the text below it
_NAME = 18  # characters of a name that fit below an image, as a rule
_LETTERS = 7.0  # points
_DOTS = 160  # per inch


@dataclass(frozen=True)
class Shown:
    """An image [side, side, 3], bytes, and what is written below it: its class, if it has one, else its name."""

    pixels: NDArray[np.uint8]
    name: str
    label: str | None = None
    similarity: float | None = None


@dataclass(frozen=True)
class Row:
    """A query and its neighbors, the nearest first."""

    query: Shown
    neighbors: Sequence[Shown]


def check_target(path: Path, *, overwrite: bool) -> None:
    """RequestError where no picture can be written to `path`."""
    if path.suffix.lower() not in SUFFIXES:
        raise RequestError(f"--picture must end in {' or '.join(SUFFIXES)}, but is {path}; change its name")
    if path.exists() and (path.is_dir() or not overwrite):
        raise RequestError(f"{path} is there already; add --overwrite to replace it, or choose another --picture")
    if find_spec("matplotlib") is None:
        raise RequestError("a picture needs matplotlib, not installed here; pip install 'pretune[report]'")


def picture(rows: Sequence[Row], kind: str) -> bytes:
    """A PNG or a PDF, equal for equal rows. `kind` is "png" or "pdf"."""
    import matplotlib
    from matplotlib.figure import Figure

    across = 1 + max(len(row.neighbors) for row in rows)
    settings: dict[Any, Any] = {"pdf.fonttype": 42, "font.size": _LETTERS}
    content = io.BytesIO()
    with (
        matplotlib.rc_context({"text.usetex": False, "text.parse_math": False, **settings}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing")  # shown as a box
        figure = Figure(figsize=(across * _CELL + 0.3, len(rows) * (_CELL + _TEXT) + 0.1), facecolor="white")
        axes = figure.subplots(len(rows), across, squeeze=False)
        figure.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=_TEXT / (len(rows) * (_CELL + _TEXT)))
        figure.subplots_adjust(wspace=0.12, hspace=_TEXT / _CELL)
        for row, line in zip(rows, axes, strict=True):
            for place, one in enumerate(line):
                one.axis("off")
                shown = row.query if place == 0 else None
                if 0 < place <= len(row.neighbors):
                    shown = row.neighbors[place - 1]
                if shown is None:
                    continue
                one.imshow(shown.pixels, interpolation="nearest" if len(shown.pixels) < 64 else "antialiased")
                weight = "bold" if place == 0 else "normal"
                text = one.text(
                    0.5, -0.04, _below(shown), transform=one.transAxes, ha="center", va="top", weight=weight
                )
                room, taken = one.get_window_extent().width, text.get_window_extent().width
                text.set_fontsize(_LETTERS * min(1.0, room / taken))  # wide letters would be cut off at the edge
            line[0].add_patch(_frame(line[0]))
        metadata = {"CreationDate": None} if kind == "pdf" else {"Software": None}
        figure.savefig(content, format=kind, dpi=_DOTS, metadata=metadata)
    return content.getvalue()


def _below(shown: Shown) -> str:
    called = shown.label if shown.label is not None else Path(shown.name).name
    lines = [called if len(called) <= _NAME else f"{called[: _NAME - 8]}…{called[-7:]}"]
    if shown.similarity is not None:
        lines.insert(0, f"{shown.similarity:.3f}")
    return "\n".join(lines)


def _frame(axes: Any) -> Any:
    """Around the query."""
    from matplotlib.patches import Rectangle

    return Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor="#d55e00", linewidth=2.5)
