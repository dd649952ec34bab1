"""A whole sweep of 32 short trials against the same trials in plain Ray Tune.

    python -m benchmarks.sweep [--trials 32] [--epochs 2] [--nested-trials 6] [--full]

Ours is the command, in a process of its own, from its start to its end: `pretune sweep kernels --recipe sfrik_tiny` on
the built-in digits, one slot of one worker, nothing stopped early.

Theirs is what Ray's guide shows ("Hyperparameter Tuning with Ray Tune"): a Tune function that calls
`TorchTrainer(...).fit()`, one at a time, with `TuneReportCallback`. The training in it is a user's own loop over a
torch `DataLoader` of torchvision's transforms, two processes ahead, with our model, loss, optimizer and schedule, a
linear probe by scikit-learn and a checkpoint after each epoch. It gets the configurations that our sweep has tried, and
the same images for its probe. (Ours does more after an epoch: kNN, health, and in the end probes on all labels.)

A nested trial takes many seconds, so only some are run, each of which is a run of the comparison; the wall time of all
is extrapolated: what the driver took beside its trials, and as many times a trial. With `--full` all are run. A trial's
seconds are from the end of the one before it to its own end.

Both sides read data that lie there, and compiled code of earlier runs that is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAME = "swept"
PROCESSES = 2
"""Of their loader."""


@dataclass(frozen=True)
class Swept:
    """Seconds of a sweep by the clock."""

    beside: float
    """Of the command from its start to its end, less its trials."""
    each: list[float]
    """Of each trial, from the end of the one before it to its own."""
    accuracy: float
    """Of the linear probe in the end, the median of the trials."""

    def walls(self, trials: int) -> list[float]:
        """Of a sweep of so many trials, by each trial that was run."""
        return [self.beside + trials * seconds for seconds in self.each]


@dataclass(frozen=True)
class Ours(Swept):
    """With what the trials tell of themselves, in epochs and in probes and health."""

    training: list[float]
    probes: list[float]

    @property
    def wall(self) -> float:
        return self.beside + sum(self.each)


def main() -> None:
    """Print both sides, their parts and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=2, help="of a trial")
    parser.add_argument("--nested-trials", type=int, default=6, help="how many of theirs are run")
    parser.add_argument("--full", action="store_true", help="run all of theirs: many minutes")
    parser.add_argument("--nested", type=Path, metavar="FOLDER", help="run those of FOLDER/configs.json, here")
    asked = parser.parse_args()
    if asked.nested:
        nested_sweep(asked.nested)
        return
    count = asked.trials if asked.full else min(asked.nested_trials, asked.trials)
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        ours, theirs = measure(Path(folder), asked.trials, asked.epochs, count)
    print(f"{asked.trials} trials of {asked.epochs} epochs, one at a time; load {os.getloadavg()[0]:.1f}")
    training, probes = sum(ours.training), sum(ours.probes)
    print(
        f"pretune sweep: {ours.wall:.1f} s, {ours.beside:.1f} s of it before and after the trials, {training:.1f} s "
        f"training, {probes:.1f} s probes and health, {sum(ours.each) - training - probes:.1f} s all else; "
        f"linear probe {ours.accuracy:.3f}"
    )
    walls = theirs.walls(asked.trials)
    how = "all were run" if count == asked.trials else f"extrapolated from {count} trials"
    print(
        f"nested TorchTrainer: {statistics.median(walls):.0f} s, {how}; {theirs.beside:.1f} s of it before and after "
        f"the trials, a trial {statistics.median(theirs.each):.1f} s, {min(theirs.each):.1f} to "
        f"{max(theirs.each):.1f} s; linear probe {theirs.accuracy:.3f}"
    )
    ratios = [wall / ours.wall for wall in walls]
    print(f"ratio: {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")


