"""The curves of a recorded sweep, and a surface made of them that can be asked at any point.

A sampler asks for points that were not recorded. To answer with the nearest recorded one would make the best of 64
points the best there is, and tell a search that goes on near a good point the same curve again and again. So a Gaussian
process is fitted to the recorded curves: its mean is what a point is worth, and whoever asks is told this curve with
the noise of a recorded one. All methods ask the same surface in the same way, and what they found is judged by what it
is worth, which recorded curves alone do not tell.

* Worth: one process for all epochs, over the numbers that all trials have and, within a branch of the space, over all
  of its numbers (in shares of their ranges, logarithmic where they are drawn so). Its scales maximize the likelihood.
* Noise: the whole curve of errors that the process makes at a recorded point like this one when that point is left out,
  all errors scaled to what the process takes for noise. So a curve's errors hang together as recorded ones do, and bad
  regions may be noisier than good ones. What of the worth is too rough for the process counts as noise.
* Seconds: those of one recorded trial of the same branch, epoch by epoch; not of those that took more than twice the
  median, which are the first ones of each slot, with code to compile, and those that shared the machine.
* Each replay has a surface of its own, fitted to a resample of the recorded trials, so that nothing rests on one shape.

Trials that diverged or collapsed are left out.

Run: PYTHONPATH=. python benchmarks/search_surface.py [SWEEP]   (a folder: records its curves in search_curves.json.gz)
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from pretune.analysis.measured import command
from pretune.core import journal
from pretune.core.history import History
from pretune.core.parameters import parsed

FILE = Path(__file__).with_name("search_curves.json.gz")
NEAR = 8
"""So many of the recorded points, those most like a new one, lend it their noise."""
DRAWS = 400
"""Of the process's scales, of which the likeliest are taken."""
SHOWN = 2_000
"""Points at which the best of a surface is looked for."""

Numbers = NDArray[np.float64]
Params = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """One that ran to its end: its parameters, the metric and the seconds of each epoch."""

    params: Params
    values: Sequence[float]
    seconds: Sequence[float]


@dataclass(frozen=True)
class Recording:
    """A sweep in which nothing was stopped. `distributions` are what its parameters were drawn from, by name."""

    command: str
    date: str
    versions: Mapping[str, str]
    journal: str
    """The SHA-256 of the journal that it is of."""
    manifest: str
    """The data set's hash."""
    space: str
    recipe: str
    metric: str
    distributions: Mapping[str, str]
    trials: Sequence[Trial]

    @property
    def epochs(self) -> int:
        return len(self.trials[0].values)


def stored(path: Path = FILE) -> Recording:
    """The recording in `path`."""
    found = json.loads(gzip.decompress(path.read_bytes()))
    return Recording(**{**found, "trials": [Trial(**trial) for trial in found["trials"]]})


def recorded(folder: Path) -> Recording:
    """What the journal of the sweep in `folder` says of its complete trials. ValueError where it stopped some."""
    records = journal.read(folder)
    history = History(records)
    assert history.opened is not None
    experiment = history.opened.experiment
    metric = experiment.metric
    if experiment.stopping.enabled:
        raise ValueError(f"the sweep in {folder} must be run with --no-stopping, but has {experiment.stopping.kind}")
    whole = [trial for trial in history.trials if trial.state == "COMPLETE" and trial.result_of is None]
    drawn = {name: text for trial in whole for name, text in trial.distributions.items()}
    return Recording(
        command=command(folder) or "",
        date=time.strftime("%Y-%m-%d", time.gmtime(history.opened.time)),
        versions=dict(history.opened.versions),
        journal=hashlib.sha256((folder / journal.FILE).read_bytes()).hexdigest(),
        manifest=str(experiment.base.data.manifest),
        space=experiment.space,
        recipe=experiment.recipe,
        metric=metric,
        distributions=drawn,
        trials=[
            Trial(
                params=trial.params,
                values=[round(trial.epochs[epoch][metric], 6) for epoch in sorted(trial.epochs)],
                seconds=[
                    round(trial.epochs[epoch]["time/epoch_s"] + trial.epochs[epoch].get("time/probe_s", 0.0), 3)
                    for epoch in sorted(trial.epochs)
                ],
            )
            for trial in whole
        ],
    )


