"""What a recipe or a space returns is what runs: what JSON would lose on the way is refused, by path and class."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel, PrivateAttr

from search_spaces import RECIPES
from tests.trainers.terms.outputs import outputs_of, random_views
from trainers import config as configs
from trainers.arrival import LostError, arriving
from trainers.changes import with_changes
from trainers.config import OptimizerConfig, OwnTerm, TrialConfig, ViewConfig
from trainers.objective import Objective
from trainers.terms import Alignment, KernelMMD
from trainers.terms.kernels import RBF
from trainers.usercode import load

BASE = TrialConfig(objective={"alignment": Alignment(), "mmd": KernelMMD(kernel=RBF())})

OWN = """
from trainers.terms import Alignment

class MyAlignment(Alignment):
    factor: float = 2.0

    def __call__(self, outputs):
        return self.factor * super().__call__(outputs)
"""


class Doubled(Alignment):
    """A shipped term's child, in a module that can be imported."""

    def __call__(self, outputs: Any) -> torch.Tensor:
        return 2 * super().__call__(outputs)


class Remembering(Alignment):
    _count: int = PrivateAttr(0)
    places: Path | None = None


def copied(**fields: Any) -> TrialConfig:
    """As `model_copy` makes them: nothing is checked."""
    return BASE.model_copy(update=fields)


def term_of(config: TrialConfig, term: Alignment) -> TrialConfig:
    return config.model_copy(update={"objective": {**config.objective, "alignment": term}})


# --- terms of one's own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "put_in",
    [
        lambda term: term_of(BASE, term),
        lambda term: with_changes(BASE, {"objective.alignment": term}),
        lambda term: with_changes(BASE, {"objective": {"alignment": term}}),
        lambda term: with_changes(term_of(BASE, term), {"epochs": 3, "objective.mmd.weight": 0}),
        lambda term: TrialConfig(objective={"alignment": term}),
    ],
    ids=["model_copy", "with_changes", "a whole objective", "changes of a copy", "the constructor"],
)
def test_a_child_of_a_shipped_term_in_a_users_file_is_what_runs(
    tmp_path: Path, put_in: Callable[[Alignment], TrialConfig]
) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    child = load(f"{tmp_path}/mine.py:MyAlignment").thing
    arrived = TrialConfig.model_validate(arriving(put_in(child(factor=3.0, weight=0.5))).model_dump(mode="json"))
    term = arrived.objective["alignment"]
    assert isinstance(term, OwnTerm)
    assert (term.kind, term.weight) == (f"{tmp_path}/mine.py:MyAlignment", 0.5)
    assert arrived.completed().objective["alignment"].source_sha256 is not None  # type: ignore[union-attr]
    outputs = outputs_of(*random_views(2))
    _, parts = Objective({"mine": term, "plain": Alignment()})(outputs)
    assert parts["mine"].item() == 3 * parts["plain"].item()


def test_a_child_in_a_module_that_is_imported_is_named_by_it() -> None:
    term = arriving(term_of(BASE, Doubled())).objective["alignment"]
    assert isinstance(term, OwnTerm)
    assert isinstance(term.loaded, Doubled)


def test_a_child_that_no_other_process_would_find_is_refused_with_the_way_out() -> None:
    class Inside(Alignment):
        pass

    with pytest.raises(LostError, match=r"objective\.alignment is a .*Inside.*lies in no file.*'mine\.py:Inside'"):
        arriving(term_of(BASE, Inside()))
    with pytest.raises(ValueError, match=r"objective\.alignment is a .*Inside.*lies in no file"):
        with_changes(BASE, {"objective.alignment": Inside()})


def test_what_an_own_term_has_beside_its_fields_is_refused() -> None:
    busy = Remembering()
    busy._count = 3
    with pytest.raises(LostError, match=r"objective\.alignment is a Remembering .*private state"):
        arriving(term_of(BASE, busy))
    hung = Remembering()
    object.__setattr__(hung, "hook", print)
    with pytest.raises(LostError, match=r"objective\.alignment is a Remembering .*hook set on it.*make a field"):
        arriving(term_of(BASE, hung))
    assert arriving(term_of(BASE, Remembering(places=Path("a")))).objective["alignment"].weight == 1.0


# --- every other part -------------------------------------------------------------------------------------------------


def parts(value: Any, path: str = "") -> list[tuple[str, BaseModel]]:
    """Each model in a config, with its path."""
    found = [(path, value)] if isinstance(value, BaseModel) else []
    inside: Any = vars(value) if isinstance(value, BaseModel) else value
    if isinstance(inside, dict):
        items = list(inside.items())
    else:
        items = list(enumerate(inside)) if isinstance(inside, list | tuple) else []
    return found + [one for key, item in items for one in parts(item, f"{path}.{key}".lstrip("."))]


