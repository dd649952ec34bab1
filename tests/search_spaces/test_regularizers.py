"""The space of families: none that can not run is proposed, and all are on equal terms."""

from __future__ import annotations

import optuna
import pytest

from search_spaces import RECIPES, regularizers
from search_spaces.recipes.hosts import byol_tiny
from search_spaces.recipes.sfrik import sfrik_tiny
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.terms.whitening import Whitening

optuna.logging.set_verbosity(optuna.logging.WARNING)


def draws(base: TrialConfig, count: int) -> list[tuple[str, TrialConfig]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = []
    for _ in range(count):
        trial = study.ask()
        config = regularizers.space(trial, base)
        found.append((trial.params["family"], config))
    return found


@pytest.mark.parametrize("width", [32, 64, 256, 2048])
@pytest.mark.parametrize("batch_size", [64, 96, 256, 512])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_whitening_fits_width_batch_and_workers_in_every_draw(width: int, batch_size: int, workers: int) -> None:
    base = with_changes(sfrik_tiny(), {"model.projector.widths": [128, width], "batch_size": batch_size})
    for _, config in draws(base, 150):
        for term in config.objective.values():
            if isinstance(term, Whitening):
                assert term._problem(width, batch_size, workers) is None


def test_all_families_are_drawn_with_a_recipe_that_can_take_them_all() -> None:
    found = {family for family, _ in draws(byol_tiny(), 300)}
    assert found == set(regularizers.FAMILIES)


def test_a_family_that_the_recipe_can_not_take_is_not_proposed() -> None:
    assert "byol" not in {family for family, _ in draws(sfrik_tiny(), 300)}
    wide = with_changes(sfrik_tiny(), {"model.projector.widths": [128, 8192], "batch_size": 32})
    found = {family for family, _ in draws(wide, 300)}
    assert "w_mse" not in found
    assert "cw_rgp" in found


def test_every_family_has_the_recipes_network_views_and_length() -> None:
    base = sfrik_tiny()
    for _, config in draws(base, 60):
        same = {"objective": base.objective, "optimizer": base.optimizer}
        assert config.model_copy(update=same) == base
        ratio = config.optimizer.learning_rate / base.optimizer.learning_rate
        assert 0.25 <= ratio <= 4.0
        assert config.optimizer.model_copy(update={"learning_rate": base.optimizer.learning_rate}) == base.optimizer


def test_mismatch_detection_of_the_recipe_stays_whatever_the_family() -> None:
    base = RECIPES["dilemma_simclr_tiny"]()
    for _, config in draws(base, 30):
        assert config.objective["mismatch_detection"] == base.objective["mismatch_detection"]
