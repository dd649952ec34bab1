"""What to try next: who proposes a sweep's trials, and how Optuna does, asked and told through the journal alone.

Each ask uses a fresh sampler, seeded by (seed, trial number), over what is told of the trials so far: the proposal is a
pure function of the journal, so a sweep that was killed asks the same as one that was not. What is told is kept from
ask to ask and brought up to date with the trials that have changed; after a kill it is built from the histories once.
So an ask does not get slower with the number of trials.

No Ray here: `tuning.py` puts this behind Ray Tune's searcher.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, cast

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
)
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.trial import BaseTrial, FrozenTrial, TrialState
from pydantic import ValidationError

from pretune.core import study as studies
from pretune.core.errors import RequestError, exit_place
from pretune.core.experiment import Experiment
from pretune.core.grid import Grid, refuse_continuous
from pretune.core.history import TrialHistory
from pretune.core.known import Known
from pretune.core.messages import in_words
from pretune.core.parameters import Names, SpaceTrial, ToldTrial, size
from pretune.core.tpe import Tpe
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


@dataclass(frozen=True)
class Proposal:
    """What is to be tried. Where the parameters give no config that can run `config` is None, `refusal` says why."""

    number: int
    params: dict[str, Any]
    distributions: dict[str, str]
    config: TrialConfig | None
    refusal: str = ""
    duplicate_of: int | None = None


class Wait(Enum):
    """No proposal for now."""

    FOR_TRIALS = "for trials"
    """What comes next depends on those that have not ended."""


class Proposer(Protocol):
    """What proposes the trials of one experiment. All it knows of them comes in as their histories: the same histories
    give the same answers, in whichever process.
    """

    def check(self) -> list[TrialConfig]:
        """Looks at what it will propose before anything is started, and returns it, or draws of it. RequestError where
        that cannot be run.
        """

    def ask(self, trials: Sequence[TrialHistory]) -> Proposal | Wait | None:
        """The next proposal after `trials`, `Wait` where that is not known before one of them ends, or None where there
        is no other. RequestError where it cannot go on.
        """

    def refusal(self, params: dict[str, Any]) -> str:
        """Why `params` give no config, told again for a trial whose end a killed driver did not write."""


class Search:
    """Optuna's samplers over one space. `space(trial, base)` returns the config to try."""

    def __init__(self, experiment: Experiment, space: Space) -> None:
        self.experiment = experiment
        self.space = space
        self._known = Known(experiment, self._draw_again)

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
                        refuse_continuous(name, distribution)
            case "cmaes":
                _refuse_categorical_or_conditional(draws)
            case "tpe" | "random":
                pass
        return found

    def drawn(self, sampler: BaseSampler, count: int) -> list[TrialConfig]:
        """What the space gives for `count` draws of `sampler`; what it refuses is left out. RequestError as `ask`."""
        study = studies.empty(self.experiment, sampler)
        names = Names()
        found: list[TrialConfig] = []
        for _ in range(count):
            trial = SpaceTrial(study.ask(), names)
            config, _ = self._config(trial)
            if config is not None:
                found.append(config)
            study.tell(trial, state=TrialState.FAIL)
        return found

    def ask(self, trials: Sequence[TrialHistory]) -> Proposal | None:
        """The next proposal after `trials`, or None where a finite space has no more points.

        Raises:
            RequestError: the space raises something else than `optuna.TrialPruned` or ValueError, does not return a
                TrialConfig, or has a parameter that the sampler cannot take (named).
        """
        known = self._known.after(trials)
        points = self.experiment.warm_points
        wanted = points[known.proposed] if known.proposed < len(points) else None
        trial, storage = self._asked(self._sampler(len(trials)), wanted)
        config, refusal = self._config(trial)
        if self._is_stuck(trial, trials) and (untried := self._untried()) is not None:
            trial, config, refusal = untried
        if self.experiment.sampler == "cmaes":
            # Optuna draws when the first parameter is asked for; only then is anything noted on the trial.
            _ = trial.relative_params
            known.generations.note(len(trials), dict(storage.asked.system_attrs))
            if config is not None:
                _refuse_categorical_or_conditional([*known.configured, trial.distributions])
        duplicate_of = known.first_with(trial.told)
        # Brute force repeats a point only when no point is left that was neither tried nor is being tried.
        if duplicate_of is not None and (self.experiment.sampler == "grid" or self._exhausted(trial)):
            return None
        return Proposal(
            number=len(trials),
            params=trial.told,
            distributions=trial.drawn_from,
            config=config,
            refusal=refusal,
            duplicate_of=duplicate_of,
        )

    def _exhausted(self, repeated: SpaceTrial) -> bool:
        """Whether the sampler repeats a trial because nothing else is left."""
        if any(size(distribution) is None for distribution in repeated.distributions.values()):
            return False
        return self._known.exhausted

    def _is_stuck(self, trial: SpaceTrial, trials: Sequence[TrialHistory]) -> bool:
        """Whether a sampler that does not look for untried points repeats one point of a finite space after another."""
        before = trials[-REPEATS_IN_A_ROW:]
        return (
            self.experiment.sampler in ("tpe", "random")
            and len(before) == REPEATS_IN_A_ROW
            and all(other.duplicate_of is not None for other in before)
            and self._known.first_with(trial.told) is not None
            and self._known.small
            and not self._exhausted(trial)
        )

    def _untried(self) -> tuple[SpaceTrial, TrialConfig | None, str] | None:
        """A point that was not tried, with what the space makes of it; None where an untried branch has no end."""
        trial, _ = self._asked(self._grid(self._known.number))
        try:
            config, refusal = self._config(trial)
        except RequestError:
            return None
        return None if self._known.first_with(trial.told) is not None else (trial, config, refusal)

    def drawn_from(self) -> dict[str, set[str]]:
        """What its parameters are drawn from, by name, as the journal has it: seen in random draws."""
        study = studies.empty(self.experiment, RandomSampler(seed=_seed(self.experiment.seed, 2**31)))
        found: dict[str, set[str]] = {}
        for _ in range(PROBES):
            trial = SpaceTrial(study.ask(), Names())
            self._config(trial)
            for name, text in trial.drawn_from.items():
                found.setdefault(name, set()).add(text)
            study.tell(trial, state=TrialState.FAIL)
        return found

    def refusal(self, params: dict[str, Any]) -> str:
        _, refusal = self._config(ToldTrial(params))
        return refusal or f"space {self.experiment.space!r} refused {params}"

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

    def _asked(self, sampler: BaseSampler, wanted: dict[str, Any] | None = None) -> tuple[SpaceTrial, studies.OneAsk]:
        """A trial of `sampler`'s, for a space to ask, and where it lies; `wanted` is as for `SpaceTrial`."""
        storage = studies.OneAsk(self.experiment, self._known.seen(), self._known.number)
        return SpaceTrial(storage.study(sampler).ask(), self._known.names.copy(), wanted), storage

    def _draw_again(self, number: int, seen: Sequence[FrozenTrial]) -> dict[str, Any]:
        """What CMA-ES notes on trial `number` when it has been shown `seen`."""
        storage = studies.OneAsk(self.experiment, seen, number)
        _ = storage.study(self._sampler(number)).ask().relative_params
        return dict(storage.asked.system_attrs)

    def _sampler(self, number: int) -> BaseSampler:
        seed = _seed(self.experiment.seed, number)
        match self.experiment.sampler:
            case "tpe" if self.experiment.beside:
                # Ours ranks by one objective. These settings are marked experimental; we pin Optuna's version.
                with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
                    return TPESampler(
                        seed=seed,
                        n_startup_trials=self.experiment.random_trials,
                        multivariate=True,
                        group=True,
                        constant_liar=True,
                    )
            case "tpe":
                return Tpe(self._known.observations, seed=seed, startup_trials=self.experiment.random_trials)
            case "random":
                return RandomSampler(seed=seed)
            case "grid":
                return self._grid(number)
            case "cmaes":
                # Pruned trials in CMA-ES are marked experimental; we pin Optuna's version.
                with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
                    # Stopped trials count with their last value: else a generation of trials that all stop never ends.
                    return CmaEsSampler(seed=seed, consider_pruned_trials=True, warn_independent_sampling=False)

    def _grid(self, number: int) -> Grid:
        return Grid(self._known.tree, seed=_seed(self.experiment.seed, number))


def called(space: Space, trial: BaseTrial, base: TrialConfig) -> TrialConfig:
    """What `space` returns, given a copy of `base` of its own: whatever it does to it, other trials begin alike."""
    # Each kind has all that a space may ask of a trial, but is not Optuna's class of a running one.
    return space(cast(optuna.Trial, trial), base.model_copy(deep=True))


def completed(config: TrialConfig, experiment: Experiment) -> TrialConfig:
    """`config`, checked for the workers of this sweep, with the hashes of one's own parts in it, and compiled where
    that was found to be faster. ValueError as of `TrialConfig.check_own`.
    """
    config.check_workers(experiment.workers_per_trial)
    complete = config.completed()
    complete.check_own(experiment.workers_per_trial)
    return complete if experiment.fastest is None else experiment.fastest.applied(complete)


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
