"""The quick checks before a run: each broken part is found, and the message names class, file and line."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parts import broken_parts, own_parts
from trainers.config import TrialConfig
from trainers.contracts import BackboneTrial, BrokenError, OperationTrial, TermTrial, check_parts, everything
from trainers.terms import SHIPPED_TERMS, TermConfig

BROKEN, MINE = str(Path(broken_parts.__file__)), str(Path(own_parts.__file__))


def config(**changes: Any) -> TrialConfig:
    values = {"objective": {"alignment": {}}, "views": [{"size": 16}, {"size": 16}], "batch_size": 16}
    return TrialConfig.model_validate({**values, **changes})


def with_term(name: str, **settings: Any) -> TrialConfig:
    return config(objective={"alignment": {}, "mine": {"kind": f"{BROKEN}:{name}", **settings}})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Vector", "must return one number, a tensor of shape [], but returned shape [16]; take the mean"),
        ("NotANumber", "must return a finite number on 16 random rows, but returned nan"),
        ("Detached", "no gradient reaches them; look for detach()"),
        ("InfiniteGradient", "must have a finite gradient, but that by projections.0 is not"),
        ("Misspelt", "did you mean 'projections'?"),
        ("NeedsPredictions", "outputs have predictions only with model.predictor"),
    ],
)
def test_a_broken_term_is_refused_before_a_run_with_its_class_and_line(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"objective\.mine") as error:
        check_parts(with_term(name))
    line = inspect.getsourcelines(getattr(broken_parts, name))[1]
    assert str(error.value).startswith(f"objective.mine: {name} ({BROKEN}:{line}) ")
    assert message in str(error.value)


def test_what_a_formula_raises_is_shown_with_its_own_line() -> None:
    source = Path(BROKEN).read_text().splitlines()
    line = next(number for number, text in enumerate(source, start=1) if "projectoins" in text)
    with pytest.raises(ValueError, match=f"line {line} of {BROKEN}, 'return outputs.projectoins"):
        check_parts(with_term("Misspelt"))


def test_a_term_finds_what_the_run_has() -> None:
    base = with_term("NeedsPredictions")
    predictor = {"model": base.model.model_dump() | {"predictor": {"widths": [128]}}}
    check_parts(TrialConfig.model_validate({**base.model_dump(mode="json"), **predictor}))


def test_a_term_of_weight_zero_is_not_tried() -> None:
    check_parts(with_term("Vector", weight=0.0))


def test_a_run_without_own_parts_has_nothing_to_try() -> None:
    check_parts(config())


@pytest.mark.parametrize("term", SHIPPED_TERMS, ids=lambda term: term.__name__)
def test_every_shipped_term_passes_what_is_asked_of_ones_own(term: type[TermConfig]) -> None:
    small: dict[str, dict[str, Any]] = {
        "ChannelWhitening": {"sub_batch_size": 2, "group_count": 2},
        "BatchWhitening": {"group_count": 2},
        "Variance": {"target": 3.0},
    }
    trial = TermTrial(term(**small.get(term.__name__, {})), everything())
    for _, contract in trial.basic() + trial.further():
        contract()
    assert set(trial.steps(0, 2, {})) >= {"projections.0", "predictions.0", "scores.0", "patches.0.reconstruction"}


@pytest.mark.parametrize("name", ["Remembers", "DrawsUnkeyed"])
def test_a_term_with_hidden_state_or_draws_is_found(name: str) -> None:
    trial = TermTrial(getattr(broken_parts, name)(), everything())
    with pytest.raises(BrokenError, match=r"keep nothing between calls|use keyed draws"):
        trial.repeats_itself()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("Maps", {}, "must give one feature vector for each image, [2, p] of [2, 3, 16, 16], but gave [2, 4, 14, 14]"),
        ("Flat", {"dropout": 0.5}, "must draw nothing from torch's random state"),
        ("Normed", {}, "the network has a OwnNorm with a forward pass of its own"),
    ],
)
def test_a_broken_backbone_is_refused_before_a_run(name: str, settings: dict[str, Any], message: str) -> None:
    broken = config(model={"backbone": {"kind": f"{BROKEN}:{name}", **settings}})
    with pytest.raises(ValueError, match=r"model\.backbone") as error:
        check_parts(broken)
    assert message in str(error.value)


def test_a_backbone_with_hidden_state_is_found() -> None:
    trial = BackboneTrial(config(model={"backbone": {"kind": f"{BROKEN}:Counts"}}))
    assert [trial.is_finite(), trial.is_differentiable(), trial.draws_nothing()]
    with pytest.raises(BrokenError, match=r"^Counts .*keep state in parameters and buffers alone"):
        trial.repeats_itself()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smaller", "must return images of the same shape and dtype, [16, 3, 16, 16]"),
        ("in_place", "must leave the images that it is given as they are"),
        ("unkeyed", "must draw nothing from torch's random state"),
        ("over_the_batch", "must change an image by its own pixels and draws alone"),
        ("infinite", "must return finite images"),
        ("raises", "raised KeyError: 'angle' (line"),
    ],
)
def test_a_broken_view_operation_is_refused_before_a_run(name: str, message: str) -> None:
    operations = {"mine": {"kind": f"{BROKEN}:{name}"}}
    with pytest.raises(ValueError, match=r"views\.1\.operations\.mine") as error:
        check_parts(config(views=[{"size": 16}, {"size": 16, "operations": operations}]))
    assert f"{name} ({BROKEN}:" in str(error.value)
    assert message in str(error.value)


def test_sound_parts_pass() -> None:
    operations = {"noise": {"kind": f"{MINE}:noise", "strength": 0.3}}
    sound = config(
        objective={"alignment": {}, "mine": {"kind": f"{MINE}:Spread"}},
        model={"backbone": {"kind": f"{MINE}:Net", "width": 8}},
        views=[{"size": 16, "operations": operations}, {"size": 16}],
    )
    state = torch.random.get_rng_state()
    check_parts(sound)
    assert torch.equal(torch.random.get_rng_state(), state)
    for _, contract in OperationTrial(own_parts.noise, {}, 16).further() + BackboneTrial(sound).further():
        assert contract()
