"""Sweeps of trials that train nothing: what runs on real slots, conductors and journals where only those are tested.

`score` is a smooth function of the one parameter that counts, so that rungs have something to judge. The executor needs
no Ray; `Training` runs in the workers of a warm slot; `Plain` is a slot without workers.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import optuna
import ray
from ray import tune

from pretune.core import points
from pretune.core.conductor import Conductor
from pretune.core.experiment import Experiment
from pretune.core.journal import FILE, Journal, read
from pretune.core.place import Place
from pretune.core.records import Asked, Ended, Epoch, Opened, Record, Started
from pretune.core.rows import Handout, Row
from pretune.core.search import Space
from pretune.execution.slot import Slot, SlotSettings
from trainers.config import TrialConfig
from trainers.report import Checkpoint, EpochReport, Outcome
from trainers.terms import Alignment

if TYPE_CHECKING:
    from pretune.execution.worker import Given

# Workers and slots cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

BASE = TrialConfig(objective={"alignment": Alignment()}, epochs=6, batch_size=64)


def space(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    rate = trial.suggest_float("rate", 1e-3, 10.0, log=True)
    return base.model_copy(update={"optimizer": base.optimizer.model_copy(update={"learning_rate": rate})})


def branching(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    if trial.suggest_categorical("kernel", ["rbf", "energy"]) == "rbf":
        trial.suggest_float("bandwidth", 0.1, 10.0, log=True)
    if trial.suggest_float("refused", 0.0, 1.0) > 0.9:
        raise ValueError("no")
    return space(trial, base)


def score(config: TrialConfig, epoch: int) -> float:
    return (1.0 - abs(math.log10(config.optimizer.learning_rate) + 1.0) / 3.0) * (1.0 - 0.5**epoch)


def diverges(config: TrialConfig, epoch: int) -> bool:
    """Whether the epoch after `epoch` ends with a loss that is no number: at very high rates."""
    return config.optimizer.learning_rate > 5.0 and epoch == 1


def experiment(storage: Path, **changes: Any) -> Experiment:
    settings = {"name": "s", "space": "mine", "base": BASE, "trials": 10, "storage": str(storage), "startup_trials": 4}
    return Experiment(**(settings | changes))


# ---- without Ray -----------------------------------------------------------------------------------------------------


def begin(folder: Path, made: Experiment, how: Space, clock: Callable[[], float] = lambda: 0.0) -> Conductor:
    journal = Journal(folder, new=True, clock=clock)
    journal.append(Opened(experiment=made))
    return Conductor(journal, points.proposer(made, how))


def again(folder: Path, how: Space) -> Conductor:
    journal = Journal(folder, new=False, clock=lambda: 0.0)
    opened = journal.records[0]
    assert isinstance(opened, Opened)
    return Conductor(journal, points.proposer(opened.experiment, how))


def row(handout: Handout, epoch: int, *, metrics: Mapping[str, float] | None = None, **changes: Any) -> Row:
    """What a slot would say after `epoch`; `metrics` come on top of the score."""
    config = TrialConfig.model_validate(handout.config)
    said = Row(
        number=handout.number,
        epoch=epoch,
        metrics={"probe/linear": score(config, epoch), **(metrics or {})},
        checkpoint=Checkpoint(path=f"/{handout.number}/{epoch}", sha256="x", epoch=epoch),
    )
    return replace(said, **changes)


class Executor:
    """Runs a conductor's trials on `slots` toy slots; whose epoch comes next is drawn from `seed`."""

    def __init__(self, conductor: Conductor, *, slots: int, seed: int) -> None:
        self.conductor, self.slots, self.rng = conductor, slots, random.Random(seed)
        self.running: dict[int, tuple[Handout, int]] = {}

    def fill(self) -> None:
        while self.conductor.live < self.slots:
            handout = self.conductor.next()
            if handout is None:
                return
            self.conductor.started(handout.number)
            self.running[handout.number] = (handout, handout.resume.epoch if handout.resume else 0)

    def run(self) -> None:
        self.fill()
        while self.running:
            self.advance()
        assert self.conductor.finished

    def advance(self) -> None:
        """One epoch of one of the running trials."""
        number = self.rng.choice(sorted(self.running))
        handout, epoch = self.running[number]
        if not self.step(number, handout, epoch + 1):
            del self.running[number]
        self.fill()

    def step(self, number: int, handout: Handout, epoch: int) -> bool:
        config = TrialConfig.model_validate(handout.config)
        if diverges(config, epoch - 1):
            self.conductor.ended(row(handout, 1, outcome="diverged", reason="loss/total is nan"))
            return False
        if epoch > config.epochs:
            self.conductor.ended(row(handout, epoch - 1, outcome="complete"))
            return False
        self.running[number] = (handout, epoch)
        return self.conductor.reported(row(handout, epoch))


def cut_after(folder: Path, count: int) -> Path:
    """A sweep beside the one in `folder`, as a driver leaves it that is killed after so many records."""
    lines = (folder / FILE).read_bytes().splitlines(keepends=True)
    left = folder.with_name(f"{folder.name}-cut-{count}")
    left.mkdir()
    (left / FILE).write_bytes(b"".join(lines[:count]))
    return left


def decisions(folder: Path) -> list[Record]:
    """The journal without what only says that a slot took a trial, or where the sweep lies."""
    return [_anywhere(record) for record in read(folder) if not isinstance(record, Started)]


def _anywhere(record: Record) -> Record:
    if not isinstance(record, Opened):
        return record
    return record.model_copy(update={"experiment": record.experiment.at(Place(Path("/anywhere")))})


