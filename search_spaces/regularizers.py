"""Which family of regularizers is best on these images, each with settings of its own choice?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from search_spaces import kernels, suggest
from search_spaces.suggest import log_float, made_for
from trainers.changes import with_fields
from trainers.config import TrialConfig
from trainers.terms import (
    Alignment,
    BatchWhitening,
    Brownian,
    ChannelWhitening,
    Covariance,
    CrossCorrelation,
    InfoNCE,
    KernelMMD,
    MismatchDetection,
    Prediction,
    SingularValue,
    Spectral,
    TermConfig,
    Variance,
)
from trainers.terms.kernels import LogRBF

if TYPE_CHECKING:
    from search_spaces.suggest import Trial

Objective = dict[str, TermConfig]


@made_for("sfrik_tiny", budget="views")
def space(trial: Trial, base: TrialConfig) -> TrialConfig:
    """The whole objective: a family of methods, then its own settings; all else is the recipe's.

    Families see the same network, views, optimizer and length. The learning rate is free within a factor of 4 for all
    of them, as losses have different scales. SFRIK, alignment and uniformity, MSBReg's dispersive terms beside
    alignment, CW-RGP, W-MSE (with ZCA: Shuffled-DBN), VICReg, Barlow Twins, SimCLR and spectral contrast go with any
    recipe of two views and more; BYOL where the recipe has a teacher and a predictor. Mismatch detection that the
    recipe has stays as it is.

    Settings of whitening are drawn from those that are feasible with the recipe's width and batch, also when up to 4
    workers share it. A family without any (a batch too small for the width) is not proposed.
    """
    if len(base.views) < 2:
        raise ValueError(
            f"space 'regularizers' compares views of one image and needs at least 2, but the recipe has "
            f"{len(base.views)}; choose another recipe, or add a view with --set 'views=[…]'"
        )
    families = [name for name, (fits, _) in FAMILIES.items() if fits(base)]
    objective = FAMILIES[trial.suggest_categorical("family", families)][1](trial, base)
    kept = {name: term for name, term in base.objective.items() if isinstance(term, MismatchDetection)}
    rate = base.optimizer.learning_rate
    rate = log_float(trial, "optimizer.learning_rate", rate / 4, rate * 4)
    return with_fields(base, objective={**objective, **kept}, optimizer=with_fields(base.optimizer, learning_rate=rate))


def _sfrik(trial: Trial, base: TrialConfig) -> Objective:
    kind = trial.suggest_categorical("objective.mmd.kernel", list(kernels.KERNELS))
    settings = kernels.KERNELS[kind](trial, "objective.mmd.kernel")
    return {
        "alignment": Alignment(weight=log_float(trial, "objective.alignment.weight", 1e-3, 1.0)),
        "mmd": KernelMMD.model_validate({"kernel": settings, "normalize": True}),
    }


def _alignment_uniformity(trial: Trial, base: TrialConfig) -> Objective:
    gamma = log_float(trial, "objective.uniformity.kernel.gamma", 0.5, 20.0)
    return {
        "alignment": Alignment(),
        "uniformity": KernelMMD(
            kernel=LogRBF(gamma=gamma),
            estimator="u",
            normalize=False,
            weight=log_float(trial, "objective.uniformity.weight", 0.1, 10.0),
        ),
    }


def _msbreg(trial: Trial, base: TrialConfig) -> Objective:
    forms = ("nuclear", "frobenius", "entropy", "spectral", "logdet")
    return {
        "alignment": Alignment(),
        "singular_value": SingularValue(
            form=trial.suggest_categorical("objective.singular_value.form", forms),
            weight=log_float(trial, "objective.singular_value.weight", 0.1, 10.0),
        ),
        "brownian": Brownian(
            weight=suggest.weight(trial, "objective.brownian.weight", around=0.1, may_be_zero=True),
        ),
    }


def _cw_rgp(trial: Trial, base: TrialConfig) -> Objective:
    choices = {f"m={m} g={g}": (m, g) for m, g in channel_choices(base)}
    m, g = choices[trial.suggest_categorical("objective.channel_whitening", list(choices))]
    return {"channel_whitening": ChannelWhitening(sub_batch_size=m, group_count=g)}


def _w_mse(trial: Trial, base: TrialConfig) -> Objective:
    path = "objective.batch_whitening"
    return {
        "batch_whitening": BatchWhitening(
            group_count=trial.suggest_categorical(f"{path}.group_count", batch_choices(base)),
            factor=trial.suggest_categorical(f"{path}.factor", ("cholesky", "zca")),
        )
    }


def _vicreg(trial: Trial, base: TrialConfig) -> Objective:
    return {
        "invariance": Alignment(weight=25.0, normalize=False),
        "variance": Variance(weight=log_float(trial, "objective.variance.weight", 2.5, 250.0)),
        "covariance": Covariance(weight=log_float(trial, "objective.covariance.weight", 0.1, 100.0)),
    }


def _barlow(trial: Trial, base: TrialConfig) -> Objective:
    off_diagonal = log_float(trial, "objective.cross_correlation.off_diagonal", 1e-3, 0.3)
    return {"cross_correlation": CrossCorrelation(off_diagonal=off_diagonal)}


def _simclr(trial: Trial, base: TrialConfig) -> Objective:
    return {"info_nce": InfoNCE(temperature=log_float(trial, "objective.info_nce.temperature", 0.05, 1.0))}


def _spectral(trial: Trial, base: TrialConfig) -> Objective:
    return {"spectral": Spectral(squared_radius=log_float(trial, "objective.spectral.squared_radius", 0.3, 30.0))}


def _byol(trial: Trial, base: TrialConfig) -> Objective:
    return {"prediction": Prediction(weight=log_float(trial, "objective.prediction.weight", 0.5, 4.0))}


def channel_choices(base: TrialConfig) -> list[tuple[int, int]]:
    """(m, g) with which CW-RGP can whiten this recipe's embeddings, with twice as many channels as needed: d >= 2 g m.

    m is a power of two that divides a quarter of the batch, so that up to 4 workers can share it.
    """
    width = base.model.projector.widths[-1]
    sizes = [m for m in (8, 16, 32, 64, 128) if base.batch_size % (4 * m) == 0]
    groups = [g for g in (1, 2, 4, 8, 16) if width % g == 0]
    return [(m, g) for m in sizes for g in groups if width >= 2 * g * m]


def batch_choices(base: TrialConfig) -> list[int]:
    """Group counts with which batch whitening has twice as many images as channels in a group: N >= 2 d / g."""
    width = base.model.projector.widths[-1]
    return [g for g in (1, 2, 4, 8, 16, 32, 64) if width % g == 0 and base.batch_size >= 2 * width // g > 2]


def _always(base: TrialConfig) -> bool:
    return True


def _predicts(base: TrialConfig) -> bool:
    return base.model.teacher is not None and base.model.predictor is not None


FAMILIES: dict[str, tuple[Callable[[TrialConfig], bool], Callable[[Trial, TrialConfig], Objective]]] = {
    "sfrik": (_always, _sfrik),
    "msbreg": (_always, _msbreg),
    "cw_rgp": (lambda base: bool(channel_choices(base)), _cw_rgp),
    "w_mse": (lambda base: bool(batch_choices(base)), _w_mse),
    "vicreg": (_always, _vicreg),
    "barlow": (_always, _barlow),
    "simclr": (_always, _simclr),
    "spectral": (_always, _spectral),
    "alignment_uniformity": (_always, _alignment_uniformity),
    "byol": (_predicts, _byol),
}
"""By name: whether a recipe can take the family, and its objective with settings that the trial suggests."""
