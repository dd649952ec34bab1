"""What somebody hands in is checked as a whole: a point of the space where it is one, else a change of the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.parameters import Names, SpaceTrial
from pretune.request import enqueue, request
from search_spaces import RECIPES, SPACES, kernels
from trainers.config import TrialConfig


@pytest.fixture
def made(here: Path) -> Experiment:
    base, _ = request.with_data(RECIPES["sfrik_tiny"](), "digits")
    return Experiment(name="s", space="kernels", base=base, storage=str(here / "sweeps"))


def mine(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    rate = trial.suggest_float("rate", 0.01, 1.0, log=True)
    choices: list[Any] = [(32, 32), (64,)]
    widths = trial.suggest_categorical("widths", choices)
    if trial.suggest_int("depth", 2, 8, step=2) == 8:
        raise ValueError("too deep")
    projector = base.model.projector.model_copy(update={"widths": widths})
    return base.model_copy(
        update={
            "optimizer": base.optimizer.model_copy(update={"learning_rate": rate}),
            "model": base.model.model_copy(update={"projector": projector}),
        }
    )


def test_a_point_of_the_space_has_its_parameters_and_the_bases_own_where_none_is_named(made: Experiment) -> None:
    rbf = ["objective.mmd.kernel=rbf", "objective.mmd.kernel.gamma=3"]
    checked = enqueue.check(made, kernels.space, [*rbf, "objective.alignment.weight=0.5"])
    assert checked.outside == ""
    assert checked.record.params == {
        "objective.mmd.kernel": "rbf",
        "objective.mmd.kernel.gamma": 3.0,
        "objective.alignment.weight": 0.5,
    }
    # What the sampler would have been told of the same point.
    trial = SpaceTrial(optuna.create_study().ask(fixed_distributions=None), Names())
    trial.study.enqueue_trial(checked.record.params)
    asked = SpaceTrial(trial.study.ask(), Names())
    kernels.space(asked, made.base)
    assert (asked.told, asked.drawn_from) == (checked.record.params, checked.record.distributions)
    assert checked.record.config["objective"]["mmd"]["kernel"] == {"kind": "rbf", "gamma": 3.0}
    assert checked.record.config["data"]["manifest"] == made.base.data.manifest


def test_what_is_no_parameter_is_a_change_of_the_base_that_the_sampler_never_sees(made: Experiment) -> None:
    checked = enqueue.check(made, kernels.space, ["optimizer.learning_rate=0.07", "seed=3"])
    assert "is not a parameter of space 'kernels'" in checked.outside or "is not named" in checked.outside
    assert (checked.record.params, checked.record.distributions) == ({}, {})
    assert checked.record.config["optimizer"]["learning_rate"] == 0.07
    assert checked.record.config["seed"] == 3
    weight = enqueue.check(made, SPACES["weights"], ["objective.mmd.weight=1e9"])
    assert "not within the space's" in weight.outside or "is not named" in weight.outside
    assert weight.record.config["objective"]["mmd"]["weight"] == 1e9


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["rate=0.1"], r"has a parameter widths beside rate, .* give it, too: widths=… \(\[32, 32\] \| \[64\]\)"),
        (["rate=0.1", "widths=[64]"], r"has a parameter depth beside rate, widths.*depth=… \(2 to 8 in steps of 2\)"),
        (["rate=7", "widths=[64]", "depth=2"], "rate is 7, which is not within the space's 0.01 to 1"),
        (["rate=fast", "widths=[64]", "depth=2"], "rate is fast, which is not within"),
        (["rate=0.1", "widths=[65]", "depth=2"], r"widths is \[65\], which is not within the space's"),
        (["rate=0.1", "widths=[64]", "depth=3"], "depth is 3, which is not within"),
        (["rate=0.1", "widths=[64]", "depth=true"], "depth is True, which is not within"),
        (["rate=0.1", "widths=[64]", "depth=8"], "space 'mine' refuses .*: too deep"),
        (["optimizer.lerning_rate=1"], "lerning_rate"),
        (["batch_size=0"], "batch_size"),
        (["batch_size=100000"], "batch_size must be at most"),
        (["data.path=elsewhere"], "data.path must stay the sweep's"),
        (["rate"], "must have the form a.b=value"),
        (["rate=0.1", "rate=0.2"], "rate is given twice"),
        (["objective.mmd.kernel.gamma=-1"], "gamma"),
    ],
)
def test_what_cannot_run_is_refused_in_words(made: Experiment, typed: list[str], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        enqueue.check(made.model_copy(update={"space": "mine"}), mine, typed)
    assert "--set" not in str(caught.value)


def test_choices_that_are_lists_are_given_as_json(made: Experiment) -> None:
    checked = enqueue.check(made, mine, ["rate=0.1", "widths=[32,32]", "depth=4"])
    told: dict[str, Any] = checked.record.params
    assert told == {"rate": 0.1, "widths": [32, 32], "depth": 4}
    assert checked.config.model.projector.widths == (32, 32)


def test_a_metric_that_it_would_not_report_is_refused(made: Experiment) -> None:
    searched = made.model_copy(update={"metric": "loss/mmd", "maximize": False})
    with pytest.raises(RequestError, match="never reports it"):
        enqueue.check(searched, kernels.space, ["objective.mmd.weight=0"])


def test_an_ablation_takes_nothing(made: Experiment) -> None:
    assert "is an ablation" in enqueue.why_not(made.model_copy(update={"points": ({"seed": 0},)}))
    assert enqueue.why_not(made) == ""
