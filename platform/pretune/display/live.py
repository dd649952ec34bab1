"""What one sees while a sweep runs: a live picture on a terminal, plain lines elsewhere, fed with journal records."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pretune.analysis import limits
from pretune.core import fastest, packing, records, retention, within
from pretune.core.conductor import folder_name
from pretune.core.experiment import Experiment
from pretune.core.history import History, TrialHistory
from pretune.display import format


class Progress:
    """The running total of a sweep: what its records say so far, and what they let one expect. Times are in seconds.

    A resumed sweep shows its whole journal first. Records written before `since` (Unix seconds) are what was: they
    count as done, but say nothing about what runs now and how fast. `before_s` is what the command had taken by now.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        since: float = 0.0,
        before_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.experiment = experiment
        self.history = History()
        self.note = "starting Ray"
        self.startup = ""
        """How long it took to the first optimizer step of this driver, and what took it; empty before."""
        self._before_s = before_s
        self._ray_s = 0.0
        self._clock = clock
        self._started = clock()
        # Speed is that of the epochs after the first one we see, which also waits for workers and compilers.
        self._first_epoch: float | None = None
        self._epochs_since = 0
        self._since = since
        self._running: set[int] = set()
        self._rates: dict[int, float] = {}
        self._waits: dict[int, float] = {}

    def apply(self, record: records.Record) -> None:
        """Takes in one record."""
        before = self.history.trials[record.number].last_epoch if isinstance(record, records.Epoch) else 0
        self.history.apply(record)
        if self.is_old(record):
            return
        if isinstance(record, records.Epoch):
            for name, newest in (("time/images_per_s", self._rates), ("time/wait_share", self._waits)):
                if name in record.metrics:
                    newest[record.number] = record.metrics[name]
        match record:
            case records.Opened() | records.Resumed():
                self.note = "starting workers"
                self._ray_s = self.elapsed()
            case records.Started():
                self.note = ""
                self._running.add(record.number)
            case records.Epoch() if self._first_epoch is None:
                self._first_epoch = self._clock()
                self.startup = self._startup(record)
            case records.Epoch():
                self._epochs_since += record.epoch - before
            case records.Ended():
                self._running.discard(record.number)
                self._rates.pop(record.number, None)
                self._waits.pop(record.number, None)
            case records.Closed():
                self.note = record.detail or record.reason

    def _startup(self, record: records.Epoch) -> str:
        """`first optimizer step after about 22 s: checks 1 s, Ray 4 s, slots 6 s, workers 8 s, ...`: one after the
        other. Slots are what is not told otherwise: Tune, and the processes that it starts.
        """
        if "time/first_step_s" not in record.metrics:
            return ""
        first_step = record.metrics["time/first_step_s"]
        workers = record.metrics.get("time/group_start_s", 0.0)
        # An epoch is told when it and its probe are over.
        begun = self.elapsed() - record.metrics.get("time/epoch_s", 0.0) - record.metrics.get("time/probe_s", 0.0)
        slot = record.metrics.get("memory/slot_bytes", 0.0)
        takes = f"; a slot takes {format.size(slot)} of the head" if slot else ""
        parts = {
            "checks": self._before_s,
            "Ray": self._ray_s,
            "slots": max(0.0, begun - self._ray_s - workers),
            "workers": workers,
            "data, model and compilers": first_step,
        }
        told = ", ".join(f"{name} {format.duration(seconds)}" for name, seconds in parts.items())
        total = format.duration(sum(parts.values()))
        return f"first optimizer step after about {total}: {told}{takes}{self._disk(record)}"

    def _disk(self, record: records.Epoch) -> str:
        """`; checkpoints of 1.2 MB take 58 MB at most, 71 GB are free`, where they lie on a disk."""
        size = None if record.checkpoint is None else retention.size(record.checkpoint)
        if record.checkpoint is None or size is None:
            return ""
        slots = self.experiment.slots or max(1, len(self._running))
        most = retention.bound(size, trials=self.asked, slots=slots)
        free = shutil.disk_usage(Path(record.checkpoint.path).parent).free
        return f"; checkpoints of {format.size(size)} take {format.size(most)} at most, {format.size(free)} are free"

    def is_old(self, record: records.Record) -> bool:
        """Whether an earlier driver wrote it."""
        return record.time < self._since

    @property
    def title(self) -> str:
        """`kernels from sfrik_tiny on digits, sweep 20261122-0301-kernels`."""
        asked = self.experiment
        recipe = f" from {asked.recipe}" if asked.recipe else ""
        return f"{asked.space}{recipe} on {asked.data or asked.base.data.path}, sweep {asked.name}"

    @property
    def chosen(self) -> str:
        """What was measured before it began: `3 trials per card, 1.9 times one alone; compile: on`; empty where nobody
        asked for any of it.
        """
        packed, compiled = self.history.packing, self.experiment.fastest
        parts = [] if packed is None else [packing.in_words(packed)]
        parts += [] if compiled is None else [fastest.in_words(compiled)]
        return "; ".join(parts)

    @property
    def asked(self) -> int:
        """How many trials the sweep is to have."""
        return self.history.target or self.experiment.trials

    @property
    def running(self) -> list[TrialHistory]:
        """Trials that run now, in order of their numbers."""
        return [self.history.trials[number] for number in sorted(self._running)]

    @property
    def ended(self) -> list[TrialHistory]:
        return [trial for trial in self.history.trials if trial.ended]

    @property
    def best(self) -> TrialHistory | None:
        """The best of the trials that ended whole; before there is one, of all that have a value."""
        whole = [trial for trial in self.history.trials if trial.state == "COMPLETE" and trial.value is not None]
        other = [trial for trial in self.history.trials if trial.state in ("RUNNING", "PRUNED")]
        other = [trial for trial in other if self.score(trial) is not None]
        sign = 1.0 if self.experiment.maximize else -1.0
        return max(whole or other, key=lambda trial: sign * (self.score(trial) or 0.0), default=None)

    def score(self, trial: TrialHistory) -> float | None:
        """The final value, or while it runs the newest."""
        return trial.value if trial.value is not None else trial.last(self.experiment.metric)

    def score_text(self, trial: TrialHistory) -> str:
        """`0.871 ± 0.012`."""
        return format.score(self.score(trial), trial.last(f"{self.experiment.metric}_stderr"))

    def epoch_text(self, trial: TrialHistory) -> str:
        """`3 of 8`; a trial's own length where the space varies it."""
        whole = (trial.config or {}).get("epochs", self.experiment.base.epochs)
        return f"{trial.last_epoch} of {whole}"

    def within_text(self, trial: TrialHistory) -> str:
        """`3 of 8, 42 %`: how far a running trial is within its next epoch, where its folder is on this machine."""
        folder = self.experiment.folder / "trials" / folder_name(trial)
        found = within.read(folder, epoch=trial.last_epoch, since=self._since)
        return self.epoch_text(trial) if found is None else f"{self.epoch_text(trial)}, {found}"

    @property
    def images_per_s(self) -> float | None:
        """Of all running trials together."""
        return sum(self._rates.values()) if self._rates else None

    @property
    def limit(self) -> str | None:
        """`loader-limited, waits 31 %`: what limits the running trials, on average over their newest epochs."""
        return limits.in_words(list(self._waits.values()))

    def elapsed(self) -> float:
        """Since this driver started."""
        return self._clock() - self._started

    def remaining(self) -> float | None:
        """Time left, expecting of trials to come as many epochs as ended ones took; None before the second epoch."""
        if self._first_epoch is None or self._epochs_since == 0:
            return None
        whole = float(self.experiment.base.epochs)
        lengths = [trial.last_epoch for trial in self.ended if trial.last_epoch > 0]
        expected = sum(lengths) / len(lengths) if lengths else whole
        waiting = max(0, self.asked - len(self.ended) - len(self.running))
        # A running trial that outlived the usual length passed the rungs: it will probably take all its epochs.
        ends = [expected if trial.last_epoch < expected else whole for trial in self.running]
        left = sum(max(0.0, end - trial.last_epoch) for end, trial in zip(ends, self.running, strict=True))
        return (waiting * expected + left) * (self._clock() - self._first_epoch) / self._epochs_since

    def counts(self) -> str:
        """`4 of 12 done, 2 running, 1 stopped early`, and what else there is."""
        states = [trial.state for trial in self.history.trials]
        reused = sum(trial.result_of is not None for trial in self.history.trials)
        others = {
            "infeasible": states.count("INFEASIBLE"),
            "failed": states.count("FAIL"),
            "reused": reused,
        }
        parts = [
            f"{len(self.ended)} of {self.asked} done",
            f"{len(self.running)} running",
            f"{states.count('PRUNED')} stopped early",
        ]
        return ", ".join(parts + [f"{count} {what}" for what, count in others.items() if count])

    def event(self, record: records.Record) -> tuple[str, bool] | None:
        """The record in one line, and whether the line must not be left out; None for what is not worth a line."""
        match record:
            case records.Opened():
                return (
                    f"sweep {record.experiment.name}: {record.experiment.trials} trials in {self.experiment.folder}, "
                    f"{_devices(record.experiment)}{self._chosen()}",
                    True,
                )
            case records.Resumed():
                return f"sweep {self.experiment.name} goes on to {record.trials} trials{self._chosen()}", True
            case records.Started():
                trial = self.history.trials[record.number]
                again = f" again (attempt {record.attempt + 1})" if record.attempt else ""
                onward = f" after epoch {record.epoch}" if record.epoch else ""
                return f"trial {record.number} starts{again}{onward}: {format.parameters(trial.params)}", False
            case records.Epoch():
                trial = self.history.trials[record.number]
                return f"trial {record.number} epoch {self.epoch_text(trial)}: {self._measured(trial)}", False
            case records.Extended():
                onward = f"after epoch {record.checkpoint.epoch}, to epoch {record.config['epochs']}"
                return f"trial {record.number} goes on {onward}", True
            case records.StopRequested():
                why = f" ({record.reason})" if record.reason else ""
                return f"trial {record.number} is to end at its next report, somebody wants it to{why}", True
            case records.Enqueued():
                what = format.parameters(record.params) or "one beside the space"
                return f"a configuration was handed in to be tried next: {what}", True
            case records.Attempt():
                return f"trial {record.number} failed ({record.failures}): {record.reason}", True
            case records.Condemned():
                return f"trial {record.number} would be stopped, but lives on for the audit: {record.reason}", False
            case records.Ended():
                trial = self.history.trials[record.number]
                reason = f" ({record.reason})" if record.reason else ""
                return f"trial {record.number} {record.state}: {self._measured(trial)}{reason}", True
            case records.Closed():
                detail = f": {record.detail}" if record.detail else ""
                return f"sweep {record.reason.replace('_', ' ')}{detail}", True
        return None

    def _chosen(self) -> str:
        return f", {self.chosen}" if self.chosen else ""

    def _measured(self, trial: TrialHistory) -> str:
        return f"{self.experiment.metric} {self.score_text(trial)}"


