"""Which of a sweep's trials, in which order, with which of their numbers: filters, order and columns of `pretune show`.

A column is `trial`, `state`, `epochs`, `value` (the searched metric, or its name), `stderr`, `attempts`, `failures`,
`reason`, a parameter by its name or the end of it that no other has, or a metric of the last epoch by its name.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pretune.core.errors import RequestError
from pretune.core.history import State
from pretune.core.messages import did_you_mean
from pretune.core.results import SweepResult, TrialResult

STATES: tuple[str, ...] = get_args(State)


@dataclass(frozen=True)
class Column:
    """One number or word of each trial; None where a trial has none."""

    name: str
    of: Callable[[TrialResult], Any]


def trials(result: SweepResult, *, states: Sequence[str] = (), sort: str | None = None) -> list[TrialResult]:
    """Those in one of `states` (all without any), best first, or by the column `sort`, smallest first; with a `-`
    before its name greatest first. A trial without that number comes last. RequestError for an unknown name.
    """
    wanted = {_state(text) for text in states}
    found = [trial for trial in result.ranked() if not wanted or trial.state in wanted]
    if sort is None:
        return found
    of = column(result, sort.removeprefix("-"), spelled="--sort").of
    known = [trial for trial in found if not _is_missing(of(trial))]
    known.sort(key=lambda trial: _order(of(trial)), reverse=sort.startswith("-"))
    return known + [trial for trial in found if _is_missing(of(trial))]


def columns(result: SweepResult, listed: str | None) -> list[Column]:
    """`a,b` as columns; without a list all that say what a trial is and what it is worth."""
    if listed is None:
        names = list(dict.fromkeys(name for trial in result.trials for name in trial.params))
        return [
            column(result, name) for name in ("trial", "state", "epochs", result.metric, "stderr", *names, "reason")
        ]
    names = [name.strip() for name in listed.split(",") if name.strip()]
    if not names:
        raise RequestError("--columns must name one column or more, such as trial,state,value")
    return [column(result, name) for name in names]


def column(result: SweepResult, name: str, *, spelled: str = "--columns") -> Column:
    """The column called so. RequestError with the nearest names where there is none."""
    fixed: dict[str, Callable[[TrialResult], Any]] = {
        "trial": lambda trial: trial.id,
        "state": lambda trial: trial.state,
        "epochs": lambda trial: trial.epochs,
        "value": lambda trial: shown(result, trial),
        "stderr": lambda trial: trial.last_metrics.get(f"{result.metric}_stderr"),
        "attempts": lambda trial: trial.attempts,
        "failures": lambda trial: trial.failures,
        "reason": lambda trial: trial.reason,
    }
    if name in fixed:
        return Column(name, fixed[name])
    if name == result.metric:
        return Column(name, fixed["value"])
    parameters = dict.fromkeys(known for trial in result.trials for known in trial.params)
    ending = [known for known in parameters if known == name or known.endswith(f".{name}")]
    if name in parameters or len(ending) == 1:
        whole = name if name in parameters else ending[0]
        return Column(name, lambda trial: trial.params.get(whole))
    told = dict.fromkeys(known for trial in result.trials for known in trial.last_metrics)
    if name in told:
        return Column(name, lambda trial: trial.last_metrics.get(name))
    if ending:
        raise RequestError(f"{spelled} {name!r} could be {', '.join(ending)}; name it whole")
    raise RequestError(f"{spelled} {name!r} is no column; {did_you_mean(name, [*fixed, *parameters, *told])}")


def shown(result: SweepResult, trial: TrialResult) -> float | None:
    """The searched metric, of whatever state the trial is."""
    return trial.last_metrics.get(result.metric) if trial.value is None else trial.value


def as_csv(found: Sequence[TrialResult], wanted: Sequence[Column]) -> str:
    """Heads and one line for each trial, numbers to their last digit, what is missing empty; lists as JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([one.name for one in wanted])
    writer.writerows([[_cell(one.of(trial)) for one in wanted] for trial in found])
    return text.getvalue()


def _state(text: str) -> str:
    if text.upper() not in STATES:
        raise RequestError(f"--state must be one of {', '.join(STATES)}, but is {text!r}; {did_you_mean(text, STATES)}")
    return text.upper()


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _order(value: Any) -> tuple[int, Any]:
    """Numbers before words; two of one name may be of both kinds."""
    if isinstance(value, int | float):
        return 0, value
    return 1, value if isinstance(value, str) else json.dumps(value)


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value
