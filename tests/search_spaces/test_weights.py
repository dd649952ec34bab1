"""The space of weights: any recipe's terms, exact zero included."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import FixedTrial

from search_spaces.recipes.sfrik import sfrik_imagenet, sfrik_tiny
from search_spaces.suggest import weight
from search_spaces.weights import space
from trainers.changes import with_changes


def test_each_weight_ranges_over_a_decade_on_both_sides_of_the_recipes() -> None:
    base = sfrik_imagenet()
    trial = FixedTrial(
        {
            "objective.alignment": "on",
            "objective.alignment.weight": 5.0,
            "objective.mmd": "on",
            "objective.mmd.weight": 20.0,
        }
    )
    assert {name: term.weight for name, term in space(trial, base).objective.items()} == {"alignment": 5.0, "mmd": 20.0}
    for name, term in base.objective.items():
        found = trial.distributions[f"objective.{name}.weight"]
        assert isinstance(found, optuna.distributions.FloatDistribution)
        assert found.log
        assert (found.low, found.high) == pytest.approx((term.weight / 10, term.weight * 10))


def test_a_term_that_is_switched_off_has_weight_zero_and_no_other_parameter() -> None:
    trial = FixedTrial({"objective.alignment": "on", "objective.alignment.weight": 0.2, "objective.mmd": "off"})
    objective = space(trial, sfrik_tiny()).objective
    assert objective["mmd"].weight == 0.0
    assert "objective.mmd.weight" not in trial.distributions


def test_the_last_term_can_not_be_switched_off_when_all_others_are() -> None:
    trial = FixedTrial({"objective.alignment": "off", "objective.mmd.weight": 2.0})
    assert space(trial, sfrik_tiny()).objective["mmd"].weight == 2.0
    assert "objective.mmd" not in trial.distributions


def test_a_term_that_the_recipe_leaves_out_is_tried_around_one() -> None:
    base = with_changes(sfrik_tiny(), {"objective.alignment.weight": 0.0})
    trial = FixedTrial({"objective.alignment": "on", "objective.alignment.weight": 9.0, "objective.mmd": "off"})
    assert space(trial, base).objective["alignment"].weight == 9.0


def test_half_of_random_draws_are_exactly_zero() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [weight(study.ask(), "objective.x.weight", around=1.0, may_be_zero=True) for _ in range(200)]
    assert 70 < drawn.count(0.0) < 130
    assert all(value == 0.0 or 0.1 <= value <= 10.0 for value in drawn)
