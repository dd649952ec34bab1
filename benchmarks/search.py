"""How good a configuration does so much compute find: the program's search and early stopping against Ray Tune's.

Each method searches a surface that was made of the curves of real runs (`search_surface.py`), in simulated time and
slots (`search_replay.py`), through the code that real sweeps run. A replay gives all methods the same surface, and the
trial of equal number the same noise; the surface is fitted to another resample of the recorded runs in each replay.
Told are

* by compute, in full runs: what the best trial so far is truly worth at the end of a run, without the noise that it was
  chosen with, and how much more or less that is than what plain Tune has in the same replay;
* of a sweep of so many trials: the same, with the epochs and the simulated hours that it took.

A method's best trial is the one that it would tell its user: of ours the best complete one, of Tune's the best last
result of all. Intervals are 95 % of a bootstrap over replays.

Run: PYTHONPATH=. python benchmarks/search.py [--replays 200] [--slots 4] [--jobs 2] [--seed 0]
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from unittest import mock

import numpy as np
import optuna
from numpy.typing import NDArray

from benchmarks import search_surface
from benchmarks.search_replay import Clock, End, Method, Ours, Tune, play
from benchmarks.search_surface import Process, Recording, Surface
from pretune.core.choices import SamplerName
from pretune.core.experiment import NEW_RUNGS, Experiment, StoppingConfig
from search_spaces import RECIPES, SPACES
from trainers.changes import with_changes
from trainers.config import TrialConfig

RUNS = (6, 12, 24)
"""Compute, in full runs."""
TRIALS = (16,)
"""Sweeps of so many; 16 is what a sweep has if nothing else is said."""
MOST = 1_000
"""Trials of a method that is stopped by its compute."""
PLAIN = "Ray Tune: ASHA + OptunaSearch"
DRAWS = 2_000
"""Of the bootstrap."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Entry:
    """One method: our sampler and stopping, or Tune's with rungs of its own choice."""

    sampler: SamplerName | None = None
    stopping: StoppingConfig = field(default_factory=lambda: rule("asha"))
    rungs: Mapping[str, float] | None = None


def rule(kind: Literal["asha", "hyperband", "median"], **changes: Any) -> StoppingConfig:
    """As a new sweep has it."""
    return StoppingConfig.model_validate({"kind": kind, **NEW_RUNGS, **changes})


def entries(recording: Recording) -> dict[str, Entry]:
    """By name, what is compared; `PLAIN` first."""
    grace, factor = math.ceil(recording.epochs * NEW_RUNGS["grace_share"]), NEW_RUNGS["reduction_factor"]
    return {
        PLAIN: Entry(rungs={}),
        "the same with our rungs": Entry(rungs={"grace_period": grace, "reduction_factor": factor}),
        "random, nothing stopped": Entry("random", StoppingConfig(enabled=False)),
        "tpe, asha (the default)": Entry("tpe"),
        "tpe, asha as before": Entry("tpe", rule("asha", grace_share=0.2, reduction_factor=3)),
        "tpe, hyperband": Entry("tpe", rule("hyperband")),
        "tpe, median": Entry("tpe", rule("median")),
        "tpe, nothing stopped": Entry("tpe", StoppingConfig(enabled=False)),
        "random, asha": Entry("random"),
    }


@cache
def _process(path: Path) -> Process:
    return Process(search_surface.stored(path))


@dataclass(frozen=True)
class Replayed:
    """Of one replay: by `RUNS`, or of a whole sweep, what was found; epochs and seconds used; trials that ended."""

    worth: tuple[float, ...]
    epochs: tuple[int, ...]
    seconds: tuple[float, ...]
    trials: tuple[int, ...]


def replay(path: Path, entry: Entry, *, seed: int, slots: int, trials: int | None) -> Replayed:
    """One replay on the recording in `path`; of `trials`, or as far as the greatest of `RUNS`."""
    process = _process(path)
    recording, surface, clock = process.recording, Surface(process, seed), Clock()
    budgets = [recording.epochs * runs for runs in RUNS]
    base = with_changes(RECIPES[recording.recipe](), {"epochs": recording.epochs})
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        stack.enter_context(mock.patch("os.fsync"))
        folder = stack.enter_context(TemporaryDirectory())
        method = begun(entry, recording, base, seed=seed, trials=trials or MOST, folder=folder, clock=clock)
        stack.callback(method.close)
        ends = list(play(method, surface, slots=slots, clock=clock, epochs=None if trials else budgets[-1]))
    looks = [ends] if trials else [[end for end in ends if end.epochs <= budget] for budget in budgets]
    found = [_best(look, of_complete=entry.rungs is None) for look in looks]
    return Replayed(
        worth=tuple(float(surface.worth(end.params)[-1]) for end in found),
        epochs=tuple(look[-1].epochs for look in looks),
        seconds=tuple(look[-1].seconds for look in looks),
        trials=tuple(map(len, looks)),
    )


