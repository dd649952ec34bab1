"""Recipes of host methods: comparable with each other, and in the numbers of their sources."""

from __future__ import annotations

import pytest
import torch

from search_spaces import RECIPES
from search_spaces.recipes.hosts import (
    alignment_uniformity_cifar10,
    barlow_cifar10,
    byol_cifar10,
    mocov3_cifar10,
    simclr_cifar10,
    simsiam_cifar10,
    vicreg_cifar10,
)
from search_spaces.recipes.sfrik import sfrik_tiny
from trainers.config import TrialConfig
from trainers.objective import Objective
from trainers.terms import InfoNCE, Outputs

METHODS = ("simclr", "mocov3", "byol", "simsiam", "vicreg", "barlow", "alignment_uniformity")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_tiny_recipe_and_one_for_cifar10(method: str) -> None:
    assert RECIPES[f"{method}_tiny"]().data.path == "digits"
    config = RECIPES[f"{method}_cifar10"]()
    assert config.data.path == "cifar10"
    assert config.model.backbone.kind == "resnet18"
    assert all(view.size == 32 for view in config.views)


@pytest.mark.parametrize("method", METHODS)
def test_tiny_recipes_differ_in_method_and_length_only(method: str) -> None:
    base, config = sfrik_tiny(), RECIPES[f"{method}_tiny"]()
    same = {"objective": base.objective, "model": base.model, "epochs": base.epochs}
    assert config.model_copy(update=same) == base
    assert config.model.backbone == base.model.backbone
    assert config.model.projector.widths == base.model.projector.widths
    assert config.objective != base.objective


def value_of(config: TrialConfig, *, prediction: bool = False, width: int = 8) -> tuple[float, list[torch.Tensor]]:
    """The objective's total on fixed random rows, and these: projections, predictions, targets of two views."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(6, width, generator=generator, dtype=torch.float64) for _ in range(6)]
    outputs = Outputs(
        features=(rows[0], rows[1]),
        projections=(rows[0], rows[1]),
        predictions=(rows[2], rows[3]) if prediction else None,
        targets=(rows[4], rows[5]) if prediction else None,
        sample_ids=torch.arange(6),
        seed=0,
        step=0,
    )
    return Objective(config.objective)(outputs)[0].item(), rows


def test_vicreg_is_solo_learns_sum_with_its_weights() -> None:
    value, (x, y, *_) = value_of(vicreg_cifar10())
    different = ~torch.eye(8, dtype=torch.bool)
    expected = 25 * torch.nn.functional.mse_loss(x, y)
    for view in (x, y):
        expected = expected + 25 * torch.relu(1 - (view.var(dim=0) + 1e-4).sqrt()).mean()
        expected = expected + torch.cov(view.T)[different].square().sum() / 8
    assert value == pytest.approx(expected.item(), rel=1e-12)


def test_byol_is_the_sum_of_both_directions() -> None:
    value, (_, _, p, q, s, t) = value_of(byol_cifar10(), prediction=True)
    cosine = torch.nn.functional.cosine_similarity
    assert value == pytest.approx((4 - 2 * cosine(p, t).mean() - 2 * cosine(q, s).mean()).item(), rel=1e-12)


def test_alignment_and_uniformity_is_wang_and_isolas_sum() -> None:
    value, (x, y, *_) = value_of(alignment_uniformity_cifar10())
    x, y = torch.nn.functional.normalize(x), torch.nn.functional.normalize(y)
    uniformity = [torch.pdist(view).square().mul(-2).exp().mean().log() for view in (x, y)]
    expected = (x - y).norm(dim=1).square().mean() + sum(uniformity) / 2
    assert value == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(
    ("config", "rate", "decay"),
    [
        (simclr_cifar10(), 0.4, 1e-4),
        (mocov3_cifar10(), 0.3, 1e-6),
        (byol_cifar10(), 1.0, 1e-5),
        (simsiam_cifar10(), 0.5, 1e-5),
        (vicreg_cifar10(), 0.3, 1e-4),
        (barlow_cifar10(), 0.3, 1e-4),
    ],
    ids=["simclr", "mocov3", "byol", "simsiam", "vicreg", "barlow"],
)
def test_the_published_recipes_have_the_settings_of_their_source(
    config: TrialConfig, rate: float, decay: float
) -> None:
    assert (config.epochs, config.batch_size, len(config.views)) == (1000, 256, 2)
    assert config.schedule.warmup_share * config.epochs == pytest.approx(10)
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (rate, decay)
    if config.optimizer.kind == "lars":
        assert (config.optimizer.trust_coefficient, config.optimizer.clip_trust) == (0.02, True)


def test_simclr_has_no_norm_in_its_projector_and_strong_jitter_and_blur() -> None:
    config = simclr_cifar10()
    assert not config.model.projector.hidden_norm
    assert config.views[0].brightness == 0.8
    assert config.views[0].blur_probability == 0.5
    term = config.objective["info_nce"]
    assert isinstance(term, InfoNCE)
    assert term.temperature == 0.2
