"""A config's errors in words: path as a user writes it, value, rule, remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails

from pretune.core.messages import describe, did_you_mean, known_keys


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Circle(Strict):
    kind: Literal["circle"] = "circle"
    radius: float = Field(1.0, gt=0.0)


class Box(Strict):
    kind: Literal["box", "frame"]
    width: int = Field(2, ge=1, le=9)


Shape = Annotated[Circle | Box, Field(discriminator="kind")]


class Drawing(Strict):
    """Everything that a config can be made of: a union by kind, lists and mappings of it, something absent."""

    title: str
    shape: Shape = Circle()
    layers: tuple[Shape, ...] = Field((), max_length=2)
    named: Mapping[str, Shape] = {}
    frame: Box | None = None
    color: Literal["red", "blue"] = "red"
    pair: tuple[int, int] = (0, 1)
    margins: tuple[int, ...] = Field((1,), min_length=1)

    @field_validator("pair")
    @classmethod
    def _rises(cls, pair: tuple[int, int]) -> tuple[int, int]:
        if pair[0] > pair[1]:
            raise ValueError(f"must rise, but is {pair}; swap them")
        return pair

    @model_validator(mode="after")
    def _titles_are_no_colors(self) -> Drawing:
        if self.title == self.color:
            raise ValueError(f"title must be no color, but is {self.title!r}; choose another")
        return self


def said(**values: Any) -> str:
    """What is said of a drawing with these values."""
    with pytest.raises(ValidationError) as error:
        Drawing.model_validate({"title": "a", **values})
    return describe(error.value, Drawing)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"colour": "red"},
            "unknown key: 'colour'; known keys: title, shape, layers, named, frame, color, pair, margins; "
            "did you mean 'color'?",
        ),
        (
            {"xyzzy": 1},
            "unknown key: 'xyzzy'; known keys: title, shape, layers, named, frame, color, pair, margins",
        ),
        (
            {"shape": {"kind": "circle", "radios": 1}},
            "unknown key: 'shape.radios'; known keys of 'shape': kind, radius; did you mean 'shape.radius'?",
        ),
        (
            {"layers": [{"kind": "circle"}, {"kind": "frame", "widht": 1}]},
            "unknown key: 'layers.1.widht'; known keys of 'layers.1': kind, width; did you mean 'layers.1.width'?",
        ),
        (
            {"named": {"sun": {"kind": "circle", "width": 1}}},
            "unknown key: 'named.sun.width'; known keys of 'named.sun': kind, radius",
        ),
        ({"frame": {}}, "'frame.kind' is missing; give it a value"),
        (
            {"shape": {"kind": "cirkle"}},
            "'shape.kind' is 'cirkle', which is not known; known: circle, box, frame; did you mean 'circle'?",
        ),
        ({"named": {"sun": {}}}, "'named.sun.kind' is missing; known: circle, box, frame"),
        ({"shape": {"kind": "circle", "radius": 0}}, "'shape.radius' is 0, but must be greater than 0; change it"),
        ({"shape": {"kind": "box", "width": 0}}, "'shape.width' is 0, but must be at least 1; change it"),
        ({"shape": {"kind": "box", "width": 10}}, "'shape.width' is 10, but must be at most 9; change it"),
        ({"color": "green"}, "'color' is 'green', but must be 'red' or 'blue'; change it"),
        ({"pair": [2, 1]}, "pair: must rise, but is (2, 1); swap them"),
        ({"title": "red"}, "title must be no color, but is 'red'; choose another"),
    ],
)
def test_a_complaint_says_path_value_rule_and_remedy(values: dict[str, Any], line: str) -> None:
    assert said(**values) == line


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValidationError) as error:
        Drawing.model_validate({})
    assert describe(error.value, Drawing) == "'title' is missing; give it a value"


def test_a_rule_that_names_the_path_itself_does_not_get_it_twice() -> None:
    class Named(Strict):
        size: int = 1

        @field_validator("size")
        @classmethod
        def _even(cls, size: int) -> int:
            raise ValueError("size must be even; double it")

    with pytest.raises(ValidationError) as error:
        Named(size=3)
    assert describe(error.value, Named) == "size must be even; double it"


def test_a_list_whose_items_are_wrong_is_not_called_too_short_as_well() -> None:
    assert said(margins=["wide"]) == (
        "'margins.0' is 'wide', but must be a valid integer, unable to parse string as an integer; change it"
    )
    assert said(margins=[]).startswith("'margins' is [], but ")


def test_a_long_value_is_cut_and_still_recognized() -> None:
    text = said(color="g" * 500)
    assert "'color' is 'ggg" in text
    assert "…" in text
    assert len(text) < 120


def test_all_complaints_are_told_one_a_line_and_equal_ones_once() -> None:
    lines = said(shape={"kind": "box", "width": 0}, color="green", layers=[{"kind": "blob"}, {"kind": "blob"}])
    assert lines.splitlines() == [
        "'shape.width' is 0, but must be at least 1; change it",
        "'layers.0.kind' is 'blob', which is not known; known: circle, box, frame",
        "'layers.1.kind' is 'blob', which is not known; known: circle, box, frame",
        "'color' is 'green', but must be 'red' or 'blue'; change it",
    ]
    again: InitErrorDetails = {"type": "missing", "loc": ("title",), "input": {}}
    twice = ValidationError.from_exception_data("Drawing", [again, again])
    assert describe(twice, Drawing) == "'title' is missing; give it a value"


def test_nothing_of_the_library_behind_it_is_shown() -> None:
    for values in ({"pair": 3}, {"shape": 3}, {"named": {"sun": None}}, {"margins": "wide"}):
        text = said(**values)
        assert "Input should" not in text
        assert "pydantic" not in text


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ((), ["title", "shape", "layers", "named", "frame", "color", "pair", "margins"]),
        (("shape",), ["kind", "radius", "width"]),
        (("shape", "box"), ["kind", "width"]),
        (("named", "any", "circle"), ["kind", "radius"]),
        (("layers", 1, "frame"), ["kind", "width"]),
        (("frame",), ["kind", "width"]),
        (("title",), []),
        (("named",), []),
    ],
)
def test_the_keys_at_a_path_are_those_of_the_models_that_may_stand_there(
    path: tuple[Any, ...], keys: list[str]
) -> None:
    assert known_keys(Drawing, path) == keys


def test_a_close_name_is_guessed_and_a_far_one_is_not() -> None:
    assert did_you_mean("kernel", ["groups", "kernels"]) == "known: groups, kernels; did you mean 'kernels'?"
    assert did_you_mean("xyzzy", ["groups", "kernels"]) == "known: groups, kernels"
