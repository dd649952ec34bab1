"""How strong should MSBReg's forces be, in which of their readings, and over how many views?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from search_spaces.suggest import OFF, ON, made_for, term_of, weight
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.terms import Brownian, MultiviewCentroid, SingularValue

if TYPE_CHECKING:
    from search_spaces.suggest import Trial

CENTROIDS: dict[str, dict[str, Any]] = {
    "c2c": {"reading": "c2c"},
    "v2c": {"reading": "v2c", "view_split": "loo"},
    "pairs": {"reading": "pairs"},
}


@made_for("msbreg_tiny", budget="views")
def space(trial: Trial, base: TrialConfig) -> TrialConfig:
    """MSBReg's weights (exact zero included), readings, spectrum, noise, views, and whether it predicts.

    The attraction's weight fixes the scale. The singular value term and the Brownian one are each off, or 0.003 to 3
    (around 0.1: ours, and a third party's). The number of views is 2, 4 or 8 copies of the recipe's first, and a trial
    then has so many epochs that images x views x epochs stay the recipe's: equal budgets, to the next whole epoch.
    """
    centroid, term = term_of(base, MultiviewCentroid, space="msbreg")
    singular_value, _ = term_of(base, SingularValue, space="msbreg")
    brownian, _ = term_of(base, Brownian, space="msbreg")
    reading = CENTROIDS[trial.suggest_categorical(f"objective.{centroid}", list(CENTROIDS))]
    view_count = trial.suggest_categorical("views", (2, 4, 8))
    changes: dict[str, Any] = {
        f"objective.{centroid}": {**term.model_dump(), "view_split": None, **reading},
        "views": [base.views[0].model_dump()] * view_count,
        "epochs": max(1, round(base.epochs * len(base.views) / view_count)),
    }
    path = f"objective.{singular_value}.weight"
    changes[path] = weight(trial, path, around=0.1, factor=30.0, may_be_zero=True)
    if changes[path]:
        forms = ("nuclear", "frobenius", "entropy", "spectral", "logdet")
        changes[f"objective.{singular_value}.form"] = trial.suggest_categorical(
            f"objective.{singular_value}.form", forms
        )
        changes[f"objective.{singular_value}.epsilon"] = None
    path = f"objective.{brownian}.weight"
    changes[path] = weight(trial, path, around=0.1, factor=30.0, may_be_zero=True)
    if changes[path]:
        share = trial.suggest_categorical(f"objective.{brownian}.share", ("image", "view", "batch"))
        changes[f"objective.{brownian}.share"] = share
    if base.model.predictor is not None and trial.suggest_categorical("model.predictor", (ON, OFF)) == OFF:
        changes["model.predictor"] = None
    return with_changes(base, changes)
