"""What a sweep decides: which trial comes next, and which one ends. No Ray: whatever runs trials asks and tells it.

Every decision goes the same way: write the record, apply it to the history, tell the listener, only then answer. A
driver that is killed between any two records leaves a journal from which the next one decides the same.
"""

from __future__ import annotations

import gc
import json
import math
import shlex
from collections import deque
from contextlib import suppress
from functools import lru_cache
from typing import Any, Literal, Protocol

from pretune.core import stopping
from pretune.core.alike import Alike
from pretune.core.errors import RequestError, SweepFailedError
from pretune.core.experiment import Experiment
from pretune.core.history import History, State, TrialHistory
from pretune.core.journal import Journal
from pretune.core.landing import Landing
from pretune.core.lines import collecting_no_garbage
from pretune.core.reader import StoredEpoch
from pretune.core.records import (
    Asked,
    Attempt,
    Closed,
    Condemned,
    End,
    Ended,
    Enqueued,
    Epoch,
    Extended,
    Opened,
    Record,
    Started,
    StopRequested,
)
from pretune.core.rows import Handout, Row, RowOutcome
from pretune.core.search import Proposer, Wait
from pretune.core.stopping import Stop, spent
from trainers.config import TrialConfig
from trainers.settings import ScheduleConfig

_ENDS: dict[RowOutcome, End] = {
    "complete": "COMPLETE",
    "diverged": "INFEASIBLE",
    "collapsed": "INFEASIBLE",
    "out_of_memory": "INFEASIBLE",
    "failed": "FAIL",
}

_RESULTS: dict[State, End] = {"COMPLETE": "COMPLETE", "PRUNED": "PRUNED", "INFEASIBLE": "INFEASIBLE"}
"""What an equal config is not tried again after."""

REFUSALS_IN_A_ROW = 50
"""So many refused proposals one after another mean that the space has no room left for the sampler."""


BY_HAND = "stopped by hand"
"""How the reason of a trial begins that somebody has ended."""

FAILED_IN_A_ROW = 3
"""So many trials that fail one after another, none of which finished an epoch, mean that no trial will."""


class Listener(Protocol):
    """Who watches: sees each record after it is on the disk, in the driver's thread, in order. Must be quick."""

    def on_event(self, record: Record) -> None: ...


