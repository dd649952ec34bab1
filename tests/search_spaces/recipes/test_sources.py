"""The table of recipes and their sources: it is whole, it explains each difference, and recipes are what it says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from search_spaces import RECIPES
from search_spaces.recipes.sources import SOURCES, Settings, crops, settings_of
from trainers.config import ResNetConfig, ViTConfig
from trainers.terms import BatchWhitening

PAGES = Path(__file__).resolve().parents[3] / "docs" / "pages.py"


def test_every_recipe_has_a_row_and_no_row_is_without_a_recipe() -> None:
    assert sorted(SOURCES) == sorted(RECIPES)


def test_the_page_has_a_row_for_each_recipe_with_its_own_settings() -> None:
    page = runpy.run_path(str(PAGES))["recipes"]()
    for name, recipe in RECIPES.items():
        (row,) = re.findall(rf"^\| \[{name}\]\(#{name}\) \|.*$", page, re.M)
        assert all(value in row for value in settings_of(recipe()))


@pytest.mark.parametrize("name", RECIPES)
def test_what_differs_from_the_source_is_explained(name: str) -> None:
    source = SOURCES[name]
    assert source.name
    if source.differing(settings_of(RECIPES[name]())) or source.settings == Settings():
        assert source.differences


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if source.settings != Settings()])
def test_recipes_with_a_published_setting_have_its_network_batch_and_length(name: str) -> None:
    """All that decides whether a quoted figure is of this network; crops may be approximated, and say so."""
    differing = SOURCES[name].differing(settings_of(RECIPES[name]()))
    if any(hasattr(view, "resampling") for view in RECIPES[name]().views):
        assert "resampling" not in differing
    assert not {"stem", "initialization", "batch", "epochs"}.intersection(differing)
    assert "crops" not in differing or name in ("msbreg_imagenet", "sfrik_imagenet20_obow_crops")


def test_a_source_differs_only_in_what_is_known_of_it() -> None:
    source = SOURCES["cw_rgp_stl10"]
    ours = source.settings
    assert source.differing(ours) == []
    assert source.differing(ours._replace(stem="small", epochs="7")) == ["stem", "epochs"]
    unknown = source._replace(settings=Settings(stem="small"))
    assert unknown.differing(ours) == ["stem"]


def test_settings_are_read_from_the_config() -> None:
    ours = settings_of(RECIPES["dino_imagenet"]())
    assert ours.stem == "patches of 16 px, 6 heads"
    assert (ours.initialization, ours.batch, ours.epochs) == ("dino", "512", "100")
    assert ours.crops == crops((2, 224, 0.4, 1.0), (8, 96, 0.05, 0.4))
    assert ours.crops == "2 x 224 px (0.4 to 1) + 8 x 96 px (0.05 to 0.4)"


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("sfrik_stl10", "imagenet"),
        *(
            (f"{method}_{data}", "small")
            for method in ("cw_rgp", "w_mse", "msbreg")
            for data in ("cifar10", "cifar100")
        ),
        *(
            (f"{method}_{data}", "small_pooled")
            for method in ("cw_rgp", "w_mse", "msbreg")
            for data in ("stl10", "tiny_imagenet")
        ),
        ("simclr_cifar10", "small_padded"),
    ],
)
def test_each_recipe_names_the_first_layers_of_its_source(name: str, stem: str) -> None:
    backbone = RECIPES[name]().model.backbone
    assert isinstance(backbone, ResNetConfig)
    assert backbone.stem == stem


def test_no_recipe_leaves_its_network_to_be_guessed() -> None:
    """But tiny ones, whose network has but one stem."""
    for name, recipe in RECIPES.items():
        backbone = recipe().model.backbone
        if isinstance(backbone, ResNetConfig):
            assert backbone.kind == "resnet_tiny" or backbone.stem != "auto", name
        elif isinstance(backbone, ViTConfig):
            assert backbone.initialization != "timm", name


def test_mae_on_cifar_is_solo_learns() -> None:
    config = RECIPES["mae_cifar10"]()
    assert config.views[0].crop_scale == (0.08, 1.0)
    assert config.schedule.warmup_share * config.epochs == pytest.approx(10)
    assert isinstance(config.model.backbone, ViTConfig)
    assert (config.model.backbone.heads, config.model.backbone.initialization) == (12, "mae")


def test_w_mse_draws_its_sub_batches_as_often_as_its_authors() -> None:
    for data, repeats in (("cifar10", 1), ("cifar100", 1), ("stl10", 4), ("tiny_imagenet", 4)):
        term = RECIPES[f"w_mse_{data}"]().objective["batch_whitening"]
        assert isinstance(term, BatchWhitening)
        assert term.repeats == repeats


@pytest.mark.parametrize(("name", "images"), [("w_mse_cifar10", 45_000), ("cw_rgp_stl10", 104_500)])
def test_the_harness_of_w_mse_warms_up_for_500_steps(name: str, images: int) -> None:
    config = RECIPES[name]()
    assert config.schedule.warmup_share * (images // config.batch_size * config.epochs) == pytest.approx(500)


def test_dino_has_the_defaults_of_its_authors_file() -> None:
    config = RECIPES["dino_imagenet"]()
    optimizer, term = config.optimizer, config.objective["dino"].model_dump()
    assert config.batch_size == 512
    assert optimizer.learning_rate == pytest.approx(1e-3)
    assert (optimizer.clip_norm, optimizer.clip_scope) == (3.0, "tensor")
    assert (optimizer.weight_decay, optimizer.final_weight_decay) == (0.04, 0.4)
    assert (term["teacher_temperature"], term["warmup_steps"], term["student_temperature"]) == (0.04, 0, 0.1)
    assert config.model.projector.initialization == "dino"


def test_moco_v3s_transformer_is_frozen_where_it_reads_patches_and_its_last_norms_are_plain() -> None:
    config = RECIPES["mocov3_vit_imagenet"]()
    assert isinstance(config.model.backbone, ViTConfig)
    assert (config.model.backbone.freeze_patches, config.model.backbone.heads) == (True, 12)
    assert config.batch_size == 4096
    assert config.optimizer.learning_rate == pytest.approx(2.4e-3)
    assert not config.model.projector.final_affine
    assert config.model.predictor is not None
    assert not config.model.predictor.final_affine
    assert config.model.masking is None


def test_sfrik_on_stl10_sees_the_unlabeled_images_alone() -> None:
    assert RECIPES["sfrik_stl10"]().data.images == "unlabeled"
    assert {name for name, recipe in RECIPES.items() if recipe().data.images != "all"} == {"sfrik_stl10"}


@pytest.mark.parametrize(
    ("name", "aligned", "spread", "views"),
    [("sfrik_imagenet20_swav_crops", 2, 2, 8), ("sfrik_imagenet20_obow_crops", 1, None, 8)],
)
def test_sfrik_with_multi_crop_aligns_and_spreads_the_views_that_its_authors_do(
    name: str, aligned: int, spread: int | None, views: int
) -> None:
    config = RECIPES[name]()
    terms = {key: term.model_dump() for key, term in config.objective.items()}
    assert (terms["alignment"]["global_views"], terms["mmd"]["global_views"]) == (aligned, spread)
    assert len(config.views) == views
    assert terms["alignment"]["weight"] == pytest.approx(4000 / 8192)
