"""A request as a whole: what a sweep and an ablation are checked for, and what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.points import unvaried
from pretune.request import lookup, request
from trainers.data import datasets


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built-in digits, built once."""
    root = tmp_path_factory.mktemp("data")
    datasets.ensure_builtin("digits", root)
    return root / "digits"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def search(digits: Path, *, data: bool = True, **options: Any) -> Experiment:
    space, recipe = lookup.space_and_recipe("kernels", None)
    base = request.configure(recipe, epochs=4, seed=3)
    return request.checked(space, recipe, base, name="s", data=str(digits) if data else None, **options)


def ablation(digits: Path, *points: dict[str, Any]) -> Experiment:
    recipe = lookup.recipe("sfrik_tiny")
    space = lookup.FoundSpace("ablation", "ablate-sfrik_tiny", unvaried, None, None)
    base = request.configure(recipe)
    return request.checked(
        space,
        recipe,
        base,
        name="s",
        data=str(digits),
        points=points,
        trials=len(points),
        stopping_enabled=False,
    )


def test_what_is_ready_to_run_names_its_data_by_their_bytes(digits: Path) -> None:
    asked = search(digits, trials=5, metric=None, storage="here")
    assert asked.base.data.path == str(digits.resolve())
    assert asked.base.data.manifest == datasets.open_dataset(digits).manifest_hash
    # As it was typed, beside where it was found.
    assert asked.data == str(digits)
    assert (asked.space, asked.recipe, asked.trials, asked.metric) == ("kernels", "sfrik_tiny", 5, "probe/linear")
    assert asked.folder == Path("here/s").absolute()
    assert (asked.seed, asked.base.seed, asked.base.epochs) == (3, 3, 4)
    assert Experiment.model_validate(asked.model_dump()) == asked


def test_a_space_says_what_its_trials_are_stopped_by_unless_the_request_does(digits: Path) -> None:
    space, recipe = lookup.space_and_recipe("regularizers", None)
    base = request.configure(recipe)
    assert space.budget is not None
    assert request.checked(space, recipe, base, name="s", data=str(digits)).budget == space.budget
    assert request.checked(space, recipe, base, name="s", data=str(digits), budget="epochs").budget == "epochs"
    assert search(digits).budget == "epochs"


def test_every_point_of_an_ablation_must_fit_the_data(digits: Path) -> None:
    asked = ablation(digits, {"seed": 0}, {"seed": 0, "batch_size": 64})
    assert asked.points == ({"seed": 0}, {"seed": 0, "batch_size": 64})
    assert not asked.stopping.enabled
    with pytest.raises(RequestError, match="batch_size must be at most the 997 images"):
        ablation(digits, {"seed": 0}, {"seed": 0, "batch_size": 2000})


def test_a_machine_of_ones_own_is_asked_for_no_more_than_it_has(digits: Path) -> None:
    with pytest.raises(RequestError, match=r"5000 slot\(s\) of 1 worker"):
        search(digits, slots=5000)
    assert search(digits, slots=5000, local=False).slots == 5000


def test_what_is_wrong_with_the_space_is_said_before_data_are_looked_for(digits: Path) -> None:
    with pytest.raises(RequestError, match="--sampler tpe"):
        search(digits, data=False, sampler="grid")
    assert not Path("data").exists()


def test_a_batch_that_the_workers_cannot_share_is_refused_with_the_recipe() -> None:
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 7 workers"):
        request.configure(lookup.recipe("sfrik_tiny"), workers=7)


def test_a_space_without_a_recipe_of_its_own_wants_one_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def space(trial, base):\n    return base\n")
    with pytest.raises(RequestError, match=r"space 'mine.py:space' names no recipe of its own; give one with --recipe"):
        lookup.space_and_recipe("mine.py:space", None)
    space, recipe = lookup.space_and_recipe("mine.py:space", "sfrik_tiny")
    assert (space.label, recipe.name) == ("space", "sfrik_tiny")
