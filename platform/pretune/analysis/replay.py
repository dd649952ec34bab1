"""`pretune replay SWEEP TRIAL`: one trial again, by itself and without Ray, against what the journal says of it.

The same config, data, seed and number of workers give the same numbers, bit for bit, on one type of CPU with the same
package versions, whatever else ran in the slot before. Where they do not, the first epoch that differs is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pretune.analysis.verify import timeless
from pretune.core.errors import RequestError
from pretune.core.results import SweepResult, check_understood
from pretune.execution import launch
from trainers.config import TrialConfig
from trainers.report import EpochReport, Outcome


@dataclass(frozen=True)
class EpochComparison:
    """One epoch: the journal's metrics and the replay's, times apart."""

    epoch: int
    told: Mapping[str, float]
    found: Mapping[str, float]

    @property
    def different(self) -> list[str]:
        """Names of the numbers that are not equal bit for bit."""
        return [
            name
            for name in dict.fromkeys([*self.told, *self.found])
            if name not in self.told or name not in self.found or self.told[name].hex() != self.found[name].hex()
        ]


def trial_of(result: SweepResult, number: int) -> TrialConfig:
    """The config of a trial that reported at least one epoch.

    RequestError where there is no such trial, or a later version wrote it; ValueError where a file that it names, of
    one's own code or of weights to start from, is not what it was.
    """
    check_understood(result)
    if not 0 <= number < len(result.trials):
        raise RequestError(f"TRIAL must be 0 to {len(result.trials) - 1}, but is {number}; see `pretune show`")
    trial = result.trials[number]
    if trial.extended:
        raise RequestError(
            f"trial {number} of {result.name!r} was trained longer after its end, from a checkpoint of a shorter "
            "schedule, so a run from the start differs; replay another one"
        )
    if trial.config is None or trial.epochs == 0:
        raise RequestError(
            f"trial {number} of {result.name!r} ({trial.state}) finished no epoch, so there is nothing to compare "
            "with; replay another one"
        )
    config = TrialConfig.model_validate(trial.config)
    config.check_own(result.experiment.workers_per_trial)
    config.check_init_file()
    return config


def run(
    config: TrialConfig, told: Mapping[int, Mapping[str, float]], folder: Path, *, workers: int
) -> tuple[list[EpochComparison], Outcome]:
    """Train `config` into `folder` up to the last epoch of `told`, the journal's.

    Raises as `launch.run`.
    """
    last = max(told)
    compared: list[EpochComparison] = []

    def compare(found: EpochReport) -> bool:
        journaled = told.get(found.epoch, {})
        compared.append(EpochComparison(found.epoch, _comparable(journaled), _comparable(found.metrics)))
        return found.epoch < last

    outcome = launch.run(config, folder=folder, workers=workers, report=compare)
    return compared, outcome


def _comparable(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without times, and without `epoch`: not every journal has it among the metrics."""
    return {name: value for name, value in timeless(metrics).items() if name != "epoch"}
