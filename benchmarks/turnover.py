"""How long a worker group is idle between two trials: from the end of one training to the first optimizer step of the
next.

Measured on rank 0, inside the training itself, for the same trial (one epoch of the tiny ResNet on digits, 2 DDP
workers, FFCV):

* warm:   a Tune sweep over `pretune.execution.slot.Slot`, whose worker group serves all trials;
* nested: what Ray documents, a Tune function that calls `TorchTrainer(...).fit()`, and so starts a worker group per
trial.

Run: python benchmarks/turnover.py [--trials 100] [--nested-trials 4] [--folder DIR]
Targets: nested / warm at least 20, 95 % of the warm ones under 2 s, one worker-group start for all warm trials.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainers.config import TrialConfig
from trainers.data.datasets import ensure_builtin
from trainers.report import Outcome

WORKERS = 2


class Marking:
    """The real training; rank 0 notes when each trial began, made its first optimizer step, and returned."""

    def __init__(self, marks: Path) -> None:
        from pretune.execution.worker import WarmTrainer

        self._train = WarmTrainer()
        self._marks = marks

    def __call__(self, config: TrialConfig, *, progress: Callable[[int, int], bool | None], **others: Any) -> Outcome:
        import torch.distributed

        begin, first_step = time.time(), 0.0

        def note(epoch: int, step: int) -> None:
            nonlocal first_step
            first_step = first_step or time.time()
            progress(epoch, step)

        outcome: Outcome = self._train(config, progress=note, **others)
        if torch.distributed.get_rank() == 0:
            with self._marks.open("a") as marks:
                marks.write(json.dumps({"begin": begin, "first_step": first_step, "end": time.time()}) + "\n")
        return outcome


def the_trial(folder: Path) -> dict[str, Any]:
    """The config of every trial, as JSON values."""
    dataset = ensure_builtin("digits", folder)
    view = {"size": 16, "flip_probability": 0.0}
    config = TrialConfig.model_validate(
        {
            "data": {"path": str(dataset.folder.resolve()), "manifest": dataset.manifest_hash},
            "views": [view, view],
            "objective": {"alignment": {}, "mmd": {}},
            "probe": {"labels_per_class": 5, "select_images": 200},
            "batch_size": 256,
            "epochs": 1,
        }
    )
    return config.model_dump(mode="json")


def measure_warm(config: dict[str, Any], trials: int, folder: Path) -> int:
    """Runs the trials on one slot; the number of worker-group starts."""
    import functools

    from ray import tune

    from pretune.core.rows import Handout
    from pretune.execution.slot import Slot, SlotSettings

    settings = SlotSettings(sweep_folder=str(folder), workers=WORKERS)
    results = tune.Tuner(
        tune.with_parameters(Slot, settings=settings, make_train=functools.partial(Marking, folder / "marks.jsonl")),
        param_space={
            **Handout(number=0, config=config, params={}, folder="").to_config(),
            "number": tune.grid_search(list(range(trials))),
            "folder": tune.sample_from(lambda setup: f"{setup['number']:04d}"),
        },
        tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0),
    ).fit()
    ends = [results[index].metrics or {} for index in range(len(results))]
    wrong = [end for end in ends if end.get("outcome") != "complete"]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {trials} trials did not complete, the first one: {wrong[0].get('reason')}")
    return max(int(end["group_starts"]) for end in ends)


def nested_loop(setup: dict[str, Any]) -> None:
    """The training function of the nested pattern: the same training, in processes made for it."""
    import torch

    folder = Path(setup["folder"])
    Marking(folder / "marks.jsonl")(
        TrialConfig.model_validate(setup["config"]),
        folder=folder / "trials" / f"{setup['number']:04d}",
        report=lambda report: True,
        resume=None,
        progress=lambda epoch, step: None,
        device=torch.device("cpu"),
    )


def nested_trial(setup: dict[str, Any]) -> None:
    """A Tune function as in Ray's own guide."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    TorchTrainer(
        nested_loop,
        train_loop_config=setup,
        scaling_config=ScalingConfig(num_workers=WORKERS),
        run_config=RunConfig(name=f"nested-{setup['number']}", storage_path=str(Path(setup["folder"]) / "train")),
    ).fit()


