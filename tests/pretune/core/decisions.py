"""Recorded sweeps of 300 trials, one for each sampler, and how they were made.

`python -m tests.pretune.core.decisions` writes `tests/stored/decisions/` anew. What lies there was written when each
ask still rebuilt Optuna's study from all histories, and stays: whatever makes an ask faster must decide the same.
A file holds what decisions depend on, in the journal's order: each proposal, each epoch's value of the metric, each
end.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna

from pretune.core import study as studies
from pretune.core.conductor import Conductor
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.history import TrialHistory
from pretune.core.journal import Journal, read
from pretune.core.parameters import Names, SpaceTrial
from pretune.core.records import Asked, Ended, Epoch, Opened, Record
from pretune.core.rows import Handout, Row
from pretune.core.search import Search, Space
from trainers.config import TrialConfig
from trainers.terms import Alignment

FOLDER = Path(__file__).parents[2] / "stored" / "decisions"
BASE = TrialConfig(objective={"alignment": Alignment()}, epochs=9, batch_size=64)
METRIC = "probe/linear"
TRIALS = 300


def _told(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    """A config of its own for each point."""
    text = json.dumps({name: str(value) for name, value in trial.params.items()}, sort_keys=True)
    return base.model_copy(update={"seed": zlib.crc32(text.encode()) % 2**31})


def branching(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    """All that TPE can meet: branches, ranges and choices that depend on others, steps, one value, refusals."""
    kernel = trial.suggest_categorical("kernel", ["rbf", "energy", None, "laplace"])
    if kernel == "rbf":
        trial.suggest_float("bandwidth", 0.1, 10.0, log=True)
    elif kernel == "energy":
        trial.suggest_float("exponent", 0.25, 1.75, step=0.25)
    trial.suggest_float("rate", 1e-3, 10.0, log=True)
    depth = trial.suggest_int("depth", 1, 5)
    trial.suggest_int("width", 8, 8 * depth, step=8)
    trial.suggest_int("groups", 1, 64, log=True)
    widths: list[Any] = [(32, 32), (64, 32)] if depth > 2 else [(16,), (32,), (64,)]
    trial.suggest_categorical("widths", widths)
    trial.suggest_float("fixed", 0.5, 0.5)
    if trial.suggest_float("shift", 0.0, 1.0) > 0.93:
        raise ValueError("too far")
    return _told(trial, base)


def numbers(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    for name in ("a", "b", "c"):
        trial.suggest_float(name, -1.0, 1.0)
    trial.suggest_float("rate", 1e-3, 10.0, log=True)
    trial.suggest_int("depth", 1, 9)
    trial.suggest_float("share", 0.0, 1.0, step=0.125)
    if trial.suggest_float("shift", 0.0, 1.0) > 0.95:
        raise ValueError("too far")
    return _told(trial, base)


def finite(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    high = trial.suggest_int("high", 1, 6)
    trial.suggest_int("low", 1, high)
    if trial.suggest_categorical("kernel", ["rbf", "energy", None]) == "rbf":
        trial.suggest_float("share", 0.0, 0.4, step=0.1)
    widths: list[Any] = [(32, 32), (64,), (16,)]
    if trial.suggest_categorical("widths", widths) == (16,) and high == 6:
        raise ValueError("too far")
    return _told(trial, base)


SWEEPS: dict[str, tuple[Space, dict[str, Any]]] = {
    "tpe": (branching, {"sampler": "tpe"}),
    "tpe-loss": (branching, {"sampler": "tpe", "maximize": False, "seed": 1, "startup_trials": 20}),
    "tpe-finite": (finite, {"sampler": "tpe", "seed": 2}),
    "random": (branching, {"sampler": "random"}),
    "random-finite": (finite, {"sampler": "random", "seed": 3}),
    "grid": (finite, {"sampler": "grid"}),
    "cmaes": (numbers, {"sampler": "cmaes"}),
    "cmaes-loss": (numbers, {"sampler": "cmaes", "maximize": False, "seed": 1}),
}


def experiment(name: str, **changes: Any) -> Experiment:
    settings: dict[str, Any] = {"name": "s", "space": "mine", "base": BASE, "trials": TRIALS}
    return Experiment(**(settings | SWEEPS[name][1] | changes))


def optuna_study(
    made: Experiment, trials: Sequence[TrialHistory], sampler: optuna.samplers.BaseSampler | None = None
) -> optuna.Study:
    """The slow way: a study in Optuna's own storage that is told all trials, for `sampler` to read."""
    study, called = studies.empty(made, sampler), Names()
    study.add_trials([studies.frozen(made, trial, called) for trial in trials])
    return study


