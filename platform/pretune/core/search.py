"""What to try next: Optuna, asked and told through the journal alone.

No sampler state is kept. Each ask builds an in-memory study from the trials' histories and uses a fresh sampler
seeded by (seed, trial number): the proposal is a pure function of the journal, so a sweep that was killed asks the
same as one that was not. Optuna is told the honest end of each trial:

* COMPLETE with the last value of the metric (the best over epochs would reward luck).
* PRUNED: stopped early, with its intermediate values by epoch; TPE ranks it by how far it got, then by its last value.
* INFEASIBLE: diverged, collapsed, out of memory, or refused by the space; to Optuna it is pruned with a violated
  constraint, which TPE puts behind everything else.
* FAIL: a failure of the machine; it teaches the sampler nothing.

No Ray here: `tuning.py` puts this behind Ray Tune's searcher.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.samplers import BaseSampler, BruteForceSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import ValidationError

from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.history import TrialHistory
from pretune.core.messages import describe
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.files import opened_whole

Space = Callable[[optuna.Trial, TrialConfig], TrialConfig]

PROBES = 64
"""Random draws that look at a space before anything starts. A branch taken once in ten draws is then missed once in
850 times.
"""

_STATES = {
    "WAITING": TrialState.RUNNING,
    "RUNNING": TrialState.RUNNING,
    "COMPLETE": TrialState.COMPLETE,
    "PRUNED": TrialState.PRUNED,
    "INFEASIBLE": TrialState.PRUNED,
    "FAIL": TrialState.FAIL,
}


@dataclass(frozen=True)
class Proposal:
    """What the sampler wants tried. Where the space refused the parameters `config` is None, `refusal` says why."""

    number: int
    params: dict[str, Any]
    distributions: dict[str, str]
    config: TrialConfig | None
    refusal: str = ""
    duplicate_of: int | None = None


class Search:
    """Optuna's samplers over one space. `space(trial, base)` returns the config to try."""

    def __init__(self, experiment: Experiment, space: Space) -> None:
        self.experiment = experiment
        self.space = space
        # What CMA-ES noted on each trial (its generation and, once per generation, its whole state). Recomputed from
        # the histories when missing: Optuna pickles it, and a journal must never have to be unpickled.
        self._notes: dict[int, dict[str, Any]] = {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)

    def check(self) -> None:
        """Looks at the space with random draws, before anything is started.

        Raises:
            RequestError: the space raises on every draw, does not return a TrialConfig, or does not suit the sampler.
        """
        if self.experiment.points:
            for number in range(len(self.experiment.points)):
                self._point(number)
            return
        rng = RandomSampler(seed=_seed(self.experiment.seed, 2**31))
        study = _study(rng, self.experiment.maximize)
        draws: list[dict[str, BaseDistribution]] = []
        refusals: list[str] = []
        for _ in range(PROBES):
            trial = study.ask()
            config, refusal = self._config(trial)
            (refusals.append(refusal) if config is None else draws.append(trial.distributions))
            study.tell(trial, state=TrialState.FAIL)
        if not draws:
            raise RequestError(
                f"all of {PROBES} random draws were refused, the last one so: {refusals[-1]}; "
                f"correct the space, or choose a recipe it is made for"
            )
        match self.experiment.sampler:
            case "grid":
                for draw in draws:
                    for name, distribution in draw.items():
                        _refuse_continuous(name, distribution)
            case "cmaes":
                _refuse_categorical_or_conditional(draws)
            case "tpe" | "random":
                pass

    def ask(self, trials: Sequence[TrialHistory]) -> Proposal | None:
        """The next proposal after `trials`, or None where the grid, or an ablation, has no more points.

        Raises:
            RequestError: the space raises something else than `optuna.TrialPruned` or ValueError, does not return a
                TrialConfig, or has a parameter that the sampler cannot take (named).
        """
        number = len(trials)
        if self.experiment.points:
            return self._point(number) if number < len(self.experiment.points) else None
        trial = self._ask_optuna(trials)
        config, refusal = self._config(trial)
        params = trial.params
        distributions = trial.distributions
        if self.experiment.sampler == "cmaes" and config is not None:
            known = [_distributions(other) for other in trials if other.config is not None][:1]
            _refuse_categorical_or_conditional([*known, distributions])
        duplicate_of = next((other.number for other in trials if other.params == params), None)
        if duplicate_of is not None and self.experiment.sampler == "grid":
            # Brute force repeats a point only when no point is left that was neither tried nor is being tried.
            return None
        return Proposal(
            number=number,
            params=params,
            distributions={name: distribution_to_json(value) for name, value in distributions.items()},
            config=config,
            refusal=refusal,
            duplicate_of=duplicate_of,
        )

    def refusal(self, params: dict[str, Any]) -> str:
        """Why the space refuses `params`, told again for a trial whose end a killed driver did not write."""
        # It has all that a space may ask of a trial, but is not Optuna's class of a running one.
        _, refusal = self._config(cast(optuna.Trial, optuna.trial.FixedTrial(params)))
        return refusal or f"space {self.experiment.space!r} refused {params}"

    def study(self, trials: Sequence[TrialHistory]) -> optuna.Study:
        """The study as Optuna sees it after `trials`."""
        return self._build(trials, RandomSampler(), at=None)

    def write_study(self, trials: Sequence[TrialHistory], path: Path) -> None:
        """Writes that study to `path` anew, as a journal of Optuna's own, for optuna-dashboard. Never read here."""
        seen = self.study(trials)
        with opened_whole(path) as file:
            storage = JournalStorage(JournalFileBackend(file.name))
            copy = optuna.create_study(storage=storage, study_name=self.experiment.name, direction=seen.direction)
            copy.add_trials(seen.trials)

    def _point(self, number: int) -> Proposal:
        """An ablation's trial; RequestError where it is no valid config, or cannot run with this sweep's workers."""
        point = self.experiment.points[number]
        try:
            config = with_changes(self.experiment.base, point)
            config.check_workers(self.experiment.workers_per_trial)
        except ValueError as error:
            raise RequestError(f"{point}: {_in_words(error)}") from error
        distributions: dict[str, str] = {}
        for path in point:
            levels: list[Any] = []
            for other in self.experiment.points:
                if path in other and other[path] not in levels:
                    levels.append(other[path])
            distributions[path] = distribution_to_json(CategoricalDistribution(levels))
        return Proposal(number=number, params=point, distributions=distributions, config=config)

    def _config(self, trial: optuna.Trial) -> tuple[TrialConfig | None, str]:
        """The space's config for `trial`, or None and why it was refused."""
        name = self.experiment.space
        try:
            config = self.space(trial, self.experiment.base)
            if not isinstance(config, TrialConfig):
                raise RequestError(
                    f"space {name!r} must return a trainers.config.TrialConfig, but returned {type(config).__name__}; "
                    f"end it with `return base.model_copy(...)` or a new TrialConfig"
                )
            # model_copy checks nothing: whatever the space did, what leaves here is valid.
            config = TrialConfig.model_validate(config.model_dump(mode="json"))
            config.check_workers(self.experiment.workers_per_trial)
        except RequestError:
            raise
        except (optuna.TrialPruned, ValueError) as error:
            why = _in_words(error) or type(error).__name__
            return None, f"space {name!r} refuses {trial.params}: {why}"
        except Exception as error:
            raise RequestError(
                f"space {name!r} raised {type(error).__name__} for {trial.params}: {error}; correct it (to refuse "
                f"parameters, raise ValueError or optuna.TrialPruned)"
            ) from error
        return config, ""

    def _ask_optuna(self, trials: Sequence[TrialHistory]) -> optuna.Trial:
        number = len(trials)
        if self.experiment.sampler == "cmaes":
            for earlier in range(number):
                if earlier not in self._notes:
                    known = trials[:earlier]
                    self._note(earlier, *self._started(known, at=trials[earlier].asked_at))
        study, trial = self._started(trials, at=None)
        if self.experiment.sampler == "cmaes":
            self._note(number, study, trial)
        return trial

    def _started(self, trials: Sequence[TrialHistory], *, at: int | None) -> tuple[optuna.Study, optuna.Trial]:
        study = self._build(trials, self._sampler(len(trials)), at=at)
        return study, study.ask()

    def _note(self, number: int, study: optuna.Study, trial: optuna.Trial) -> None:
        self._notes[number] = dict(study.get_trials(deepcopy=False)[trial.number].system_attrs)

    def _sampler(self, number: int) -> BaseSampler:
        seed = _seed(self.experiment.seed, number)
        with warnings.catch_warnings():
            # Group decomposition, brute force and pruned trials in CMA-ES are marked experimental; we pin Optuna's
            # version.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            match self.experiment.sampler:
                case "tpe":
                    return TPESampler(
                        seed=seed,
                        n_startup_trials=self.experiment.random_trials,
                        multivariate=True,
                        group=True,
                        constant_liar=True,
                    )
                case "random":
                    return RandomSampler(seed=seed)
                case "grid":
                    return _Grid(seed=seed)
                case "cmaes":
                    # Stopped trials count with their last value: else a generation of trials that all stop never ends.
                    return CmaEsSampler(seed=seed, consider_pruned_trials=True, warn_independent_sampling=False)

    def _build(self, trials: Sequence[TrialHistory], sampler: BaseSampler, *, at: int | None) -> optuna.Study:
        """A study of `trials` as they were just before record `at` (None: as they are)."""
        study = _study(sampler, self.experiment.maximize)
        study.add_trials(
            [self._frozen(trial, running=at is not None and not _ended_before(trial, at)) for trial in trials]
        )
        return study

    def _frozen(self, trial: TrialHistory, *, running: bool) -> FrozenTrial:
        state = TrialState.RUNNING if running else _STATES[trial.state]
        infeasible = trial.state == "INFEASIBLE" and not running
        values: dict[int, float] = {}
        # CMA-ES knows no constraints and would take the last value of a trial that went on to diverge for its worth.
        if state.is_finished() and not (infeasible and self.experiment.sampler == "cmaes"):
            metric = self.experiment.metric
            values = {epoch: metrics[metric] for epoch, metrics in trial.epochs.items() if metric in metrics}
        return create_trial(
            state=state,
            value=trial.value if state == TrialState.COMPLETE else None,
            params=trial.params,
            distributions=_distributions(trial),
            intermediate_values=values,
            constraints={"feasible": 1.0} if infeasible else None,
            system_attrs=self._notes.get(trial.number),
        )


