"""The parts of a config by themselves: ranges, and rules within one part. How parts agree is test_config.py's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from trainers import settings
from trainers.settings import (
    Backbone,
    Config,
    DataConfig,
    MLPConfig,
    OptimizerConfig,
    ProbeConfig,
    ResNetConfig,
    ScheduleConfig,
    SentinelConfig,
    TeacherConfig,
    ViewConfig,
    ViTConfig,
)
from trainers.usercode import Own

PARTS = [part for part in vars(settings).values() if isinstance(part, type) and issubclass(part, Config)]
NUMBERS = [
    (part, name)
    for part in PARTS
    for name, field in part.model_fields.items()
    if field.annotation in (float, float | None)
]


@pytest.mark.parametrize("part", [part for part in PARTS if not issubclass(part, Own)], ids=lambda part: part.__name__)
def test_every_part_that_is_shipped_knows_its_keys(part: type[Config]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        part.model_validate({"unheard_of": 1})


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_part_is_frozen(part: type[Config]) -> None:
    made = part.model_construct()
    for name in part.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(made, name, 1)


@pytest.mark.parametrize(("part", "name"), NUMBERS, ids=lambda value: getattr(value, "__name__", value))
def test_no_number_may_be_infinite_or_none_at_all(part: type[Config], name: str) -> None:
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValidationError) as error:
            part.model_validate({name: value})
        assert (name,) in [problem["loc"] for problem in error.value.errors()]


@pytest.mark.parametrize(
    ("part", "values"),
    [
        (DataConfig, {"subset": 1}),
        (ViewConfig, {"size": 3}),
        (ViewConfig, {"size": 1025}),
        (ViewConfig, {"hue": 0.6}),
        (ViewConfig, {"crop_scale": (0.5, 1.5)}),
        (ViewConfig, {"crop_ratio": (0.0, 1.0)}),
        (ResNetConfig, {"width": 7}),
        (MLPConfig, {"widths": ()}),
        (MLPConfig, {"widths": (64, 0)}),
        (TeacherConfig, {"views": "small"}),
        (OptimizerConfig, {"learning_rate": 0.0}),
        (OptimizerConfig, {"beta2": 1.0}),
        (OptimizerConfig, {"weight_decay": -1e-6}),
        (OptimizerConfig, {"clip_norm": 0.0}),
        (ScheduleConfig, {"warmup_share": 1.0}),
        (ScheduleConfig, {"drop_factor": 0.0}),
        (ProbeConfig, {"every": 0}),
        (ProbeConfig, {"regularization": 0.0}),
        (ProbeConfig, {"labels_per_class": 0}),
        (SentinelConfig, {"patience": 0}),
        (SentinelConfig, {"min_rank_share": 1.0}),
        (settings.MaskingConfig, {"drop_ratio": 1.0}),
        (settings.PrototypesConfig, {"count": 1}),
        (settings.DecoderConfig, {"width": 48}),
    ],
)
def test_a_value_out_of_its_range_is_refused(part: type[Config], values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(ValidationError) as error:
        part(**values)
    assert error.value.errors()[0]["loc"][0] == name


@pytest.mark.parametrize("name", ["crop_scale", "crop_ratio", "blur_sigma", "erase_scale", "erase_ratio"])
def test_a_range_is_low_then_high(name: str) -> None:
    assert getattr(ViewConfig(**{name: (0.5, 0.5)}), name) == (0.5, 0.5)
    with pytest.raises(ValidationError) as error:
        ViewConfig(**{name: (0.9, 0.5)})
    assert f"{name} must be (low, high) with low <= high, but is (0.9, 0.5); swap them" in str(error.value)


def test_a_crop_has_an_area() -> None:
    with pytest.raises(ValidationError, match=r"crop_scale must start above 0 .* use for example 0\.08"):
        ViewConfig(crop_scale=(0.0, 1.0))
    assert ViewConfig(crop_scale=(1e-6, 1.0)).crop_scale[0] == 1e-6


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        ({"kind": "resnet_tiny"}, ResNetConfig(kind="resnet_tiny")),
        ({"kind": "resnet50"}, ResNetConfig(kind="resnet50")),
        ({"kind": "vit_small", "patch_size": 8}, ViTConfig(kind="vit_small", patch_size=8)),
    ],
)
def test_the_kind_chooses_the_backbone(values: dict[str, Any], chosen: Config) -> None:
    assert TypeAdapter[Any](Backbone).validate_python(values) == chosen


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup_share": 0.5, "decay_share": 0.6}, "warmup_share + decay_share must be at most 1, but is 0.5 + 0.6"),
        ({"kind": "step", "drops": (0.9, 0.5)}, "drops must rise and come after the warm-up (warmup_share=0.05), but"),
        ({"kind": "step", "drops": (0.05, 0.5)}, "drops must rise and come after the warm-up (warmup_share=0.05), but"),
        ({"kind": "cosine", "drops": (0.9, 0.5)}, "drops must rise"),
    ],
)
def test_a_schedules_shares_fit_into_a_run(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        ScheduleConfig(**values)
    assert message in str(error.value)


def test_a_schedule_is_not_refused_for_what_its_kind_does_not_read() -> None:
    assert ScheduleConfig(warmup_share=0.5, decay_share=0.5).decay_share == 0.5
    assert ScheduleConfig(kind="cosine", warmup_share=0.9, decay_share=0.9).kind == "cosine"
    assert ScheduleConfig(kind="constant", warmup_share=0.5, drops=(0.1, 0.2)).drops == (0.1, 0.2)
    assert ScheduleConfig(kind="step", drops=()).drops == ()


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (ResNetConfig, {"stem": "imagenet"}, "stem must be auto or small with kind resnet_tiny"),
        (ResNetConfig, {"stem": "small_pooled"}, "model.backbone.stem=auto"),
        (ResNetConfig, {"kind": "resnet18", "stem": "cifar"}, "'small_padded'"),
        (ViTConfig, {"kind": "vit_tiny", "stem": "small"}, "stem"),
        (ViTConfig, {"kind": "vit_small", "heads": 5}, "heads must divide the width of vit_small, 384, but is 5"),
        (ViTConfig, {"kind": "vit_micro", "embed_dim": 96, "heads": 64}, "of vit_micro, 96, but is 64"),
        (ViTConfig, {"kind": "vit_tiny", "initialization": "jax"}, "'moco_v3'"),
        (DataConfig, {"images": "unlabeled", "subset": 100}, "data.images=all"),
        (OptimizerConfig, {"clip_scope": "layer"}, "'tensor'"),
    ],
)
def test_what_a_part_can_not_be_is_refused_with_what_it_can(
    config: type[Config], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError) as error:
        config.model_validate(values)
    assert message in str(error.value)


OWN_NET = f"{Path(__file__).parents[1] / 'parts' / 'own_parts.py'}:Net"


@pytest.mark.parametrize("kind", ["timm:resnet18", OWN_NET], ids=["timm", "own"])
def test_a_stem_is_no_setting_of_other_peoples_networks(kind: str) -> None:
    """One's own get it only if they have a parameter of that name."""
    with pytest.raises(ValueError, match="stem"):
        TypeAdapter[Any](Backbone).validate_python({"kind": kind, "stem": "small"}).check_call()
