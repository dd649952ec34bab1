"""A sweep that is followed while it runs: what its journal says so far, as values for a page, and what has changed
since the page was told last.

A page is told everything once, then what differs. Each change has a number; whoever names the last one that it has
heard of is told the rest, also after a while without a connection.
"""

from __future__ import annotations

import math
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pretune.analysis import limits
from pretune.analysis.differences import differences
from pretune.analysis.log_tail import last_lines
from pretune.core import journal, results, within
from pretune.core.conductor import folder_name
from pretune.core.errors import RequestError, refused_by_files
from pretune.core.experiment import Experiment
from pretune.core.history import History, TrialHistory
from pretune.core.reader import StoredEpoch
from pretune.core.records import Asked, Closed, Ended, Epoch, Extended, NotUnderstood, Opened, Record, Resumed, Started
from pretune.core.results import SweepResult
from pretune.execution.logfile import TRIAL_LOG

STATES = ("WAITING", "RUNNING", "COMPLETE", "PRUNED", "INFEASIBLE", "FAIL", "UNFINISHED")
"""Those of a trial, and `UNFINISHED`: it ran under a driver that is gone."""
POINTS = 80
"""Most points of a curve among others."""
POINTS_ALONE = 400
"""Most points of a curve that is looked at alone."""
DRAWN = 200
"""Most curves that are drawn beside one another."""
BEST_DRAWN = 24
"""So many of the best trials have their curves drawn, however many trials there are."""
LOCK_EVERY_S = 2.0
"""How often it is asked whether a driver lives, which says so by a lock that it holds."""
WITHOUT_LOCK_S = 120.0
"""So long whoever wrote a record is believed to live, where no lock says so."""
SLOT_LINES, TRIAL_LINES, LOG_FILES = 3, 200, 8


