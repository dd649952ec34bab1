"""Old names of settings: upgraded in what is stored, answered with the new name where they are typed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from trainers import checkpoint, upgrade
from trainers.changes import with_changes
from trainers.config import OptimizerConfig, TrialConfig, ViewConfig
from trainers.terms.kernels import RBF, Kernel, Laplace, LogRBF
from trainers.upgrade import RENAMES, Rename, understood, upgrade_changes, upgrade_config

OPERATIONS = ("flip", "jitter", "grayscale", "blur", "solarize")
OLD: dict[str, Any] = {
    "views": [
        {"size": 16, "flip": 0.1, "jitter": 0.2, "grayscale": 0.3, "blur": 0.4, "solarize": 0.5, "hue": 0.05},
        {"size": 32, "flip": 0.0},
    ],
    "objective": {
        "alignment": {"kind": "alignment", "weight": 2.0},
        "mmd": {"kind": "mmd", "kernel": {"kind": "rbf", "sharpness": 3.0}},
        "second": {"kind": "mmd", "kernel": {"kind": "laplace", "sharpness": 0.5}},
        "third": {"kind": "mmd", "kernel": {"kind": "energy", "exponent": 0.5}},
    },
    "optimizer": {"kind": "adamw", "momentum": 0.8, "beta2": 0.95},
    "model": {"teacher": {"momentum": 0.9}},
}
NEW = TrialConfig.model_validate(
    {
        "views": [
            {
                "size": 16,
                "flip_probability": 0.1,
                "jitter_probability": 0.2,
                "grayscale_probability": 0.3,
                "blur_probability": 0.4,
                "solarize_probability": 0.5,
                "hue": 0.05,
            },
            {"size": 32, "flip_probability": 0.0},
        ],
        "objective": {
            "alignment": {"weight": 2.0},
            "mmd": {"kernel": RBF(gamma=3.0)},
            "second": {"kind": "mmd", "kernel": Laplace(gamma=0.5)},
            "third": {"kind": "mmd", "kernel": {"kind": "energy", "exponent": 0.5}},
        },
        "optimizer": {"kind": "adamw", "beta1": 0.8, "beta2": 0.95},
        "model": {"teacher": {"momentum": 0.9}},
    }
)


def base(**changes: Any) -> TrialConfig:
    return TrialConfig.model_validate({"objective": {"alignment": {}, "mmd": {"kernel": RBF()}}, **changes})


# ---- what is stored --------------------------------------------------------------------------------------------------


def test_a_stored_config_with_every_old_name_is_todays_and_stays_as_it_was() -> None:
    before = repr(OLD)
    assert TrialConfig.model_validate(upgrade_config(OLD)) == NEW
    assert repr(OLD) == before


@pytest.mark.parametrize("rename", RENAMES, ids=lambda rename: rename.old)
def test_without_any_one_rename_that_config_is_refused(rename: Rename, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade, "RENAMES", tuple(other for other in RENAMES if other is not rename))
    with pytest.raises(ValidationError, match=rename.old):
        TrialConfig.model_validate(upgrade.upgrade_config({**OLD, "optimizer": {"kind": "adam", "momentum": 2.0}}))


def test_todays_config_is_left_as_it_is() -> None:
    values = NEW.model_dump(mode="json")
    assert upgrade_config(values) == values


@pytest.mark.parametrize("kind", ["sgd", "lars"])
def test_the_momentum_of_other_optimizers_keeps_its_name(kind: str) -> None:
    optimizer = {"kind": kind, "momentum": 0.5}
    assert upgrade_config({"optimizer": optimizer}) == {"optimizer": optimizer}
    assert upgrade_config({"optimizer": {"momentum": 0.5}}) == {"optimizer": {"momentum": 0.5}}, "the default is sgd"


@pytest.mark.parametrize(
    ("changes", "kind", "upgraded"),
    [
        ({"views.*.flip": 0.0}, "sgd", {"views.*.flip_probability": 0.0}),
        ({"views.1.blur": 1.0, "views.1.hue": 0.0}, "sgd", {"views.1.blur_probability": 1.0, "views.1.hue": 0.0}),
        ({"optimizer.momentum": 0.8}, "adam", {"optimizer.beta1": 0.8}),
        ({"optimizer.momentum": 0.8}, "lars", {"optimizer.momentum": 0.8}),
        (
            {"optimizer.momentum": 0.8, "optimizer.kind": "adamw"},
            "sgd",
            {"optimizer.beta1": 0.8, "optimizer.kind": "adamw"},
        ),
        ({"optimizer": {"kind": "adam", "momentum": 0.8}}, "sgd", {"optimizer": {"kind": "adam", "beta1": 0.8}}),
        ({"objective.mmd.kernel.sharpness": 2.0}, "sgd", {"objective.mmd.kernel.gamma": 2.0}),
        (
            {"objective.mmd.kernel": {"kind": "rbf_log", "sharpness": 2.0}},
            "sgd",
            {"objective.mmd.kernel": {"kind": "rbf_log", "gamma": 2.0}},
        ),
        ({"views": [{"flip": 0.0}, {}]}, "sgd", {"views": [{"flip_probability": 0.0}, {}]}),
        ({"views.0": {"flip": 0.0}}, "sgd", {"views.0": {"flip_probability": 0.0}}),
        ({"seed": 3, "model.teacher.momentum": 0.9}, "adam", {"seed": 3, "model.teacher.momentum": 0.9}),
    ],
)
def test_stored_changes_have_todays_paths_and_values(
    changes: dict[str, Any], kind: str, upgraded: dict[str, Any]
) -> None:
    values = base(optimizer={"kind": kind}).model_dump(mode="json")
    assert upgrade_changes(changes, values) == upgraded
    with_changes(base(optimizer={"kind": kind}), upgraded)


def test_a_checkpoint_of_an_older_version_goes_on_with_the_config_it_began_with() -> None:
    state = {"manifest": "m", "config": OLD}
    checkpoint.check_resumable(state, NEW, "m")
    with pytest.raises(ValueError, match=r"differ: optimizer\.beta1: 0\.8 -> 0\.7; restore them"):
        checkpoint.check_resumable(state, with_changes(NEW, {"optimizer.beta1": 0.7}), "m")
    with pytest.raises(ValueError, match=r"differ: views\.1\.flip_probability: 0\.0 -> 0\.5"):
        checkpoint.check_resumable(state, with_changes(NEW, {"views.1.flip_probability": 0.5}), "m")


def test_a_checkpoint_with_a_setting_that_there_is_no_more_is_refused_by_its_name() -> None:
    state = {"manifest": "m", "config": {**NEW.model_dump(mode="json"), "mixup": 0.2}}
    with pytest.raises(ValueError, match=r"differ: mixup: 0\.2 -> None"):
        checkpoint.check_resumable(state, NEW, "m")


# ---- what is typed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_old_name_of_a_view_is_answered_with_the_new_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is called {name}_probability since 0.2; use that name"):
        ViewConfig(**{name: 0.5})
    with pytest.raises(ValueError, match=rf"views\.\*\.{name} is called views\.\*\.{name}_probability since 0.2"):
        with_changes(base(), {f"views.*.{name}": 0.5})
    with pytest.raises(ValueError, match=f"{name} is called {name}_probability since 0.2"):
        with_changes(base(), {"views.0": {name: 0.5}})


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_adams_momentum_is_answered_with_beta1(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"momentum is called beta1 for adam, adamw since 0\.2; use that name"):
        OptimizerConfig(kind=kind, momentum=0.8)
    message = r"optimizer\.momentum is called optimizer\.beta1 for adam, adamw since 0.2"
    with pytest.raises(ValueError, match=message):
        with_changes(base(optimizer={"kind": kind}), {"optimizer.momentum": 0.8})
    with pytest.raises(ValueError, match=message):
        with_changes(base(), {"optimizer.momentum": 0.8, "optimizer.kind": kind})
    assert with_changes(base(optimizer={"kind": kind}), {"optimizer.kind": "lars", "optimizer.momentum": 0.8})


@pytest.mark.parametrize("kernel", [RBF, LogRBF, Laplace])
def test_a_kernels_sharpness_is_answered_with_gamma(kernel: type[Kernel]) -> None:
    with pytest.raises(ValueError, match=r"sharpness is called gamma for rbf, rbf_log, laplace since 0\.2"):
        kernel.model_validate({"sharpness": 2.0})
    with pytest.raises(ValueError, match=r"mmd\.kernel\.sharpness is called objective\.mmd\.kernel\.gamma"):
        with_changes(base(objective={"mmd": {"kernel": kernel()}}), {"objective.mmd.kernel.sharpness": 2.0})


# ---- what is not known -----------------------------------------------------------------------------------------------


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    a: int


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    one: Inner
    many: list[Inner] = []


def test_unknown_keys_are_set_aside_by_path_wherever_they_are() -> None:
    values = {"one": {"a": 1, "b": 2}, "many": [{"a": 3}, {"a": 4, "c": {"d": 5}}], "e": None}
    before = repr(values)
    known, unknown = understood(Outer.model_validate, values)
    assert known == Outer(one=Inner(a=1), many=[Inner(a=3), Inner(a=4)])
    assert unknown == {"one.b": 2, "many.1.c": {"d": 5}, "e": None}
    assert repr(values) == before


def test_unknown_keys_are_found_below_the_members_of_a_union() -> None:
    values = NEW.model_dump(mode="json")
    values["objective"]["mmd"]["kernel"]["bandwidth"] = 1.0
    values["objective"]["mmd"]["cost"] = 2.0
    values["model"]["backbone"]["dropout"] = 0.1
    known, unknown = understood(TrialConfig.model_validate, values)
    assert known == NEW
    assert unknown == {"objective.mmd.kernel.bandwidth": 1.0, "objective.mmd.cost": 2.0, "model.backbone.dropout": 0.1}
    values["model"]["backbone"] = {"kind": "timm:resnet18", "dropout": 0.1}
    assert understood(TrialConfig.model_validate, values)[1]["model.backbone.dropout"] == 0.1


def test_all_settings_of_a_term_of_ones_own_are_its_own() -> None:
    values = NEW.model_dump(mode="json")
    values["objective"]["mine"] = {"kind": "mine.py:Spread", "strength": 2.0}
    known, unknown = understood(TrialConfig.model_validate, values)
    assert unknown == {}
    assert known.model_dump(mode="json")["objective"]["mine"]["strength"] == 2.0


def test_what_else_is_wrong_is_still_refused() -> None:
    with pytest.raises(ValidationError, match="Input should be a valid integer"):
        understood(Outer.model_validate, {"one": {"a": "x", "b": 2}})
