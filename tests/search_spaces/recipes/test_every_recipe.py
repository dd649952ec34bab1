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
def test_every_recipe_says_how_its_views_are_resampled(name: str) -> None:
    assert all("resampling" in view.model_fields_set for view in RECIPES[name]().views)


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("sfrik_tiny", "bilinear"),
        ("mae_tiny", "bilinear"),
        ("sfrik_stl10", "bicubic"),
        ("sfrik_imagenet", "bicubic"),
        ("cw_rgp_cifar10", "bicubic"),
        ("cw_rgp_imagenet", "bilinear"),
        ("msbreg_imagenet", "bicubic"),
        ("simclr_cifar10", "bicubic"),
        ("mocov3_vit_imagenet", "bilinear"),
        ("dino_imagenet", "bicubic"),
        ("mae_imagenet", "bicubic"),
    ],
)
def test_views_are_resampled_as_in_the_recipes_source(name: str, kernel: str) -> None:
    assert {view.resampling for view in RECIPES[name]().views} == {kernel}


@pytest.mark.parametrize("name", ["mae_cifar10", "mae_imagenet"])
def test_an_autoencoders_view_is_a_crop_and_a_flip_alone(name: str) -> None:
    (view,) = RECIPES[name]().views
    assert view.resampling == "bicubic"
    assert view.flip_probability == 0.5
    for operation in ("jitter", "grayscale", "blur", "solarize", "erase"):
        assert getattr(view, f"{operation}_probability") == 0.0


@pytest.mark.parametrize("name", RECIPES)
def test_every_docstring_says_command_cost_and_what_to_expect(name: str) -> None:
    text = RECIPES[name].__doc__ or ""
    assert "Command:" in text
    assert name in text
    assert "Cost:" in text
    assert "Expect:" in text
