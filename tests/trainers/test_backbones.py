"""timm's models by name and one's own by reference: features, sizes, norms, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.parts import broken_parts, own_parts
from trainers.config import TrialConfig
from trainers.dist import SynchronizedBatchNorm
from trainers.model import Model, build_model

BROKEN, MINE = str(Path(broken_parts.__file__)), str(Path(own_parts.__file__))


def trial(kind: str, *sizes: int, norm: str = "batch", **settings: Any) -> TrialConfig:
    return TrialConfig.model_validate(
        {
            "objective": {"alignment": {}},
            "views": [{"size": size} for size in sizes or (32, 32)],
            "model": {"backbone": {"kind": kind, **settings}, "norm": norm, "projector": {"widths": [8]}},
        }
    )


def built(kind: str, *sizes: int, **settings: Any) -> Model:
    return build_model(trial(kind, *sizes, **settings))


@pytest.mark.parametrize(
    ("name", "sizes", "features"),
    [
        ("resnet10t", (32, 32), 512),  # batch norms of torch's own
        ("mobilenetv3_small_050", (32, 16), 1024),  # pooled features are wider than the last map
        ("convnext_atto", (32, 32), 320),
        ("vit_tiny_patch16_224", (64, 32), 192),  # made for views of two sizes, neither of which is 224
    ],
)
def test_a_model_of_timm_gives_one_feature_vector_at_each_views_size(
    name: str, sizes: tuple[int, ...], features: int
) -> None:
    model = built(f"timm:{name}", *sizes)
    assert model.feature_count == features
    outputs = model(tuple(torch.randn(4, 3, size, size) for size in sizes), torch.arange(4), 0, 0)
    assert [tuple(rows.shape) for rows in outputs.features] == [(4, features)] * len(sizes)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(module, SynchronizedBatchNorm) for module in norms), "whatever timm calls them"


def test_timms_norms_that_also_activate_compute_the_same_when_they_are_taken_apart() -> None:
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        original = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=0)
    ours = built("timm:mobilenetv3_small_050").backbone
    assert sum(parameter.numel() for parameter in ours.parameters()) == sum(
        parameter.numel() for parameter in original.parameters()
    )
    for mine, theirs in zip(ours.parameters(), original.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    images = torch.randn(4, 3, 32, 32)
    for training in (True, False):
        assert torch.equal(ours.train(training)(images), original.train(training)(images))


def test_options_go_to_timm() -> None:
    fine = built("timm:vit_tiny_patch16_224", options={"patch_size": 8, "depth": 2})
    assert len(fine.backbone.blocks) == 2  # type: ignore[arg-type]
    assert fine.backbone.patch_embed.grid_size == (4, 4)  # type: ignore[union-attr]


def test_the_same_seed_makes_the_same_network_of_ones_own() -> None:
    first, second = (built(f"{MINE}:Net", width=8) for _ in range(2))
    assert first.feature_count == 32
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    norms = [module for module in first.backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 3
    assert all(isinstance(module, SynchronizedBatchNorm) for module in norms)


def test_what_makes_a_network_may_ask_for_the_views_size_and_the_norm(tmp_path: Path) -> None:
    source = (
        "from torch import nn\n"
        "def make(view_size, norm, depth=1):\n"
        "    assert (view_size, norm, depth) == (32, 'layer', 2)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * view_size**2, 5))\n"
    )
    (tmp_path / "mine.py").write_text(source)
    assert built(f"{tmp_path}/mine.py:make", norm="layer", depth=2).feature_count == 5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (trial("timm:resnet1t"), "has no model 'resnet1t'; did you mean 'resnet14t'?"),
        (trial("timm:resnet10t", norm="layer"), "with model.norm=layer no layer may need a batch"),
        (trial("timm:convnext_atto", options={"dpth": 2}), "unexpected keyword argument 'dpth'"),
        (trial("timm:vit_tiny_patch16_224", 8, 8), "cannot"),
        (trial(f"{BROKEN}:Maps"), "must give one feature vector for each image"),
        (trial(f"{BROKEN}:Flat"), "cannot take images of 32 x 32 pixels (line"),
        (trial(f"{BROKEN}:Normed"), "the network has a OwnNorm with a forward pass of its own"),
        (trial(f"{BROKEN}:Vector"), "must make a torch.nn.Module, but made Vector"),
        (trial(f"{MINE}:Net", widht=8), "did you mean 'width'?"),
        (trial(f"{MINE}:Net", width="wide"), "Net ("),
        (trial(f"{MINE}:Nets"), "has no 'Nets'"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(config: TrialConfig, message: str) -> None:
    with pytest.raises(ValueError, match=r"model\.(backbone|norm)") as error:
        build_model(config)
    assert message in str(error.value)


def test_masking_needs_a_transformer_of_ours() -> None:
    values = trial("timm:vit_tiny_patch16_224").model_dump(mode="json")
    values["model"]["masking"] = {}
    with pytest.raises(ValueError, match=r"needs a vision transformer, but model\.backbone\.kind is timm:vit_tiny"):
        TrialConfig.model_validate(values)
