"""What may be searched for: the numbers that each trial's last epoch has, by name, and which way is better.

Their names are those of `trainers.report.METRICS`, with the names of a config's own terms in them. What is told once,
of a run's first epoch or of a group's start, is no trial's worth and can not be searched for.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import get_args

from pretune.core.choices import Direction
from pretune.core.errors import RequestError
from pretune.core.messages import did_you_mean
from trainers.config import TrialConfig
from trainers.report import is_metric
from trainers.settings import ProbeProtocol
from trainers.terms import OwnTerm

DEFAULT = "probe/linear"
GPU_MEMORY = "memory/gpu_peak_bytes"
"""Told by workers with a GPU alone."""
LABEL_FREE = ("effective_rank", "rankme", "lidar", "alpha_req")
"""Measures of health that were proposed in the place of a probe."""
ALPHA_REQ = "alpha_req"
"""The one that is best near 1: which way is better depends on the side that a sweep's trials are on."""
_RANKS = (*LABEL_FREE, "rank", "stable_rank", "std", "whitening")
_FIXED = (
    *(f"probe/{probe}" for probe in ("linear", "knn", "full_linear", "full_knn")),
    "loss/total",
    *(f"health/features/{measure}" for measure in _RANKS),
    *(f"health/embedding/{measure}" for measure in (*_RANKS, "cosine")),
    "budget/views",
    "budget/seconds",
    "time/images_per_s",
    "time/epoch_s",
    "time/probe_s",
    "time/wait_share",
    "model/parameters",
    "memory/host_peak_bytes",
    GPU_MEMORY,
    "optim/learning_rate",
    "optim/gradient_norm",
)
MEASURES: dict[str, tuple[str, ...]] = {
    "mismatch_detection": ("balanced_accuracy", "mismatch_rate", "loss_floor"),
    "dino": ("information",),
    "swav": ("information",),
}
"""What shipped terms tell beyond their value, by kind."""
_OF_LABELS = ("probe/", "eval/")
"""How the names of those begin that data without labels do not have."""
_PROTOCOL = "eval/"
_SMALLER_IS_BETTER = (
    "loss/",
    "time/epoch_s",
    "time/probe_s",
    "time/wait_share",
    "budget/",
    "memory/",
    "model/parameters",
)


def direction(metric: str) -> Direction:
    """Which way is better where nobody says: losses and what is spent are minimized. RequestError for alpha-ReQ."""
    if metric.startswith("health/") and metric.endswith(f"/{ALPHA_REQ}"):
        raise RequestError(
            f"--metric {metric} needs --direction, as it is best near 1: --direction minimize where trials are above "
            "(its spectrum falls too fast), --direction maximize where they are below"
        )
    return "minimize" if metric.startswith(_SMALLER_IS_BETTER) else "maximize"


def names(config: TrialConfig) -> list[str]:
    """The metrics of a trial of `config`. Terms of weight 0 are absent; of what one's own term tells beyond its value
    only its code knows.
    """
    terms = {name: term for name, term in config.objective.items() if term.weight > 0.0}
    losses = [f"loss/{name}" for name in terms]
    told = [f"health/{name}/{measure}" for name, term in terms.items() for measure in MEASURES.get(term.kind, ())]
    return [*_FIXED, *(f"{_PROTOCOL}{name}" for name in config.probe.protocols), *losses, *told]


def protocol(metric: str) -> ProbeProtocol | None:
    """The protocol that is measured at each probe where `metric` is searched for; None where that is told anyway.

    RequestError where there is no such protocol.
    """
    if not metric.startswith(_PROTOCOL):
        return None
    name, known = metric.removeprefix(_PROTOCOL), get_args(ProbeProtocol)
    found: ProbeProtocol | None = next((one for one in known if one == name), None)
    if found is None:
        raise RequestError(
            f"--metric {metric!r}: {name!r} is none of the protocols that are cheap enough for each epoch's probe; "
            f"{did_you_mean(name, known)}"
        )
    return found


def weight(metric: str) -> str:
    """In words, what measuring `metric` adds to each epoch's probe; empty where it adds nothing."""
    name = protocol(metric)
    if name is None:
        return ""
    if name == "linear_lbfgs":
        return f"{metric} fits six linear probes at each epoch's probe: six to seven times what probe/linear takes"
    return f"{metric} takes a vote of neighbors more at each epoch's probe: about what probe/linear takes"


def check_labels(metric: str, config: TrialConfig, data: object, class_count: int) -> None:
    """RequestError where `metric` takes labels and `data`, of so many classes, have none that say anything."""
    if class_count > 1 or not metric.startswith(_OF_LABELS):
        return
    why = "have none" if not class_count else "are all of one class, so that every probe is right"
    known = [name for name in names(config) if not name.startswith(_OF_LABELS)]
    raise RequestError(
        f"--metric must be one that takes no labels, as the images of {data} {why}, but is {metric!r}"
        f"{', the default' if metric == DEFAULT else ''}; a trial on them reports {', '.join(known)}: choose one, "
        f"such as --metric health/embedding/effective_rank, and with --direction which way is better, if not as usual "
        f"(maximize; minimize for losses)"
    )


def check_gpus(metric: str, gpus_per_worker: float) -> None:
    """RequestError where `metric` is told by workers with a GPU, and these have none."""
    if metric == GPU_MEMORY and not gpus_per_worker:
        raise RequestError(
            f"--metric {GPU_MEMORY} is told by workers with a GPU alone, but gpus_per_worker is 0 here; use --metric "
            "memory/host_peak_bytes, or give each worker a GPU"
        )


def check(metric: str, configs: Iterable[TrialConfig], *, spelled: str = "--metric") -> None:
    """RequestError where a trial of one of `configs` would never tell `metric`; the nearest name is in it."""
    missing = next((config for config in configs if not _is_told(metric, config)), None)
    if missing is None:
        return
    known = names(missing)
    why = "is not told of each trial" if is_metric(metric) else "is no metric"
    terms = ", ".join(name for name, term in missing.objective.items() if term.weight > 0.0)
    raise RequestError(
        f"{spelled} {metric!r} {why}: one whose objective has {terms} never reports it{_nearest(metric, known)}; such "
        f"a trial reports {', '.join(known)}"
    )


def _is_told(metric: str, config: TrialConfig) -> bool:
    if metric in names(config):
        return True
    own = [name for name, term in config.objective.items() if term.weight > 0.0 and isinstance(term, OwnTerm)]
    return is_metric(metric) and any(metric.startswith(f"health/{name}/") for name in own)


def _nearest(metric: str, known: Sequence[str]) -> str:
    """`; did you mean 'probe/linear'?`, by the whole name, by how it begins, or by what stands behind its slash."""
    close = difflib.get_close_matches(metric, known, n=1, cutoff=0.6)
    close = close or [name for name in known if metric and name.startswith(metric)]
    endings = {name.rpartition("/")[2]: name for name in reversed(known)}
    close = close or [endings[one] for one in difflib.get_close_matches(metric.rpartition("/")[2], endings, n=1)]
    return f"; did you mean {close[0]!r}?" if close else ""
