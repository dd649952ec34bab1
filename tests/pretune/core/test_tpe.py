"""TPE without a study decides as Optuna's with one, and beyond a bound looks at the best and the newest trials."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import TPESampler

from pretune.core import tpe
from pretune.core.history import State, TrialHistory
from pretune.core.search import Search, Space, _seed
from pretune.core.tpe import Observations, Tpe
from tests.pretune.core.decisions import METRIC, branching, experiment, finite, points_of, slow_ask

STATES: tuple[State, ...] = ("COMPLETE", "COMPLETE", "PRUNED", "PRUNED", "INFEASIBLE", "FAIL", "RUNNING")
STARTUP = 6


def end(trial: TrialHistory, rng: random.Random) -> None:
    """An end of any kind: with ties, without epochs, with a value that is no number."""
    trial.state = rng.choice(STATES)
    values = [rng.choice([0.1, 0.2, 0.3, rng.random(), float("nan")]) for _ in range(rng.randint(0, 4))]
    trial.epochs = {epoch: {METRIC: value} for epoch, value in enumerate(values, start=1)}
    trial.value = rng.choice([0.1, 0.2, rng.random()]) if trial.state == "COMPLETE" else None
    trial.ended_at = trial.asked_at + 1 if trial.ended else None


@pytest.mark.parametrize("space", [branching, finite])
@pytest.mark.parametrize("seed", range(3))
def test_it_decides_as_optunas_sampler_over_a_study_of_all_trials(seed: int, space: Space) -> None:
    made = experiment("tpe", seed=seed, startup_trials=STARTUP, maximize=seed % 2 == 0)
    search, rng, trials = Search(made, space), random.Random(seed), list[TrialHistory]()
    for number in range(45):
        search._known.after(trials)
        told = points_of(search._asked(search._sampler(number))[0], space)
        if number % 4 == 3:
            with warnings.catch_warnings(action="ignore"):
                theirs = TPESampler(
                    seed=_seed(seed, number),
                    n_startup_trials=STARTUP,
                    multivariate=True,
                    group=True,
                    constant_liar=True,
                )
            expected = {
                name: pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
                for name, value in slow_ask(made, trials, theirs, space).items()
            }
            assert told == expected, f"trial {number}"
        proposal = search.ask(trials)
        assert proposal is not None
        trials.append(TrialHistory(number, proposal.params, proposal.distributions, None, None, 2 * number))
        end(trials[-1], rng)
        # A trial that runs may end later than those after it, and one that has ended may be made longer.
        late = rng.choice(trials)
        if late.state == "RUNNING":
            end(late, rng)
        elif late.state == "COMPLETE" and rng.random() < 0.2:
            late.state, late.value = "WAITING", None


def trial(number: int, state: State, value: float) -> TrialHistory:
    made = TrialHistory(number, {"x": value}, {}, None, None, number)
    made.state, made.value = state, value if state == "COMPLETE" else None
    return made


def known(states: list[State], *, maximize: bool = True) -> Observations:
    """Trials with values that rise and fall; every 10th is the best so far."""
    found = Observations(METRIC, maximize=maximize)
    for number, state in enumerate(states):
        value = 0.5 + number / 10_000.0 if number % 10 == 0 else 0.01 * (number % 7)
        found.add({"x": value}, {"x": FloatDistribution(0.0, 1.0)})
        if state != "RUNNING":
            found.change(trial(number, state, value))
    return found


def test_beyond_the_window_the_best_trials_and_the_newest_others_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpe, "WINDOW", 20)
    ended, failed, running = list[State](["COMPLETE"]), list[State](["FAIL"]), list[State](["RUNNING"])
    good, others = known(ended * 200 + failed * 90 + running * 3).split()
    # A tenth of the finished ones; they are of any age.
    assert good.tolist() == list(range(0, 200, 10))
    # The newest of those that taught something or still run.
    expected = [*[number for number in range(200) if number % 10][-17:], 290, 291, 292]
    assert others.tolist() == expected


def test_what_an_ask_computes_does_not_grow_with_the_sweep() -> None:
    found = known(["COMPLETE"] * 3000)
    good, others = found.split()
    assert (len(good), len(others)) == (25, tpe.WINDOW)
    assert len(found.points(others, ["x"])["x"]) == tpe.WINDOW


def test_up_to_the_window_every_trial_counts() -> None:
    good, others = known(["COMPLETE"] * tpe.WINDOW).split()
    assert len(good) + len(others) == tpe.WINDOW


def test_a_ranking_is_kept_through_ends_and_new_beginnings() -> None:
    rng, found, trials = random.Random(0), Observations(METRIC, maximize=False), list[TrialHistory]()
    for number in range(120):
        trials.append(TrialHistory(number, {}, {}, None, None, number))
        found.add({}, {})
        for one in rng.sample(trials, min(3, len(trials))):
            end(one, rng)
            found.change(one)
    anew = Observations(METRIC, maximize=False)
    for _ in trials:
        anew.add({}, {})
    for one in trials:
        anew.change(one)
    assert found._ranking == anew._ranking == sorted(found._ranking)
    assert [part.tolist() for part in found.split()] == [part.tolist() for part in anew.split()]


def test_a_group_that_nobody_asks_for_is_not_drawn_and_moves_nothing() -> None:
    found = Observations(METRIC, maximize=True)
    one, other = FloatDistribution(0.0, 1.0), FloatDistribution(0.0, 9.0)
    for number in range(30):
        drawn = {"one": one} if number % 2 else {"other": other}
        found.add(dict.fromkeys(drawn, 0.03 * number), drawn)
        found.change(trial(number, "COMPLETE", number / 30.0))

    def drawn_first(*names: str) -> dict[str, float]:
        sampler = Tpe(found, seed=1, startup_trials=5)
        lazily = sampler.sample_relative(None, None, {})  # type: ignore[arg-type]
        return {name: lazily[name] for name in names}

    assert len(found.groups()) == 2
    whole = drawn_first("one", "other")
    assert whole == drawn_first("other", "one")
    assert drawn_first("other") == {"other": whole["other"]}
    assert np.isfinite(list(whole.values())).all()
