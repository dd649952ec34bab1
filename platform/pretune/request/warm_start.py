"""What earlier sweeps have found, for a new one to begin with: their best points, and their trials for TPE to know.

All that is used of them goes into the new sweep's first record: it goes on whatever becomes of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pretune.core.experiment import Experiment, PriorTrial, WarmStart
from pretune.core.journal import reading
from pretune.core.parameters import fits, parsed
from pretune.core.records import Asked
from pretune.core.results import SweepResult, TrialResult
from pretune.core.search import Search, Space

POINTS = 5
"""So many of its best points come first."""
PRIOR = 300
"""So many of its newest trials TPE knows: no more count beside the good ones."""


def warm_start(
    asked: Experiment, space: Space, earlier: Sequence[SweepResult]
) -> tuple[tuple[WarmStart, ...], list[str]]:
    """What `asked` takes over from each of `earlier`, and in words what it does not."""
    kinds = Search(asked, space).drawn_from()
    found: list[WarmStart] = []
    notes: list[str] = []
    for source in earlier:
        points = _points(source, kinds)
        why = why_no_prior(asked, source)
        prior = [] if why else _prior(source, kinds)
        taken = {key for warm in found for key in map(repr, warm.points)}
        new = [point for point in points if repr(point) not in taken]
        found.append(WarmStart(source=source.name, points=tuple(new), prior=tuple(prior)))
        complete = sum(_counts(trial) for trial in source.trials)
        values = (
            f"their values are not used: {why}" if why else f"{len(prior)} of its {complete} trials are known to TPE"
        )
        told = f"warm start from {source.name!r}: {len(new)} points come first, {values}"
        if not why and len(prior) < min(complete, PRIOR):
            told += " (the others draw a parameter from another range, or one that this space does not have)"
        notes.append(told)
    return tuple(found), notes


def why_no_prior(asked: Experiment, source: SweepResult) -> str:
    """Why the values of `source` say nothing of those of `asked`; empty where they do."""
    other = source.experiment
    pairs: list[tuple[str, Any, Any]] = [
        ("metric", asked.metric, other.metric),
        ("direction", asked.direction, other.direction),
        ("data", asked.base.data.manifest, other.base.data.manifest),
        ("subset of the data", asked.base.data.subset, other.base.data.subset),
        ("number of epochs", asked.base.epochs, other.base.epochs),
    ]
    differing = [what for what, mine, its in pairs if mine != its]
    if differing:
        return f"another {' and '.join(differing)}"
    if asked.beside:
        return "there are several objectives"
    return "" if asked.sampler == "tpe" else f"sampler {asked.sampler!r} has no use for them"


def _counts(trial: TrialResult) -> bool:
    return trial.state == "COMPLETE" and trial.value is not None and trial.result_of is None and not trial.extended


def _points(source: SweepResult, kinds: Mapping[str, set[str]]) -> list[dict[str, Any]]:
    """The best points of `source`, each with those parameters that the new space has and that can have the value."""
    found: list[dict[str, Any]] = []
    for trial in filter(_counts, source.ranked()):
        point = {
            name: value
            for name, value in trial.params.items()
            if any(fits(parsed(text), value) for text in kinds.get(name, ()))
        }
        if point and point not in found:
            found.append(point)
        if len(found) == POINTS:
            break
    return found


def _prior(source: SweepResult, kinds: Mapping[str, set[str]]) -> list[PriorTrial]:
    """The newest trials of `source` whose parameters are all drawn as the new space draws them."""
    counting = {trial.id: trial.value for trial in source.trials if _counts(trial)}
    found: list[PriorTrial] = []
    with reading(source.folder, remote=source.remote) as records:
        for record in records:
            if isinstance(record, Asked) and (value := counting.get(record.number)) is not None:
                drawn = record.distributions
                if drawn and all(text in kinds.get(name, ()) for name, text in drawn.items()):
                    found.append(PriorTrial(params=record.params, distributions=drawn, value=value))
    return found[-PRIOR:]
