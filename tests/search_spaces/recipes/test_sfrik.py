"""SFRIK's recipes: the published one in the numbers of its source."""

from __future__ import annotations

import pytest
import torch

from search_spaces.recipes.sfrik import sfrik_imagenet, sfrik_imagenet20, sfrik_stl10, sfrik_tiny
from trainers.changes import with_changes
from trainers.config import ResNetConfig
from trainers.objective import Objective
from trainers.terms import Outputs


def test_the_published_recipe_has_the_gradient_of_the_official_loss() -> None:
    """λ_sim · mean over n·q of (z1 - z2)² + ½ Σ over views of mean over i, j of Σ b_l P_l(q; z_i·z_j), written out
    here."""
    q, n, lambda_sim, b = 130, 12, 40_000.0, (1.0, 40.0, 40.0)
    generator = torch.Generator().manual_seed(0)
    projections = tuple(torch.randn(n, q, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    z = [torch.nn.functional.normalize(projection, dim=1) for projection in projections]
    official = lambda_sim * (z[0] - z[1]).square().mean()
    for rows in z:
        t = rows @ rows.T
        p = (t, (q * t**2 - 1) / (q - 1), ((q + 2) * t**3 - 3 * t) / (q - 1))
        official = official + 0.5 * sum(weight * one.mean() for weight, one in zip(b, p, strict=True))
    expected = torch.autograd.grad(official, projections)

    config = with_changes(sfrik_imagenet(), {"objective.alignment.weight": lambda_sim / q})
    total, _ = Objective(config.objective)(
        Outputs(projections, projections, None, None, torch.arange(n), seed=0, step=0)
    )
    for ours, theirs in zip(torch.autograd.grad(total, projections), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_the_published_recipe_has_the_published_settings() -> None:
    config = sfrik_imagenet()
    assert config.objective["alignment"].weight == pytest.approx(40_000 / 32_768)
    assert config.optimizer.learning_rate == pytest.approx(3.2)
    assert config.schedule.warmup_share * config.epochs == pytest.approx(10)
    first, second = config.views
    assert (
        first.blur_probability,
        first.solarize_probability,
        second.blur_probability,
        second.solarize_probability,
    ) == (1.0, 0.0, 0.1, 0.2)
    assert config.model.projector.widths == (8192, 8192, 32768)
    assert not config.model.projector.final_bias
    assert not config.model.projector.final_norm


def test_the_smaller_published_settings_have_their_own_weight_rate_and_length() -> None:
    for config, size in ((sfrik_stl10(), 64), (sfrik_imagenet20(), 224)):
        assert config.objective["alignment"].weight == pytest.approx(4000 / 8192)
        assert config.optimizer.learning_rate == pytest.approx(9.6)
        assert config.model.projector.widths == (8192, 8192, 8192)
        assert config.schedule.warmup_share * config.epochs == pytest.approx(10)
        assert (config.epochs, config.batch_size, config.views[0].size) == (100, 2048, size)


def test_the_small_recipe_leaves_room_above_the_untrained_encoder() -> None:
    """What the acceptance of a sweep rests on: few labels, and an encoder that is not made worse than it has to be."""
    config = sfrik_tiny()
    assert config.data.path == "digits"
    assert config.probe.labels_per_class == 5
    assert all(view.flip_probability == 0.0 for view in config.views)
    assert isinstance(config.model.backbone, ResNetConfig)
    assert config.model.backbone.kind == "resnet_tiny"
    assert not config.model.backbone.zero_init_residual