def measure_nested(config: dict[str, Any], trials: int, folder: Path) -> None:
    from ray import tune

    results = tune.Tuner(
        nested_trial,
        param_space={"number": tune.grid_search(list(range(trials))), "config": config, "folder": str(folder)},
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0),
    ).fit()
    if results.errors:
        raise RuntimeError(f"the nested pattern failed: {results.errors[0]}")


def turnovers(folder: Path, until: str = "first_step") -> np.ndarray[Any, np.dtype[np.float64]]:
    """Seconds from the end of each trial to the first step (or to the beginning) of the next, [trials - 1]."""
    marks = [json.loads(line) for line in (folder / "marks.jsonl").read_text().splitlines()]
    return np.array([after[until] - before["end"] for before, after in itertools.pairwise(marks)])


class Found(NamedTuple):
    """Seconds from a trial's end to the next one's first step."""

    warm: np.ndarray[Any, np.dtype[np.float64]]
    nested: np.ndarray[Any, np.dtype[np.float64]]
    called: np.ndarray[Any, np.dtype[np.float64]]
    """Of `warm`, until the next training is called."""
    starts: int
    """Of worker groups, over all warm trials."""


def measure(folder: Path, trials: int, nested_trials: int) -> Found:
    """Both patterns, one after the other, on a cluster of their own."""
    import ray

    config = the_trial(folder / "data")
    warm_folder, nested_folder = folder / "warm", folder / "nested"
    warm_folder.mkdir(parents=True)
    nested_folder.mkdir(parents=True)
    # Else Ray saves a token in the home folder, which the next `ray start` demands of all its nodes.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # More logical CPUs than this may have: the nested pattern needs one for its driver. The dashboard is what the
    # nested pattern needs to clean up after itself.
    ray.init(num_cpus=WORKERS + 2, include_dashboard=True, log_to_driver=False, logging_level=logging.ERROR)
    try:
        starts = measure_warm(config, trials, warm_folder)
        measure_nested(config, nested_trials, nested_folder)
    finally:
        ray.shutdown()
    return Found(turnovers(warm_folder), turnovers(nested_folder), turnovers(warm_folder, until="begin"), starts)


def rows() -> Iterator[tuple[str, list[float], list[float], str]]:
    """For the table: eleven warm turnovers against five nested ones."""
    with tempfile.TemporaryDirectory(prefix="turnover-") as aside:
        found = measure(Path(aside).resolve(), trials=12, nested_trials=6)
    yield "turnover", found.warm.tolist(), found.nested.tolist(), f"{WORKERS} workers per trial"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--nested-trials", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="turnover-") as aside:
        folder: Path = (arguments.folder or Path(aside)).resolve()
        warm, nested, called, starts = measure(folder, arguments.trials, arguments.nested_trials)

    ratio = float(np.median(nested) / np.median(warm))
    slowest = float(np.quantile(warm, 0.95))
    print(f"{WORKERS} workers per trial; seconds from the end of a trial to the first optimizer step of the next")
    print(
        f"warm slot   {len(warm):4d} turnovers   median {np.median(warm):7.3f}   95 % {slowest:7.3f}   "
        f"most {warm.max():7.3f}"
    )
    print(f"  of which until the next training is called: median {np.median(called):.3f}")
    print(f"nested      {len(nested):4d} turnovers   median {np.median(nested):7.3f}   most {nested.max():7.3f}")
    print(f"nested / warm, medians: {ratio:.0f} (target: at least 20)")
    print(f"95 % of the warm ones: {slowest:.3f} s (target: under 2 s)")
    print(f"worker-group starts for {arguments.trials} warm trials: {starts} (one slot, {starts - 1} replacements)")
    return 0 if ratio >= 20 and slowest < 2 else 1


if __name__ == "__main__":
    sys.exit(main())
