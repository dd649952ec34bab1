"""What to try next: who proposes a sweep's trials, and how Optuna does, asked and told through the journal alone.

No sampler state is kept. Each ask builds an in-memory study from the trials' histories (`study.py`) and uses a fresh
sampler seeded by (seed, trial number): the proposal is a pure function of the journal, so a sweep that was killed asks
the same as one that was not.

No Ray here: `tuning.py` puts this behind Ray Tune's searcher.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)
from optuna.samplers import BaseSampler, BruteForceSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from pretune.core import study as studies
from pretune.core.errors import RequestError, exit_place
from pretune.core.experiment import Experiment
from pretune.core.history import TrialHistory
from pretune.core.messages import in_words
from pretune.core.parameters import Names, SpaceTrial, ToldTrial, exhausted, size
from trainers.arrival import arriving
from trainers.config import TrialConfig
from trainers.usercode import ChangedError, LostError, line_of, place_of

Space = Callable[[optuna.Trial, TrialConfig], TrialConfig]

PROBES = 64
"""Random draws that look at a space before anything starts. A branch taken once in ten draws is then missed once in
850 times.
"""


REPEATS_IN_A_ROW = 3
"""So many repeated trials one after another mean that the sampler has settled: what it left out comes next, so that a
finite space comes to its end.
"""
MOST_VALUES = 10_000
"""A whole number with more values than that is looked at as if it had no end."""


@dataclass(frozen=True)
class Proposal:
    """What is to be tried. Where the parameters give no config that can run `config` is None, `refusal` says why."""

    number: int
    params: dict[str, Any]
    distributions: dict[str, str]
    config: TrialConfig | None
    refusal: str = ""
    duplicate_of: int | None = None


class Proposer(Protocol):
    """What proposes the trials of one experiment. All it knows of them comes in as their histories: the same histories
    give the same answers, in whichever process.
    """

    def check(self) -> list[TrialConfig]:
        """Looks at what it will propose before anything is started, and returns it, or draws of it. RequestError where
        that cannot be run.
        """

    def ask(self, trials: Sequence[TrialHistory]) -> Proposal | None:
        """The next proposal after `trials`, or None where there is no other. RequestError where it cannot go on."""

    def refusal(self, params: dict[str, Any]) -> str:
        """Why `params` give no config, told again for a trial whose end a killed driver did not write."""

    def study(self, trials: Sequence[TrialHistory]) -> optuna.Study:
        """The study as Optuna sees it after `trials`."""


class Search:
    """Optuna's samplers over one space. `space(trial, base)` returns the config to try."""

    def __init__(self, experiment: Experiment, space: Space) -> None:
        self.experiment = experiment
        self.space = space
        # What CMA-ES noted on each trial (its generation and, once per generation, its whole state). Recomputed from
        # the histories when missing: Optuna pickles it, and a journal must never have to be unpickled.
        self._notes: dict[int, dict[str, Any]] = {}

    def check(self) -> list[TrialConfig]:
        """Looks at the space with random draws, and returns what they gave.

        Raises:
            RequestError: the space raises on every draw, does not return a TrialConfig, or does not suit the sampler.
        """
        rng = RandomSampler(seed=_seed(self.experiment.seed, 2**31))
        study = studies.empty(self.experiment, rng)
        draws: list[dict[str, BaseDistribution]] = []
        refusals: list[str] = []
        found: list[TrialConfig] = []
        names = Names()
        for _ in range(PROBES):
            trial = SpaceTrial(study.ask(), names)
            config, refusal = self._config(trial)
            if config is None:
                refusals.append(refusal)
            else:
                found.append(config)
                draws.append(trial.distributions)
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
        return found

    def ask(self, trials: Sequence[TrialHistory]) -> Proposal | None:
        """The next proposal after `trials`, or None where a finite space has no more points.

        Raises:
            RequestError: the space raises something else than `optuna.TrialPruned` or ValueError, does not return a
                TrialConfig, or has a parameter that the sampler cannot take (named).
        """
        trial = SpaceTrial(self._ask_optuna(trials), studies.names(trials))
        config, refusal = self._config(trial)
        if self._is_stuck(trial, trials) and (untried := self._untried(trials)) is not None:
            trial, config, refusal = untried
        if self.experiment.sampler == "cmaes" and config is not None:
            known = [studies.distributions(other) for other in trials if other.config is not None][:1]
            _refuse_categorical_or_conditional([*known, trial.distributions])
        duplicate_of = next((other.number for other in trials if other.params == trial.told), None)
        # Brute force repeats a point only when no point is left that was neither tried nor is being tried.
        if duplicate_of is not None and (self.experiment.sampler == "grid" or self._exhausted(trial, trials)):
            return None
        return Proposal(
            number=len(trials),
            params=trial.told,
            distributions=trial.drawn_from,
            config=config,
            refusal=refusal,
            duplicate_of=duplicate_of,
        )

    def _exhausted(self, repeated: SpaceTrial, trials: Sequence[TrialHistory]) -> bool:
        """Whether the sampler repeats a trial because nothing else is left."""
        if any(size(distribution) is None for distribution in repeated.distributions.values()):
            return False
        return exhausted((trial.params, studies.distributions(trial)) for trial in trials)

    def _is_stuck(self, trial: SpaceTrial, trials: Sequence[TrialHistory]) -> bool:
        """Whether a sampler that does not look for untried points repeats one point of a finite space after another."""
        before = trials[-REPEATS_IN_A_ROW:]
        return (
            self.experiment.sampler in ("tpe", "random")
            and len(before) == REPEATS_IN_A_ROW
            and all(other.duplicate_of is not None for other in before)
            and any(other.params == trial.told for other in trials)
            and all(_is_small(one) for asked in trials for one in studies.distributions(asked).values())
            and not self._exhausted(trial, trials)
        )

    def _untried(self, trials: Sequence[TrialHistory]) -> tuple[SpaceTrial, TrialConfig | None, str] | None:
        """A point that was not tried, with what the space makes of it; None where an untried branch has no end."""
        study = studies.of(self.experiment, trials, sampler=self._exhaustive(len(trials)))
        trial = SpaceTrial(study.ask(), studies.names(trials))
        try:
            config, refusal = self._config(trial)
        except RequestError:
            return None
        return None if any(other.params == trial.told for other in trials) else (trial, config, refusal)

    def refusal(self, params: dict[str, Any]) -> str:
        _, refusal = self._config(ToldTrial(params))
        return refusal or f"space {self.experiment.space!r} refused {params}"

    def study(self, trials: Sequence[TrialHistory]) -> optuna.Study:
        return studies.of(self.experiment, trials, notes=self._notes)

    def _config(self, trial: SpaceTrial | ToldTrial) -> tuple[TrialConfig | None, str]:
        """The space's config for `trial`, or None and why it was refused."""
        name = self.experiment.space
        try:
            config = called(self.space, trial, self.experiment.base)
            if not isinstance(config, TrialConfig):
                raise RequestError(
                    f"space {name!r} must return a trainers.config.TrialConfig, but returned {type(config).__name__}; "
                    f"end it with `return base.model_copy(...)` or a new TrialConfig"
                )
            # model_copy checks nothing: whatever the space did, what leaves here is valid, and is what will run.
            config = completed(arriving(config), self.experiment)
        except RequestError:
            raise
        except LostError as error:
            raise RequestError(f"space {name!r} returns a config that would not arrive: {error}") from error
        except ChangedError as error:  # no fault of the parameters: each proposal from now on would be refused
            raise RequestError(str(error)) from error
        except (optuna.TrialPruned, ValueError) as error:
            if _changes_a_frozen_one(error):
                raise RequestError(
                    f"space {name!r} must leave configs as they are, but changes one{_place(error, self.space)}; make "
                    f"a changed copy, with `with_changes(base, …)` or `model_copy(update=…)`"
                ) from error
            why = in_words(error) or type(error).__name__
            return None, f"space {name!r} refuses {trial.params}: {why}"
        except SystemExit as error:
            raise RequestError(
                f"space {name!r} ends the whole program for {trial.params}, in {exit_place(error)}; let it return a "
                f"config (to refuse parameters, raise ValueError or optuna.TrialPruned)"
            ) from error
        except Exception as error:
            raise RequestError(
                f"space {name!r} raised {type(error).__name__}{_place(error, self.space)} for {trial.params}: {error}; "
                f"correct it (to refuse parameters, raise ValueError or optuna.TrialPruned)"
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
        study = studies.of(self.experiment, trials, sampler=self._sampler(len(trials)), notes=self._notes, at=at)
        return study, study.ask()

    def _note(self, number: int, study: optuna.Study, trial: optuna.Trial) -> None:
        # Optuna draws when the first parameter is asked for; only then is anything noted on the trial.
        _ = trial.relative_params
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
                    return self._exhaustive(number)
                case "cmaes":
                    # Stopped trials count with their last value: else a generation of trials that all stop never ends.
                    return CmaEsSampler(seed=seed, consider_pruned_trials=True, warn_independent_sampling=False)

    def _exhaustive(self, number: int) -> BaseSampler:
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            return _Grid(seed=_seed(self.experiment.seed, number))


def called(space: Space, trial: SpaceTrial | ToldTrial, base: TrialConfig) -> TrialConfig:
    """What `space` returns, given a copy of `base` of its own: whatever it does to it, other trials begin alike."""
    # A told trial has all that a space may ask of a trial, but is not Optuna's class of a running one.
    return space(cast(optuna.Trial, trial), base.model_copy(deep=True))


def completed(config: TrialConfig, experiment: Experiment) -> TrialConfig:
    """`config`, checked for the workers of this sweep, with the hashes of one's own parts in it. ValueError as of
    `TrialConfig.check_own`.
    """
    config.check_workers(experiment.workers_per_trial)
    complete = config.completed()
    complete.check_own(experiment.workers_per_trial)
    return complete


class _Grid(BruteForceSampler):
    """Refuses by name what it cannot count through; Optuna's own ValueErrors would look like refusals by the space."""

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        _refuse_continuous(param_name, param_distribution)
        try:
            return super().sample_independent(study, trial, param_name, param_distribution)
        except ValueError as error:
            raise RequestError(
                f"sampler 'grid' needs a space that asks for the same parameters, from the same values, wherever those "
                f"before have the same values, but {param_name!r} does not ({error}); make it a function of the trial"
            ) from error


def _seed(seed: int, number: int) -> int:
    """A seed for one ask: neighbors in either argument give unrelated ones, and (1, 0) is not (0, 1)."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _changes_a_frozen_one(error: Exception) -> bool:
    """Whether `error` is pydantic's, of somebody who sets a field of a config."""
    return isinstance(error, ValidationError) and any("frozen" in problem["type"] for problem in error.errors())


def _place(error: BaseException, space: Space) -> str:
    """` in line 12 of /home/me/mine.py (`base.epochs = 3`)`; empty where the space's own file did not raise it."""
    try:
        place = place_of(error, space)
    except TypeError:  # made by a call (functools.partial): it has no file
        return ""
    return f" in {place.removesuffix(', ')} (`{line_of(error, space)}`)" if place else ""


def _is_small(distribution: BaseDistribution) -> bool:
    count = size(distribution)
    return count is not None and count <= MOST_VALUES


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