def rows(
    trials: int = 32, epochs: int = 2, nested_trials: int = 6
) -> Iterator[tuple[str, list[float], list[float], str]]:
    """For the table: the wall time of both; and of each of our trials what is not training, with its share of the
    command's start and end."""
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        ours, theirs = measure(Path(folder), trials, epochs, nested_trials)
    size = f"{trials} trials of {epochs} epochs of digits"
    yield "a sweep", [ours.wall], theirs.walls(trials), f"{size}; theirs extrapolated from {nested_trials} trials"
    each = [seconds + ours.beside / trials for seconds in ours.each]
    outside = [whole - training for whole, training in zip(each, ours.training, strict=True)]
    yield (
        "outside training",
        outside,
        each,
        f"{ours.beside:.0f} s start and end of the sweep, {sum(ours.probes):.0f} s probes and health",
    )


def measure(folder: Path, trials: int, epochs: int, nested_trials: int) -> tuple[Ours, Swept]:
    """Our sweep, then as many of its trials in the nested pattern."""
    from trainers.data.datasets import ensure_builtin

    ensure_builtin("digits", folder / "data")
    ours = our_sweep(folder, trials, epochs)
    return ours, nested_pattern(folder, configs_of(folder)[:nested_trials])


def our_sweep(folder: Path, trials: int, epochs: int) -> Ours:
    from pretune.core import journal
    from pretune.core.records import Ended, Started

    pretune = [sys.executable, "-m", "pretune"]
    typed = f"sweep kernels --recipe sfrik_tiny --trials {trials} --epochs {epochs} --slots 1 --stopping none"
    began = time.monotonic()
    run([*pretune, *typed.split(), "--gpus-per-worker", "0", "--name", NAME, "--seed", "0"], folder)
    wall = time.monotonic() - began
    told = json.loads(run([*pretune, "show", NAME, "--json"], folder))["trials"]
    wrong = [trial for trial in told if trial["state"] != "COMPLETE"]
    if wrong or len(told) != trials:
        raise RuntimeError(f"{len(wrong)} of {len(told)} trials did not complete: {wrong[:1]}")
    records = journal.read(folder / "sweeps" / NAME)
    begin = next(record.time for record in records if isinstance(record, Started))
    each = durations(begin, [record.time for record in records if isinstance(record, Ended)])
    return Ours(
        beside=wall - sum(each),
        each=each,
        accuracy=statistics.median(trial["last_value"] for trial in told),
        training=[trial["seconds"] for trial in told],
        probes=[trial["probe_seconds"] for trial in told],
    )


def durations(begin: float, ends: list[float]) -> list[float]:
    """Of trials one after another, the first of which began at `begin`."""
    return [after - before for before, after in itertools.pairwise([begin, *ends])]


def configs_of(folder: Path) -> list[dict[str, Any]]:
    """Of our sweep's trials, in their order."""
    from pretune.core import journal
    from pretune.core.records import Asked

    records = journal.read(folder / "sweeps" / NAME)
    return [record.config for record in records if isinstance(record, Asked) and record.config is not None]


def nested_pattern(folder: Path, configs: Sequence[dict[str, Any]]) -> Swept:
    """In a process of its own, as ours is in one."""
    nested = folder / "nested"
    nested.mkdir()
    (nested / "configs.json").write_text(json.dumps(configs))
    began = time.monotonic()
    run([sys.executable, "-m", "benchmarks.sweep", "--nested", str(nested)], ROOT)
    wall = time.monotonic() - began
    marks = [json.loads(line) for line in (nested / "marks.jsonl").read_text().splitlines()]
    if len(marks) != len(configs):
        raise RuntimeError(f"{len(configs)} nested trials were to run, but {len(marks)} did")
    each = durations(marks[0]["begin"], [mark["end"] for mark in marks])
    return Swept(wall - sum(each), each, statistics.median(mark["accuracy"] for mark in marks))