def slow_ask(
    made: Experiment, trials: Sequence[TrialHistory], sampler: optuna.samplers.BaseSampler, space: Space
) -> dict[str, Any]:
    """What `space` is given where `sampler` reads such a study, refused or not."""
    called = Names()
    for trial in trials:
        for name, distribution in studies.distributions(trial).items():
            called.of(name, distribution)
    return points_of(SpaceTrial(optuna_study(made, trials, sampler).ask(), called), space)


def points_of(trial: SpaceTrial, space: Space) -> dict[str, Any]:
    """The parameters that `space` asks `trial` for."""
    with suppress(ValueError):
        space(trial, BASE)
    return trial.told


def search(name: str) -> Search:
    return Search(experiment(name), SWEEPS[name][0])


def score(params: dict[str, Any], epoch: int) -> float:
    """What an epoch is worth: with two digits, so that trials tie."""
    worth: float = math.exp(-((math.log10(params.get("rate", 0.1)) + 1.0) ** 2))
    worth += 0.5 * (params.get("kernel") == "rbf") - 0.1 * abs(params.get("depth", 3) - 3)
    worth -= sum(params.get(name, 0.0) ** 2 for name in ("a", "b", "c")) + abs(params.get("share", 0.3) - 0.3)
    return round(worth * (1.0 - 0.6**epoch), 2)


def sweep(conductor: Conductor, *, slots: int, seed: int) -> None:
    """Runs it on toy slots; whose epoch comes next, who diverges and who fails is drawn from `seed`."""
    rng, running = random.Random(seed), dict[int, tuple[Handout, int]]()
    while True:
        while conductor.live < slots and (handout := conductor.next()) is not None:
            conductor.started(handout.number)
            running[handout.number] = (handout, 0)
        if not running:
            return
        number = rng.choice(sorted(running))
        handout, epoch = running[number]
        epoch += 1
        told = {METRIC: score(handout.params, epoch)}
        if rng.random() < 0.02:
            conductor.ended(Row(number, epoch - 1, outcome=rng.choice(["diverged", "failed"]), reason="lost"))
            del running[number]
        elif not conductor.reported(Row(number, epoch, metrics=told)):
            del running[number]
        elif epoch == BASE.epochs:
            conductor.ended(Row(number, epoch, outcome="complete", metrics=told))
            del running[number]
        else:
            running[number] = (handout, epoch)


def record(name: str, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder), new=True, clock=lambda: 0.0) as journal:
        made = experiment(name)
        journal.append(Opened(experiment=made))
        sweep(Conductor(journal, Search(made, SWEEPS[name][0])), slots=7, seed=5)
        records = read(Path(folder))
    lines = [json.dumps(told) for one in records if (told := _short(one)) is not None]
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


def _short(record: Record) -> dict[str, Any] | None:
    match record:
        case Asked():
            kept = record.model_dump(mode="json", exclude={"time", "config"})
            return {**kept, "refused": record.config is None}
        case Epoch() | Ended():
            return record.model_dump(mode="json", exclude={"time", "reason", "rung"}, exclude_defaults=True) | {
                "kind": record.kind
            }
    return None


def recorded(name: str) -> Iterator[Record]:
    """The records of the sweep called `name`, the first one apart."""
    for line in gzip.decompress((FOLDER / f"{name}.jsonl.gz").read_bytes()).decode().splitlines():
        values = json.loads(line)
        match values.pop("kind"):
            case "asked":
                config = None if values.pop("refused") else BASE.model_dump(mode="json")
                yield Asked(**values, config=config)
            case "epoch":
                yield Epoch(**values)
            case "ended":
                yield Ended(**values)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for one in sys.argv[1:] or SWEEPS:
        try:
            record(one, FOLDER / f"{one}.jsonl.gz")
        except RequestError as error:
            sys.exit(f"{one}: {error}")
        print(one, (FOLDER / f"{one}.jsonl.gz").stat().st_size)
