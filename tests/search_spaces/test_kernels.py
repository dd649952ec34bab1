"""The space of kernels: conditional parameters, and weights in units of the recipe's."""

from __future__ import annotations

import pytest
from optuna.trial import FixedTrial

from search_spaces.kernels import KERNELS, space
from search_spaces.recipes.sfrik import sfrik_imagenet, sfrik_tiny
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.terms import Alignment, KernelMMD
from trainers.terms.kernels import IMQ, RBF, Energy, Kernel, Laplace, LogRBF, Riesz, Truncated

OWN = {
    "truncated_2": ({"coefficients.0": 0.1}, Truncated(coefficients=(0.1, 1.0))),
    "truncated_3": ({"coefficients.0": 0.1, "coefficients.2": 5.0}, Truncated(coefficients=(0.1, 1.0, 5.0))),
    "rbf": ({"gamma": 2.0}, RBF(gamma=2.0)),
    "rbf_log": ({"gamma": 2.0}, LogRBF(gamma=2.0)),
    "imq": ({"offset": 0.5}, IMQ(offset=0.5, exponent=0.5)),
    "laplace": ({"gamma": 3.0}, Laplace(gamma=3.0)),
    "energy": ({"exponent": 1.5}, Energy(exponent=1.5)),
}


def draw(name: str, base: TrialConfig, *, alignment: float = 0.05) -> tuple[FixedTrial, TrialConfig]:
    own = {f"objective.mmd.kernel.{key}": value for key, value in OWN[name][0].items()}
    trial = FixedTrial({"objective.mmd.kernel": name, "objective.alignment.weight": alignment, **own})
    return trial, space(trial, base)


def test_the_cases_below_are_all_kernels_there_are() -> None:
    assert set(OWN) == set(KERNELS)


@pytest.mark.parametrize("name", OWN)
def test_each_kernel_asks_for_its_own_parameters_only(name: str) -> None:
    trial, config = draw(name, sfrik_tiny())
    assert set(trial.distributions) == set(trial.params)  # nothing else was asked for, nothing given was left over
    term = config.objective["mmd"]
    assert isinstance(term, KernelMMD)
    expected: Kernel = OWN[name][1]
    assert term.kernel == expected
    assert term.normalize
    assert config.objective["alignment"].weight == 0.05


def test_alignment_is_searched_relative_to_the_strength_of_the_recipes_mmd() -> None:
    trial, config = draw("rbf", sfrik_imagenet(), alignment=0.488)
    assert config.objective["mmd"].weight == 81.0
    low, high = (vars(trial.distributions["objective.alignment.weight"])[key] for key in ("low", "high"))
    assert (low, high) == pytest.approx((0.081, 81.0))


def test_a_recipe_in_unnormalized_units_is_searched_in_the_same_place() -> None:
    base = with_changes(sfrik_imagenet(), {"objective.mmd.normalize": False, "objective.mmd.weight": 1.0})
    assert draw("rbf", base, alignment=0.5)[1].objective["mmd"].weight == pytest.approx(81.0)


def test_a_recipe_whose_kernel_is_infinite_at_a_point_lends_its_weight() -> None:
    push = KernelMMD(weight=3.0, kernel=Riesz(), estimator="u", normalize=False)
    base = with_changes(sfrik_tiny(), {"objective.mmd": push.model_dump(mode="json")})
    term = draw("rbf", base)[1].objective["mmd"]
    assert isinstance(term, KernelMMD)
    assert (term.weight, term.normalize) == (3.0, True)


def test_a_recipe_whose_terms_have_other_names_works_too() -> None:
    base = sfrik_tiny().model_copy(update={"objective": {"pull": Alignment(weight=0.1), "push": KernelMMD()}})
    trial = FixedTrial(
        {"objective.push.kernel": "energy", "objective.push.kernel.exponent": 1.0, "objective.pull.weight": 0.2}
    )
    objective = space(trial, base).objective
    assert objective["pull"].weight == 0.2
    assert isinstance(objective["push"], KernelMMD)
    assert objective["push"].kernel == Energy(exponent=1.0)


def test_a_recipe_without_a_kernel_is_refused_with_the_way_out() -> None:
    base = sfrik_tiny().model_copy(update={"objective": {"alignment": Alignment()}})
    with pytest.raises(ValueError, match=r"kind 'mmd'.*only \['alignment'\].*--set objective\.mmd\.kind=mmd"):
        space(FixedTrial({}), base)
