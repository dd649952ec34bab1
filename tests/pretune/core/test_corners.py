"""Draws from all over a space: as its trials will be, and at the bounds of its numbers."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from pretune.core import corners
from pretune.core.errors import RequestError
from tests.toys import experiment
from trainers.config import TrialConfig


def space(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    size = trial.suggest_int("batch_size", 2, 4096, log=True)
    if trial.suggest_categorical("kind", ["a", "b", "refused"]) == "refused":
        raise ValueError("no")
    return base.model_copy(update={"batch_size": size})


def test_half_of_the_draws_are_at_the_bounds(tmp_path: Path) -> None:
    found = corners.draws(experiment(tmp_path), space, count=60)
    sizes = [config.batch_size for config in found]
    assert 20 < len(found) < 60  # without what the space refuses
    assert sizes.count(2) > 4
    assert sizes.count(4096) > 4
    assert len(set(sizes)) > 10
    assert found == corners.draws(experiment(tmp_path), space, count=60)


def test_a_space_that_breaks_at_a_bound_is_told_of(tmp_path: Path) -> None:
    def breaking(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        if trial.suggest_float("rate", 0.0, 1.0) == 1.0:
            raise KeyError("rate")
        return base

    with pytest.raises(RequestError, match="raised KeyError"):
        corners.draws(experiment(tmp_path), breaking, count=60)