def replaced(value: Any, path: str, part: Any) -> Any:
    """`value` with the model at `path` replaced, by unchecked copies."""
    if not path:
        return part
    key, _, rest = path.partition(".")
    if isinstance(value, BaseModel):
        return value.model_copy(update={key: replaced(getattr(value, key), rest, part)})
    if isinstance(value, dict):
        return {**value, key: replaced(value[key], rest, part)}
    return tuple(replaced(item, rest, part) if place == int(key) else item for place, item in enumerate(value))


FULL = with_changes(
    RECIPES["dilemma_mocov3_tiny"](),
    {"objective.mmd.weight": 1.0, "objective.reconstruction.weight": 1.0, "model.decoder": {}, "model.prototypes": {}},
)
EVERY_PART = pytest.mark.parametrize(
    ("path", "part"), parts(FULL), ids=lambda value: value if type(value) is str else ""
)


@EVERY_PART
def test_a_class_derived_from_any_part_is_refused_by_path_and_class(path: str, part: BaseModel) -> None:
    child: Any = type("Derived", (type(part),), {"__module__": __name__, "__qualname__": "test.<locals>.Derived"})
    given = replaced(FULL, path, child.model_construct(**dict(part)))
    with pytest.raises(LostError, match="Derived") as caught:
        arriving(given)
    assert str(caught.value).startswith(path or "the config")


@EVERY_PART
def test_an_attribute_that_was_added_to_any_part_is_refused_by_path_and_name(path: str, part: BaseModel) -> None:
    given = replaced(FULL, path, part.model_copy(update={"surplus": 3}))
    with pytest.raises(LostError, match="surplus") as caught:
        arriving(given)
    assert str(caught.value).startswith(path or "the config")


def test_the_parts_that_are_tried_are_all_kinds_of_part() -> None:
    tried = {type(part).__name__ for _, part in parts(FULL)}
    ours = {name for name in configs.__all__ if name.endswith("Config") and name != "Config"}
    assert ours - tried <= {"ResNetConfig", "TimmConfig"}, "the backbones beside the one that is there"


def test_a_method_that_was_replaced_in_this_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Alignment, "__call__", lambda self, outputs: outputs.projections[0].sum())
    with pytest.raises(LostError, match=r"objective\.alignment is of class Alignment, whose __call__ was replaced"):
        arriving(BASE)
    monkeypatch.undo()
    monkeypatch.setattr(RBF, "mean", lambda self, q: 0.0)
    with pytest.raises(LostError, match=r"objective\.mmd\.kernel is of class RBF, whose mean was replaced"):
        arriving(BASE)


@pytest.mark.parametrize("value", [math.nan, math.inf, np.array([1.0, 2.0]), print, "much", object(), 1 + 2j])
def test_a_value_that_is_none_of_json_is_refused_at_its_path(value: Any) -> None:
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate"):
        arriving(copied(optimizer=BASE.optimizer.model_copy(update={"learning_rate": value})))


def test_a_setting_of_an_own_part_that_json_changes_is_refused_at_its_path(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    for value in (math.nan, {1, 2}, print, b"x", Path("x")):
        own = OwnTerm(kind=f"{tmp_path}/mine.py:MyAlignment").model_copy(update={"factor": value})
        plain = {"kind": own.kind, "factor": value}
        for given in (copied(objective={"a": own}), TrialConfig.model_validate({"objective": {"a": plain}})):
            with pytest.raises((LostError, ValueError), match=r"a.*factor"):
                arriving(given)
    kept = TrialConfig.model_validate({"objective": {"a": {"kind": own.kind, "factor": (1, np.float64(2.0))}}})
    assert arriving(kept).objective["a"].settings == {"factor": [1, 2.0]}  # type: ignore[union-attr]


def test_numpys_numbers_lists_and_objects_are_what_they_say() -> None:
    given = copied(
        epochs=np.int64(3),
        batch_size=64.0,
        optimizer={"kind": "adam", "learning_rate": np.float32(0.5)},
        views=[ViewConfig(crop_scale=(0.5, 1.0)), {"size": np.int32(16)}],
    )
    found = arriving(given)
    assert (found.epochs, found.batch_size) == (3, 64)
    assert found.optimizer == OptimizerConfig(kind="adam", learning_rate=0.5)
    assert found.views == (ViewConfig(crop_scale=(0.5, 1.0)), ViewConfig(size=16))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_arrives_as_it_is(name: str) -> None:
    assert arriving(RECIPES[name]()) == RECIPES[name]()
