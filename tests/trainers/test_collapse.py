"""Trainings on digits: what has lost its dispersive terms ends early, and what has not is left alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from search_spaces import RECIPES
from trainers.changes import with_changes
from trainers.data import datasets
from trainers.data.datasets import Dataset
from trainers.data.loader import Loaders
from trainers.report import Outcome
from trainers.train import train

pytestmark = [pytest.mark.slow, pytest.mark.ffcv]

PROVOKED: dict[str, dict[str, Any]] = {
    "sfrik_tiny": {"objective.mmd.weight": 0},
    "alignment_uniformity_tiny": {"objective.uniformity.weight": 0},
    "vicreg_tiny": {"objective.variance.weight": 0, "objective.covariance.weight": 0},
    # Its predictor and teacher prevent a collapse as BYOL's do, and a batch norm behind the projector one to a point.
    "msbreg_tiny": {
        "objective.singular_value.weight": 0,
        "objective.brownian.weight": 0,
        "model.predictor": None,
        "model.teacher": None,
        "model.projector.final_norm": False,
    },
    # DINO has no dispersive term: what keeps images apart is the centering.
    "dino_tiny": {"model.prototypes.center_momentum": 0.9999, "optimizer.learning_rate": 5e-3},
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return datasets.ensure_builtin("digits", tmp_path_factory.mktemp("data"))


def run(
    folder: Path, dataset: Dataset, recipe: str, changes: dict[str, Any], *, at_most: float = math.inf
) -> tuple[Outcome, int]:
    """How the recipe with `changes` ended, and after how many steps; stopped at the epoch's end after `at_most`."""
    place = {"data.path": str(dataset.folder), "data.manifest": dataset.manifest_hash}
    config = with_changes(RECIPES[recipe](), {**place, "probe.every": 100, "checkpoint_every": 100, **changes})
    steps: list[int] = []
    outcome = train(
        config,
        dataset=dataset,
        loaders=Loaders(),
        folder=folder,
        report=lambda report: len(steps) < at_most,
        progress=lambda epoch, step: steps.append(step),
    )
    return outcome, len(steps)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("recipe", PROVOKED)
def test_a_provoked_collapse_ends_within_200_steps_with_a_reason(
    tmp_path: Path, digits: Dataset, recipe: str, seed: int
) -> None:
    outcome, steps = run(tmp_path, digits, recipe, {**PROVOKED[recipe], "epochs": 20, "seed": seed}, at_most=200)
    assert outcome.state == "collapsed"
    assert any(words in outcome.reason for words in ("are alike", "shrink to a point", "are sorted alike"))
    assert steps < 200


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.endswith("_tiny")])
def test_a_healthy_tiny_recipe_is_left_alone(tmp_path: Path, digits: Dataset, recipe: str, seed: int) -> None:
    outcome, _ = run(tmp_path, digits, recipe, {"seed": seed})
    assert outcome.state == "complete"
