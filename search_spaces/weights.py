"""How much of each term does a recipe need, and which can go?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from search_spaces import suggest
from search_spaces.suggest import made_for
from trainers.changes import with_changes
from trainers.config import TrialConfig

if TYPE_CHECKING:
    from search_spaces.suggest import Trial


@made_for("sfrik_tiny")
def space(trial: Trial, base: TrialConfig) -> TrialConfig:
    """The weight of every term of any recipe: exactly zero, or a tenth to ten times the recipe's.

    A term that the recipe has at weight 0 is tried around 1. At least one term stays on.
    """
    changes: dict[str, float] = {}
    names = list(base.objective)
    for name in names:
        path = f"objective.{name}.weight"
        needed = name == names[-1] and not any(changes.values())
        changes[path] = suggest.weight(trial, path, around=base.objective[name].weight or 1.0, may_be_zero=not needed)
    return with_changes(base, changes)