class Followed:
    """One sweep, in `folder` on this machine. `logs` is where its trials' folders are, if that is elsewhere."""

    def __init__(
        self,
        folder: Path,
        *,
        remote: str | None = None,
        logs: Path | None = None,
        is_live: Callable[[], bool] | None = None,
    ) -> None:
        """`remote` is the URI of a sweep of which `folder` has a copy; `is_live` says whether a driver runs it."""
        self.folder, self.remote = folder, remote
        self.logs = folder if logs is None else logs
        self._is_live = is_live or (lambda: journal.is_locked(folder))
        self._follower = journal.Follower(folder, remote=remote)
        self._asked_live = self._heard = float("-inf")
        self.live = self._without_lock = False
        self._begin()
        self.problem = ""
        """Why the journal cannot be read, or does not agree with itself."""

    def _begin(self) -> None:
        self.history, self._not_understood = History(), NotUnderstood()
        self.version, self._reset = 0, secrets.token_hex(4)
        self.lanes: dict[int, int] = {}
        """The slot of each trial that runs: the lowest that was free when it started."""
        self.names: dict[str, None] = {}
        """Of all parameters, in the order in which trials asked for them."""
        self.since = self.newest = 0.0
        self._first_start: float | None = None
        self._session_epochs = 0
        self._starts: dict[int, float] = {}
        self._changes: dict[int, int] = {}
        """By trial, the number of its last change; in the order of changes."""
        self._rows: dict[int, tuple[int, list[Any]]] = {}
        self._drawn: dict[int, None] = {}
        self._drawn_changed: dict[int, int] = {}
        self._selection_changed = 0
        self._contradiction = ""

    # ---- reading -----------------------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Takes in what the journal says by now; what is wrong with it is in `problem` then."""
        if time.monotonic() - self._asked_live >= LOCK_EVERY_S:
            # Asked before the journal is read: a driver that ends in between has then written its last line.
            self._ask_live()
        was_there = self.there
        try:
            first, records = self._follower.read()
        except RequestError as error:
            self.problem = str(error)
            return
        except OSError as error:
            self.problem = refused_by_files(error)
            return
        if first:
            self._begin()
        elif was_there != self.there:
            self._driver_changed()
        if records:
            self.version += 1
            for record in records:
                self._apply(record)
            self._select()
            self._heard = time.monotonic()
            if not first and not self.live and self.history.closed is None:
                self._ask_live()
                self._without_lock = not self.live
                self._ask_live()
        later = self._not_understood.later()
        understood = later is None or later.refusal() is None
        self.problem = self._contradiction if understood else ""

    def _ask_live(self) -> None:
        """A driver lives that has its lock; or that writes, where machines share a file system and not its locks."""
        self._asked_live = time.monotonic()
        with suppress(OSError):
            was, locked = self.live, self._is_live()
            self._without_lock = self._without_lock and not locked
            self.live = locked or (self._without_lock and self._asked_live - self._heard < WITHOUT_LOCK_S)
            if was != self.live:
                self._driver_changed()

    @property
    def there(self) -> bool:
        """Whether there is a journal now; what was read before stays."""
        return self._follower.there

    @property
    def experiment(self) -> Experiment | None:
        return None if self.history.opened is None else self.history.opened.experiment

    def close(self) -> None:
        self._follower.close()

    def _apply(self, record: Record | StoredEpoch) -> None:
        if not isinstance(record, StoredEpoch):
            self._not_understood.see(record)
        number = getattr(record, "number", None)
        before = 0
        if isinstance(record, Epoch | StoredEpoch) and record.number < len(self.history.trials):
            before = self.history.trials[record.number].last_epoch
        try:
            self.history.apply(record)
        except ValueError as error:
            self._contradiction = self._contradiction or f"{self._follower.path}: {error}"
            return
        self.newest = max(self.newest, record.time)
        if isinstance(number, int) and number < len(self.history.trials):
            self._change(number)
        match record:
            case Epoch() | StoredEpoch():
                self._session_epochs += record.epoch - before
            case Started():
                self._start(record)
            case Ended():
                self.lanes.pop(record.number, None)
            case Extended():
                self._starts.pop(record.number, None)
            case Asked():
                self.names.update(dict.fromkeys(record.params))
            case Opened() | Resumed():
                self.lanes.clear()
                self.since, self._first_start, self._session_epochs = record.time, None, 0
                self._driver_changed()
            case Closed():
                self.lanes.clear()
                self._driver_changed()

    def _start(self, record: Started) -> None:
        taken = set(self.lanes.values())
        if record.number not in self.lanes:
            self.lanes[record.number] = next(lane for lane in range(len(taken) + 1) if lane not in taken)
        self._starts.setdefault(record.number, record.time)
        if self._first_start is None:
            self._first_start, self._session_epochs = record.time, 0

    def _driver_changed(self) -> None:
        """What was running is unfinished now, or the other way round."""
        self.version += 1
        for number, trial in enumerate(self.history.trials):
            if trial.state == "RUNNING":
                self._change(number)

    def _change(self, number: int) -> None:
        self._changes.pop(number, None)
        self._changes[number] = self.version

    # ---- what is told ------------------------------------------------------------------------------------------------

    @property
    def mark(self) -> str:
        """Names all that has been told so far."""
        return f"{self._reset}.{self.version}"

    def since_mark(self, mark: str) -> dict[str, Any] | None:
        """What has changed since `mark`, None where nothing has; after an unknown one everything, with `reset`.

        `trials` are rows: number, state (its place in `STATES`), epochs finished, epochs in all, value, its standard
        error, start in Unix seconds, the trial whose result it has, failures, reason, and its parameters in the order
        of `names`, which only grows; None where it has none. `curves` are epochs and values, by trial; `drawn` are the
        trials whose curves are shown.
        """
        reset, _, text = mark.partition(".")
        known = int(text) if reset == self._reset and text.isascii() and text.isdigit() else -1
        if known >= self.version and known >= 0:
            return None
        numbers = []
        for number in reversed(self._changes):
            if self._changes[number] <= known:
                break
            numbers.append(number)
        trials = self.history.trials
        changed = [number for number in self._drawn if max(self._changes[number], self._drawn_changed[number]) > known]
        return {
            "reset": known < 0,
            "names": list(self.names),
            "trials": [self._row_of(number) for number in sorted(numbers)],
            "drawn": list(self._drawn) if self._selection_changed > known else None,
            "curves": {number: self.curve(trials[number], points=POINTS) for number in changed},
        }

    def _row_of(self, number: int) -> list[Any]:
        """Its row, made once for each change: it takes a look at the disk, and each page is told all rows."""
        version = self._changes[number]
        known = self._rows.get(number)
        if known is None or known[0] != version:
            known = self._rows[number] = version, self._row(self.history.trials[number])
        return known[1]

    def _row(self, trial: TrialHistory) -> list[Any]:
        return [
            trial.number,
            STATES.index(self.state(trial)),
            trial.last_epoch,
            self.epochs(trial),
            finite(self.value(trial)),
            finite(trial.last(f"{self._metric}_stderr")),
            self._starts.get(trial.number),
            trial.result_of,
            trial.failures,
            _remark(trial),
            *(_plain(trial.params[name]) if name in trial.params else None for name in self.names),
        ]

    @property
    def _metric(self) -> str:
        return "" if self.experiment is None else self.experiment.metric

    def state(self, trial: TrialHistory) -> str:
        """Of `STATES`."""
        runs = trial.state != "RUNNING" or (trial.number in self.lanes and self.live and self.there)
        return trial.state if runs else "UNFINISHED"

    def value(self, trial: TrialHistory) -> float | None:
        """The final value, or while it runs the newest."""
        return trial.value if trial.value is not None else trial.last(self._metric)

    def epochs(self, trial: TrialHistory) -> int:
        """How many it is to train; the space may vary it."""
        assert self.experiment is not None
        return int((trial.config or {}).get("epochs", self.experiment.base.epochs))

    def curve(self, trial: TrialHistory, *, points: int) -> list[list[Any]]:
        """Epochs and values of the metric, at most so many, the last one among them."""
        name = self._metric
        told = [(epoch, trial.epochs[epoch].get(name)) for epoch in sorted(trial.epochs)]
        return thinned([(epoch, value) for epoch, value in told if value is not None], points)

    def ranked(self) -> list[TrialHistory]:
        """COMPLETE trials with a value, best first; the earlier of two equal ones."""
        sign = -1.0 if self.experiment is None or self.experiment.maximize else 1.0
        complete = [trial for trial in self.history.trials if trial.state == "COMPLETE" and trial.value is not None]
        return sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))

    def _select(self) -> None:
        """Whose curves are drawn: all, or those that run, the best, and each n-th: few change as trials come."""
        trials = self.history.trials
        if len(trials) <= DRAWN:
            chosen = dict.fromkeys(range(len(trials)))
        else:
            each = 2
            while len(trials) // each > DRAWN - 3 * BEST_DRAWN:
                each *= 2
            best = [trial.number for trial in self.ranked()[:BEST_DRAWN]]
            running = sorted(self.lanes)[: 2 * BEST_DRAWN]
            chosen = dict.fromkeys(sorted({*range(0, len(trials), each), *best, *running}))
        if chosen != self._drawn:
            self._selection_changed = self.version
            self._drawn_changed = {number: self._drawn_changed.get(number, self.version) for number in chosen}
            self._drawn = chosen

    # ---- the whole, slots, one trial ---------------------------------------------------------------------------------

    def status(self) -> str:
        """How its driver left it; `running`, `killed` where it did not say, `gone` where there is no journal any more,
        `waiting` where there is none yet, `starting` where it has no record, `unreadable` where none can be read.
        """
        if self.history.opened is None:
            if self.problem:
                return "unreadable"
            return "starting" if self.live else "never started" if self.there else "waiting"
        if not self.there:
            return "gone"
        closed = self.history.closed
        if closed is None:
            return "running" if self.live else "killed"
        return results.how_it_ended(closed.reason, self.history.opened.experiment)

    def result(self) -> SweepResult:
        """The sweep as `core.results` gives it. RequestError where it has no record yet."""
        later = self._not_understood.later()
        return results.of(self.history, self.logs, remote=self.remote, live=self.live, later=later)

    def summary(self) -> dict[str, Any]:
        """The sweep as a whole. Times are Unix seconds, `left_s` what is expected to be left."""
        trials, experiment = self.history.trials, self.experiment
        later = self._not_understood.later()
        told: dict[str, Any] = {
            "name": self.folder.name if self.remote is None else self.remote.partition("?")[0].rpartition("/")[2],
            "place": self.remote or str(self.folder),
            "status": self.status(),
            "problem": self.problem,
            "notices": [] if later is None else later.notices(),
        }
        if experiment is None:
            return told
        states = [self.state(trial) for trial in trials]
        complete = self.ranked()
        best = complete[0] if complete else None
        runs = told["status"] == "running"
        closed = self.history.closed
        return told | {
            "space": experiment.space,
            "recipe": experiment.recipe,
            "data": experiment.data or experiment.base.data.path,
            "metric": experiment.metric,
            "maximize": experiment.maximize,
            "ablation": bool(experiment.points),
            "asked": self.history.target,
            "counts": {state: states.count(state) for state in STATES},
            "enqueued": len(self.history.enqueued),
            "reused": sum(trial.result_of is not None for trial in trials),
            "best": None if best is None else [best.number, finite(best.value), self._stderr(best)],
            "began": self.history.opened.time if self.history.opened is not None else None,
            "since": self.since,
            "newest": self.newest,
            "detail": closed.detail if closed is not None else "",
            "images_per_s": self._images_per_s() if runs else None,
            "limit": self._limit() if runs else None,
            "left_s": self._left_s() if runs else None,
            "sessions": self.history.sessions,
            "command": self._typed(),
            "stopping": experiment.stopping.enabled and not experiment.points,
        }

    def _stderr(self, trial: TrialHistory) -> Any:
        return finite(trial.last(f"{self._metric}_stderr"))

    def _typed(self) -> str:
        """The command that started it, the program without its path; empty in older journals."""
        assert self.history.opened is not None
        typed = self.history.opened.host.get("command", "")
        with suppress(ValueError):
            program, *arguments = shlex.split(typed) or [""]
            return shlex.join([Path(program).name, *arguments]) if arguments else ""
        return typed

    def _images_per_s(self) -> float | None:
        """Of all trials that run, together, each as its last epoch had it."""
        rates = [self.history.trials[number].last("time/images_per_s") for number in self.lanes]
        told = [rate for rate in rates if rate is not None and math.isfinite(rate)]
        return sum(told) if told else None

    def _limit(self) -> str | None:
        """What limits the trials that run, on average over the last epoch of each."""
        shares = [self.history.trials[number].last("time/wait_share") for number in self.lanes]
        return limits.in_words([share for share in shares if share is not None])

    def _left_s(self) -> float | None:
        """Expecting of trials to come as many epochs as ended ones took, at this driver's pace, if it has one yet."""
        if self._first_start is None or self._session_epochs == 0 or self.newest <= self._first_start:
            return None
        trials = self.history.trials
        lengths = [trial.last_epoch for trial in trials if trial.ended and trial.last_epoch > 0]
        running = [trials[number] for number in self.lanes]
        whole = sum(map(self.epochs, running)) / len(running) if running else 0.0
        expected = sum(lengths) / len(lengths) if lengths else whole
        waiting = max(0, self.history.target - sum(trial.ended for trial in trials) - len(running))
        # A running trial that outlived the usual length passed the rungs: it will probably take all its epochs.
        ends = [expected if trial.last_epoch < expected else self.epochs(trial) for trial in running]
        left = sum(max(0.0, end - trial.last_epoch) for end, trial in zip(ends, running, strict=True))
        pace = (self.newest - self._first_start) / self._session_epochs
        # Of what no record tells yet, no more than an epoch of each is done.
        since = min(max(0.0, time.time() - self.newest), pace * max(1, len(running)))
        return max(0.0, (waiting * expected + left) * pace - since)

    def slots(self) -> dict[str, Any]:
        """What each slot runs now, with the last lines of its trial's log, and those of the slots' own logs."""
        runs = self.status() == "running"
        lanes = sorted((lane, number) for number, lane in self.lanes.items()) if runs else []
        return {
            "slots": [self._slot(lane, self.history.trials[number]) for lane, number in lanes],
            "logs": list(self._platform_logs()) if runs else [],
        }

    def _slot(self, lane: int, trial: TrialHistory) -> dict[str, Any]:
        folder = self.logs / "trials" / folder_name(trial)
        return {
            "slot": lane,
            "trial": trial.number,
            "epoch": trial.last_epoch,
            "epochs": self.epochs(trial),
            "within": within.read(folder, epoch=trial.last_epoch, since=self.since),
            "value": finite(self.value(trial)),
            "stderr": self._stderr(trial),
            "started": self._starts.get(trial.number),
            "images_per_s": finite(trial.last("time/images_per_s")),
            "log": last_lines(folder / TRIAL_LOG, SLOT_LINES),
        }

    def _platform_logs(self) -> Iterator[dict[str, Any]]:
        """Of the files that this driver's processes write, the newest."""
        found = []
        with suppress(OSError):
            for path in (self.logs / "logs").iterdir():
                if (
                    path.suffix in (".txt", ".log")
                    and path.is_file()
                    and (changed := path.stat().st_mtime) > self.since
                ):
                    found.append((changed, path))
        for _, path in sorted(found, reverse=True)[:LOG_FILES]:
            if lines := last_lines(path, SLOT_LINES):
                yield {"name": path.name, "lines": lines}

    def trial(self, number: int) -> dict[str, Any] | None:
        """All about one trial; None where there is none."""
        if self.experiment is None or not 0 <= number < len(self.history.trials):
            return None
        trial = self.history.trials[number]
        base = self.experiment.base.model_dump(mode="json")
        changes = [] if trial.config is None else differences(base, trial.config)
        folder = self.logs / "trials" / folder_name(trial)
        told = {
            "row": self._row(trial),
            "attempts": trial.attempts,
            "rung": trial.rung,
            "extended": trial.extended,
            "duplicate_of": trial.duplicate_of,
            "changes": [[one.path, _plain(one.first), _plain(one.second)] for one in changes],
            "refused": trial.config is None,
            "log": last_lines(folder / TRIAL_LOG, TRIAL_LINES),
            "log_path": str(folder / TRIAL_LOG),
            "replay": f"pretune replay {shlex.quote(self.remote or str(self.folder))} {number}",
        }
        try:
            epochs = {epoch: _read(trial.epochs[epoch]) for epoch in sorted(trial.epochs)}
            names = sorted({name for metrics in epochs.values() for name in metrics})
            names.sort(key=lambda name: name != self._metric)
            told["metrics"] = {name: finite(trial.last(name)) for name in names}
            told["curves"] = {
                name: thinned([(epoch, found[name]) for epoch, found in epochs.items() if name in found], POINTS_ALONE)
                for name in names
            }
        except (OSError, ValueError, KeyError):  # the journal was written anew under us: told with the next poll
            told["metrics"], told["curves"] = {}, {}
        return told


def thinned(points: list[tuple[int, float]], most: int) -> list[list[Any]]:
    """At most so many of `points`, evenly, the last one among them: where they are, and their values."""
    step = max(1, math.ceil(len(points) / most))
    kept = points[::-1][::step][::-1]
    return [[where for where, _ in kept], [finite(value) for _, value in kept]]


def _read(metrics: Mapping[str, float]) -> Mapping[str, float]:
    return metrics.read_metrics() if isinstance(metrics, StoredEpoch) else metrics


def _remark(trial: TrialHistory) -> str:
    """Why it has ended, or is to; and that somebody handed it in."""
    said = trial.reason
    if not trial.ended and trial.stop_requested is not None:
        said = f"is to end at its next report{': ' if trial.stop_requested else ''}{trial.stop_requested}"
    elif not trial.ended and trial.condemned is not None:
        said = f"would be stopped, but lives on for the audit: {trial.condemned.reason}"
    return "; ".join(filter(None, ["handed in" if trial.enqueued else "", said]))


def finite(value: float | None) -> Any:
    """As JSON can say it: a number that is none by its name."""
    return value if value is None or math.isfinite(value) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, str | int | bool) else str(value)
