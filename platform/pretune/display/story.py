"""What `pretune show SWEEP TRIAL` prints: one trial's whole story."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from pretune.display import format, tables
from pretune.display.screen import Rows

_BARS, _PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
MOST_BARS = 60


def screen(console: Console, told: Mapping[str, Any]) -> list[RenderableType]:
    """The parts of the screen, from what `analysis.story.of` says."""
    return [part for part in _parts(console, told) if part is not None]


def sparkline(values: Sequence[float], *, unicode: bool = True) -> str:
    """One bar for each value, from the lowest to the highest of those that are finite; of a long curve the mean of each
    stretch. A value that is not finite is `!`.
    """
    bars = _BARS if unicode else _PLAIN_BARS
    stretches = [list(values)] if not values else _stretches(values)
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "!" * len(values)
    low, high = min(finite), max(finite)
    found = []
    for stretch in stretches:
        known = [value for value in stretch if math.isfinite(value)]
        if not known:
            found.append("!")
            continue
        share = 0.5 if high == low else (sum(known) / len(known) - low) / (high - low)
        found.append(bars[min(len(bars) - 1, int(share * len(bars)))])
    return "".join(found)


def _stretches(values: Sequence[float]) -> list[list[float]]:
    count = min(len(values), MOST_BARS)
    edges = [len(values) * index // count for index in range(count + 1)]
    return [list(values[begin:end]) for begin, end in itertools.pairwise(edges)]


def _parts(console: Console, told: Mapping[str, Any]) -> Iterator[RenderableType | None]:
    value = format.score(told["last_value"], told["last_stderr"])
    head = Text.assemble(
        (f"{told['sweep']}, trial {told['id']}", "bold"), f"  {told['state']}", f", {told['metric']} {value}"
    )
    head.append(f" after {told['epochs']} epoch{'' if told['epochs'] == 1 else 's'}")
    if told["seconds"]:
        head.append(f", {format.duration(told['seconds'])} of training")
    yield head
    if told["reason"]:
        yield Text(f"why it ended: {told['reason']}", style=tables.STYLES[told["state"]])
    if told["enqueued"]:
        yield Text("handed in by pretune enqueue")
    if told["params"]:
        yield Text(f"sampled: {format.parameters(told['params'])}")
    if told["curve"]:
        yield _curve(console, told)
    yield _changes(told)
    yield _events(told)
    if told["checkpoint"]:
        yield Text(f"checkpoint: {told['checkpoint']}", style="dim")
    for path in told["logs"]:
        yield Text(f"log: {path}", style="dim")
    for line in told["log_tail"]:
        yield Text(f"  {line}", style="dim")


def _curve(console: Console, told: Mapping[str, Any]) -> Text:
    values = [one["value"] for one in told["curve"]]
    line = sparkline(values, unicode=console.encoding.lower().replace("-", "").startswith("utf"))
    first, last = told["curve"][0], told["curve"][-1]
    begin, end = (f"{format.score(one['value'])} (epoch {one['epoch']})" for one in (first, last))
    return Text(f"{told['metric']}: {line}  {begin} to {end}")


def _changes(told: Mapping[str, Any]) -> RenderableType:
    if told["config"] is None:
        return Text("it has no config: the space refused its parameters")
    if not told["changes"]:
        return Text("its config is the sweep's base")
    table = Rows(["setting", "base", "this trial"], wraps=True)
    for change in told["changes"]:
        table.add(change["path"], format.number(change["first"]), format.number(change["second"]))
    return table


def _events(told: Mapping[str, Any]) -> RenderableType:
    table = Rows(["time", "what happened"], wraps=True)
    table.add(_clock(told["asked"]), "handed in" if told["enqueued"] else "asked for")
    for event in told["events"]:
        table.add(_clock(event["time"]), _event(event))
    return table


def _event(event: Mapping[str, Any]) -> str:
    reason = f": {event['reason']}" if event.get("reason") else ""
    match event["kind"]:
        case "started":
            onward = f" after epoch {event['epoch']}" if event["epoch"] else ""
            return f"attempt {event['attempt'] + 1} starts{onward}"
        case "attempt":
            return f"failure {event['failures']}{reason}"
        case "ended":
            return f"{event['state']}{reason}"
        case "condemned":
            return f"would be stopped after epoch {event['epoch']}, but lives on for the audit{reason}"
        case "extended":
            return "goes on, as there are more hours" if event.get("continued") else "made longer"
    return f"told to end{reason}"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