class Conductor:
    """Keeps the books of one sweep over an open journal whose first record is there.

    A sweep that is resumed is rebuilt here: its records go through the same code that takes in new ones.
    """

    def __init__(self, journal: Journal, proposer: Proposer, *, listener: Listener | None = None) -> None:
        self.history = History()
        self.listener = listener
        self.error: BaseException | None = None
        """The first exception in here. Tune turns exceptions into log lines; the sweep raises this one."""
        self.exhausted = False
        self._journal = journal
        self._overdue: Stop | None = None
        opened = journal.records[0]
        assert isinstance(opened, Opened)
        self.experiment: Experiment = opened.experiment
        self._proposer = proposer
        self._stopping = stopping.of(self.experiment)
        self._landing = Landing(self.history)
        self._live: set[int] = set()
        self._told: dict[int, int] = {}
        self._last_epochs: dict[int, int] = {}
        self.alike = Alike()
        self._refused = 0
        self._failed = 0
        self._failed_in_all = 0
        """Since this driver took the sweep: whoever resumes one has mended what was wrong."""
        last: Epoch | StoredEpoch | None = None
        with collecting_no_garbage():
            for record in journal.records:
                stop = self._apply(record)
                if isinstance(record, StoredEpoch | Epoch):
                    last, self._overdue = record, stop
                elif isinstance(record, Ended | Condemned) and last is not None and record.number == last.number:
                    self._overdue = None  # another one's end may come from outside (`request`)
            # None of it is garbage as long as this process lives: to look through it again and again would cost some
            # decision half a second.
            gc.freeze()
        self._overdue_number = last.number if last is not None else -1
        unfinished = [trial.number for trial in self.history.trials if not trial.ended]
        self.held = [number for number in unfinished if self._twin(number) is not None]
        """Trials whose config another one has that runs, or waits to: they are not handed out, they get its result."""
        held = set(self.held)
        self._waiting = deque(number for number in unfinished if number not in held)

    def settle(self) -> None:
        """Writes what a killed driver had decided but not written: at most one stop, of the last report it wrote, and
        the ends that follow from other trials'.
        """
        if self._overdue is not None and self._overdue.rung is None and not self._overdue.completes:
            # There may be more hours by now.
            self._overdue = self._landing.judge(self._overdue_number)
        if self._overdue is not None:
            if not self._stop(self._overdue_number, self._overdue):
                self._waiting.remove(self._overdue_number)
            self._overdue = None
        for trial in self.history.trials:
            if not trial.ended and trial.config is None:
                self._waiting.remove(trial.number)
                self._end(trial.number, "INFEASIBLE", reason=self._proposer.refusal(trial.params))
            elif not trial.ended and _unwanted(trial):
                self._end_by_hand(trial)
        self._release()

    @property
    def live(self) -> int:
        """Trials handed out and not ended."""
        return len(self._live)

    @property
    def all_handed_out(self) -> bool:
        """Nothing waits for a slot that has the time to finish; what runs could still come back."""
        if any(self._landing.may_go_on(self.history.trials[number]) for number in self._waiting):
            return False
        return self._all_asked or not self._landing.may_begin()

    @property
    def out_of_time(self) -> bool:
        """Nothing is left to hand out but trials that would not finish in the sweep's hours."""
        return self.all_handed_out and (bool(self._waiting) or not self._all_asked)

    @property
    def _all_asked(self) -> bool:
        enough = self.exhausted or len(self.history.trials) >= self.history.target
        return enough and not self.history.enqueued

    @property
    def finished(self) -> bool:
        """Nothing left to hand out, and nothing running that could come back."""
        return not self._live and self.all_handed_out

    def next(self) -> Handout | None:
        """The next trial for a free slot: unfinished ones first, each with its checkpoint, then those that were handed
        in, then a new proposal; None for now.

        Raises:
            RequestError: the proposer cannot go on (see its `ask`), or the space refuses everything that is proposed.
        """
        for number in self._waiting:
            if self._landing.may_go_on(self.history.trials[number]):
                self._waiting.remove(number)
                return self._hand_out(self.history.trials[number])
        while not self._all_asked and self._landing.may_begin():
            found = self._enqueued() or self._proposed()
            if found is None:
                self.exhausted = True
                return None
            if found is Wait.FOR_TRIALS:
                return None
            asked, refusal = found
            self._write(asked)
            if asked.config is not None:
                self._refused = 0
                if self._twin(asked.number) is not None:
                    self.held.append(asked.number)
                    self._release()
                    continue
                return self._hand_out(self.history.trials[asked.number])
            self._end(asked.number, "INFEASIBLE", reason=refusal)
            self._refused += 1
            if self._refused == REFUSALS_IN_A_ROW:
                raise RequestError(
                    f"{refusal}; that is refusal number {self._refused} in a row: widen the space, then go on "
                    f"with `pretune resume {shlex.quote(str(self.experiment.folder))}`"
                )
        return None

    def _enqueued(self) -> tuple[Asked, str] | None:
        """The first of what was handed in; it was checked then, and nothing refuses it."""
        found = next(iter(self.history.enqueued.values()), None)
        if found is None:
            return None
        asked = Asked(
            number=len(self.history.trials),
            params=found.params,
            distributions=found.distributions,
            config=found.config,
            duplicate_of=self.alike.first(found.config),
            enqueued=found.request,
        )
        return asked, ""

    def _proposed(self) -> tuple[Asked, str] | Wait | None:
        """The proposer's next trial, and why its parameters give no config, where they give none."""
        proposal = self._proposer.ask(self.history.trials)
        if proposal is None or proposal is Wait.FOR_TRIALS:
            return proposal
        config = None if proposal.config is None else proposal.config.model_dump(mode="json")
        alike = None if config is None else self.alike.first(config)
        asked = Asked(
            number=proposal.number,
            params=proposal.params,
            distributions=proposal.distributions,
            config=config,
            duplicate_of=proposal.duplicate_of if alike is None else alike,
        )
        return asked, proposal.refusal

    def request(self, record: StopRequested | Enqueued) -> None:
        """Takes in what somebody wants of the sweep, once. RequestError where it cannot be done."""
        if record.request in self.history.requests:
            return
        if isinstance(record, Enqueued):
            if self.experiment.points:
                raise RequestError(
                    f"sweep {self.experiment.name!r} is an ablation, whose trials are levels and seeds that were named "
                    "beforehand; run another `pretune ablate`"
                )
            self._write(record)
            return
        asked = len(self.history.trials)
        if not 0 <= record.number < asked:
            known = f"0 to {asked - 1}" if asked else "none so far"
            raise RequestError(f"TRIAL must be one that was asked for ({known}), but is {record.number}")
        trial = self.history.trials[record.number]
        if trial.ended:
            why = f": {trial.reason}" if trial.reason else ""
            raise RequestError(f"trial {record.number} must be unfinished, but has ended already ({trial.state}{why})")
        if trial.stop_requested is not None:
            raise RequestError(f"trial {record.number} was told to end before; it does so at its next report")
        self._write(record)
        if record.number not in self._live and _unwanted(trial):
            self._end_by_hand(trial)

    def _end_by_hand(self, trial: TrialHistory) -> None:
        for queue in (self._waiting, self.held):
            with suppress(ValueError):
                queue.remove(trial.number)
        why = f": {trial.stop_requested}" if trial.stop_requested else ""
        self._end(trial.number, "PRUNED", reason=f"{BY_HAND}{why}")

    def started(self, number: int) -> None:
        """A slot took the trial."""
        trial = self.history.trials[number]
        epoch = 0 if trial.checkpoint is None else trial.checkpoint.epoch
        self._write(Started(number=number, attempt=trial.attempts, epoch=epoch))

    def reported(self, row: Row) -> bool:
        """Takes in one row of a slot and says whether the trial goes on."""
        if self.history.trials[row.number].ended:
            return False
        stop = self._take_in(row)
        if stop is not None and not self._stop(row.number, stop):
            return False
        trial = self.history.trials[row.number]
        if not _unwanted(trial):
            return True
        self._end_by_hand(trial)
        return False

    def ended(self, row: Row) -> None:
        """The trial ended by itself, with its last row. Does nothing for one that `reported` has ended."""
        number, outcome = row.number, row.outcome
        trial = self.history.trials[number]
        if trial.ended:
            self._live.discard(number)
            return
        if outcome == "no_room":
            # Others hold the cluster: no failure, however often.
            self._live.discard(number)
            self._told.pop(number, None)
            self._wait_again(trial)
            return
        if outcome == "disk_full":
            # It is no end of the trial: whoever makes room resumes it from its last checkpoint.
            self._live.discard(number)
            raise SweepFailedError(row.reason)
        if outcome not in _ENDS:
            self.lost(number, f"its slot let go of it while it was {outcome}")
            return
        # A trial that ended by itself keeps its own end, whatever the rungs say of its last report.
        self._take_in(row)
        state, reason = _ENDS[outcome], row.reason
        if state == "COMPLETE":
            self._complete(number, reason)
            return
        if state == "INFEASIBLE":
            reason = f"{outcome}: {reason}" if reason and not reason.startswith(outcome) else reason or outcome
        self._end(number, state, reason=reason)

    def lost(self, number: int, reason: str) -> None:
        """The slot died under the trial: handed out again from its last checkpoint, until it has failed too often."""
        trial = self.history.trials[number]
        self._live.discard(number)
        self._told.pop(number, None)
        if trial.ended:
            return
        self._write(Attempt(number=number, failures=trial.failures + 1, reason=reason))
        if trial.failures > self.experiment.max_failures:
            self._end(number, "FAIL", reason=reason)
        else:
            self._wait_again(trial)

    def _wait_again(self, trial: TrialHistory) -> None:
        """A slot let go of the trial, which is not over: unless somebody wants it to be."""
        if _unwanted(trial):
            self._end_by_hand(trial)
        else:
            self._waiting.appendleft(trial.number)

    def close(
        self, reason: Literal["finished", "exhausted", "out_of_time", "interrupted", "failed"], detail: str = ""
    ) -> None:
        """Writes how this driver leaves."""
        self._write(Closed(reason=reason, detail=detail))

    def close_finished(self) -> None:
        """The same where nothing is left to do, with the reason."""
        if self.out_of_time:
            self.close("out_of_time", f"no trial would finish in what is left of {self.history.max_hours:g} h")
        else:
            self.close("exhausted" if self.exhausted else "finished")

    def extend(self, record: Extended) -> None:
        """A trial that has ended goes on: handed out again after those that are unfinished."""
        self._write(record)
        self._last_epochs.pop(record.number, None)
        self._waiting.append(record.number)

    def record(self, record: Record) -> None:
        """Writes a record of the driver's own (Resumed)."""
        self._write(record)

    def _hand_out(self, trial: TrialHistory) -> Handout:
        assert trial.config is not None, "what the space refused has ended"
        self._live.add(trial.number)
        return Handout(
            number=trial.number,
            config=trial.config,
            params=trial.params,
            folder=folder_name(trial),
            resume=trial.checkpoint,
            attempt=trial.attempts,
        )

    def _twin(self, number: int) -> int | None:
        """The trial of an equal config whose result this one gets; None where it is to run itself: it has begun, there
        is no such trial, or that one failed or was stopped by no rule, which says nothing of its config.
        """
        trial = self.history.trials[number]
        if trial.config is None or trial.attempts or trial.epochs:
            return None
        earlier = self.alike.before(number)
        return next((other for other in earlier if _says_something(self.history.trials[other])), None)

    def _release(self) -> None:
        """Ends each held trial whose twin has ended, with that one's result; one whose twin failed runs itself."""
        for number in list(self.held):
            found = self._twin(number)
            if found is None:
                self.held.remove(number)
                self._waiting.append(number)
                continue
            twin = self.history.trials[found]
            if twin.ended and twin.state in _RESULTS:
                self.held.remove(number)
                reason = f"same config as trial {found}, not run again{': ' + twin.reason if twin.reason else ''}"
                self._write(
                    Ended(
                        number=number,
                        state=_RESULTS[twin.state],
                        value=twin.value,
                        reason=reason,
                        rung=twin.rung,
                        result_of=found,
                    )
                )

    def _stop(self, number: int, stop: Stop) -> bool:
        """The trial is to end. Says whether it lives on all the same, to audit the rule that condemned it."""
        if stop.rung is not None and stopping.is_audited(self.experiment, number):
            epoch = self.history.trials[number].last_epoch
            self._write(Condemned(number=number, epoch=epoch, rung=stop.rung, reason=stop.reason))
            return True
        if stop.completes:
            self._complete(number, stop.reason)
        else:
            self._end(number, "PRUNED", reason=stop.reason, rung=stop.rung)
        return False

    def _take_in(self, row: Row) -> Stop | None:
        trial = self.history.trials[row.number]
        self._note_failures(trial, row)
        # A trial that fell back to an older checkpoint repeats epochs, bit for bit: they are written once.
        if row.epoch <= trial.last_epoch:
            return None
        return self._write(
            Epoch(number=row.number, epoch=row.epoch, metrics=dict(row.metrics), checkpoint=row.checkpoint)
        )

    def _note_failures(self, trial: TrialHistory, row: Row) -> None:
        """Writes the failures since the slot's last row, after which it tried again by itself. The slot counts them
        from where it took the trial.
        """
        for _ in range(row.failures - self._told.get(trial.number, 0)):
            reason = row.reason or "a worker was lost; its group was replaced"
            self._write(Attempt(number=trial.number, failures=trial.failures + 1, reason=reason))
        self._told[trial.number] = row.failures

    def _complete(self, number: int, reason: str) -> None:
        """Ends a trial that went through, with its last value of the metric; each objective must have one."""
        trial = self.history.trials[number]
        for objective in self.experiment.objectives:
            value = trial.last(objective.metric)
            if value is None:
                self._end(number, "FAIL", reason=f"the metric {objective.metric!r} was never reported")
                return
            if not math.isfinite(value):
                self._end(number, "INFEASIBLE", reason=f"the metric {objective.metric!r} is {value}")
                return
        if (condemned := trial.condemned) is not None:
            reason = f"audited, would have been stopped at epoch {condemned.epoch}: {condemned.reason}"
        self._end(number, "COMPLETE", value=trial.last(self.experiment.metric), reason=reason)

    def _end(
        self, number: int, state: End, *, value: float | None = None, reason: str = "", rung: int | None = None
    ) -> None:
        self._write(Ended(number=number, state=state, value=value, reason=reason, rung=rung))
        self._live.discard(number)
        self._told.pop(number, None)
        self._release()
        self._failed = self._failed + 1 if state == "FAIL" else 0
        if self._failed == FAILED_IN_A_ROW:
            raise SweepFailedError(
                f"{self._failed} trials in a row failed before any epoch was finished, the last one with: {reason}"
            )
        self._failed_in_all += state == "FAIL"
        if state == "FAIL" and self._failed_in_all > self.experiment.max_failed * self.history.target:
            raise SweepFailedError(
                f"{self._failed_in_all} of {self.history.target} trials failed, more than --max-failed "
                f"{self.experiment.max_failed:.0%} allows, the last one with: {reason}"
            )

    def _write(self, record: Record) -> Stop | None:
        record = self._journal.append(record)
        stop = self._apply(record)
        if isinstance(record, Epoch):
            self._failed = 0
        if self.listener is not None:
            self.listener.on_event(record)
        return stop

    def _apply(self, record: Record | StoredEpoch) -> Stop | None:
        self.history.apply(record)
        self._landing.see(record)
        if isinstance(record, StoredEpoch | Epoch):
            return self._judge(record)
        if isinstance(record, Asked) and record.config is not None:
            self.alike.add(record.number, record.config)
        elif isinstance(record, Ended):
            trial = self.history.trials[record.number]
            # Of what was not run, or would have been stopped, a rule that judges by the others has seen nothing more.
            if self._stopping is not None and trial.state == "COMPLETE" and trial.condemned is None:
                self._stopping.completed(record.number)
        elif isinstance(record, Extended) and not record.continued:
            self.alike.remove(record.number)
        return None

    def _judge(self, record: Epoch | StoredEpoch) -> Stop | None:
        stop, late = self._condemn(record), self._landing.judge(record.number)
        # Who is audited lives on where the rule, but not where time ends it.
        if late is not None and (stop is None or stopping.is_audited(self.experiment, record.number)):
            return late
        return stop

    def _condemn(self, record: Epoch | StoredEpoch) -> Stop | None:
        """What the stopping rule says to a report."""
        trial = self.history.trials[record.number]
        if trial.extended or trial.condemned is not None:
            # What was asked for by number of epochs no rung ends, and what is condemned is on no other rung.
            return None
        if self._stopping is None:
            return spent(self.experiment, record.epoch, record.metrics)
        if record.number not in self._last_epochs:
            assert trial.config is not None, "what the space refused has no epochs"
            self._last_epochs[record.number] = _last_epoch_before_decay(trial.config)
        return self._stopping.observe(
            record.number, record.epoch, record.metrics, last_epoch=self._last_epochs[record.number]
        )


