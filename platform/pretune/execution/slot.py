"""A slot: the Tune Trainable that serves trial after trial with one warm worker group.

Tune keeps the slot's actor between trials (`reuse_actors=True`): `reset_config` only notes the next trial, `step` hands
it to the group that is up already. `group.py` owns the processes; here is the life of a trial: begin, continue, fail
and begin again, end.

A trial comes in as a `Handout` and each `step` gives a `Row`, both as the dicts that Tune carries (`core/rows.py`). A
trial that Tune stops gets its `stop` command with the next `reset_config` or `cleanup`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from ray import tune

from pretune.core.rows import Handout, Row, RowOutcome
from pretune.execution.group import Group, GroupStartError, NoRoomError
from pretune.execution.logfile import TRIAL_LOG, LogFile
from pretune.execution.mailbox import Command, Failed, Lost, Order, Ready, Reported, Returned
from pretune.execution.ray_private import HEAD
from pretune.execution.settings import SLOT_MEMORY, SlotSettings
from trainers.config import TrialConfig
from trainers.report import Checkpoint, Outcome

if TYPE_CHECKING:
    from pretune.execution.worker import Train

__all__ = ["POINTER_FILE", "GroupStartError", "Slot", "SlotSettings"]

logger = logging.getLogger(__name__)

POINTER_FILE = "pointer.json"
"""The only file in a Tune checkpoint: path and hash of the state that rank 0 wrote to the sweep's storage."""


@dataclass
class _Trial:
    """The trial that this slot serves now."""

    number: int
    config: dict[str, Any]
    folder: Path
    checkpoint: Checkpoint | None
    """The newest one: where a retry begins."""
    epoch: int
    """The last that Tune was told."""
    run: int = 0
    """The run that trains it; 0 while none does."""
    metrics: dict[str, float] = field(default_factory=dict)
    failures: int = 0
    reason: str = ""
    traceback: str = ""
    bug: str | None = None
    """What the last failure was, if it is one that comes again."""
    ended: dict[int, Outcome] = field(default_factory=dict)
    """What each rank's training returned."""
    over: bool = False


