"""How long a sweep's trials will be: its stopping rule and its slots, played through on curves.

The curves are those of earlier sweeps in the same storage, on the same data and metric. Where there are none, a model:
each trial has a worth of its own, drawn from a normal law, and each epoch shows it with an error of half its deviation.
Halving decides by ranks alone, so that the heights of curves do not matter. Trials are drawn independently of each
other, though a search's later ones are better: of those a few more go on than is said here.
"""

from __future__ import annotations

import heapq
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretune.core import journal, stopping
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment, local_root
from pretune.core.reader import StoredEpoch
from pretune.core.records import Epoch, Opened

Curve = Mapping[int, float]
"""The metric of one trial by epoch, from 1."""

NOISE = 0.5
"""Of the model: an epoch's error over the deviation of what trials are worth."""
MOST_CURVES = 2_000
LEAST_CURVES = 5
"""With fewer the model is the better guess."""
MOST_PLAYED, MOST_LOOKS = 500, 100
"""Trials that are played, and looks at each; a longer sweep is in proportion, and of longer trials only so many epochs,
equally far from each other, are looked at.
"""
MODELED = 500
"""Curves of the model."""
PLAYS, QUICK = 20, 100
"""Plays of a sweep of up to 100 trials, fewer of a longer one; trials of the two plays of a quick look."""


@dataclass(frozen=True)
class Length:
    """What one trial takes if nobody stops it. Times are in any one unit."""

    epochs: int
    last_epoch: int
    """The last that the stopping rule looks at."""
    probe_every: int
    start: float
    epoch: float
    probe: float
    end: float
    """More, after the last epoch: the full probes."""
    views: float
    """Of an epoch."""

    def following(self, epoch: int) -> int:
        """The next one that is looked at after `epoch`."""
        return min(epoch + _stride(self.epochs), self.epochs)

    def time(self, since: int, until: int) -> float:
        """From the end of epoch `since` to that of `until`."""
        last = until == self.epochs
        probes = until // self.probe_every - since // self.probe_every
        probes += last and until % self.probe_every != 0
        return (until - since) * self.epoch + probes * self.probe + (self.end if last else 0.0)


@dataclass(frozen=True)
class Played:
    """What came out, as a mean over plays: epochs of all trials, the time until the last ended, and how many were not
    stopped.
    """

    epochs: float
    time: float
    complete: float


def earlier(experiment: Experiment, *, seconds: float = 10.0) -> list[Curve]:
    """Curves of earlier sweeps in the same storage (of a bucket, in its working copies) on the same data and metric,
    newest sweep first; as many as can be read in so many seconds, unless they are too few to be of use.
    """
    ends = time.monotonic() + seconds
    found: list[Curve] = []
    folders = [path.parent for path in local_root(experiment.storage).glob(f"*/{journal.FILE}")]
    for folder in sorted(folders, key=_changed, reverse=True):
        with suppress(RequestError, ValueError, OSError):  # what cannot be read teaches nothing
            found += _curves(folder, experiment, ends)
        if len(found) >= MOST_CURVES or time.monotonic() > ends:
            break
    return found[:MOST_CURVES] if len(found) >= LEAST_CURVES else []


def modeled(experiment: Experiment, epochs: int) -> list[Curve]:
    """Curves of the model that this module states, of so many epochs."""
    rng = np.random.default_rng(experiment.seed)
    sign = 1.0 if experiment.maximize else -1.0
    looks = range(1, epochs + 1, _stride(epochs))
    worth = rng.normal(size=(MODELED, 1)) + NOISE * rng.normal(size=(MODELED, len(looks)))
    return [dict(zip(looks, row, strict=True)) for row in (sign * worth).tolist()]


