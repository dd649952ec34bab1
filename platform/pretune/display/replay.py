"""What `pretune replay` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table

from pretune.analysis.replay import EpochComparison
from pretune.display import format


def table(compared: Sequence[EpochComparison], metric: str) -> RenderableType:
    """The searched metric and the loss of each epoch, as told and as found."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in ("epoch", f"{metric}, journal", "replay", "loss, journal", "replay", "numbers", "different"):
        shown.add_column(name, justify="right")
    for one in compared:
        cells = [format.number(side.get(name)) for name in (metric, "loss/total") for side in (one.told, one.found)]
        different = len(one.different)
        shown.add_row(
            str(one.epoch), *cells, str(len(one.found)), str(different or "none"), style="red" if different else ""
        )
    return shown
