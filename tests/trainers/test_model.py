"""Shapes, parameter counts, initialization and the teacher. Reference counts are worked out by hand or published."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers.config import MLPConfig, ModelConfig, ResNetConfig, TeacherConfig, TrialConfig, ViewConfig, ViTConfig
from trainers.model import Model, build_model, teacher_momentum


def trial(*sizes: int, seed: int = 0, **model: Any) -> TrialConfig:
    views = tuple(ViewConfig(size=size) for size in (sizes if len(sizes) > 1 else (sizes or (16,)) * 2))
    return TrialConfig.model_validate(
        {"views": views, "model": ModelConfig(**model), "objective": {"alignment": {}}, "seed": seed}
    )


def images(size: int, count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def run(model: Model, *views: Tensor) -> Any:
    return model(views, torch.arange(len(views[0])), 0, 0)


@pytest.mark.parametrize(
    ("backbone", "size", "features", "count"),
    [
        # stem 3·16·9; stage 1: 2·16²·9; stage 2: (16·32 + 32²)·9 + 16·32; stage 3: (32·64 + 5·64²)·9 + 32·64;
        # batch norm: 2 per channel over 3·16 + 3·32 + 7·64 channels.
        (ResNetConfig(), 16, 64, 225_360),
        (ResNetConfig(width=8), 32, 32, 56_744),
        # torchvision's published counts less fc (513,000 and 2,049,000); the small stem has 64·3·9 in place of 64·3·49.
        (ResNetConfig(kind="resnet18"), 32, 512, 11_689_512 - 513_000 - 7_680),
        (ResNetConfig(kind="resnet34"), 32, 512, 21_797_672 - 513_000 - 7_680),
        (ResNetConfig(kind="resnet50"), 96, 2048, 25_557_032 - 2_049_000),
        # 12 blocks of 12 w² + 13 w, final norm 2 w, class token w, patches 3·P²·w + w, one position per token.
        (ViTConfig(kind="vit_tiny", patch_size=16), 224, 192, 5_717_416 - 193_000),
        (ViTConfig(kind="vit_tiny", patch_size=2), 8, 192, 12 * (12 * 192**2 + 13 * 192) + 192 * 33),
        (
            ViTConfig(kind="vit_small", patch_size=4),
            16,
            384,
            12 * (12 * 384**2 + 13 * 384) + 384 * 69,
        ),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_each_backbone_has_its_features_and_parameters(
    backbone: ResNetConfig | ViTConfig, size: int, features: int, count: int
) -> None:
    model = build_model(trial(size, backbone=backbone, projector=MLPConfig(widths=(8, 6))))
    assert parameter_count(model.backbone) == count
    model.eval()
    with torch.no_grad():
        rows, projections = model.embed(images(size, count=2))
        assert torch.equal(model.encode(images(size, count=2)), rows)
    assert rows.shape == (2, features)
    assert model.feature_count == features
    assert projections.shape == (2, 6)


def test_vit_base_is_the_published_one() -> None:
    with torch.device("meta"):
        model = Model(trial(224, backbone=ViTConfig(kind="vit_base", patch_size=16)))
    assert parameter_count(model.backbone) == 86_567_656 - 769_000
    assert model.feature_count == 768


@pytest.mark.parametrize(("size", "kernel", "stride", "pixels"), [(64, 3, 1, 64), (65, 7, 2, 17)])
def test_the_stem_keeps_all_pixels_up_to_64_and_is_torchvisions_above(
    size: int, kernel: int, stride: int, pixels: int
) -> None:
    model = build_model(trial(32, size, backbone=ResNetConfig(kind="resnet18")))
    stem: Any = model.backbone.conv1
    assert stem.kernel_size == (kernel, kernel)
    assert stem.stride == (stride, stride)
    seen: list[torch.Size] = []
    model.backbone.get_submodule("layer1").register_forward_hook(lambda module, args, output: seen.append(output.shape))
    with torch.no_grad():
        model.eval().encode(images(size, count=1))
    assert seen == [torch.Size([1, 64, pixels, pixels])]


@pytest.mark.parametrize(
    ("stem", "kernel", "stride", "padding", "pixels"),
    [
        ("imagenet", 7, 2, 3, {64: 16, 96: 24}),  # VICReg's and SFRIK's network, at any size
        ("small", 3, 1, 1, {64: 64, 96: 96}),
        ("small_pooled", 3, 1, 1, {64: 32, 96: 48}),  # W-MSE's and CW-RGP's for all but CIFAR and ImageNet
        ("small_padded", 3, 1, 2, {64: 66, 96: 98}),  # solo-learn's for CIFAR
    ],
)
def test_a_stem_that_is_named_is_built_at_any_size_of_views(
    stem: Any, kernel: int, stride: int, padding: int, pixels: dict[int, int]
) -> None:
    for size, side in pixels.items():
        network = build_model(trial(size, backbone=ResNetConfig(kind="resnet18", stem=stem))).backbone
        conv: Any = network.get_submodule("conv1")
        assert (conv.kernel_size, conv.stride, conv.padding) == ((kernel,) * 2, (stride,) * 2, (padding,) * 2)
        with torch.no_grad():
            assert network.get_submodule("maxpool")(conv(images(size, count=1))).shape == (1, 64, side, side)


@pytest.mark.parametrize(("size", "stem"), [(32, "small"), (64, "small"), (65, "imagenet")])
def test_a_stored_config_without_a_stem_builds_the_network_that_it_was_trained_with(size: int, stem: Any) -> None:
    stored = trial(size, backbone=ResNetConfig(kind="resnet18")).model_dump(mode="json")
    del stored["model"]["backbone"]["stem"]
    before = build_model(TrialConfig.model_validate(stored)).state_dict()
    named = build_model(trial(size, backbone=ResNetConfig(kind="resnet18", stem=stem))).state_dict()
    assert before.keys() == named.keys()
    assert all(torch.equal(before[name], named[name]) for name in named)


@pytest.mark.parametrize("backbone", [ResNetConfig(), ViTConfig(kind="vit_tiny", patch_size=4)])
def test_views_of_several_sizes_go_through_one_network(backbone: ResNetConfig | ViTConfig) -> None:
    outputs = run(build_model(trial(16, 16, 8, backbone=backbone)), images(16), images(16), images(8))
    assert [tuple(rows.shape) for rows in outputs.projections] == [(4, 128)] * 3
    assert outputs.predictions is None
    assert outputs.targets is None


def test_the_model_depends_on_the_seed_alone_and_leaves_the_random_state() -> None:
    torch.manual_seed(1)
    first = build_model(trial(seed=5)).state_dict()
    torch.manual_seed(2)
    torch.randn(7)
    before = torch.get_rng_state()
    again = build_model(trial(seed=5)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    other = build_model(trial(seed=6)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["backbone.stem.0.weight"], other["backbone.stem.0.weight"])


@pytest.mark.parametrize("kind", ["resnet_tiny", "resnet18", "resnet50"])
@pytest.mark.parametrize("zero", [True, False])
def test_residual_branches_start_at_zero_where_asked(kind: Any, zero: bool) -> None:
    model = build_model(trial(backbone=ResNetConfig(kind=kind, zero_init_residual=zero)))
    last_norms = {"resnet_tiny": "norm2.weight", "resnet18": "bn2.weight", "resnet50": "bn3.weight"}[kind]
    scales = [value for name, value in model.backbone.named_parameters() if name.endswith(last_norms)]
    assert len(scales) == {"resnet_tiny": 5, "resnet18": 8, "resnet50": 16}[kind]
    assert all(bool((scale == (0 if zero else 1)).all()) for scale in scales)


@pytest.mark.parametrize("backbone", [ResNetConfig(), ResNetConfig(kind="resnet18")])
def test_norm_layer_leaves_no_batch_norm_and_makes_images_independent(backbone: ResNetConfig) -> None:
    model = build_model(trial(backbone=backbone, norm="layer", predictor=MLPConfig(widths=(32, 128), final_norm=True)))
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    views = images(16)
    together = run(model, views).predictions[0]
    alone = torch.cat([run(model, view[None]).predictions[0] for view in views])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "batch_per_rank"])
def test_batch_norm_takes_its_statistics_from_one_view_at_a_time(norm: Any) -> None:
    model = build_model(trial(norm=norm))
    bright, dark = images(16, seed=1) + 3.0, images(16, seed=2) - 3.0
    first, second = run(model, bright, dark).projections
    torch.testing.assert_close(first, run(model, bright).projections[0])
    torch.testing.assert_close(second, run(model, dark).projections[0])
    mixed = run(model, torch.cat([bright, dark])).projections[0][:4]
    assert (mixed - first).abs().max() > 0.01


def test_heads_follow_their_config() -> None:
    plain = MLPConfig(widths=(32, 24, 16), final_norm=True, final_bias=False)
    bare = MLPConfig(widths=(40, 16), hidden_norm=False)
    model = build_model(trial(projector=plain, predictor=bare))
    assert [type(layer).__name__ for layer in model.projector] == [
        *("Linear", "SynchronizedBatchNorm", "ReLU") * 2,
        *("Linear", "SynchronizedBatchNorm"),
    ]
    assert parameter_count(model.projector) == 64 * 32 + 64 + 32 * 24 + 48 + 24 * 16 + 32
    assert model.predictor is not None
    assert parameter_count(model.predictor) == 16 * 40 + 40 + 40 * 16 + 16
    layered = build_model(trial(norm="layer", projector=plain))
    # Layer norm does not cancel a bias for each unit, so hidden layers keep theirs.
    assert parameter_count(layered.projector) == parameter_count(model.projector) + 32 + 24


def test_a_last_norm_without_scale_and_shift_has_no_parameters() -> None:
    for norm in ("batch", "layer"):
        model = build_model(trial(norm=norm, projector=MLPConfig(widths=(8, 6), final_norm=True, final_affine=False)))
        last: Any = model.projector[-1] if isinstance(model.projector, nn.Sequential) else None
        assert list(last.parameters()) == []
        assert run(model, images(16), images(16)).projections[0].shape == (4, 6)


def test_dinos_head_starts_normal_with_deviation_2_percent_and_without_bias() -> None:
    head = MLPConfig(widths=(512, 512, 128), hidden_norm=False, activation="gelu", initialization="dino")
    layers = [one for one in build_model(trial(projector=head)).projector.modules() if isinstance(one, nn.Linear)]
    assert len(layers) == 3
    for layer in layers:
        weight = layer.weight.detach()
        assert float(weight.std()) == pytest.approx(0.02, rel=0.02)
        assert abs(float(weight.mean())) < 5 * 0.02 / math.sqrt(weight.numel())
        assert float(weight.abs().max()) > 0.06  # beyond 3 deviations: it is not cut off there
        assert not layer.bias.any()
    usual = [one for one in build_model(trial()).projector.modules() if isinstance(one, nn.Linear)]
    assert all(layer.bias is None or layer.bias.any() for layer in usual)


def test_everything_follows_torchs_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        model = build_model(trial(teacher=TeacherConfig(), predictor=MLPConfig()))
        outputs = run(model, images(16).double(), images(16).double())
    finally:
        torch.set_default_dtype(torch.float32)
    for rows in (*outputs.features, *outputs.projections, *outputs.predictions, *outputs.targets):
        assert rows.dtype == torch.float64


def test_the_teacher_starts_as_the_student_and_never_needs_a_gradient() -> None:
    model = build_model(trial(teacher=TeacherConfig()))
    outputs = run(model, images(16), images(16, seed=1))
    for projection, target in zip(outputs.projections, outputs.targets, strict=True):
        assert torch.equal(projection, target)
        assert projection.requires_grad
        assert not target.requires_grad
    assert model.teacher is not None
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())


def test_the_teacher_follows_the_student_by_its_momentum_and_takes_its_running_statistics() -> None:
    model = build_model(trial(teacher=TeacherConfig(momentum=0.9, final_momentum=1.0)))
    assert model.teacher is not None
    before = {name: value.clone() for name, value in model.teacher.named_parameters()}
    with torch.no_grad():
        for parameter in (*model.backbone.parameters(), *model.projector.parameters()):
            parameter.add_(1.0)
    model.backbone(images(16))  # moves the student's running statistics only
    model.update_teacher(step=3, total_steps=10)
    moved = 1.0 - teacher_momentum(0.9, 1.0, 3, 10)
    for name, value in model.teacher.named_parameters():
        torch.testing.assert_close(value, before[name] + moved)
    student = dict(model.named_buffers())
    for name, buffer in model.teacher.named_buffers():
        assert torch.equal(buffer, student[name])


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_a_momentum_of_zero_copies_the_student_and_one_keeps_the_teacher(momentum: float) -> None:
    """MSBReg, oracle 16."""
    model = build_model(trial(teacher=TeacherConfig(momentum=momentum, final_momentum=momentum)))
    assert model.teacher is not None
    before = {name: value.clone() for name, value in model.teacher.named_parameters()}
    with torch.no_grad():
        for parameter in (*model.backbone.parameters(), *model.projector.parameters()):
            parameter.add_(torch.randn_like(parameter))
    model.update_teacher(step=3, total_steps=10)
    student = dict(model.named_parameters())
    for name, value in model.teacher.named_parameters():
        assert torch.equal(value, student[name] if momentum == 0.0 else before[name])


def test_the_teachers_momentum_follows_half_a_cosine() -> None:
    assert teacher_momentum(0.99, 1.0, 0, 100) == pytest.approx(0.99)
    assert teacher_momentum(0.99, 1.0, 50, 100) == pytest.approx(0.995)
    assert teacher_momentum(0.99, 1.0, 100, 100) == pytest.approx(1.0)
    assert teacher_momentum(0.9, 1.0, 25, 100) == pytest.approx(1.0 - 0.1 * (math.sqrt(0.5) + 1) / 2)
    assert teacher_momentum(0.9, 0.9, 33, 100) == pytest.approx(0.9)