def _devices(experiment: Experiment) -> str:
    """`2 workers each, on 1 GPU per worker`."""
    count = experiment.workers_per_trial
    workers = f"{count} worker{'s' if count > 1 else ''} each"
    return f"{workers}, {f'{experiment.gpus_per_worker:g} GPU per worker' if experiment.gpus_per_worker else 'on CPUs'}"


def picture(progress: Progress) -> RenderableType:
    """The live picture: counts, best, one line for each running trial, speed and time left. Fits 80 columns."""
    head = Table.grid(expand=True, padding=(0, 1))
    head.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    head.add_column(justify="right", no_wrap=True)
    head.add_row(Text(progress.title, style="bold"), Text(format.duration(progress.elapsed()), style="dim"))

    totals = Table.grid(expand=True, padding=(0, 1))
    totals.add_column(no_wrap=True)
    totals.add_column(ratio=1)
    totals.add_column(no_wrap=True, justify="right")
    bar = ProgressBar(total=max(1, progress.asked), completed=min(progress.asked, len(progress.ended)))
    totals.add_row("trials", bar, Text(progress.counts()))

    trials = Table(box=None, expand=True, padding=(0, 1), pad_edge=False, header_style="dim")
    trials.add_column("trial", justify="right", no_wrap=True)
    trials.add_column("epoch", justify="right", no_wrap=True)
    trials.add_column(progress.experiment.metric, justify="right", no_wrap=True, min_width=13)
    trials.add_column("settings", ratio=1, no_wrap=True, overflow="ellipsis")
    best = progress.best
    rows = [("best ", best, "green", progress.epoch_text(best))] if best is not None else []
    rows += [("", trial, "", progress.within_text(trial)) for trial in progress.running]
    for prefix, trial, style, epoch in rows:
        trials.add_row(
            Text(f"{prefix}{trial.number}", style=style),
            epoch,
            Text(progress.score_text(trial), style=style),
            Text(format.parameters(trial.params)),
        )
    parts: list[RenderableType] = [head, totals]
    if rows:
        parts.append(trials)
    parts += [Text(line, style="dim") for line in (_pace(progress), progress.chosen) if line]
    return Group(*parts)


