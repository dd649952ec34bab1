"""Changing a config by path: what spaces and scripts use to derive one config from another."""

from __future__ import annotations

import pytest

from trainers.changes import with_changes
from trainers.config import TrialConfig, ViewConfig
from trainers.terms import Alignment, KernelMMD
from trainers.terms.kernels import RBF


@pytest.fixture
def base() -> TrialConfig:
    return TrialConfig(
        views=(ViewConfig(size=16), ViewConfig(size=32)), objective={"alignment": Alignment(), "mmd": KernelMMD()}
    )


def test_a_path_replaces_one_value_and_leaves_the_original_alone(base: TrialConfig) -> None:
    changed = with_changes(base, {"optimizer.learning_rate": 0.25, "epochs": 3})
    assert (changed.optimizer.learning_rate, changed.epochs) == (0.25, 3)
    assert base.optimizer.learning_rate != 0.25
    assert with_changes(changed, {"optimizer.learning_rate": base.optimizer.learning_rate, "epochs": 10}) == base


def test_a_position_is_one_view_and_a_star_is_all(base: TrialConfig) -> None:
    assert [view.flip_probability for view in with_changes(base, {"views.1.flip_probability": 0.2}).views] == [0.5, 0.2]
    assert [view.flip_probability for view in with_changes(base, {"views.*.flip_probability": 0.1}).views] == [0.1, 0.1]
    assert {term.weight for term in with_changes(base, {"objective.*.weight": 3.0}).objective.values()} == {3.0}


def test_whole_objects_replace_whole_objects_and_add_terms(base: TrialConfig) -> None:
    changed = with_changes(
        base,
        {
            "objective.mmd.kernel": {"kind": "rbf", "gamma": 2.0},
            "objective.second": {"kind": "alignment", "weight": 0.5},
        },
    )
    term = changed.objective["mmd"]
    assert isinstance(term, KernelMMD)
    assert term.kernel == RBF(gamma=2.0)
    assert changed.objective["second"] == Alignment(weight=0.5)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("views.2.flip_probability", r"'2' must be a position from 0 to 1"),
        ("optimiser.learning_rate", r"optimiser\n"),
        ("objective.third.weight", r"'third' found using 'kind' does not match any of the expected tags"),
        ("epochs.more", r"epochs.more: 'epochs' is the value \d+ and has no 'more'"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_with_what_is_there(base: TrialConfig, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_changes(base, {path: 1})


def test_the_result_is_checked_as_a_whole(base: TrialConfig) -> None:
    with pytest.raises(ValueError, match="patch_size"):
        with_changes(base, {"model.backbone": {"kind": "vit_tiny", "patch_size": 16}, "views.0.size": 20})
    with pytest.raises(ValueError, match=r"optimizer\.learning_rates"):
        with_changes(base, {"optimizer.learning_rates": 1.0})