class Slot(tune.Trainable):
    """Give settings, and a substitute for `worker.WarmTrainer` if wanted, with `tune.with_parameters(Slot,
    settings=...)`.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """No CPU, so that the worker placement group is the whole gang; on the head, which nobody takes away."""
        return tune.PlacementGroupFactory([{"memory": SLOT_MEMORY, HEAD: 1e-3}])

    # ---- what Tune calls ---------------------------------------------------------------------------------------------

    def setup(
        self,
        config: dict[str, Any],
        settings: SlotSettings | None = None,
        make_train: Callable[[], Train] | None = None,
    ) -> None:
        """Start the worker group, and do not wait for it: the first `step` does."""
        if settings is None:
            raise ValueError(
                "a Slot needs settings; make it with tune.with_parameters(Slot, settings=SlotSettings(...))"
            )
        self._settings = settings
        self._runs = 0
        self._served = 0
        self._trial = self._next_trial(Handout.from_config(config))
        self._group = Group(settings, make_train)
        self._log = _log_to(Path(settings.sweep_folder) / "logs" / f"{self._group.name}.txt")

    def step(self) -> dict[str, Any]:
        """Train one more epoch. Raises GroupStartError if the worker group does not start; where it finds no room, the
        row says so, and the group goes on asking for it.
        """
        try:
            row = self._step()
        except NoRoomError as error:
            row = self._end("no_room", str(error))
        return row.to_result()

    def _step(self) -> Row:
        trial = self._trial
        if trial.over:
            raise RuntimeError(f"trial {trial.number} is over already; a slot needs reset_config before the next step")
        refused = _refuse(trial.config)
        if refused:
            return self._end("failed", refused)
        if not trial.run:
            self._begin()
        elif not self._group.send(Command("continue")):
            row = self._retry("the worker group was lost while the trial waited for its next epoch", "")
            if row is not None:
                return row
        while True:
            row = self._handle()
            if row is not None:
                return row

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the pointer; the state itself was written by rank 0 before it reported."""
        trial = self._trial
        pointer = {
            "number": trial.number,
            "epoch": trial.epoch,
            "checkpoint": trial.checkpoint.model_dump() if trial.checkpoint else None,
        }
        (Path(checkpoint_dir) / POINTER_FILE).write_text(json.dumps(pointer))

    def load_checkpoint(self, checkpoint: dict[str, Any] | str | None) -> None:
        """Go on from a pointer that `save_checkpoint` wrote, of this trial or of another one."""
        if not isinstance(checkpoint, str):
            raise ValueError(f"a slot's checkpoint is a folder with {POINTER_FILE}, but is {type(checkpoint).__name__}")
        pointer = json.loads((Path(checkpoint) / POINTER_FILE).read_text(encoding="utf-8"))
        self._stop_running()
        found = pointer["checkpoint"]
        self._trial.checkpoint = Checkpoint.model_validate(found) if found else None
        self._trial.epoch = self._trial.checkpoint.epoch if self._trial.checkpoint else 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial, in the same processes."""
        self._stop_running()
        self._trial = self._next_trial(Handout.from_config(new_config))
        return True

    def cleanup(self) -> None:
        """Shut the worker group down; every resource is free when this returns."""
        if not hasattr(self, "_group"):
            return
        self._group.close()
        logging.getLogger("pretune").removeHandler(self._log)
        self._log.close()

    # ---- the life of a trial -----------------------------------------------------------------------------------------

    def _next_trial(self, handout: Handout) -> _Trial:
        return _Trial(
            number=handout.number,
            config=handout.config,
            folder=Path(self._settings.sweep_folder) / "trials" / handout.folder,
            checkpoint=handout.resume,
            epoch=handout.resume.epoch if handout.resume else 0,
        )

    def _begin(self) -> None:
        """Hand the trial to a group that is up, from its newest checkpoint."""
        trial = self._trial
        sent = False
        while not sent:
            self._group.ready()
            self._runs += 1
            order = Order(self._runs, trial.number, trial.config, str(trial.folder), trial.checkpoint)
            sent = self._group.send(Command("start", order))
            if not sent:  # the group was restarted between the two calls: wait for the new one
                self._group.workers = ()
        trial.run = self._runs
        trial.ended = {}

    def _handle(self) -> Row | None:
        """Wait for one event, act on it; a row if there is one for Tune."""
        trial, group, settings = self._trial, self._group, self._settings
        generation, preempted = group.generation, group.preempted
        event = group.event()
        preempted = preempted or group.preempted  # the notice may have come while it was waited for what follows
        if event is None:
            if not group.workers:
                return self._retry("Ray Train's run ended under the trial", "")
            if group.longest_silence_s > settings.hang_timeout_s:
                # Whoever waits for a rank whose machine has gone is as silent as that rank.
                preempted = preempted and bool(group.dead_ranks())
                group.replace(f"no sign of life for {group.longest_silence_s:.0f} s")
                reason = f"a worker hung: no sign of life for {settings.hang_timeout_s:g} s"
                return self._retry(reason, "", preempted=preempted)
            return None
        if isinstance(event, Ready | Lost):
            return self._retry(f"a worker of group {generation} was lost", "", preempted=preempted)
        if isinstance(event, Failed):
            dead = group.dead_ranks()
            group.replace(event.summary)
            if event.run != trial.run:  # an older run broke while it stopped: not this trial's failure
                self._begin()
                return None
            if event.disk_full:
                return self._end("disk_full", event.summary)
            if dead or (preempted and event.bug is None):  # what the others notice may come before the system does
                lost = f"rank {', '.join(map(str, dead))} was lost; " if dead else ""
                return self._retry(
                    f"{lost}rank {event.rank} raised {event.summary}", event.traceback, preempted=preempted
                )
            return self._raised(event)
        if event.run != trial.run:
            return None
        if isinstance(event, Reported):
            return self._report(event)
        return self._collect(event)

    def _raised(self, event: Failed) -> Row | None:
        """A worker that lives has raised. A bug is not tried again: it would only cost the time of another start."""
        trial, before = self._trial, self._trial.bug
        trial.bug = event.bug
        reason = f"rank {event.rank} raised {event.summary}"
        if event.bug is None or (event.begun and event.bug != before):
            return self._retry(reason, event.traceback)
        trial.failures += 1
        when = "before its first step" if not event.begun else "a second time at the same place"
        self._note(f"{reason}, {when} ({event.bug}); its traceback is in {trial.folder / TRIAL_LOG}", event.traceback)
        return self._end("failed", trial.reason)

    def _report(self, event: Reported) -> Row | None:
        trial, report = self._trial, event.report
        trial.checkpoint = report.checkpoint or trial.checkpoint
        if report.epoch <= trial.epoch:  # a retry that runs again what Tune has seen
            if not self._group.send(Command("continue")):
                return self._retry("the worker group was lost", "")
            return None
        trial.epoch, trial.metrics = report.epoch, report.metrics
        start_s = self._group.take_start_s()
        if start_s is not None:
            memory = float(self._group.memory_bytes())
            trial.metrics = {**trial.metrics, "time/group_start_s": start_s, "memory/slot_bytes": memory}
        row = self._row("running", trial.reason)
        trial.reason = trial.traceback = ""
        return row

    def _collect(self, event: Returned) -> Row | None:
        """A trial is over when all ranks say so, in the same words."""
        trial, workers = self._trial, self._settings.workers
        trial.ended[event.rank] = event.outcome
        if event.outcome.state == "out_of_memory" and workers > 1:
            # The other ranks wait in a collective that this one has left.
            self._group.replace(f"rank {event.rank} is out of memory")
            return self._end("out_of_memory", f"rank {event.rank}: {event.outcome.reason}")
        if len(trial.ended) < workers:
            return None
        states = {outcome.state for outcome in trial.ended.values()}
        if len(states) > 1:
            self._group.replace("ranks disagree")
            return self._retry(f"ranks disagree how the trial ended: {', '.join(sorted(states))}", "")
        outcome = trial.ended[0]
        if outcome.state == "stopped":
            self._group.replace("a trial stopped unasked")
            return self._retry("the training stopped although it was told to continue", "")
        return self._end(outcome.state, outcome.reason)

    def _retry(self, reason: str, traceback: str, *, preempted: bool = False) -> Row | None:
        """Count a failure and tell of it at once: the next step begins again from the last checkpoint, unless there
        were too many. A machine that was taken away is no failure, and the trial begins again now.
        """
        trial = self._trial
        if preempted:
            self._note(f"its machine was taken away: {reason}", "")
            self._begin()
            return None
        trial.failures += 1
        retried = trial.failures <= self._settings.max_failures
        where = f"; its traceback is in {trial.folder / TRIAL_LOG}" if traceback else ""
        self._note(f"failure {trial.failures}, {'retried' if retried else 'given up'}: {reason}{where}", traceback)
        if not retried:
            return self._end("failed", trial.reason)
        row = self._row("running", trial.reason)
        trial.reason = trial.traceback = ""  # told once
        return row

    def _note(self, reason: str, traceback: str) -> None:
        trial = self._trial
        trial.run = 0
        trial.reason, trial.traceback = reason, traceback
        logger.warning("trial %d: %s\n%s", trial.number, trial.reason, traceback)
        trial.folder.mkdir(parents=True, exist_ok=True)
        with (trial.folder / TRIAL_LOG).open("a", encoding="utf-8") as log:
            log.write(f"{trial.reason}\n{traceback}")

    def _end(self, outcome: RowOutcome, reason: str) -> Row:
        trial, settings = self._trial, self._settings
        trial.over, trial.run = True, 0
        row = self._row(outcome, reason)
        self._trial_left()
        if settings.recycle_after_trials and self._served >= settings.recycle_after_trials and self._group.workers:
            self._group.replace(f"it has served {self._served} trials")
            self._served = 0
        return row

    def _stop_running(self) -> None:
        """Tell the group that Tune has stopped the trial. It needs no answer: what the old run still says is void."""
        trial = self._trial
        if trial.run:
            self._group.send(Command("stop"))
            trial.run = 0
            self._trial_left()

    def _trial_left(self) -> None:
        self._served = self._served + 1 if self._group.workers else 0

    def _row(self, outcome: RowOutcome, reason: str) -> Row:
        trial = self._trial
        return Row(
            number=trial.number,
            epoch=trial.epoch,
            outcome=outcome,
            metrics=trial.metrics,
            checkpoint=trial.checkpoint,
            reason=reason,
            traceback=trial.traceback,
            failures=trial.failures,
            group_starts=self._group.generation,
        )


def _refuse(config: dict[str, Any]) -> str:
    """Why this is no TrialConfig; empty if it is one. A broken config must not cost a worker group."""
    try:
        TrialConfig.model_validate(config)
    except ValidationError as error:
        return f"the trial's config is not valid: {error}"
    return ""


def _log_to(path: Path) -> LogFile:
    """The platform's own lines of this process, kept in the sweep's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = LogFile(path)
    log = logging.getLogger("pretune")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    return handler