class _Grid(BruteForceSampler):
    """Refuses a continuous parameter by name; Optuna's own ValueError would look like a refusal by the space."""

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        _refuse_continuous(param_name, param_distribution)
        return super().sample_independent(study, trial, param_name, param_distribution)


def _study(sampler: BaseSampler, maximize: bool) -> optuna.Study:
    return optuna.create_study(sampler=sampler, direction="maximize" if maximize else "minimize")


def _seed(seed: int, number: int) -> int:
    """A seed for one ask: neighbors in either argument give unrelated ones, and (1, 0) is not (0, 1)."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _in_words(error: Exception) -> str:
    return describe(error, TrialConfig) if isinstance(error, ValidationError) else str(error)


def _distributions(trial: TrialHistory) -> dict[str, BaseDistribution]:
    return {name: json_to_distribution(text) for name, text in trial.distributions.items()}


def _ended_before(trial: TrialHistory, position: int) -> bool:
    return trial.ended_at is not None and trial.ended_at < position


def _refuse_continuous(name: str, distribution: BaseDistribution) -> None:
    if isinstance(distribution, FloatDistribution) and distribution.step is None and not distribution.single():
        raise RequestError(
            f"sampler 'grid' needs finitely many points, but parameter {name!r} is continuous "
            f"({distribution.low:g} to {distribution.high:g} without a step); give it a step, or choose from a list of "
            f"values, or use --sampler tpe"
        )


def _refuse_categorical_or_conditional(draws: Sequence[dict[str, BaseDistribution]]) -> None:
    first = draws[0]
    for draw in draws:
        for name, distribution in draw.items():
            if isinstance(distribution, CategoricalDistribution) and not distribution.single():
                raise RequestError(
                    f"sampler 'cmaes' takes numbers only, but parameter {name!r} is categorical "
                    f"({list(distribution.choices)}); use --sampler tpe"
                )
        for name in dict.fromkeys([*first, *draw]):
            if first.get(name) != draw.get(name):
                how = "appears in some trials only" if name not in first or name not in draw else "changes its range"
                raise RequestError(
                    f"sampler 'cmaes' needs the same parameters in each trial, but {name!r} is conditional (it {how}); "
                    f"use --sampler tpe"
                )