def follow(conductor: Conductor, rest: Sequence[Record]) -> None:
    """Lets the trials report in the order of `rest`; everything else the conductor must decide by itself."""
    handouts: dict[int, Handout] = {}
    conductor.settle()
    held = set(conductor.held)
    waiting = [trial.number for trial in conductor.history.trials if not trial.ended and trial.number not in held]
    for _ in waiting:
        handout = conductor.next()
        assert handout is not None
        handouts[handout.number] = handout
    assert list(handouts) == waiting
    for record in rest:
        if isinstance(record, Asked) and record.number == len(conductor.history.trials):
            handout = conductor.next()
            if handout is not None:
                handouts[handout.number] = handout
        elif isinstance(record, Epoch):
            conductor.reported(row(handouts[record.number], record.epoch))
        elif isinstance(record, Ended) and not conductor.history.trials[record.number].ended:
            handout = handouts[record.number]
            outcome = "complete" if record.state == "COMPLETE" else "diverged"
            reason = "loss/total is nan" if outcome == "diverged" else ""
            epoch = conductor.history.trials[record.number].last_epoch
            conductor.ended(row(handout, epoch, outcome=outcome, reason=reason))


# ---- with Ray --------------------------------------------------------------------------------------------------------


class Training:
    """What the slots' workers run: no data, no network; a very high rate diverges; a state on disk after each epoch.

    Each epoch takes `epoch_s`, with a sign of life every tenth of a second and, with several workers, an all-reduce in
    which a lost rank is missed. `ran.txt` in the trial's folder has a line `pid epoch` per epoch that rank 0 began.
    """

    def __init__(self, epoch_s: float = 0.0) -> None:
        self._epoch_s = epoch_s

    def __call__(self, config: TrialConfig, **given: Unpack[Given]) -> Outcome:
        import torch.distributed

        several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        rank = torch.distributed.get_rank() if several else 0
        folder, report, resume, progress = given["folder"], given["report"], given["resume"], given["progress"]
        epoch = json.loads(Path(resume.path).read_text())["epoch"] if resume else 0
        with (folder / f"processes.rank-{rank}.txt").open("a") as file:
            file.write(f"{os.getpid()}\n")
        while epoch < config.epochs:
            if rank == 0:
                with (folder / "ran.txt").open("a") as file:
                    file.write(f"{os.getpid()} {epoch}\n")
            progress(epoch, 0)
            ends = time.monotonic() + self._epoch_s
            while time.monotonic() < ends:
                time.sleep(min(0.1, self._epoch_s))
                progress(epoch, 0)
            if several:
                torch.distributed.all_reduce(torch.ones(1))
            if diverges(config, epoch):
                return Outcome(state="diverged", reason="loss/total is nan", epochs=epoch)
            epoch += 1
            text = json.dumps({"epoch": epoch})
            path = folder / f"epoch-{epoch}.json"
            if rank == 0:
                path.write_text(text)
            checkpoint = Checkpoint(path=str(path), sha256=hashlib.sha256(text.encode()).hexdigest(), epoch=epoch)
            metrics = {"probe/linear": score(config, epoch), "loss/total": 1.0 / epoch}
            if not report(EpochReport(epoch=epoch, metrics=metrics, checkpoint=checkpoint)):
                return Outcome(state="stopped", epochs=epoch)
        return Outcome(state="complete", epochs=epoch)


def warm_slots(
    experiment: Experiment, folder: Path, *, epoch_s: float = 0.0, start_timeout_s: float = 1200.0
) -> type[tune.Trainable]:
    settings = SlotSettings(
        sweep_folder=str(folder),
        workers=experiment.workers_per_trial,
        cpus_per_worker=experiment.cpus_per_worker,
        max_failures=experiment.max_failures,
        group_start_timeout_s=start_timeout_s,
    )
    make_train = functools.partial(Training, epoch_s)
    slot: type[tune.Trainable] = tune.with_parameters(Slot, settings=settings, make_train=make_train)
    return slot


def epochs_run(folder: Path) -> dict[int, list[int]]:
    """By trial, the epochs that `Training` began in the sweep in `folder`, in order; what a failure repeats is there
    twice.
    """
    found = {}
    for path in sorted((folder / "trials").glob("*/ran.txt")):
        found[int(path.parent.name)] = [int(line.split()[1]) for line in path.read_text().splitlines()]
    return found


class Plain(tune.Trainable):
    """A slot without workers. With `mark`, a file that is not there yet, its process dies once: in trial 1, epoch 3."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([{"CPU": 1}])

    def setup(self, config: dict[str, Any], mark: str = "") -> None:
        self._mark = Path(mark)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._trial = Handout.from_config(new_config)
        self._epoch = self._trial.resume.epoch if self._trial.resume else 0
        return True

    def step(self) -> dict[str, Any]:
        config = TrialConfig.model_validate(self._trial.config)
        over = self._epoch == config.epochs
        self._epoch += not over
        if self._mark.name and self._trial.number == 1 and self._epoch == 3 and not self._mark.exists():
            self._mark.touch()
            os._exit(1)
        outcome = "complete" if over else "running"
        return row(self._trial, self._epoch, outcome=outcome, group_starts=1).to_result()


def plain(experiment: Experiment, folder: Path) -> type[tune.Trainable]:
    return Plain


def fragile(experiment: Experiment, folder: Path) -> type[tune.Trainable]:
    slot: type[tune.Trainable] = tune.with_parameters(Plain, mark=str(folder / "died"))
    return slot


class Ear:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[Record] = []

    def on_event(self, record: Record) -> None:
        self.heard.append(record)