class Process:
    """The Gaussian process of one recording: how alike two points are, and the errors it makes at recorded ones."""

    def __init__(self, recording: Recording, *, seed: int = 0) -> None:
        self.recording = recording
        drawn = {name: parsed(text) for name, text in recording.distributions.items()}
        self._numbers = {name: one for name, one in drawn.items() if not isinstance(one, CategoricalDistribution)}
        self._categories = [name for name in drawn if name not in self._numbers]
        trials = recording.trials
        self._common = [name for name in self._numbers if all(name in trial.params for trial in trials)]
        self._points = [self._point(trial.params) for trial in trials]
        curves = np.array([trial.values for trial in trials])
        self.mean, self.spread = curves.mean(axis=0), curves.std(axis=0)
        self.heights: Numbers = (curves - self.mean) / self.spread
        """The recorded curves, each epoch with mean 0 and deviation 1."""
        most = 2 * statistics.median(sum(trial.seconds) for trial in trials)
        self._usual = {number: one.seconds for number, one in enumerate(trials) if sum(one.seconds) <= most}
        self._fit(np.random.default_rng(seed))
        inverse = np.linalg.inv(self.alike + self.noise * np.eye(len(trials)))
        left_out: Numbers = (inverse @ self.heights) / np.diag(inverse)[:, None]
        self.explained = float(1.0 - np.mean(left_out[:, -1] ** 2))
        """The share of the last epoch's variance, over recorded points, that it tells when a point is left out."""
        self.errors: Numbers = left_out * math.sqrt(self.noise / np.mean(left_out**2))
        """By recorded trial, its curve less what the process says of it when it is left out, scaled to its noise."""

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch, in the mean."""
        return float(np.mean(list(self._usual.values())))

    def to(self, params: Params) -> Numbers:
        """How like the point is to each recorded one."""
        return self._combined(*self._distances(self._point(params)))

    def paces(self, params: Params) -> Sequence[Sequence[float]]:
        """The seconds by epoch of recorded trials of its branch; of all, where there is none."""
        branch, _ = self._point(params)
        return [self._usual[number] for number in self._usual if self._points[number][0] == branch] or [
            *self._usual.values()
        ]

    def _point(self, params: Params) -> tuple[tuple[Any, ...], dict[str, float]]:
        """Its branch, and its numbers as shares of their ranges."""
        branch = tuple(params.get(name) for name in self._categories)
        return branch, {name: self._share(name, params[name]) for name in self._numbers if name in params}

    def _share(self, name: str, value: float) -> float:
        one = self._numbers[name]
        assert isinstance(one, FloatDistribution | IntDistribution)
        low, high = (math.log(end) if one.log else end for end in (one.low, one.high))
        return ((math.log(value) if one.log else value) - low) / (high - low)

    def _distances(self, point: tuple[tuple[Any, ...], dict[str, float]]) -> tuple[Numbers, Numbers, Numbers]:
        """To each recorded point: squared over the common numbers; whether of one branch; squared over all numbers."""
        branch, numbers = point
        common = [sum((numbers[name] - other[name]) ** 2 for name in self._common) for _, other in self._points]
        same = [kind == branch for kind, _ in self._points]
        whole = [
            sum((numbers[name] - other[name]) ** 2 for name in numbers) if kind == branch else 0.0
            for kind, other in self._points
        ]
        return np.array(common), np.array(same, dtype=float), np.array(whole)

    def _combined(self, common: Numbers, same: Numbers, whole: Numbers) -> Numbers:
        over_common, of_branch, over_branch = self._shares
        long, short = self._lengths
        found: Numbers = over_common * np.exp(-common / (2 * long**2)) + same * (
            of_branch + over_branch * np.exp(-whole / (2 * short**2))
        )
        return found

    def _fit(self, rng: np.random.Generator) -> None:
        """The likeliest of some draws of the shares of variance (common numbers, branch, numbers within it; noise) and
        of two lengths.
        """
        distances = tuple(np.array(rows) for rows in zip(*map(self._distances, self._points), strict=True))
        best = -math.inf
        for _ in range(DRAWS):
            shares, lengths = rng.dirichlet(np.ones(4)), np.exp(rng.uniform(math.log(0.1), math.log(2.0), size=2))
            self._shares, self._lengths = shares[:3], lengths
            alike = self._combined(*distances)
            lower = np.linalg.cholesky(alike + max(shares[3], 1e-3) * np.eye(len(alike)))
            whitened = np.linalg.solve(lower, self.heights)
            found = -0.5 * np.sum(whitened**2) - self.heights.shape[1] * np.log(np.diag(lower)).sum()
            if found > best:
                best, kept = found, (shares[:3], lengths, max(shares[3], 1e-3), alike)
        self._shares, self._lengths, self.noise, self.alike = kept


class Surface:
    """What one replay searches on: fitted to a resample of the recording, drawn from `seed`; or, without, to all."""

    def __init__(self, process: Process, seed: int | None = None) -> None:
        self._process = process
        count = len(process.recording.trials)
        self._seed = seed
        self._kept = np.arange(count) if seed is None else np.random.default_rng([seed, 1]).integers(count, size=count)
        alike = process.alike[np.ix_(self._kept, self._kept)] + process.noise * np.eye(count)
        self._weights = np.linalg.solve(alike, process.heights[self._kept])

    def worth(self, params: Params) -> Numbers:
        """The metric of the point by epoch, without noise."""
        return self._told(self._process.to(params)[self._kept] @ self._weights)

    def trial(self, number: int, params: Params) -> Trial:
        """What trial `number` is told at the point; the noise is drawn from seed and number."""
        rng, process = np.random.default_rng([self._seed or 0, 2, number]), self._process
        alike = process.to(params)
        near = np.argsort(-alike, kind="stable")[:NEAR]
        told = self._told(alike[self._kept] @ self._weights + process.errors[rng.choice(near)])
        paces = process.paces(params)
        return Trial(params, told.tolist(), paces[int(rng.integers(len(paces)))])

    def best(self, points: Iterable[Params]) -> float:
        """The most that one of `points` is worth in the end."""
        return max(float(self.worth(params)[-1]) for params in points)

    def _told(self, heights: Numbers) -> Numbers:
        found: Numbers = np.clip(self._process.mean + self._process.spread * heights, 0.0, 1.0)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sweep", nargs="?", type=Path, help="the folder of one that was run with --no-stopping --sampler random"
    )
    sweep = parser.parse_args().sweep
    if sweep is not None:
        FILE.write_bytes(gzip.compress(json.dumps(asdict(recorded(sweep)), indent=0).encode(), mtime=0))
    found = stored()
    last = sorted(trial.values[-1] for trial in found.trials)
    print(f"{found.command}\n{found.date}, journal {found.journal[:16]}, data {found.manifest[:16]}")
    print(
        f"{len(found.trials)} trials of {found.epochs} epochs, {found.metric} {last[0]:.3f} to {last[-1]:.3f}, median "
        f"{statistics.median(last):.3f}; {FILE.stat().st_size / 1e3:.1f} kB"
    )
    print(f"left out, a point's last value is told to {Process(found).explained:.0%} of the variance")


if __name__ == "__main__":
    main()
