"""What `pretune export` and `pretune import` print: the folder, and how it is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from pretune.display import tables

if TYPE_CHECKING:
    from pretune.analysis.export import Written

_SHOWN = 4


def told(written: Written) -> Group:
    """What was found in a file of other people's, the folder's files, and that it was opened without us."""
    exported, known = written.exported, written.exported.description
    lines = []
    if written.weights is not None:
        lines.append(Text(_found(written)))
    lines.append(Text(f"{known.backbone.kind}, {known.width:,} features of images of {known.size} px, {known.branch}"))
    lines.append(
        Text(
            f"opened without pretune ({known.layout}): its features differ from ours by at most "
            f"{exported.difference:.2g}, of {exported.largest:.2g}"
        )
    )
    if not exported.largest:
        lines.append(
            Text(
                "its features of random images are all 0, so that this says nothing: the network may have collapsed, "
                "or lack something that its file does not hold",
                style="yellow",
            )
        )
    lines.append(Text(f"{tables.relative(written.folder)}: {', '.join(exported.files)}", style="dim"))
    return Group(*lines)


def as_json(written: Written) -> dict[str, Any]:
    """The same for programs."""
    exported = written.exported
    return {
        "folder": str(written.folder),
        "files": list(exported.files),
        "difference": exported.difference,
        "largest": exported.largest,
        "encoder": exported.description.model_dump(mode="json"),
        **({} if written.weights is None else {"left_out": list(written.weights.dropped)}),
    }


def _found(written: Written) -> str:
    weights = written.weights
    assert weights is not None
    behind = f" behind {weights.prefix!r}" if weights.prefix else ""
    left = list(weights.dropped)
    more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
    said = f"; left out, as no part of a backbone: {', '.join(left[:_SHOWN])}{more}" if left else ""
    return f"found {weights.description.backbone.kind}{behind}{said}"