def _stride(epochs: int) -> int:
    """Epochs between two looks at a trial."""
    return -(-epochs // MOST_LOOKS)


def play(
    experiment: Experiment,
    lengths: Sequence[Length],
    curves: Sequence[Curve],
    *,
    trials: int,
    slots: int,
    cold: float = 0.0,
    quick: bool = False,
) -> Played:
    """A sweep of `trials`, each of one of `lengths` with one of `curves`, in so many slots; `cold` is what the first
    trial of a slot takes more. Without curves nothing is stopped.
    """
    played = min(trials, QUICK if quick else MOST_PLAYED)
    plays = 2 if quick else max(2, min(PLAYS, 100 * PLAYS // played))
    results = [
        _play(experiment, lengths, curves, trials=played, slots=slots, cold=cold, rng=np.random.default_rng([seed, 7]))
        for seed in range(plays)
    ]
    epochs, spent, complete = (float(np.mean(numbers)) for numbers in zip(*results, strict=True))
    more = trials / played
    return Played(epochs * more, cold + (spent - cold) * more, complete * more)


def _play(
    experiment: Experiment,
    lengths: Sequence[Length],
    curves: Sequence[Curve],
    *,
    trials: int,
    slots: int,
    cold: float,
    rng: np.random.Generator,
) -> tuple[float, float, float]:
    rule = stopping.of(experiment) if curves else None
    order = rng.integers(len(lengths), size=trials) if trials != len(lengths) else np.arange(trials)
    shown = rng.integers(max(1, len(curves)), size=trials)
    shown_by = {number: _carried(curves[index]) for number, index in enumerate(shown)} if curves else {}
    events: list[tuple[float, int, int]] = []
    audited: set[int] = set()
    begun = epochs = complete = 0
    ended = 0.0

    def begin(at: float) -> None:
        nonlocal begun
        if begun < trials:
            heapq.heappush(events, (at + lengths[order[begun]].start, begun, 0))
            begun += 1

    for _ in range(min(slots, trials)):
        begin(cold)
    while events:
        at, number, epoch = heapq.heappop(events)
        length = lengths[order[number]]
        if epoch:
            metrics = {"budget/views": epoch * length.views, "budget/seconds": epoch * length.epoch}
            if curves:
                metrics[experiment.metric] = shown_by[number](epoch - epoch % length.probe_every)
            judged = None if rule is None or number in audited else rule
            stop = judged is not None and bool(judged.observe(number, epoch, metrics, last_epoch=length.last_epoch))
            if stop and stopping.is_audited(experiment, number):
                audited.add(number)
                stop = False
            if stop or epoch == length.epochs:
                epochs += epoch
                complete += not stop
                if rule is not None and not stop and number not in audited:
                    rule.completed(number)
                ended = max(ended, at)
                begin(at)
                continue
        following = length.following(epoch)
        heapq.heappush(events, (at + length.time(epoch, following), number, following))
    return float(epochs), ended, float(complete)


def _carried(curve: Curve) -> Callable[[int], float]:
    """A curve's value at any epoch: where it says nothing, what it said last."""
    known = sorted(curve)

    def value(epoch: int) -> float:
        return curve[known[max(0, bisect_right(known, epoch) - 1)]]

    return value


def _curves(folder: Path, experiment: Experiment, ends: float) -> list[Curve]:
    found: dict[int, dict[int, float]] = {}
    with journal.reading(folder) as records:
        first = next(records, None)
        if not isinstance(first, Opened) or not _alike(first.experiment, experiment):
            return []
        for record in records:
            if not isinstance(record, Epoch | StoredEpoch):
                continue
            value = record.metrics.get(experiment.metric)
            if value is not None:
                found.setdefault(record.number, {})[record.epoch] = value
                if len(found) > MOST_CURVES or time.monotonic() > ends:
                    break
    return list(found.values())


def _alike(one: Experiment, other: Experiment) -> bool:
    return (one.metric, one.maximize, one.base.data.manifest) == (
        other.metric,
        other.maximize,
        other.base.data.manifest,
    )


def _changed(folder: Path) -> float:
    try:
        return (folder / journal.FILE).stat().st_mtime
    except OSError:
        return 0.0