def run(command: Sequence[str], folder: Path) -> str:
    """What it prints. RuntimeError where it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = f"{done.stdout.strip()[-500:]} {done.stderr.strip()[-1000:]}"
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {said}")
    return done.stdout


# --- the nested pattern -----------------------------------------------------------------------------------------------


def nested_sweep(folder: Path) -> None:
    """The driver: Ray, a Tuner over the configurations, one trial at a time."""
    import ray
    from ray import tune

    configs = json.loads((folder / "configs.json").read_text())
    # Else Ray saves a token in the home folder, which the next `ray start` demands of all its nodes.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # A logical CPU for the trial's driver, one for its worker; the dashboard, or ended groups are not cleaned up.
    ray.init(num_cpus=2, include_dashboard=True, log_to_driver=False, logging_level=logging.ERROR)
    results = tune.Tuner(
        nested_trial,
        param_space={"config": tune.grid_search(configs), "folder": str(folder)},
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0),
    ).fit()
    if results.errors:
        raise RuntimeError(f"the nested pattern failed: {results.errors[0]}")


def nested_trial(setup: dict[str, Any]) -> None:
    """A Tune function as in Ray's guide."""
    from ray import train, tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    begin = time.time()
    result = TorchTrainer(
        nested_loop,
        train_loop_config=setup,
        scaling_config=train.ScalingConfig(num_workers=1),
        run_config=train.RunConfig(
            name=f"trial-{tune.get_context().get_trial_id()}",
            storage_path=str(Path(setup["folder"]) / "train"),
            callbacks=[TuneReportCallback()],  # type: ignore[no-untyped-call, list-item]  # as the guide has it
        ),
    ).fit()
    assert result.metrics is not None
    mark = {"begin": begin, "end": time.time(), "accuracy": result.metrics["accuracy"]}
    with (Path(setup["folder"]) / "marks.jsonl").open("a") as marks:
        marks.write(json.dumps(mark) + "\n")


def nested_loop(setup: dict[str, Any]) -> None:
    """The training of one trial, as a user would write it."""
    import torch
    from ray import train
    from ray.train.torch import prepare_model
    from torch.utils.data import DataLoader

    from benchmarks.loader import TwoViews
    from trainers import optim
    from trainers.config import TrialConfig
    from trainers.data.datasets import open_dataset
    from trainers.model import build_model
    from trainers.objective import Objective
    from trainers.train import TrainingStep

    config = TrialConfig.model_validate(setup["config"])
    dataset = open_dataset(Path(config.data.path))
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    model = build_model(config)
    optimizer = optim.build_optimizer(model, config.optimizer)
    training_step = TrainingStep(config, model, Objective(config.objective), optimizer, prepare_model(model))
    loader: DataLoader[Any] = DataLoader(
        TwoViews(dataset, config.views[0], "PIL"),
        config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=PROCESSES,
        persistent_workers=True,
    )
    step, total_steps = 0, config.epochs * len(loader)
    for epoch in range(config.epochs):
        model.train()
        for views in loader:
            rate = optim.learning_rate(config.optimizer.learning_rate, config.schedule, step, total_steps)
            training_step.gradients(tuple(views), torch.arange(len(views[0])), step)
            training_step.update(rate, step, total_steps)
            step += 1
        metrics = {"epoch": epoch + 1, "accuracy": probed(model.eval(), config, dataset)}
        with tempfile.TemporaryDirectory() as folder:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, Path(folder) / "state.pt")
            train.report(metrics, checkpoint=train.Checkpoint.from_directory(folder))


def probed(model: Any, config: Any, dataset: Any) -> float:
    """Accuracy of scikit-learn's logistic regression on the features of the images that our probe takes."""
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression
    from torchvision.transforms import v2  # type: ignore[import-untyped, unused-ignore]

    from benchmarks.loader import Stored
    from trainers.evaluation import probe

    size = config.views[0].size
    normalize = v2.Normalize(list(dataset.manifest.mean), list(dataset.manifest.std))
    transform = v2.Compose([v2.ToImage(), v2.Resize((size, size)), v2.ToDtype(torch.float32, scale=True), normalize])
    images, labels = Stored(dataset, "PIL"), dataset.search_labels()

    @torch.no_grad()
    def features(ids: Any) -> Any:
        batches = torch.split(torch.stack([transform(images[place]) for place in ids]), 256)
        return np.concatenate([model.encode(batch).numpy() for batch in batches])

    fitted, scored = probe.train_subset(dataset, config).ids, probe.select_subset(dataset, config).ids
    regression = LogisticRegression(max_iter=1000).fit(features(fitted), labels[fitted])
    return float(regression.score(features(scored), labels[scored]))


if __name__ == "__main__":
    main()
