"""A line of the benchmarks' table: what is compared with what, what the runs found, and whether that is enough.

Runs of both sides take turns where they can, so that they see the same machine. A ratio is of one pair of runs; where
the sides have not as many, of each run of the alternative to our median. What has to meet the target is the median.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Unit = Literal["s", "bytes", "images/s"]
Measured = tuple[str, Sequence[float], Sequence[float], str]
"""What a script's `rows()` yields: the row's name in the table, the figures of our runs and of the alternative's in the
unit that the table has for it, and what else there is to say. A plain tuple, so that a script needs nothing of this."""

HEAD = ("what", "ours", "the alternative", "ratio: median (least to most of runs)", "target", "", "took")


@dataclass(frozen=True)
class Target:
    """What the ratio has to reach (`times`), or what ours may be at most: so much of the alternative (`share`), or so
    many seconds."""

    kind: Literal["times", "share", "seconds"]
    bound: float

    def __str__(self) -> str:
        match self.kind:
            case "times":
                return f"at least {_times(self.bound)}"
            case "share":
                return f"at most {100 * self.bound:g} %"
            case "seconds":
                return f"at most {shown(self.bound, 's')}"


@dataclass(frozen=True)
class Comparison:
    """What a row compares, before anything is measured."""

    what: str
    alternative: str
    unit: Unit
    target: Target | None
    reason: str = ""
    """Why there is no target, or why it is missed where it is."""

    def ratios(self, ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
        """How many times better ours is in each pair of runs; under a target that is a share, ours over theirs."""
        if len(ours) != len(theirs):
            ours = [statistics.median(ours)] * len(theirs)
        upright = self.unit == "images/s" or (self.target is not None and self.target.kind == "share")
        return [mine / other if upright else other / mine for mine, other in zip(ours, theirs, strict=True)]

    def met(self, ours: Sequence[float], theirs: Sequence[float]) -> bool | None:
        """None where there is no target."""
        if self.target is None:
            return None
        if self.target.kind == "seconds":
            return statistics.median(ours) <= self.target.bound
        ratio = statistics.median(self.ratios(ours, theirs))
        return ratio >= self.target.bound if self.target.kind == "times" else ratio <= self.target.bound

    def cells(self, ours: Sequence[float], theirs: Sequence[float], note: str, took_s: float) -> tuple[str, ...]:
        """The row, under `HEAD`."""
        what = f"{self.what} ({note})" if note else self.what
        missed = f"**missed**: {self.reason}" if self.reason else "**missed**"
        verdict = {True: "met", False: missed, None: self.reason}[self.met(ours, theirs)]
        form = _percent if self.target is not None and self.target.kind == "share" else _times
        return (
            what,
            shown(statistics.median(ours), self.unit),
            f"{self.alternative}: {shown(statistics.median(theirs), self.unit)}",
            spread(self.ratios(ours, theirs), form),
            "" if self.target is None else str(self.target),
            verdict,
            f"{took_s:.0f} s",
        )

    def failed(self, why: str, took_s: float) -> tuple[str, ...]:
        """The row where nothing was measured."""
        target = "" if self.target is None else str(self.target)
        return self.what, "–", self.alternative, "–", target, f"**failed**: {why}", f"{took_s:.0f} s"


def line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in cells)} |"


def spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Median, least, most and how many; one value alone."""
    if len(values) == 1:
        return f"{form(values[0])} (one run)"
    return f"{form(statistics.median(values))} ({form(min(values))} to {form(max(values))} of {len(values)})"


def shown(value: float, unit: Unit) -> str:
    """A figure with three digits or so."""
    if unit == "images/s":
        return f"{value:,.0f} images/s"
    if unit == "bytes":
        return f"{value / 1e6:,.1f} MB" if value < 1e7 else f"{value / 1e6:,.0f} MB"
    if value < 0.1:
        return f"{1e3 * value:.3g} ms"
    return f"{value:.3g} s" if value < 100 else f"{value:,.0f} s"


def _times(value: float) -> str:
    return f"{value:.2f} times" if value < 2 else f"{value:.1f} times" if value < 10 else f"{value:.0f} times"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def processor() -> str:
    """What the CPU calls itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> str:
    """Processor, cores and load, on one line."""
    return f"{processor()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
