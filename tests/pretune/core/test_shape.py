"""Which trials cost the same, and which of a space's are measured for all."""

from __future__ import annotations

from typing import Any

import pytest

from pretune.core import shape
from search_spaces import RECIPES
from trainers.changes import with_changes
from trainers.config import TrialConfig

BASE = RECIPES["sfrik_tiny"]()


def of(**changes: Any) -> shape.Shape:
    return shape.of(with_changes(BASE, {name.replace("__", "."): value for name, value in changes.items()}))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 3},
        {"epochs": 77},
        {"optimizer.learning_rate": 0.7},
        {"objective.mmd.weight": 5.0},
        {"schedule.decay_share": 0.5},
        {"views.*.brightness": 0.1},
        {"sentinel.patience": 9},
        {"data.subset": 100},
        {"model.backbone.init": "encoder.safetensors"},
    ],
)
def test_what_changes_no_cost_changes_no_shape(changes: dict[str, Any]) -> None:
    assert shape.of(with_changes(BASE, changes)).key == shape.of(BASE).key


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 128},
        {"views.*.size": 8},
        {"model.projector.widths": [64, 32]},
        {"objective.mmd.weight": 0.0},
        {"objective.mmd.kernel.kind": "energy"},
        {"views.*.blur_probability": 0.5},
        {"probe.train_images": 50},
        {"threads": 2},
    ],
)
def test_what_may_change_the_cost_is_another_shape(changes: dict[str, Any]) -> None:
    assert shape.of(with_changes(BASE, changes)).key != shape.of(BASE).key


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.learning_rate": 0.7, "seed": 3, "epochs": 9},
        {"objective.mmd.weight": 0.0},
        {"objective.mmd.kernel.kind": "energy"},
        {"views.*.blur_probability": 0.5},
        {"probe.train_images": 50},
        {"optimizer.kind": "adamw"},
        {"model.backbone.init": "encoder.safetensors"},
        {"compile": "on"},
    ],
)
def test_what_is_not_of_the_network_makes_no_other_one(changes: dict[str, Any]) -> None:
    assert shape.network(with_changes(BASE, changes)).key == shape.network(BASE).key


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 128},
        {"views.*.size": 8},
        {"model.projector.widths": [64, 32]},
        {"model.backbone.width": 8},
        {"model.norm": "layer"},
        {"precision": "bf16"},
        {"threads": 2},
        {"deterministic": True},
        {"accumulate": 2, "accumulate_batch_norm": "per_part"},
    ],
)
def test_what_a_pass_through_the_network_depends_on_makes_another_one(changes: dict[str, Any]) -> None:
    other = shape.network(with_changes(BASE, changes))
    assert other.key != shape.network(BASE).key
    assert shape.in_words(other, [other, shape.network(BASE)]) != shape.in_words(shape.network(BASE), [other])


def test_a_network_has_the_heads_that_terms_read() -> None:
    base = RECIPES["dilemma_mocov3_tiny"]()
    network = shape.network(base)
    read = [name for name, term in base.objective.items() if term.reads_heads]
    without = [with_changes(base, {f"objective.{name}.weight": 0.0}) for name in read]
    assert read
    assert all(shape.network(config) != network for config in without)


def test_a_term_of_weight_zero_costs_what_no_term_costs() -> None:
    without = {name: term for name, term in BASE.objective.items() if name != "mmd"}
    absent = BASE.model_copy(update={"objective": without})
    assert shape.of(absent) == of(objective__mmd__weight=0.0)


def test_of_masking_the_kept_patches_count_and_no_more() -> None:
    base = RECIPES["dilemma_mocov3_tiny"]()

    def masked(ratio: float) -> shape.Shape:
        return shape.of(with_changes(base, {"model.masking.drop_ratio": ratio}))

    assert masked(0.5) == masked(0.5 + 1e-9)
    assert masked(0.5) != masked(0.75)
    assert masked(0.5).rows > masked(0.75).rows


def test_a_shape_survives_json() -> None:
    again = TrialConfig.model_validate_json(BASE.model_dump_json())
    assert shape.of(again).key == shape.of(BASE).key


def test_the_most_common_the_largest_and_the_smallest_are_measured_first() -> None:
    small, usual, large = of(batch_size=16), of(batch_size=32), of(batch_size=256)
    others = [of(batch_size=size) for size in (48, 64, 96, 128)]
    found = shape.chosen([small, large, *others, usual, usual], count=3)
    assert found == [usual, large, small]
    assert len(shape.chosen([small, large, *others, usual], count=6)) == 6
    assert shape.chosen([usual] * 5, count=6) == [usual]
    assert shape.chosen([], count=6) == []


def test_then_comes_what_is_farthest_from_those() -> None:
    near, far = of(batch_size=48), of(batch_size=48, objective__mmd__kernel__kind="energy", probe__train_images=9)
    ends = [of(batch_size=size) for size in (32, 32, 16, 256)]
    assert shape.chosen([*ends, near, far], count=4)[-1] == far
    assert shape.nearest(near, ends) == ends[0]
    assert shape.nearest(near, []) is None


def test_a_shape_is_told_from_the_others_by_what_differs() -> None:
    one, other = of(batch_size=16), of(batch_size=256)
    assert shape.in_words(one, [one, other]) == "batch_size=16"
    assert shape.in_words(one, [one]) == "batch_size=16"


def test_shapes_that_differ_in_how_many_numbers_a_list_has_are_told_apart() -> None:
    base = RECIPES["sfrik_tiny"]()
    two, three = (
        shape.of(with_changes(base, {"objective.mmd.kernel.coefficients": found}))
        for found in ([1.0, 1.0], [1.0, 1.0, 1.0])
    )
    assert shape.in_words(two, [two, three]) == "2 coefficients"
    assert shape.in_words(three, [two, three]) == "3 coefficients"
    deep = shape.of(with_changes(base, {"model.projector.widths": [64, 64, 64]}))
    assert "3 widths" not in shape.in_words(deep, [two, deep]), "sizes say so themselves"
