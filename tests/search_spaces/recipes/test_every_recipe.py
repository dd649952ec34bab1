"""What holds for every recipe: it is whole, replayable and documented."""

from __future__ import annotations

import pytest

from search_spaces import RECIPES
from trainers.config import TrialConfig


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name: str) -> None:
    config = RECIPES[name]()
    assert TrialConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("name", RECIPES)
def test_every_docstring_says_command_cost_and_what_to_expect(name: str) -> None:
    text = RECIPES[name].__doc__ or ""
    assert "Command:" in text
    assert name in text
    assert "Cost:" in text
    assert "Expect:" in text
