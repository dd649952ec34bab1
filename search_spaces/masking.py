"""How sparse should a transformer's input be, how many patches misplaced, and how much should it care?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from search_spaces import suggest
from search_spaces.suggest import made_for
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.terms import MismatchDetection, Reconstruction

if TYPE_CHECKING:
    from search_spaces.suggest import Trial

DROP_RATIOS = (0.0, 0.25, 0.5, 0.625, 0.75)
MISMATCH_PROBABILITIES = (0.0, 0.1, 0.15, 0.2, 0.3, 0.5)


@made_for("dilemma_mocov3_tiny", budget="views")
def space(trial: Trial, base: TrialConfig) -> TrialConfig:
    """DILEMMA's drop ratio, mismatch probability and weight of detection, down to the plain host.

    Dense (ratio 0, but for MAE, which reconstructs what was dropped), sparse, mismatched with and without detection:
    without these arms a gain can not be credited to any one of them. Detection exists only where something is
    mismatched. An epoch costs less the more is dropped; the default budget is views, and the table shows seconds.
    """
    if base.model.masking is None:
        raise ValueError(
            "space 'masking' varies model.masking, but the recipe has none; choose another recipe, or set "
            "--set model.masking.drop_ratio=0.5 (it needs a vision transformer)"
        )
    names = [name for name, term in base.objective.items() if isinstance(term, MismatchDetection)]
    name = names[0] if names else "mismatch_detection"
    around = (base.objective[name].weight if names else 0.0) or 1.0
    reconstructs = any(isinstance(term, Reconstruction) and term.weight > 0.0 for term in base.objective.values())
    ratios = DROP_RATIOS[1:] if reconstructs else DROP_RATIOS
    probability = trial.suggest_categorical("model.masking.mismatch_probability", MISMATCH_PROBABILITIES)
    changes: dict[str, Any] = {
        "model.masking.drop_ratio": trial.suggest_categorical("model.masking.drop_ratio", ratios),
        "model.masking.mismatch_probability": probability,
        "model.masking.donor_rule": "spare_or_cycle",
        f"objective.{name}.kind": "mismatch_detection",
        f"objective.{name}.weight": 0.0,
    }
    if probability > 0.0:
        path = f"objective.{name}.weight"
        changes[path] = suggest.weight(trial, path, around=around, may_be_zero=True)
    return with_changes(base, changes)
