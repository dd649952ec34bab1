"""What spaces are made of. A parameter's name is the path of what it sets, as in `--set`; a choice between whole
objects is named after the place where the object stands (`objective.mmd.kernel`), and a switch after what it removes
(`objective.mmd`).

Conditions are plain `if`: parameters that are not asked for do not exist for that trial, which TPE with `group=True`
understands. One name always has one range within a sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeVar

from trainers.config import TrialConfig
from trainers.terms import TermConfig

if TYPE_CHECKING:
    import optuna

    Trial = optuna.trial.BaseTrial

Space = Callable[["Trial", TrialConfig], TrialConfig]
"""`space(trial, base)`: `base`, the recipe with all overrides applied, changed as the trial suggests."""
Term = TypeVar("Term", bound=TermConfig)

ON, OFF = "on", "off"


def made_for(recipe: str, *, budget: Literal["epochs", "views", "seconds"] = "epochs") -> Callable[[Space], Space]:
    """Decorator: the recipe that a sweep of this space starts from unless `--recipe` names another, and what its weak
    trials are stopped by unless `--budget` says so: "views" where an epoch does not cost the same in all trials."""

    def name_it(space: Space) -> Space:
        vars(space)["default_recipe"] = recipe
        vars(space)["default_budget"] = budget
        return space

    return name_it


def log_float(trial: Trial, path: str, low: float, high: float) -> float:
    """A positive number, uniform in its logarithm."""
    return trial.suggest_float(path, low, high, log=True)


def weight(trial: Trial, path: str, *, around: float, factor: float = 10.0, may_be_zero: bool = False) -> float:
    """The weight at `path` = `objective.<name>.weight`: from `around` / `factor` to `around` · `factor`, uniform in
    its logarithm.

    With `may_be_zero` a switch named `objective.<name>` comes first; where it is off the weight is exactly 0, which
    equals a missing term. A threshold on the number itself could not do that: the logarithm never reaches 0.
    """
    if may_be_zero and trial.suggest_categorical(path.removesuffix(".weight"), (ON, OFF)) == OFF:
        return 0.0
    return log_float(trial, path, around / factor, around * factor)


def term_of(base: TrialConfig, kind: type[Term], *, space: str) -> tuple[str, Term]:
    """Name and settings of the first term of this kind. ValueError where the recipe has none."""
    for name, term in base.objective.items():
        if isinstance(term, kind):
            return name, term
    wanted = kind.model_fields["kind"].default
    raise ValueError(
        f"space {space!r} varies a term of kind {wanted!r}, "
        f"but the recipe's objective has only {sorted(base.objective)}; choose another recipe, or "
        f"add the term with --set objective.{wanted}.kind={wanted}"
    )
