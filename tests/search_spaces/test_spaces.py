"""The contract of every shipped space, and what it must refuse."""

from __future__ import annotations

import optuna
import pytest

from search_spaces import RECIPES, SPACES
from tests.imports import imported
from trainers.config import TrialConfig

optuna.logging.set_verbosity(optuna.logging.WARNING)

NEEDS: dict[str, tuple[set[str], ...]] = {
    "kernels": ({"alignment"}, {"mmd"}),
    "groups": ({"channel_whitening", "batch_whitening"},),
    "msbreg": ({"centroid"}, {"singular_value"}, {"brownian"}),
}
"""Of each set, one kind of term that a space varies; other spaces take any recipe, or say below what they need."""


def fits(space: str, base: TrialConfig) -> bool:
    """Whether the space takes this recipe."""
    kinds = {term.kind for term in base.objective.values()}
    if space == "masking":
        return base.model.masking is not None
    if space == "regularizers":
        return len(base.views) > 1
    return all(wanted & kinds for wanted in NEEDS.get(space, ()))


PAIRS = [(space, name) for space in SPACES for name in RECIPES]


@pytest.mark.parametrize(("space", "recipe"), PAIRS)
def test_every_draw_is_a_valid_config_that_can_be_trained_and_replayed(space: str, recipe: str) -> None:
    base = RECIPES[recipe]()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    if not fits(space, base):
        with pytest.raises(ValueError, match="choose another recipe, or "):
            SPACES[space](study.ask(), base)
        return
    for _ in range(60 if recipe.endswith("_tiny") else 20):
        trial = study.ask()
        config = SPACES[space](trial, base)
        assert TrialConfig.model_validate_json(config.model_dump_json()) == config
        assert any(term.weight > 0.0 for term in config.objective.values())
        assert trial.params
        study.tell(trial, 0.5)


def base_of(space: str) -> TrialConfig:
    """The recipe that the space is made for."""
    return RECIPES[vars(SPACES[space])["default_recipe"]]()


@pytest.mark.parametrize("space", SPACES)
def test_a_space_is_a_function_of_what_the_trial_suggests(space: str) -> None:
    base = base_of(space)
    before = base.model_dump()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(20):
        trial = study.ask()
        config = SPACES[space](trial, base)
        assert SPACES[space](optuna.trial.FixedTrial(trial.params), base) == config
    assert base.model_dump() == before


VARIES = {
    "kernels": set[str](),
    "weights": set[str](),
    "regularizers": {"optimizer"},
    "groups": {"model"},
    "masking": {"model"},
    "msbreg": {"model", "views", "epochs"},
}
"""What each space changes beside the objective."""


@pytest.mark.parametrize("space", SPACES)
def test_a_space_changes_nothing_but_what_it_is_about(space: str) -> None:
    base = base_of(space)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=2))
    changed: set[str] = set()
    for _ in range(60):
        config = SPACES[space](study.ask(), base)
        changed |= {name for name in TrialConfig.model_fields if getattr(config, name) != getattr(base, name)}
    assert changed == {"objective", *VARIES[space]}


@pytest.mark.parametrize("space", SPACES)
def test_one_name_has_one_distribution(space: str) -> None:
    base = base_of(space)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    seen: dict[str, optuna.distributions.BaseDistribution] = {}
    for _ in range(60):
        trial = study.ask()
        SPACES[space](trial, base)
        for name, distribution in trial.distributions.items():
            assert seen.setdefault(name, distribution) == distribution


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # of TPE's groups; the version is pinned
@pytest.mark.parametrize("space", SPACES)
def test_tpe_learns_from_a_space_with_conditions(space: str) -> None:
    base = base_of(space)
    sampler = optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, n_startup_trials=5, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(15):
        trial = study.ask()
        config = SPACES[space](trial, base)
        study.tell(trial, -sum(term.weight for term in config.objective.values()))
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
    program = "import search_spaces; [recipe() for recipe in search_spaces.RECIPES.values()]"
    assert imported(program, "torch ffcv optuna ray") == []
