"""What the disk must hold: the loop's own retention, run for real on noise, never keeps more than the bound says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from pretune.core import retention
from pretune.core.history import TrialHistory
from trainers import checkpoint
from trainers.config import TrialConfig
from trainers.data.loader import Batch
from trainers.evaluation import health, probe
from trainers.report import Checkpoint, EpochReport
from trainers.train import train

STEPS, BATCH, SIZE = 3, 4, 8


class Noise:
    """As much of a data set as a run that is not judged asks for."""

    manifest_hash = "0" * 64
    manifest = SimpleNamespace(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), gray_white=65535, max_side=None)
    has_labels, class_count = True, 2

    def pretrain_ids(self, subset: int | None) -> Any:
        return np.arange(STEPS * BATCH)


class NoiseLoaders:
    def epoch(self, *_: Any, first_step: int = 0, **__: Any) -> Iterator[Batch]:
        for _step in range(first_step, STEPS):
            yield Batch(views=(torch.randn(BATCH, 3, SIZE, SIZE),) * 2, sample_ids=torch.arange(BATCH))


class Shape(NamedTuple):
    """A run: its length, how often it saves, the epoch that is judged best, and the one after which it is stopped."""

    epochs: int
    every: int = 1
    every_steps: int | None = None
    best: int = 1
    stopped: int | None = None


class Kept(NamedTuple):
    """Checkpoints of one trial: the most that lay there at any moment, and those that are left when it has ended."""

    most: int
    left: int


def run(folder: Path, shape: Shape, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """Trains on noise, counts the files whenever one was written, and trims where the trial was stopped."""
    config = TrialConfig.model_validate(
        {
            "views": [{"size": SIZE}, {"size": SIZE}],
            "model": {"backbone": {"kind": "resnet_tiny", "width": 8}, "projector": {"widths": [4]}},
            "objective": {"alignment": {}},
            "sentinel": None,
            "epochs": shape.epochs,
            "batch_size": BATCH,
            "checkpoint_every": shape.every,
            "checkpoint_every_steps": shape.every_steps,
        }
    )
    trial = TrialHistory(0, {}, {}, config.model_dump(mode="json"), None, 0)
    most = 0

    def files() -> int:
        return len(list(folder.rglob("epoch-*.pt")))

    def save(place: Path | str, state: Mapping[str, Any], **at: Any) -> Checkpoint:
        nonlocal most
        saved = write(place, state, **at)
        most = max(most, files())
        return saved

    def judge(*_: Any, **__: Any) -> dict[str, float]:
        return {"probe/linear": 1.0 if len(trial.epochs) + 1 == shape.best else 0.5}

    def report(told: EpochReport) -> bool:
        trial.epochs[told.epoch] = told.metrics
        if told.checkpoint is not None:
            trial.checkpoints[told.epoch] = told.checkpoint
        return told.epoch != shape.stopped

    write = checkpoint.save
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        patch.setattr(probe, "evaluate", judge)
        patch.setattr(health, "evaluate", lambda *_, **__: {})
        outcome = train(
            config,
            dataset=Noise(),  # type: ignore[arg-type]
            loaders=NoiseLoaders(),  # type: ignore[arg-type]
            folder=folder,
            report=report,
            device=torch.device("cpu"),
        )
    assert outcome.state == ("complete" if shape.stopped is None else "stopped")
    if shape.stopped is not None:
        retention.trim(trial, "probe/linear", maximize=True)
    return Kept(most, files())


SHAPES = (
    Shape(1),
    Shape(3, best=2),
    Shape(10, best=9),
    Shape(20, best=3),  # best, last before the decay, and the two newest are all different
    Shape(20, best=3, every_steps=1),
    Shape(20, best=6, every=3),
    Shape(20, best=3, stopped=18, every_steps=2),
)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_checkpoints_of_a_sweep_never_take_more_than_the_bound(
    shape: Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = run(tmp_path, shape, monkeypatch)
    for trials, slots in ((1, 1), (8, 1), (8, 4), (40, 8), (3, 8)):
        # At the worst moment all slots hold as much as they ever do, and all other trials have ended.
        running = min(trials, slots)
        worst = running * kept.most + (trials - running) * kept.left
        bound = retention.bound(1000, trials=trials, slots=slots)
        assert bound >= 1000 * worst, (
            f"{trials} trials on {slots} slots: {worst} files, bound {bound / 1000:g} ({kept})"
        )


def test_the_bound_is_reached_and_so_not_too_high_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most, left = run(tmp_path, Shape(20, best=3, every_steps=1), monkeypatch)
    assert retention.bound(1, trials=8, slots=4) == 4 * most + 4 * left


def test_of_a_trial_that_is_stopped_one_checkpoint_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, Shape(20, best=3, stopped=18, every_steps=2), monkeypatch).left == 1
    assert [path.name for path in tmp_path.rglob("epoch-*.pt")] == ["epoch-0003.pt"]