def begun(
    entry: Entry, recording: Recording, base: TrialConfig, *, seed: int, trials: int, folder: str, clock: Clock
) -> Method:
    """The method, with nothing asked yet."""
    space = SPACES[recording.space]
    if entry.rungs is not None:
        return Tune(recording, space, base, seed=seed, trials=trials, **entry.rungs)
    assert entry.sampler is not None
    made = Experiment(
        name="replayed",
        space=recording.space,
        recipe=recording.recipe,
        base=base,
        trials=trials,
        sampler=entry.sampler,
        stopping=entry.stopping,
        metric=recording.metric,
        seed=seed,
        storage=folder,
    )
    return Ours(made, space, clock)


def _best(ends: Sequence[End], *, of_complete: bool) -> End:
    """Of those that are complete, if one is."""
    complete = [end for end in ends if end.complete]
    return max((of_complete and complete) or ends, key=lambda end: end.value)


def replayed(
    path: Path, entry: Entry, *, seeds: Iterable[int], slots: int, jobs: int, trials: int | None = None
) -> list[Replayed]:
    """One replay for each of `seeds`, `jobs` at once."""
    tasks = [{"path": path, "entry": entry, "seed": seed, "slots": slots, "trials": trials} for seed in seeds]
    if jobs == 1:
        return [_replay(task) for task in tasks]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(_replay, tasks, chunksize=max(1, len(tasks) // (8 * jobs))))


def _replay(task: dict[str, Any]) -> Replayed:
    return replay(**task)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean, and 95 % of a bootstrap of it."""
    found = np.array(values)
    draws = np.random.default_rng(0).choice(found, size=(DRAWS, len(found))).mean(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(found.mean()), float(low), float(high)


def _percent(values: Sequence[float], *, sign: bool = False) -> str:
    mean, low, high = (100.0 * one for one in interval(values))
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" if sign else f"{mean:.2f} ({low:.2f} to {high:.2f})"


def by_compute(path: Path, *, replays: int, seed: int, slots: int, jobs: int) -> Iterator[tuple[str, ...]]:
    """Method; by compute its best trial's worth and the difference to plain Tune, in percent; trials that ended."""
    seeds = range(1000 * seed, 1000 * seed + replays)
    plain: list[Replayed] = []
    for name, entry in entries(_process(path).recording).items():
        found = replayed(path, entry, seeds=seeds, slots=slots, jobs=jobs)
        plain = plain or found
        cells = [name]
        for place in range(len(RUNS)):
            cells.append(_percent([one.worth[place] for one in found]))
            more = [one.worth[place] - other.worth[place] for one, other in zip(found, plain, strict=True)]
            cells.append("" if found is plain else _percent(more, sign=True))
        yield *cells, f"{np.mean([one.trials[-1] for one in found]):.0f}"


def by_trials(path: Path, *, replays: int, seed: int, slots: int, jobs: int) -> Iterator[tuple[str, ...]]:
    """Trials; method; its best trial's worth and the difference to plain Tune, in percent; full runs; minutes."""
    seeds = range(1000 * seed, 1000 * seed + replays)
    recording = _process(path).recording
    for trials in TRIALS:
        plain: list[Replayed] = []
        for name, entry in entries(recording).items():
            found = replayed(path, entry, seeds=seeds, slots=slots, jobs=jobs, trials=trials)
            plain = plain or found
            more = [one.worth[0] - other.worth[0] for one, other in zip(found, plain, strict=True)]
            yield (
                str(trials),
                name,
                _percent([one.worth[0] for one in found]),
                "" if found is plain else _percent(more, sign=True),
                f"{np.mean([one.epochs[0] for one in found]) / recording.epochs:.1f}",
                f"{np.mean([one.seconds[0] for one in found]) / 60:.1f}",
            )


def _print(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(f"\n| {' | '.join(head)} |\n| :-- |{' --: |' * (len(head) - 1)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replays", type=int, default=200)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--curves", type=Path, default=search_surface.FILE, help="a recording of search_surface.py")
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    process = _process(asked.curves)
    recording = process.recording
    print(
        f"{len(recording.trials)} full runs of {recording.epochs} epochs ({recording.command}); "
        f"the surface tells {process.explained:.0%} of the variance at points that are left out"
    )
    settings = {"replays": asked.replays, "seed": asked.seed, "slots": asked.slots, "jobs": asked.jobs}
    runs = [cell for runs in RUNS for cell in (f"{runs} full runs", "to plain Tune")]
    _print(["method", *runs, "trials"], by_compute(asked.curves, **settings))
    head = ["trials", "method", "its best", "to plain Tune", "full runs", "minutes"]
    _print(head, by_trials(asked.curves, **settings))


if __name__ == "__main__":
    main()
