"""The best few trials of a sweep run again from other seeds, which the search has not seen: it chose by one.

They run as a sweep of their own beside it, whose points are known beforehand (as an ablation's are). So it has warm
slots and a journal: after Ctrl-C the same `pretune finalize` goes on with it, and `pretune show` shows it. Its name
says how many trials and seeds it has.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pretune.analysis.ablation import SPACE
from pretune.analysis.candidates import Candidate, Judged, judged
from pretune.core import journal, results
from pretune.core.design import SEED
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment, StoppingConfig
from pretune.core.results import SweepResult
from trainers import storage
from trainers.changes import with_changes
from trainers.config import TrialConfig

LONGEST_NAME = 100


def experiment(result: SweepResult, chosen: Sequence[Candidate], seeds: int, *, slots: int | None = None) -> Experiment:
    """The sweep that runs each of `chosen` over `seeds` seeds above all that they had, seeds outermost: a part of it
    compares already. Nothing is stopped early; all else is as the search had it.
    """
    base = chosen[0].config
    first = max(one.config.seed for one in chosen) + 1
    changes = [difference(base, one.config) for one in chosen]
    points = tuple({**change, SEED: first + index} for index in range(seeds) for change in changes)
    place = str(result.folder.parent) if result.remote is None else storage.parent_of(result.remote)
    return Experiment.model_validate(
        result.placed.model_dump()
        | {
            "name": name(result.name, len(chosen), seeds),
            "space": SPACE,
            "base": base,
            "trials": len(points),
            "points": points,
            "fastest": None,  # each is compiled as it was
            "slots": slots or result.placed.slots,
            "stopping": StoppingConfig(enabled=False),
            "storage": place,
            "seed": first,
        }
    )


def name(of: str, trials: int, seeds: int) -> str:
    """`kernels-top3-seeds5`, of the letters that a sweep's name may have."""
    ending = f"-top{trials}-seeds{seeds}"
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", of)[: LONGEST_NAME - len(ending)]
    return (plain if plain[:1].isalnum() else f"s{plain[1:]}") + ending


def begun(wanted: Experiment) -> SweepResult | None:
    """What there is of it. RequestError where that is of other trials, or runs right now."""
    folder = wanted.folder
    if not ((folder / journal.FILE).exists() and journal.begun(folder)):
        return None
    found = results.read(folder)
    if found.live:
        raise RequestError(f"{folder} is being run right now; finalize when it has ended")
    same = (found.experiment.points, found.experiment.base) == (wanted.points, wanted.base)
    if not same:
        raise RequestError(
            f"{folder} must be the best trials of this sweep run again, but is of other ones, as the sweep has got "
            f"more trials since; move it away, or choose another number with --top or --seeds"
        )
    return found


def is_whole(found: SweepResult) -> bool:
    """Whether nothing is left to run."""
    ended = sum(trial.state not in ("WAITING", "RUNNING") for trial in found.trials)
    return ended == len(found.experiment.points)


def collect(found: SweepResult, chosen: Sequence[Candidate]) -> list[Judged]:
    """Each of `chosen` with the metric of its completed runs."""
    judgements = []
    for place, one in enumerate(chosen):
        runs = found.trials[place :: len(chosen)]
        missing = [f"trial {run.id} {run.state}: {run.reason}" for run in runs if run.value is None]
        values = [run.value for run in runs if run.value is not None]
        judgements.append(judged(one.trial, one.value, values, reason="; ".join(missing)))
    return judgements


def difference(base: TrialConfig, other: TrialConfig) -> dict[str, Any]:
    """The changes, by path, that make `other` of `base`, its seed apart; whole objects where their fields differ."""
    changes = _differences(base.model_dump(mode="json"), other.model_dump(mode="json"), "")
    changes.pop(SEED, None)
    wanted = other.model_copy(update={"seed": base.seed})
    if with_changes(base, changes) != wanted:  # a path that leads nowhere, such as through a name with a dot
        values = wanted.model_dump(mode="json")
        changes = {key: values[key] for key in dict.fromkeys(path.partition(".")[0] for path in changes)}
    return changes


def _differences(old: Any, new: Any, path: str) -> dict[str, Any]:
    if old == new:
        return {}
    below: list[tuple[str, Any, Any]] | None = None
    if (
        isinstance(old, dict)
        and isinstance(new, dict)
        and list(old) == list(new)
        and old.get("kind") == new.get("kind")
    ):
        below = [(key, old[key], new[key]) for key in old]
    elif _are_objects(old) and _are_objects(new) and len(old) == len(new):
        below = [(str(place), *pair) for place, pair in enumerate(zip(old, new, strict=True))]
    if below is None:
        return {path: new}
    found: dict[str, Any] = {}
    for key, one, another in below:
        found |= _differences(one, another, f"{path}.{key}" if path else key)
    return found


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
