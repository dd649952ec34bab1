"""Which rotation-invariant kernel spreads embeddings best, and how strongly should views attract each other?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from search_spaces.suggest import log_float, made_for, term_of
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.terms import Alignment, KernelMMD

if TYPE_CHECKING:
    from search_spaces.suggest import Trial


def _truncated_2(trial: Trial, path: str) -> dict[str, Any]:
    return {"kind": "truncated", "coefficients": (_first_coefficient(trial, path), 1.0)}


def _truncated_3(trial: Trial, path: str) -> dict[str, Any]:
    third = log_float(trial, f"{path}.coefficients.2", 0.05, 20.0)
    return {"kind": "truncated", "coefficients": (_first_coefficient(trial, path), 1.0, third)}


def _first_coefficient(trial: Trial, path: str) -> float:
    """b_1 relative to b_2 = 1: the kernel is normalized, so only the shares of its coefficients count."""
    return log_float(trial, f"{path}.coefficients.0", 1e-3, 1.0)


def _rbf(trial: Trial, path: str) -> dict[str, Any]:
    return {"kind": "rbf", "gamma": _gamma(trial, path)}


def _rbf_log(trial: Trial, path: str) -> dict[str, Any]:
    return {"kind": "rbf_log", "gamma": _gamma(trial, path)}


def _laplace(trial: Trial, path: str) -> dict[str, Any]:
    return {"kind": "laplace", "gamma": _gamma(trial, path)}


def _gamma(trial: Trial, path: str) -> float:
    """One range for all kernels that have it: 0.5 to 20 is meant for RBF, 0.3 to 10 for Laplace."""
    return log_float(trial, f"{path}.gamma", 0.3, 20.0)


def _imq(trial: Trial, path: str) -> dict[str, Any]:
    return {"kind": "imq", "offset": log_float(trial, f"{path}.offset", 0.1, 3.0), "exponent": 0.5}


def _energy(trial: Trial, path: str) -> dict[str, Any]:
    return {"kind": "energy", "exponent": trial.suggest_float(f"{path}.exponent", 0.25, 1.75)}


KERNELS: dict[str, Callable[[Trial, str], dict[str, Any]]] = {
    "truncated_2": _truncated_2,
    "truncated_3": _truncated_3,
    "rbf": _rbf,
    "rbf_log": _rbf_log,
    "imq": _imq,
    "laplace": _laplace,
    "energy": _energy,
}


@made_for("sfrik_tiny")
def space(trial: Trial, base: TrialConfig) -> TrialConfig:
    """SFRIK's kernel with its own parameters, and the weight of alignment.

    The kernel is normalized, so that a collapsed batch costs the same whatever the kernel; what is left of the
    weights is their ratio. The MMD keeps the recipe's strength w, and alignment gets 0.001 w to 1 w. Ranges are those
    of the sweep table in the SFRIK notes (b_2 / b_1 from 1 to 1000, b_3 / b_2 from 0.05 to 20, s, c, γ, p); that
    table's separate range for the log-RBF kernel is for its unnormalized form.
    """
    alignment, _ = term_of(base, Alignment, space="kernels")
    mmd, term = term_of(base, KernelMMD, space="kernels")
    strength = _cost_of_collapse(term, base)
    kernel = KERNELS[trial.suggest_categorical(f"objective.{mmd}.kernel", list(KERNELS))]
    return with_changes(
        base,
        {
            f"objective.{mmd}.kernel": kernel(trial, f"objective.{mmd}.kernel"),
            f"objective.{mmd}.normalize": True,
            f"objective.{mmd}.form": "auto",
            f"objective.{mmd}.weight": strength,
            f"objective.{alignment}.weight": log_float(
                trial, f"objective.{alignment}.weight", 1e-3 * strength, strength
            ),
        },
    )


def _cost_of_collapse(term: KernelMMD, base: TrialConfig) -> float:
    """The weight that gives the normalized form the strength of the recipe's; 1 where the recipe leaves the term
    out, the recipe's own where its kernel has no scale of that kind."""
    if term.weight == 0.0:
        return 1.0
    if term.normalize or term.kernel.logarithmic or term.kernel.singular:
        return term.weight
    q = base.model.projector.widths[-1]
    return term.weight * (term.kernel.peak(q) - term.kernel.mean(q))
