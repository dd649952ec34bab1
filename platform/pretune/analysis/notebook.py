"""A sweep as values for a notebook: tables of pandas', configs, the best trial. `pretune.open` gives it.

pandas is imported when a table is asked for, so that opening a sweep takes a moment only.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretune.core import journal
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.history import State
from pretune.core.messages import validated
from pretune.core.records import Attempt, Ended, Epoch, Extended, Record, Started
from pretune.core.results import SweepResult, TrialResult
from pretune.request import request
from trainers.config import TrialConfig
from trainers.report import Checkpoint

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 20
"""Trials that a notebook shows of a sweep."""


@dataclass(frozen=True)
class Trial:
    """One trial. `value` is the metric of a COMPLETE one, None for any other; `checkpoint` is its newest, where
    `trainers.load_encoder` goes on from.
    """

    id: int
    state: State
    value: float | None
    epochs: int
    params: dict[str, Any]
    reason: str
    config: TrialConfig
    checkpoint: Checkpoint | None


class Sweep:
    """A sweep as its journal tells it at one moment, whether it runs or not: open it again to see more.

    In a notebook it shows itself as a table, the best trials first.
    """

    def __init__(self, result: SweepResult) -> None:
        self._result = result
        self._records = journal.read(result.folder, remote=result.remote)

    @classmethod
    def read(cls, sweep: str | Path, storage: str | Path) -> Sweep:
        """The sweep called `sweep`: a name below `storage`, a folder or a URI. RequestError where there is none."""
        return cls(request.read_sweep(str(sweep), str(storage)))

    @property
    def name(self) -> str:
        """Its folder's name."""
        return self._result.name

    @property
    def folder(self) -> Path:
        """Its folder; of a sweep in a bucket, the working copy on this machine."""
        return self._result.folder

    @property
    def experiment(self) -> Experiment:
        """What was asked: space, recipe, data, budget, sampler and the base config that the trials vary."""
        return self._result.experiment

    @property
    def metric(self) -> str:
        """What is searched for, `probe/linear` if nothing else was asked."""
        return self._result.metric

    @property
    def state(self) -> str:
        """`running`; how the last driver left it (`finished`, `exhausted`, `interrupted`, `failed`); or `killed`."""
        return "running" if self._result.live else self._result.closed or "killed"

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial, by its id.

        Columns: `state`, `epochs`, `value` (the metric of a COMPLETE trial), `reason`, `attempts`, `failures`,
        `seconds` (how long slots were busy with it), a column `params.<name>` for each sampled parameter, and one for
        each metric of its last epoch, named as everywhere (`probe/linear`, `loss/total`, `health/…`, `budget/…`).
        What a trial does not have is missing.
        """
        import pandas as pd

        seconds = _busy_seconds(self._records)
        rows = [
            {
                "state": trial.state,
                "epochs": trial.epochs,
                "value": trial.value,
                "reason": trial.reason,
                "attempts": trial.attempts,
                "failures": trial.failures,
                "seconds": seconds.get(trial.id),
                **{f"params.{name}": value for name, value in trial.params.items()},
                **trial.last_metrics,
            }
            for trial in self._result.trials
        ]
        fixed = ["state", "epochs", "value", "reason", "attempts", "failures", "seconds"]
        names = list(dict.fromkeys([*fixed, *sorted({name for row in rows for name in row}, key=_params_first)]))
        ids = pd.Index([trial.id for trial in self._result.trials], name="trial")
        table = pd.DataFrame(rows, columns=names, index=ids)
        return table.astype({"value": "float64", "seconds": "float64"})

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row per trial and epoch: `trial`, `epoch` (counted from 1), and a column for each metric.

        A curve per trial: `curves.pivot(index="epoch", columns="trial", values="probe/linear").plot()`.
        """
        import pandas as pd

        epochs: dict[tuple[int, int], dict[str, float]] = {}
        for record in self._records:
            if isinstance(record, Epoch):
                epochs[record.number, record.epoch] = record.metrics
            elif isinstance(record, Extended):  # what came after its checkpoint is told anew
                gone = [key for key in epochs if key[0] == record.number and key[1] > record.checkpoint.epoch]
                for key in gone:
                    del epochs[key]
        rows = [{"trial": trial, "epoch": epoch, **metrics} for (trial, epoch), metrics in sorted(epochs.items())]
        names = sorted({name for row in rows for name in row} - {"trial", "epoch"})
        return pd.DataFrame(rows, columns=["trial", "epoch", *names])

    def config(self, trial: int) -> TrialConfig:
        """What trial number `trial` was run as. RequestError where there is no such trial, or the space refused it."""
        return self.trial(trial).config

    def trial(self, number: int) -> Trial:
        """Trial number `number`. RequestError as for `config`."""
        found = self._result.trials
        if not 0 <= number < len(found):
            have = f"0 to {len(found) - 1}" if found else "of a sweep that has some"
            raise RequestError(f"the trial must be {have}, but is {number}; see `sweep.trials`")
        if found[number].config is None:
            raise RequestError(
                f"trial {number} of {self.name!r} has no config ({found[number].reason or found[number].state}); "
                "take another one"
            )
        return _trial(found[number])

    @property
    def best(self) -> Trial | None:
        """The COMPLETE trial of the best value; None before there is one. Of an ablation that is the luckiest seed of a
        level: compare the levels in `trials` instead.
        """
        best = self._result.best_trial
        return None if best is None else _trial(best)

    def __repr__(self) -> str:
        best = self._result.best_trial
        told = "no trial is complete" if best is None else f"best trial {best.id} with {self.metric} {best.value:.4g}"
        return f"<Sweep {self.name!r}: {self.state}, {len(self._result.trials)} of {self._result.asked} trials, {told}>"

    def _repr_html_(self) -> str:
        head, rows = self._result.table()
        table = "".join(
            f"<tr>{''.join(f'<{kind}>{html.escape(cell)}</{kind}>' for cell in row)}</tr>"
            for kind, row in [("th", head), *(("td", row) for row in rows[:SHOWN])]
        )
        more = f"<p>and {len(rows) - SHOWN} more in <code>.trials</code></p>" if len(rows) > SHOWN else ""
        return f"<p>{html.escape(repr(self)[1:-1])}</p><table>{table}</table>{more}"


def _trial(found: TrialResult) -> Trial:
    assert found.config is not None
    return Trial(
        id=found.id,
        state=found.state,
        value=found.value,
        epochs=found.epochs,
        params=found.params,
        reason=found.reason,
        config=validated(TrialConfig, found.config),
        checkpoint=found.checkpoint,
    )


def _params_first(name: str) -> tuple[bool, str]:
    return (not name.startswith("params."), name)


def _busy_seconds(records: Sequence[Record]) -> dict[int, float]:
    """Seconds by trial, from each of its starts to the last that was heard of it then."""
    seconds: dict[int, float] = {}
    heard: dict[int, float] = {}
    for record in records:
        match record:
            case Started():
                seconds.setdefault(record.number, 0.0)
            case Epoch() | Attempt() | Ended() if record.number in heard:
                seconds[record.number] += record.time - heard[record.number]
            case _:
                continue
        heard[record.number] = record.time
    return seconds
