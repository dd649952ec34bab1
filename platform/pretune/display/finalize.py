"""What `pretune finalize` prints."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from pretune.analysis.finalize import Read, ReportReads
from pretune.analysis.optimism import Optimism
from pretune.display import evaluation, format
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
    parts: list[RenderableType] = [] if not newest.candidates else [candidates(newest, found.metric)]
    parts.append(grid)
    if newest.optimism is not None:
        parts += gap(newest.optimism)
    if newest.evaluations:
        parts.append(evaluation.table(newest.evaluations))
    return Group(*parts, Text(note, style="dim"))


def candidates(read: Read, metric: str) -> Group:
    """The trials that were judged again, the chosen one first: by the search, by the mean, and their places in both."""
    what = "seeds" if read.chosen_by == "seeds" else "fits of the probe"
    count = max((len(one.values) for one in read.candidates), default=0)
    numbers = ["trial", "searched", "place", f"mean of {count} {what}", "now"]
    grid = Rows([*numbers, ""], right=numbers)
    places = {one.trial: place for place, one in enumerate(read.candidates, start=1)}
    for one in sorted(read.candidates, key=lambda one: one.place):
        mean = "–" if one.mean is None else format.score(one.mean, one.half_width)
        few = f"{len(one.values)} of {count}; " if len(one.values) < count else ""
        moved = places[one.trial] - one.place
        said = "" if not moved else f"{'up' if moved > 0 else 'down'} {abs(moved)}"
        grid.add(
            str(one.trial),
            format.score(one.searched),
            str(places[one.trial]),
            mean,
            str(one.place),
            said,
            remark=few + one.reason if few or one.reason else "",
            style="bold green" if one.trial == read.trial else "",
        )
    how = (
        "runs from seeds that the search has not seen"
        if read.chosen_by == "seeds"
        else "fits on other images of train, scored on all of select"
    )
    return Group(grid, Text(f"{metric}; mean ± half of its 95 % interval over {how}", style="dim"))


def gap(found: Optimism) -> list[Text]:
    """How much too good the searched score is, and what was to be expected."""
    lines = [
        Text(
            f"select {found.searched:.3f}, report {found.reported:.3f}: the search's score is {found.gap:+.3f} too "
            f"high [{found.gap_low:+.3f}, {found.gap_high:+.3f}]"
        )
    ]
    if found.trials > 1:
        shared = (
            f"as {max(found.shared_noise, 0.0):.0%} of their noise is the same"
            if found.shared_noise is not None
            else "if none of their noise is the same, so at most"
        )
        lines.append(
            Text(
                f"choosing the best of {found.trials:,} trials on {found.select_images:,} images was expected to add "
                f"{found.expected:.3f} [{found.expected_low:+.3f}, {found.expected_high:+.3f}], {shared}; the interval "
                "is one of at least 95 %",
                style="dim",
            )
        )
    if found.warning:
        lines.append(Text(f"warning: {found.warning}", style="yellow"))
    return lines


def summary(found: ReportReads) -> Text | None:
    """One line for `pretune show`; None where the read was interrupted, or the metric is not one of `report`."""
    first = found.reads[0]
    reported = first.metrics.get(f"report/{found.metric.removeprefix('probe/')}")
    if reported is None:
        return None
    stderr = first.metrics.get(f"report/{found.metric.removeprefix('probe/')}_stderr")
    text = f"finalized: trial {first.trial} on report {format.score(reported, stderr)}"
    if first.optimism is not None:
        told = first.optimism
        text += f", the search's score {told.gap:+.3f} too high [{told.gap_low:+.3f}, {told.gap_high:+.3f}]"
        text += f", {told.expected:.3f} expected of choosing among {told.trials:,}" if told.trials > 1 else ""
        text += "; it is no evidence of a gain" if told.warning else ""
    if found.report_reads > 1:
        text += f"; read {found.report_reads} times, of which this was the first"
    return Text(text, style="dim")


def unreadable(error: ValueError) -> Text:
    """In its place, where what was written down cannot be read."""
    return Text(str(error), style="yellow")
