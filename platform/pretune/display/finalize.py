"""What `pretune finalize` prints."""

from __future__ import annotations

from rich.console import Group
from rich.text import Text

from pretune.analysis.finalize import ReportReads
from pretune.display import format
from pretune.display.screen import Rows

OF_LATER_READS = ("untrained/linear", "pixels/linear")
"""What reads of older versions lack."""


def table(found: ReportReads) -> Group:
    """The newest read in words: each probe on `select` and on `report`; without labels, each measure of health."""
    newest = found.reads[-1]
    numbers = ["on select", "on report"]
    grid = Rows([f"trial {newest.trial}", *numbers], right=numbers)
    measures = [name for name in newest.metrics if name.startswith("health/")]
    for name in measures:
        row = [format.score(newest.metrics.get(f"{split}{name}")) for split in ("", "report/")]
        grid.add(name.removeprefix("health/").replace("/", ", ").replace("_", " "), *row)
    for name, label in (
        ()
        if measures
        else (
            ("linear", "linear probe, as searched"),
            ("knn", "kNN, as searched"),
            ("full_linear", "linear probe, all labels"),
            ("full_knn", "kNN, all labels"),
            ("untrained/linear", "linear probe, same encoder untrained"),
            ("pixels/linear", "linear probe, raw pixels"),
        )
    ):
        if name in OF_LATER_READS and f"report/{name}" not in newest.metrics:
            continue
        row = [
            format.score(newest.metrics.get(f"{split}/{name}"), newest.metrics.get(f"{split}/{name}_stderr"))
            for split in ("probe", "report")
        ]
        grid.add(label, *row)
    note = "the report split was read once through this sweep"
    if found.report_reads > 1:
        note = f"the report split was read {found.report_reads} times through this sweep; only the first was honest"
    sweeps = {read.sweep for read in found.of_the_data}
    if len(sweeps) > 1:
        note += (
            f"; of this data set it was read {len(found.of_the_data)} times through {len(sweeps)} sweeps, first "
            f"{found.of_the_data[0].time}: who compares them by it chooses by it"
        )
    if not found.recorded:
        note += "; this read could not be written down beside the data, which cannot be written to"
    return Group(grid, Text(note, style="dim"))
