"""One run as a value: frozen, the same after JSON, and refused as a whole where its parts do not agree."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from search_spaces import RECIPES
from trainers.config import TrialConfig
from trainers.settings import ViewConfig
from trainers.terms import Alignment, KernelMMD

SMALL: dict[str, Any] = {"objective": {"alignment": {}}}


def config(**changes: Any) -> TrialConfig:
    return TrialConfig.model_validate({**SMALL, **changes})


def refused(**changes: Any) -> str:
    with pytest.raises(ValidationError) as error:
        config(**changes)
    return str(error.value)


# ---- a value ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_config_is_the_same_after_json(name: str) -> None:
    recipe = RECIPES[name]()
    text = recipe.model_dump_json()
    assert TrialConfig.model_validate_json(text) == recipe
    assert TrialConfig.model_validate(json.loads(text)) == recipe, "a sweep's journal holds it as an object"
    assert TrialConfig.model_validate_json(text).model_dump_json() == text


def test_a_config_can_not_be_changed_and_a_copy_leaves_it_alone() -> None:
    before = config()
    with pytest.raises(ValidationError, match="frozen"):
        before.epochs = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        before.optimizer.learning_rate = 1.0  # type: ignore[misc]
    assert before.model_copy(update={"epochs": 3}) != before
    assert before == config()


def test_every_setting_but_the_objective_has_a_default() -> None:
    assert config() == TrialConfig(objective={"alignment": Alignment()})
    with pytest.raises(ValidationError, match=r"objective\s+Field required"):
        TrialConfig.model_validate({})


def test_configs_are_checked_without_torch_and_ffcv() -> None:
    program = (
        "import sys; from trainers.config import TrialConfig\n"
        "TrialConfig.model_validate({'objective': {'alignment': {}, 'mmd': {}}}).check_workers(2)\n"
        "print(sorted({'torch', 'ffcv', 'ray', 'optuna', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


# ---- fields ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"epoch": 3}, "epoch"),
        ({"model": {"backbone": {"kind": "resnet_tiny", "depth": 3}}}, r"model\.backbone\.\w+\.resnet_tiny\.depth"),
        ({"objective": {"alignment": {"temperature": 1.0}}}, r"objective\.alignment\.shipped\.alignment\.temperature"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 1}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"threads": 0}, "threads"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"precision": "float16"}, "precision"),
        ({"views": []}, "views"),
        ({"views": [{}] * 17}, "views"),
        ({"objective": {}}, "objective"),
        ({"optimizer": {"learning_rate": float("inf")}}, r"optimizer\.learning_rate"),
        ({"objective": {"alignment": {"weight": float("nan")}}}, r"objective\.alignment\.shipped\.alignment\.weight"),
    ],
)
def test_what_is_unknown_or_out_of_range_is_refused_with_its_path(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(ValidationError, match=rf"1 validation error for TrialConfig\n{path}\n"):
        config(**changes)


# ---- the objective ---------------------------------------------------------------------------------------------------


def test_the_kind_of_a_term_defaults_to_its_name_and_a_name_may_differ() -> None:
    named = config(objective={"alignment": {"weight": 2.0}, "spread": {"kind": "mmd"}})
    assert named.objective == {"alignment": Alignment(weight=2.0), "spread": KernelMMD()}
    assert TrialConfig(objective=named.objective) == named, "terms are taken as they are"


def test_two_terms_may_be_of_one_kind() -> None:
    terms = config(objective={"near": {"kind": "mmd"}, "far": {"kind": "mmd", "weight": 3.0}}).objective
    assert [(name, term.kind, term.weight) for name, term in terms.items()] == [
        ("near", "mmd", 1.0),
        ("far", "mmd", 3.0),
    ]


@pytest.mark.parametrize("name", ["Alignment", "a.b", "a/b", "1st", "", "a b", "größe"])
def test_a_terms_name_is_a_step_of_a_path_and_the_end_of_a_metric(name: str) -> None:
    assert "String should match pattern" in refused(objective={name: {"kind": "alignment"}})


def test_a_term_is_not_called_like_the_sum() -> None:
    text = refused(objective={"total": {"kind": "alignment"}})
    assert "objective.total: a term may not be named 'total', which is the sum; choose another name" in text


def test_some_term_must_count() -> None:
    text = refused(objective={"alignment": {"weight": 0}, "mmd": {"weight": 0.0}})
    assert "objective must have at least one term of positive weight, but the weights of ['alignment', 'mmd']" in text
    assert "raise objective.<name>.weight of one of them" in text


def test_a_term_of_weight_zero_is_not_asked_whether_it_can_work_here() -> None:
    """Weight 0 equals absence: alignment compares views, and there is but one."""
    one = [{"size": 16}]
    assert "needs at least 2, but views has 1" in refused(views=one)
    alone = config(views=one, objective={"mmd": {}, "alignment": {"weight": 0.0}})
    assert alone.objective["alignment"].weight == 0.0


# ---- parts that must agree -------------------------------------------------------------------------------------------

VIT = {"backbone": {"kind": "vit_micro", "patch_size": 8}}
LARGE, SMALLER = {"size": 32}, {"size": 16}


def test_a_transformer_needs_views_of_whole_patches() -> None:
    text = refused(model=VIT, views=[LARGE, {"size": 20}])
    assert "views.1.size must be a multiple of model.backbone.patch_size=8, but is 20; change one of them" in text
    assert config(model=VIT, views=[LARGE, SMALLER]).model.backbone.kind == "vit_micro"
    assert config(views=[LARGE, {"size": 20}]).views[1].size == 20, "a convolution takes any size"


def test_the_teacher_sees_all_views_or_the_largest_which_come_first() -> None:
    views = [LARGE, LARGE, SMALLER]
    assert config(views=views).teacher_views == ()
    assert config(views=views, model={"teacher": {}}).teacher_views == (0, 1, 2)
    largest = {"teacher": {"views": "largest"}}
    assert config(views=views, model=largest).teacher_views == (0, 1)
    assert config(views=[LARGE, LARGE], model=largest).teacher_views == (0, 1)
    text = refused(views=[SMALLER, LARGE], model=largest)
    assert "the largest views must come first, but they are at places (1,) of views" in text
    assert "order them, or set model.teacher.views=all" in text


def test_masking_needs_patches() -> None:
    text = refused(model={"masking": {}})
    assert "model.masking drops patches and needs a vision transformer, but model.backbone.kind is resnet_tiny" in text
    assert "set model.backbone.kind=vit_tiny, or model.masking=null" in text


def test_masking_leaves_at_least_one_patch_of_each_view_that_it_masks() -> None:
    views = [LARGE, LARGE, SMALLER]
    masking = {"drop_ratio": 0.9}
    few = config(views=views, model={**VIT, "masking": masking})
    assert few.masked_patch_counts == {0: 16, 1: 16}, "only the largest views are masked"
    text = refused(views=views, model={**VIT, "masking": {**masking, "views": "all"}})
    assert "must leave at least one patch of each view, but 0.9 leaves none of the 4 of views.2; lower it" in text
    assert config(views=views, model=VIT).masked_patch_counts == {}


def test_checkpoints_within_epochs_need_one_at_the_end_of_each() -> None:
    assert config(checkpoint_every_steps=5).checkpoint_every_steps == 5
    text = refused(checkpoint_every_steps=5, checkpoint_every=2)
    assert "needs a checkpoint at the end of each epoch, but checkpoint_every is 2" in text
    assert "set it to 1, or checkpoint_every_steps to null" in text


# ---- workers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "workers", "remedy"), [(10, 4, 8), (7, 2, 6), (3, 5, 5)])
def test_workers_share_the_global_batch_or_are_told_one_that_they_can(
    batch_size: int, workers: int, remedy: int
) -> None:
    with pytest.raises(ValueError, match="batch_size must be a multiple of the") as error:
        config(batch_size=batch_size).check_workers(workers)
    assert str(error.value) == (
        f"batch_size must be a multiple of the {workers} workers, but is {batch_size}; change one of them, for example "
        f"--set batch_size={remedy}"
    )
    config(batch_size=remedy).check_workers(workers)


def test_a_term_is_asked_whether_so_many_workers_can_compute_it_if_it_counts() -> None:
    views = [{"size": 16}] * 2
    whitening = {"kind": "channel_whitening", "sub_batch_size": 16, "group_count": 2}
    terms = {"alignment": {}, "white": whitening}
    made = config(objective=terms, batch_size=64, views=views)
    made.check_workers(4)
    with pytest.raises(ValueError, match=r"objective\.white \(channel_whitening\).*\(8 workers\)"):
        made.check_workers(8)
    config(
        objective={"alignment": {}, "white": {**whitening, "weight": 0.0}}, batch_size=64, views=views
    ).check_workers(8)


# ---- facts -----------------------------------------------------------------------------------------------------------


def test_terms_are_told_the_facts_of_the_whole_run() -> None:
    made = config(
        batch_size=64,
        views=[LARGE] * 2,
        model={**VIT, "projector": {"widths": [96, 48]}, "masking": {"drop_ratio": 0.5}},
    )
    assert made.facts.batch_size == 64
    assert made.facts.views == (ViewConfig(size=32),) * 2
    assert made.facts.width == 48
    assert made.facts.masked_patch_counts == {0: 16, 1: 16}