def _pace(progress: Progress) -> str:
    """`1,240 img/s, compute-limited, waits 2 %, about 2 min 10 s left`, or what is being waited for."""
    if progress.note:
        return progress.note
    remaining = progress.remaining()
    if remaining is None:
        left = (
            "the first epoch takes longest (imports, compilers)"
            if progress.images_per_s is None
            else "time left follows"
        )
    else:
        left = f"about {format.duration(remaining)} left"
    speed = None if progress.images_per_s is None else format.rate(progress.images_per_s)
    return ", ".join(filter(None, (speed, progress.limit, left)))


class LiveView:
    """The picture, redrawn in place twice a second (its clocks run between events too), gone when the sweep ends.

    A listener of `sweep.run`, and a context manager around it.
    """

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=2, transient=True)

    def on_event(self, record: records.Record) -> None:
        """Takes in one record of the journal."""
        with self._lock:
            self._progress.apply(record)

    def _draw(self) -> RenderableType:
        # rich redraws from a thread of its own.
        with self._lock:
            return picture(self._progress)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, traceback)
        if self._progress.startup:
            self._live.console.print(Text(self._progress.startup, style="dim"))


class PlainLines:
    """For logs and pipes: a line per event, those that matter less at most every `interval` seconds."""

    def __init__(self, progress: Progress, console: Console, *, interval: float = 5.0) -> None:
        self._progress, self._console, self._interval = progress, console, interval
        self._last = -interval
        self._startup_told = False

    def on_event(self, record: records.Record) -> None:
        """Takes in one record of the journal."""
        self._progress.apply(record)
        if self._progress.is_old(record):
            return
        event = self._progress.event(record)
        elapsed = self._progress.elapsed()
        if event is None or (not event[1] and elapsed - self._last < self._interval):
            return
        self._last = elapsed
        if self._progress.startup and not self._startup_told:
            self._startup_told = True
            self._print(self._progress.startup)
        tail = ""
        if isinstance(record, records.Epoch | records.Ended):
            tail = f" [{self._progress.counts()}; {_pace(self._progress)}]"
        self._print(event[0] + tail)

    def _print(self, line: str) -> None:
        clock = format.duration(self._progress.elapsed())
        self._console.print(f"{clock:>11}  {line}", markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._print(f"{self._progress.title}: {self._progress.note}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to put back."""


def view(progress: Progress, console: Console) -> LiveView | PlainLines:
    """The picture on a terminal, lines elsewhere."""
    return LiveView(progress, console) if console.is_terminal else PlainLines(progress, console)
