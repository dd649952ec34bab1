"""What an ablation varies, from what was typed: levels under equal seeds, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pretune.core.design import Design
from pretune.core.errors import RequestError
from pretune.request import levels
from tests.pretune.analysis.ablations import BASE, asked
from trainers.changes import with_changes
from trainers.config import TrialConfig

WEIGHT, RATE = "objective.variance.weight", "optimizer.learning_rate"


def changes(design: Design) -> list[dict[str, Any]]:
    return [level.changes for level in design.levels]


def test_one_factor_at_a_time_leaves_the_others_as_the_recipe_has_them() -> None:
    design = asked(f"{WEIGHT}=0,25,50", f"{RATE}=0.1,0.2")
    assert changes(design) == [{}, {WEIGHT: 0}, {WEIGHT: 50}, {RATE: 0.1}, {RATE: 0.2}]
    assert design.points(0) == tuple({"seed": seed, **change} for seed in (0, 1) for change in changes(design))


def test_a_grid_has_every_combination_once_and_the_recipe_itself() -> None:
    design = asked(f"{WEIGHT}=0,25,50", f"{RATE}=0.1,0.2", grid=True, seeds=1)
    # Each of three weights (25 is the recipe's own) with each of two rates, and the recipe with its own rate.
    assert len(design.points(0)) == 7
    assert (design.levels[0].changes, design.levels[0].cell) == ({}, {})
    configs = [with_changes(BASE, change) for change in changes(design)]
    found = {(config.objective["variance"].weight, config.optimizer.learning_rate) for config in configs}
    wanted = {(weight, rate) for weight in (0.0, 25.0, 50.0) for rate in (0.1, 0.2)}
    assert found == wanted | {(25.0, BASE.optimizer.learning_rate)}
    assert design.levels[1].cell == {WEIGHT: "25", RATE: "0.1"}


def test_a_factor_of_one_level_has_the_recipes_as_its_other_in_a_grid() -> None:
    design = asked(f"{WEIGHT}=0", grid=True, leave_out=["objective.alignment"], levels=["long:epochs=9"])
    assert len(design.levels) == 8
    assert design.levels[0].cell == {WEIGHT: "25", "long": "base", "objective.alignment": "with"}
    assert design.levels[-1].cell == {WEIGHT: "0", "long": "long", "objective.alignment": "without"}
    assert design.levels[-1].refused, "an objective without any term"


def test_linked_levels_change_several_paths_under_one_name() -> None:
    widths = "model.projector.widths"
    design = asked(levels=[f"small:{widths}=[8,16],epochs=2", 'odd:views.*.blur_sigma=[0.1, 1.0],model.norm="batch"'])
    assert [level.name for level in design.levels] == ["", "small", "odd"]
    assert changes(design)[1:] == [
        {widths: [8, 16], "epochs": 2},
        {"views.*.blur_sigma": [0.1, 1.0], "model.norm": "batch"},
    ]


def test_linked_levels_of_one_factor_are_not_combined_with_each_other() -> None:
    design = asked(f"{WEIGHT}=0,25", levels=["size/small:epochs=2", "size/big:epochs=9"], grid=True)
    assert [level.cell for level in design.levels[1:]] == [
        {WEIGHT: weight, "size": size} for weight in ("25", "0") for size in ("small", "big")
    ]
    assert [level.name for level in design.levels[1:]] == [
        "small",
        "big",
        "variance.weight=0, small",
        "variance.weight=0, big",
    ]


def test_each_term_is_left_out_in_turn() -> None:
    design = asked(leave_out=["objective"])
    assert [(level.name, level.changes) for level in design.levels[1:]] == [
        ("without alignment", {"objective.alignment.weight": 0.0}),
        ("without variance", {WEIGHT: 0.0}),
    ]
    one = asked(leave_out=["objective.variance,model.projector"])
    assert changes(one)[1:] == [{WEIGHT: 0.0}, {"model.projector": None}]


def test_kinds_are_levels_and_leave_out_what_they_do_not_know() -> None:
    base = with_changes(BASE, {"objective.mmd.kind": "mmd"})
    kernel = "objective.mmd.kernel.kind"
    design = asked(f"{kernel}=rbf,energy", base=base)
    built = [
        with_changes(base, change).model_dump()["objective"]["mmd"]["kernel"]["kind"] for change in changes(design)
    ]
    assert built[-2:] == ["rbf", "energy"] or "rbf" in built


def test_seeds_count_from_the_recipes_own() -> None:
    design = asked(f"{WEIGHT}=0", seeds=3)
    assert [point["seed"] for point in design.points(5)] == [5, 5, 6, 6, 7, 7]


@pytest.mark.parametrize(
    ("texts", "factors"),
    [
        (["a.b=0,0.1,1"], {"a.b": [0, 0.1, 1]}),
        (["kind=rbf,energy"], {"kind": ["rbf", "energy"]}),
        (["widths=[8,16],[32]"], {"widths": [[8, 16], [32]]}),
        (["x=null,2", "y=true"], {"x": [None, 2], "y": [True]}),
        (['k=rbf,[1,"a,b"],{"c":[1,2]}'], {"k": ["rbf", [1, "a,b"], {"c": [1, 2]}]}),
        (["x=1,true"], {"x": [1, True]}),
    ],
)
def test_values_are_json_where_they_can_be(texts: list[str], factors: dict[str, list[Any]]) -> None:
    assert levels.parse_factors(texts) == factors


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ({}, "an ablation needs a factor"),
        ({"factors": ["a.b"]}, "must have the form a.b=v1,v2"),
        ({"factors": ["a.b="]}, "must have the form a.b=v1,v2"),
        ({"factors": ["a..b=1"]}, "must have the form a.b=v1,v2"),
        ({"factors": ["a=1,1"]}, "--factor a has the value 1 twice"),
        ({"factors": ["a=1,1.0"]}, "--factor a has the value 1.0 twice"),
        ({"factors": ["a=1,,2"]}, "has an empty value"),
        ({"factors": ["a=1", "a=2"]}, "--factor a is given twice"),
        ({"factors": ["seed=1,2"]}, "use --seeds N"),
        ({"levels": ["x"]}, "must have the form [FACTOR/]NAME:a.b=v"),
        ({"levels": ["epochs=2"]}, "must have the form [FACTOR/]NAME:a.b=v"),
        ({"levels": ["a/b/c:epochs=2"]}, "must have the form [FACTOR/]NAME:a.b=v"),
        ({"levels": ["x:widths=8,16"]}, "'16' is no a.b=v (a value with a comma is a JSON list)"),
        ({"levels": ["x:epochs=2", "x:epochs=3"]}, "--level x is given twice"),
        ({"levels": ["x:epochs=2,epochs=3"]}, "--level x has epochs twice"),
        ({"levels": ["x:seed=2"]}, "use --seeds N"),
        ({"leave_out": ["objective.varance"]}, "did you mean 'objective.variance'?"),
        ({"leave_out": ["objective", "objective.variance"]}, "has objective.variance twice"),
        ({"leave_out": [""]}, "must be a path"),
    ],
)
def test_what_says_nothing_is_refused(typed: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        levels.parse(BASE, **typed)


@pytest.mark.parametrize(
    ("factors", "options", "message"),
    [
        ([f"{WEIGHT}=25"], {}, "nothing would change"),
        (["objective.variance.wait=1"], {}, "unknown key: 'objective.variance.wait'"),
        (["objective.variance.wait=1", f"{WEIGHT}=0"], {}, "did you mean 'objective.variance.weight'?"),
        ([f"{WEIGHT}=-1"], {}, f"--factor {WEIGHT}=-1: "),
        ([f"{WEIGHT}=-1,-2"], {}, f"none of the levels can be built:\n--factor {WEIGHT}=-1: "),
        (["views.7.flip_probability=1", f"{WEIGHT}=0"], {}, "--factor views.7.flip_probability=1: views.7"),
        ([], {"leave_out": ["epochs"]}, "a setting that may be null, or vary it with --factor epochs="),
        ([f"{WEIGHT}=0"], {"leave_out": ["objective.variance"]}, "is the same config as --factor"),
        ([], {"levels": ["same:epochs=3"]}, "--level same changes nothing"),
        ([f"{WEIGHT}=0"], {"grid": True, "leave_out": ["objective.variance"]}, f"{WEIGHT} is in two factors"),
        ([f"{WEIGHT}={','.join(map(str, range(1001)))}"], {}, "1000 levels at most"),
        ([f"{WEIGHT}=0"], {"seeds": 10**6}, "lower --seeds"),
        ([f"{WEIGHT}=0"], {"max_seeds": 2}, "max_seeds must be above the 2 seeds"),
        ([f"{WEIGHT}=0"], {"smallest_effect": 0.0}, "'smallest_effect' is 0.0, but must be greater than 0"),
    ],
)
def test_what_no_level_can_be_made_of_is_refused(factors: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        asked(*factors, **options)


def test_a_level_that_cannot_be_built_is_a_row_with_its_reason() -> None:
    design = asked(f"{WEIGHT}=-1,0", "model.backbone.kind=resnet_tinny")
    assert [bool(level.refused) for level in design.levels] == [False, True, False, True]
    assert "must be at least 0" in design.levels[1].refused
    assert "did you mean 'resnet_tiny'?" in design.levels[3].refused
    assert len(design.points(0)) == 2 * 2

    def check(config: TrialConfig) -> None:
        if config.batch_size > 100:
            raise RequestError("batch_size must be at most 100")

    small = asked("batch_size=32,128", check=check)
    assert [level.refused for level in small.levels] == ["", "", "batch_size must be at most 100"]


def test_a_path_that_only_one_kind_has_is_no_unknown_path() -> None:
    base = with_changes(BASE, {"objective.mmd.kind": "mmd"})
    kernel = "objective.mmd.kernel"
    design = asked(f"{kernel}.kind=rbf,energy", f"{kernel}.gamma=0.5", base=base, grid=True)
    refused = [level.cell[f"{kernel}.kind"] for level in design.levels if level.refused]
    assert refused == ["energy"]


def test_equal_views_are_fewer_epochs_of_more_views() -> None:
    base = BASE.model_copy(update={"epochs": 12})
    view = base.views[0].model_dump(mode="json")
    design = asked(
        "batch_size=32",
        base=base,
        levels=[
            f"four:views={[view] * 4}".replace("'", '"').replace("None", "null").replace("(", "[").replace(")", "]")
        ],
        views_per_epoch=lambda config: len(config.views) * 128,
    )
    assert [level.changes.get("epochs") for level in design.levels] == [None, None, 6]
    with pytest.raises(RequestError, match="with --budget views the epochs follow from the views"):
        asked("epochs=2", views_per_epoch=lambda config: 1)
