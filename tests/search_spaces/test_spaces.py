"""The contract of every shipped space, and what it must refuse."""

from __future__ import annotations

import subprocess
import sys

import optuna
import pytest

from search_spaces import RECIPES, SPACES
from trainers.config import TrialConfig

optuna.logging.set_verbosity(optuna.logging.WARNING)

NEEDS: dict[str, set[str]] = {"kernels": {"alignment", "mmd"}}
"""Kinds of terms that a space varies; other spaces take any recipe."""


NEEDED = {"kernels": {"alignment", "mmd"}}
"""Terms without which a space refuses a recipe."""
PAIRS = [
    (space, name)
    for space in SPACES
    for name, recipe in RECIPES.items()
    if NEEDED.get(space, set()) <= recipe().objective.keys()
]


@pytest.mark.parametrize(("space", "recipe"), PAIRS)
def test_every_draw_is_a_valid_config_that_can_be_trained_and_replayed(space: str, recipe: str) -> None:
    base = RECIPES[recipe]()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    if not NEEDS.get(space, set()) <= {term.kind for term in base.objective.values()}:
        with pytest.raises(ValueError, match="choose another recipe, or add the term"):
            SPACES[space](study.ask(), base)
        return
    for _ in range(60):
        trial = study.ask()
        config = SPACES[space](trial, base)
        assert TrialConfig.model_validate_json(config.model_dump_json()) == config
        assert any(term.weight > 0.0 for term in config.objective.values())
        assert trial.params
        study.tell(trial, 0.5)


@pytest.mark.parametrize("space", SPACES)
def test_a_space_is_a_function_of_what_the_trial_suggests(space: str) -> None:
    base = RECIPES["sfrik_tiny"]()
    before = base.model_dump()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(20):
        trial = study.ask()
        config = SPACES[space](trial, base)
        assert SPACES[space](optuna.trial.FixedTrial(trial.params), base) == config
    assert base.model_dump() == before


@pytest.mark.parametrize("space", SPACES)
def test_only_the_objective_varies(space: str) -> None:
    base = RECIPES["sfrik_tiny"]()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=2))
    for _ in range(10):
        config = SPACES[space](study.ask(), base)
        assert config.model_copy(update={"objective": base.objective}) == base


@pytest.mark.parametrize("space", SPACES)
def test_one_name_has_one_distribution(space: str) -> None:
    base = RECIPES["sfrik_tiny"]()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    seen: dict[str, optuna.distributions.BaseDistribution] = {}
    for _ in range(60):
        trial = study.ask()
        SPACES[space](trial, base)
        for name, distribution in trial.distributions.items():
            assert seen.setdefault(name, distribution) == distribution
            assert name.startswith("objective.")


@pytest.mark.parametrize("space", SPACES)
def test_tpe_learns_from_a_space_with_conditions(space: str) -> None:
    base = RECIPES["sfrik_tiny"]()
    sampler = optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, n_startup_trials=5, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(15):
        trial = study.ask()
        config = SPACES[space](trial, base)
        study.tell(trial, -abs(config.objective["alignment"].weight - 0.1))
    assert len(study.trials) == 15


@pytest.mark.parametrize("space", SPACES)
def test_every_space_names_a_shipped_recipe_as_its_default(space: str) -> None:
    assert vars(SPACES[space])["default_recipe"] in RECIPES


@pytest.mark.parametrize("thing", [*SPACES.values(), *RECIPES.values()])
def test_the_first_line_of_a_docstring_describes_it_in_a_listing(thing: object) -> None:
    first, *rest = (thing.__doc__ or "").strip().splitlines()
    assert first.endswith(".")
    assert len(first) <= 100
    assert not rest or not rest[0].strip()


def test_listing_recipes_and_spaces_imports_neither_torch_nor_optuna() -> None:
    code = (
        "import sys, search_spaces; [recipe() for recipe in search_spaces.RECIPES.values()];"
        "print(sorted({'torch', 'ffcv', 'optuna', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
