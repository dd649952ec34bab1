"""Reconstruction of dropped patches, and the decoder that makes it (DILEMMA, oracle 15; MAE)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.config import TrialConfig
from trainers.masking import Mask
from trainers.model import Model, build_model
from trainers.terms import Outputs, Patches, Reconstruction
from trainers.vit import patch_pixels


def outputs_of(*views: tuple[Tensor, Tensor]) -> Outputs:
    """From true and predicted pixels of dropped patches, [n, S, m] each, of every view."""
    nothing = torch.zeros(len(views[0][0]), 0, dtype=torch.long)
    patches = tuple(
        Patches(view, torch.zeros(0), nothing, nothing, nothing, None, pixels, predicted)
        for view, (pixels, predicted) in enumerate(views)
    )
    return Outputs((), (), None, None, torch.arange(len(nothing)), seed=0, step=0, patches=patches)


@pytest.mark.parametrize("normalize", [True, False])
def test_it_is_the_mean_squared_error_on_patches_normalized_by_their_own_pixels(normalize: bool) -> None:
    generator = np.random.default_rng(0)
    views = []
    costs = []
    for dropped in (3, 2):
        pixels, predicted = generator.normal(2.0, 3.0, (4, dropped, 12)), generator.standard_normal((4, dropped, 12))
        views.append((torch.from_numpy(pixels), torch.from_numpy(predicted)))
        errors = []
        for image in range(4):
            for patch in range(dropped):
                x = pixels[image, patch]
                target = (x - x.mean()) / np.sqrt(x.var(ddof=1) + 1e-6) if normalize else x
                errors.append(np.mean((predicted[image, patch] - target) ** 2))
        costs.append(np.mean(errors))
    value = Reconstruction(normalize=normalize)(outputs_of(*views))
    assert value.item() == pytest.approx(np.mean(costs), rel=1e-12)


@pytest.mark.parametrize(("patch_size", "cost"), [(4, 0.97917), (8, 0.99479), (16, 0.99870)])
def test_predicting_nothing_costs_nearly_one_on_normalized_patches(patch_size: int, cost: float) -> None:
    pixels = torch.randn(3, 5, 3 * patch_size**2, dtype=torch.float64) * 50
    assert Reconstruction()(outputs_of((pixels, torch.zeros_like(pixels)))).item() == pytest.approx(cost, abs=1e-5)


def trial(**changes: Any) -> TrialConfig:
    model = {
        "backbone": {"kind": "vit_micro", "patch_size": 4, "embed_dim": 32, "depth": 1},
        "projector": {"widths": [4]},
        "masking": {"drop_ratio": 0.75, "mismatch_probability": 0.5},
        "decoder": {"width": 32, "depth": 1},
        **changes.pop("model", {}),
    }
    values = {"views": [{"size": 16}], "model": model, "objective": {"reconstruction": {}}, **changes}
    return TrialConfig.model_validate(values)


def images(size: int = 16) -> Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def run(model: Model, view: Tensor) -> Outputs:
    outputs: Outputs = model((view,), torch.arange(len(view)), 0, 0)
    return outputs


def test_the_targets_are_the_pixels_of_the_dropped_patches() -> None:
    view = images()
    (patches,) = run(build_model(trial()).double(), view).patches
    assert patches.pixels is not None
    assert patches.reconstruction is not None
    assert patches.pixels.shape == patches.reconstruction.shape == (4, 12, 48)
    for image in range(4):
        for place, pixels in zip(patches.dropped[image].tolist(), patches.pixels[image], strict=True):
            row, column = divmod(place, 4)
            expected = view[image, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert torch.equal(pixels, expected.flatten())
    assert torch.equal(patch_pixels(view, 4)[0, 5], view[0, :, 4:8, 4:8].flatten())


def test_pixels_of_dropped_patches_reach_the_loss_as_targets_only() -> None:
    """What the network could copy is what it was shown: the kept patches."""
    model = build_model(trial()).double()
    view = images().requires_grad_()
    (patches,) = run(model, view).patches
    assert patches.reconstruction is not None
    (gradient,) = torch.autograd.grad(patches.reconstruction.sum(), view)
    moved = patch_pixels(gradient, 4).abs().sum(2) > 0
    shown = torch.zeros(4, 16, dtype=torch.bool).scatter(1, patches.kept, True)
    assert torch.equal(moved, shown)


def test_the_decoder_puts_tokens_back_where_they_truly_were() -> None:
    model = build_model(trial()).double()
    decoder = model.decoder
    assert decoder is not None
    order = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(4)])
    class_token, tokens = torch.randn(4, 32, dtype=torch.float64), torch.randn(4, 4, 32, dtype=torch.float64)
    kept, dropped = order[:, :4], order[:, 4:]
    predicted = decoder(class_token, tokens, Mask(kept, kept, dropped))
    assert torch.equal(decoder(class_token, tokens, Mask(kept, kept.roll(1, 1), dropped)), predicted)
    # Written out: a table by place, into which tokens are put one by one.
    for image in range(4):
        table = decoder.mask_token[0].repeat(16, 1)
        for place, token in zip(kept[image], tokens[image], strict=True):
            table[place] = decoder.embed(token)
        sequence = torch.cat([decoder.embed(class_token[image])[None], table]) + decoder.positions[0]
        pixels = decoder.pixels(decoder.norm(decoder.blocks(sequence[None])))[0, 1:]
        torch.testing.assert_close(predicted[image], pixels[dropped[image]], rtol=0, atol=1e-12)


def test_the_decoder_exists_only_with_its_term_and_changes_nothing_else() -> None:
    with_decoder = build_model(trial()).state_dict()
    without = build_model(trial(objective={"mmd": {}, "reconstruction": {"weight": 0.0}})).state_dict()
    assert all(name.startswith("decoder.") for name in with_decoder.keys() - without.keys())
    assert all(torch.equal(with_decoder[name], value) for name, value in without.items())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"decoder": None}, r"objective\.reconstruction .*model\.decoder.*None; set them"),
        ({"masking": None}, r"needs model\.masking and model\.decoder"),
        ({"masking": {"drop_ratio": 0.0}}, r"drop_ratio=0\.0 drops none of the 16 of views\.0; raise it"),
    ],
)
def test_a_reconstruction_of_nothing_is_refused_with_a_remedy(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trial(model=model)


def test_outputs_without_pixels_are_refused() -> None:
    empty = outputs_of((torch.zeros(2, 1, 3), torch.zeros(2, 1, 3)))
    with pytest.raises(ValueError, match=r"set model\.masking"):
        Reconstruction()(empty._replace(patches=()))
    with pytest.raises(ValueError, match=r"model\.decoder"):
        Reconstruction()(empty._replace(patches=(empty.patches[0]._replace(pixels=None),)))
