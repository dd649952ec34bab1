"""What `pretune replay` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType

from pretune.analysis.replay import EpochComparison
from pretune.display import format
from pretune.display.screen import Rows


def table(compared: Sequence[EpochComparison], metric: str) -> RenderableType:
    """The searched metric and the loss of each epoch, as told and as found."""
    heads = ["epoch", f"{metric}, journal", "replay", "loss, journal", "replay", "numbers", "different"]
    shown = Rows(heads, right=heads)
    for one in compared:
        cells = [format.number(side.get(name)) for name in (metric, "loss/total") for side in (one.told, one.found)]
        different = len(one.different)
        shown.add(
            str(one.epoch), *cells, str(len(one.found)), str(different or "none"), style="red" if different else ""
        )
    return shown