def _says_something(trial: TrialHistory) -> bool:
    """Whether its end, if it has ended, is its config's own doing."""
    return trial.state != "FAIL" and not (trial.state == "PRUNED" and trial.rung is None)


def _unwanted(trial: TrialHistory) -> bool:
    """Whether somebody wants it to end who was in time: after its last epoch it is complete."""
    return trial.stop_requested is not None and trial.last_epoch < (trial.config or {}).get("epochs", math.inf)


def folder_name(trial: TrialHistory) -> str:
    """The name of a trial's folder below `trials`; another one once it trains longer, so that its first end is kept."""
    longer = f"-epochs-{(trial.config or {})['epochs']}" if trial.extended else ""
    return f"{trial.number:04d}{longer}"


def _last_epoch_before_decay(config: dict[str, Any]) -> int:
    """That of a trial's config; most trials of a sweep have the same schedule."""
    schedule, epochs = config.get("schedule"), config.get("epochs")
    if schedule is None or epochs is None:
        known = TrialConfig.model_validate(config)
        return known.schedule.last_epoch_before_decay(known.epochs)
    return _before_decay(json.dumps(schedule, sort_keys=True), epochs)


@lru_cache(maxsize=1024)
def _before_decay(schedule: str, epochs: int) -> int:
    return ScheduleConfig.model_validate_json(schedule).last_epoch_before_decay(epochs)
