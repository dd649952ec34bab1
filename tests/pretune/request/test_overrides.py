"""`--set` and what it says when something is wrong: the path, the value, the rule, the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from pretune.core.errors import RequestError
from pretune.request import overrides
from trainers.changes import value_at
from trainers.config import TrialConfig, ViTConfig

BASE = TrialConfig.model_validate({"objective": {"alignment": {"weight": 2.0}, "mmd": {"weight": 1.0}}})


def changed(*assignments: str) -> TrialConfig:
    return overrides.apply(BASE, overrides.parse(assignments))


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("optimizer.learning_rate=0.1", "optimizer.learning_rate", 0.1),
        ("optimizer.kind=lars", "optimizer.kind", "lars"),
        ("views.1.size=16", "views.1.size", 16),
        ("views.*.flip_probability=0", "views.*.flip_probability", [0.0, 0.0]),
        ("views.0.crop_scale=[0.3,1]", "views.0.crop_scale", [0.3, 1.0]),
        ("objective.alignment.weight=0", "objective.alignment.weight", 0.0),
        ("optimizer.clip_norm=null", "optimizer.clip_norm", None),
        ("model.teacher.momentum=0.9", "model.teacher.momentum", 0.9),
    ],
)
def test_a_path_changes_what_it_names(assignment: str, path: str, value: Any) -> None:
    assert value_at(changed(assignment), path) == value


def test_nothing_else_changes() -> None:
    before, after = BASE.model_dump(), changed("views.1.size=16").model_dump()
    before["views"][1]["size"] = 16
    assert after == before


def test_a_kind_adds_a_term() -> None:
    config = changed("objective.spread.kind=mmd", "objective.spread.weight=0.5")
    assert config.objective["spread"].kind == "mmd"
    assert config.objective["spread"].weight == 0.5
    assert config.objective["alignment"].weight == 2.0


def test_the_name_of_a_term_is_its_kind_where_none_is_given() -> None:
    alone = TrialConfig.model_validate({"objective": {"alignment": {}}})
    assert overrides.apply(alone, {"objective.mmd.weight": 0.5}).objective["mmd"].kind == "mmd"


def test_a_new_kind_drops_inherited_settings_that_it_does_not_know() -> None:
    config = changed("model.backbone.kind=vit_tiny", "model.backbone.patch_size=8")
    assert config.model.backbone == ViTConfig(kind="vit_tiny", patch_size=8)


def test_a_setting_that_was_asked_for_is_never_dropped() -> None:
    with pytest.raises(RequestError, match=r"unknown key: 'model\.backbone\.width'"):
        changed("model.backbone.kind=vit_tiny", "model.backbone.width=8")


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["epochs"], "--set 'epochs' must have the form a.b=value"),
        (["a..b=1"], "must have the form a.b=value"),
        (["epochs=1", "epochs=2"], "--set epochs is given twice"),
        (["optimizer.learning_rat=1"], "did you mean 'optimizer.learning_rate'?"),
        (["optimizer.learning_rat=1"], "known keys of 'optimizer': kind, learning_rate, momentum"),
        (["model.backbone.wdth=1"], "unknown key: 'model.backbone.wdth'; known keys of 'model.backbone': kind, width"),
        (["epoch=1"], "unknown key: 'epoch'; known keys: data, views, model"),
        (["epochs=0"], "'epochs' is 0, but must be at least 1; change it"),
        (["epochs=many"], "'epochs' is 'many', but must be a valid integer"),
        (["model.norm=group"], "'model.norm' is 'group', but must be 'batch', 'batch_per_rank' or 'layer'"),
        (["model.backbone.kind=vit_tny"], "did you mean 'vit_tiny'?"),
        (["objective.koleo.weight=1"], "'objective.koleo.kind' is 'koleo', which is not known; known: alignment, "),
        (["objective.alignment.weight=-1"], "'objective.alignment.weight' is -1, but must be at least 0"),
        (["views.2.size=8"], "'2' must be a position from 0 to 1, or '*' for all"),
        (["epochs.x=1"], "'epochs' is the value 10 and has no 'x'; shorten the path"),
        (["views.0.crop_scale=[0.9,0.1]"], "crop_scale must be (low, high) with low <= high"),
        (["optimizer.learning_rate=NaN"], "'optimizer.learning_rate' is nan, but must be a finite number"),
    ],
)
def test_what_cannot_be_set_is_said_in_words(assignments: list[str], message: str) -> None:
    with pytest.raises(RequestError) as error:
        changed(*assignments)
    assert message in str(error.value)
    assert "pydantic" not in str(error.value)
    assert "Input should" not in str(error.value)


@pytest.mark.parametrize(
    ("assignment", "hint"),
    [
        ("objective.mmd.kernel=rbf", "did you mean objective.mmd.kernel.kind=rbf?"),
        ("objective.mmd.kernel=rbff", "did you mean objective.mmd.kernel.kind=rbf?"),
        ("objective.mmd.kernel=null", "set it, as objective.mmd.kernel.kind=truncated"),
        ("objective.mmd=mmd", "did you mean objective.mmd.kind=mmd?"),
        ("objective.new=swav", "did you mean objective.new.kind=swav?"),
        ("objective.new=file.py:Term", "did you mean objective.new.kind=file.py:Term?"),
        ("model.backbone=resnet18", "did you mean model.backbone.kind=resnet18?"),
        ("model.backbone=vit_tiny", "did you mean model.backbone.kind=vit_tiny?"),
        ("model.backbone=timm:resnet18", "did you mean model.backbone.kind=timm:resnet18?"),
        ("optimizer=lars", "did you mean optimizer.kind=lars?"),
        ("schedule=cosine", "did you mean schedule.kind=cosine?"),
        ("model.projector=mlp", "but must be an object with some of these keys: "),
    ],
)
def test_a_kind_that_was_given_for_a_whole_object_is_an_error_with_the_path_that_was_meant(
    assignment: str, hint: str
) -> None:
    with pytest.raises(RequestError) as error:
        changed(assignment)
    [line] = str(error.value).splitlines()
    assert line.startswith(f"'{assignment.partition('=')[0]}' is ")
    if assignment.endswith("file.py:Term"):  # a file of one's own is typed as it lies
        hint = hint.removesuffix("?")[: -len("file.py:Term")]
    assert hint in line


def test_every_complaint_is_listed_once() -> None:
    with pytest.raises(RequestError) as error:
        changed("views.*.size=3", "epochs=0")
    assert str(error.value).splitlines() == [
        "'views.0.size' is 3, but must be at least 4; change it",
        "'views.1.size' is 3, but must be at least 4; change it",
        "'epochs' is 0, but must be at least 1; change it",
    ]


@pytest.mark.parametrize(
    ("kind", "dropped"),
    [
        ("rbf", ["coefficients"]),
        ("imq", ["coefficients"]),
        ("energy", ["coefficients"]),
        ("truncated", []),
        ("linear", ["coefficients"]),
    ],
)
def test_a_new_kind_at_any_depth_drops_the_keys_of_the_old_one_and_says_so(kind: str, dropped: list[str]) -> None:
    given = overrides.parse([f"objective.mmd.kernel.kind={kind}"])
    assert value_at(overrides.apply(BASE, given), "objective.mmd.kernel.kind") == kind
    told = overrides.left_out_by(BASE, given)
    expected = [f"objective.mmd.kernel.{key}" for key in dropped]
    assert told == (
        [f"objective.mmd.kernel.kind={kind} leaves out {', '.join(expected)}, which the kind before it had"]
        if dropped
        else []
    )


def test_a_new_kind_keeps_what_was_typed_for_it_in_any_order() -> None:
    for assignments in (
        ["objective.mmd.kernel.kind=rbf", "objective.mmd.kernel.gamma=4"],
        ["objective.mmd.kernel.gamma=4", "objective.mmd.kernel.kind=rbf"],
    ):
        assert value_at(changed(*assignments), "objective.mmd.kernel") == {"kind": "rbf", "gamma": 4.0}
    with pytest.raises(RequestError, match=r"unknown key: 'objective.mmd.kernel.coefficients'"):
        changed("objective.mmd.kernel.kind=rbf", "objective.mmd.kernel.coefficients=[1]")


def test_a_new_kind_takes_its_own_default_where_it_refuses_the_inherited_value() -> None:
    imq = changed("objective.mmd.kernel.kind=imq", "objective.mmd.kernel.exponent=3.5")
    given = overrides.parse(["objective.mmd.kernel.kind=energy"])
    energy = overrides.apply(imq, given)
    assert value_at(energy, "objective.mmd.kernel.kind") == "energy"
    assert overrides.left_out_by(imq, given) == [
        "objective.mmd.kernel.kind=energy leaves out objective.mmd.kernel.exponent, objective.mmd.kernel.offset, "
        "which the kind before it had"
    ]


def test_what_is_said_twice_or_without_end_within_a_value_is_refused() -> None:
    with pytest.raises(RequestError, match="--set model: an object must have each key once, but one has 'depth'"):
        overrides.parse(['model={"depth": 1, "depth": 2}'])
    with pytest.raises(RequestError, match="may lie at most 50 deep"):
        overrides.parse([f"views={'[' * 51}{']' * 51}"])
    assert overrides.parse([f"views={'[' * 50}{']' * 50}"])
    with pytest.raises(RequestError, match="must have at most 50 steps, but has 51"):
        overrides.parse([f"{'a.' * 50}b=1"])
    assert overrides.parse([f"{'a.' * 49}b=1"])
