"""What `pretune finalize` prints."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pretune.analysis.finalize import ReportReads
from pretune.display import format


def table(found: ReportReads) -> Group:
    """The newest read in words: each probe on `select` and on `report`; without labels, each measure of health."""
    newest = found.reads[-1]
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    grid.add_column(f"trial {newest.trial}")
    grid.add_column("on select", justify="right", no_wrap=True)
    grid.add_column("on report", justify="right", no_wrap=True)
    measures = [name for name in newest.metrics if name.startswith("health/")]
    for name in measures:
        row = [format.score(newest.metrics.get(f"{split}{name}")) for split in ("", "report/")]
        grid.add_row(name.removeprefix("health/").replace("/", ", ").replace("_", " "), *row)
    for name, label in (
        ()
        if measures
        else (
            ("linear", "linear probe, as searched"),
            ("knn", "kNN, as searched"),
            ("full_linear", "linear probe, all labels"),
            ("full_knn", "kNN, all labels"),
        )
    ):
        row = [
            format.score(newest.metrics.get(f"{split}/{name}"), newest.metrics.get(f"{split}/{name}_stderr"))
            for split in ("probe", "report")
        ]
        grid.add_row(label, *row)
    note = "the report split was read once through this sweep"
    if found.report_reads > 1:
        note = f"the report split was read {found.report_reads} times through this sweep; only the first was honest"
    return Group(grid, Text(note, style="dim"))
