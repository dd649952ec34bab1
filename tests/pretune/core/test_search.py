"""Optuna, asked and told through trial histories: pure, honest about ends, and strict about what a sampler can take."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from pretune.core import study_log
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.history import State, TrialHistory
from pretune.core.search import Search, Space
from pretune.request import lookup
from tests.parts import own_parts
from tests.pretune.core.decisions import optuna_study
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.terms import Alignment

BASE = TrialConfig(objective={"alignment": Alignment()}, epochs=9, batch_size=64)


def search(space: Space, **changes: Any) -> Search:
    return Search(Experiment(**({"name": "s", "space": "mine", "base": BASE, "trials": 12} | changes)), space)


def with_rate(base: TrialConfig, rate: float) -> TrialConfig:
    return base.model_copy(update={"optimizer": base.optimizer.model_copy(update={"learning_rate": rate})})


def numbers(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    trial.suggest_float("shift", 0.0, 1.0)
    return with_rate(base, trial.suggest_float("rate", 1e-3, 1.0, log=True))


def conditional(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    if trial.suggest_categorical("kernel", ["rbf", "energy"]) == "rbf":
        trial.suggest_float("bandwidth", 0.1, 10.0, log=True)
    return numbers(trial, base)


def finite(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    if trial.suggest_categorical("kernel", ["rbf", "energy"]) == "rbf":
        trial.suggest_int("width", 1, 3)
    return with_rate(base, trial.suggest_float("rate", 0.1, 0.3, step=0.1))


def ask_all(made: Search, count: int, end: Callable[[TrialHistory], None]) -> list[TrialHistory]:
    """Asks and ends `count` trials one after another."""
    trials: list[TrialHistory] = []
    for number in range(count):
        proposal = made.ask(trials)
        assert proposal is not None
        config = None if proposal.config is None else proposal.config.model_dump(mode="json")
        trial = TrialHistory(number, proposal.params, proposal.distributions, config, proposal.duplicate_of, 2 * number)
        trials.append(trial)
        end(trial)
    return trials


def finish(trial: TrialHistory, state: State, values: list[float]) -> None:
    trial.state = state
    trial.epochs = {epoch: {"probe/linear": value} for epoch, value in enumerate(values, start=1)}
    trial.value = values[-1] if state == "COMPLETE" else None
    trial.ended_at = trial.asked_at + 1
    trial.started_s, trial.ended_s = 1.0, 2.0


def complete(trial: TrialHistory) -> None:
    finish(trial, "COMPLETE", [1.0 - abs(math.log10(trial.params["rate"]) + 1.0) / 3.0])


# ---- ends --------------------------------------------------------------------------------------------------------


def test_optuna_is_told_the_honest_end_of_each_trial(tmp_path: Path) -> None:
    made = search(numbers)
    ends: list[tuple[State, list[float]]] = [
        ("COMPLETE", [0.2, 0.9, 0.8]),
        ("PRUNED", [0.1, 0.3]),
        ("INFEASIBLE", [0.5]),
        ("FAIL", [0.4]),
        ("RUNNING", [0.6]),
    ]
    left = iter(ends)
    trials = ask_all(made, len(ends), lambda trial: finish(trial, *next(left)))
    trials[4].ended_at = None
    seen = optuna_study(made.experiment, trials).trials
    assert [trial.state for trial in seen] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.PRUNED,
        TrialState.FAIL,
        TrialState.RUNNING,
    ]
    # The last value, not the best one; a stopped trial has no value but each epoch's.
    assert seen[0].value == 0.8
    assert seen[1].intermediate_values == {1: 0.1, 2: 0.3}
    assert [trial.constraints for trial in seen] == [{}, {}, {"feasible": 1.0}, {}, {}]
    assert [trial.params for trial in seen] == [trial.params for trial in trials]
    assert optuna_study(made.experiment, trials).best_trial.number == 0

    # The same for optuna-dashboard, and once more after the sweep went on.
    for _ in range(2):
        study_log.write(made.experiment, trials, tmp_path / study_log.FILE)
        assert [path.name for path in tmp_path.iterdir()] == ["study.log"]
        storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))
        written = optuna.load_study(study_name=made.experiment.name, storage=storage)
        assert written.trials[4].intermediate_values == {1: 0.6}, "a running trial's curve is there to be looked at"
        values = [[0.8], [0.3], None, None]
        assert [trial.values for trial in written.trials[:4]] == values, "of what was stopped the last one, to look at"
        for ours, theirs in zip(seen[:4], written.trials[:4], strict=True):
            for part in ("number", "state", "params", "intermediate_values", "distributions", "constraints"):
                assert getattr(theirs, part) == getattr(ours, part)
        # Of a stopped trial its last value, or optuna-dashboard's history would not have it.
        assert [trial.values for trial in written.trials[:4]] == [[0.8], [0.3], None, None]


def test_tpe_turns_away_from_a_region_that_is_infeasible() -> None:
    def end(trial: TrialHistory) -> None:
        # The larger the rate the better, but above 0.1 everything diverges.
        rate = trial.params["rate"]
        finish(trial, "INFEASIBLE" if rate > 0.1 else "COMPLETE", [0.5 + math.log10(rate) / 10.0])

    told = ask_all(search(numbers, startup_trials=10, seed=3), 40, end)
    late = [trial.state for trial in told[20:]]
    assert late.count("INFEASIBLE") <= 10

    def dishonest(trial: TrialHistory) -> None:
        finish(trial, "COMPLETE", [0.5 + math.log10(trial.params["rate"]) / 10.0])

    untold = ask_all(search(numbers, startup_trials=10, seed=3), 40, dishonest)
    assert sum(trial.params["rate"] > 0.1 for trial in untold[20:]) >= 15


def test_tpe_finds_a_better_region_than_random_draws() -> None:
    found = ask_all(search(conditional, startup_trials=8, seed=1), 40, complete)
    drawn = ask_all(search(conditional, sampler="random", seed=1), 40, complete)

    def mean(trials: list[TrialHistory]) -> float:
        return sum(trial.value or 0.0 for trial in trials[20:]) / 20.0

    assert mean(found) > mean(drawn) + 0.1


# ---- purity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "cmaes"])
def test_an_ask_is_a_pure_function_of_the_histories(sampler: str) -> None:
    space = {"grid": finite, "cmaes": numbers}.get(sampler, conditional)
    settings = {"sampler": sampler, "startup_trials": 4, "seed": 5}
    trials = ask_all(search(space, **settings), 11, complete)
    for cut in range(len(trials)):
        # Another process, which knows the histories only.
        proposal = search(space, **settings).ask(trials[:cut])
        assert proposal is not None
        assert proposal.params == trials[cut].params


def test_the_random_draws_of_a_trial_do_not_depend_on_what_others_scored() -> None:
    first = ask_all(search(numbers, sampler="random"), 5, complete)
    second = ask_all(search(numbers, sampler="random"), 5, lambda trial: finish(trial, "FAIL", []))
    assert [trial.params for trial in first] == [trial.params for trial in second]


def test_seeds_give_unrelated_sweeps() -> None:
    one, two = (ask_all(search(numbers, sampler="random", seed=seed), 6, complete) for seed in (0, 1))
    rates = [trial.params["rate"] for trial in (*one, *two)]
    assert len(set(rates)) == 12


def test_trials_that_run_are_taken_into_account_so_that_slots_do_not_try_the_same() -> None:
    made = search(numbers, startup_trials=4)
    trials = ask_all(made, 8, complete)
    first = made.ask(trials)
    assert first is not None
    running = TrialHistory(8, first.params, first.distributions, {}, None, 16)
    second = made.ask([*trials, running])
    assert second is not None
    assert second.params != first.params


# ---- proposals ---------------------------------------------------------------------------------------------------


def test_a_proposal_is_a_valid_config_and_its_parameters() -> None:
    proposal = search(numbers).ask([])
    assert proposal is not None
    assert proposal.config is not None
    assert proposal.config.optimizer.learning_rate == proposal.params["rate"]
    assert list(proposal.params) == ["shift", "rate"]
    assert proposal.distributions.keys() == proposal.params.keys()


def test_a_repeated_suggestion_is_allowed_and_noted() -> None:
    def few(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        return with_rate(base, trial.suggest_categorical("rate", [0.1, 0.2, 0.3, 0.4]))

    trials = ask_all(search(few, sampler="random", seed=1), 4, complete)
    repeated = [trial for trial in trials if trial.duplicate_of is not None]
    assert repeated
    for trial in repeated:
        assert trials[trial.duplicate_of or 0].params == trial.params
    assert len({trial.params["rate"] for trial in trials}) == 4 - len(repeated)


def test_a_space_may_refuse_parameters_and_is_named_with_the_reason() -> None:
    def picky(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        rate = trial.suggest_float("rate", -1.0, 1.0)
        if rate > 0.8:
            raise optuna.TrialPruned("too fast")
        return TrialConfig.model_validate({**base.model_dump(), "optimizer": {"learning_rate": rate}})

    made = search(picky)
    made.check()
    refusals = [made.ask([TrialHistory(i, {}, {}, {}, None, i) for i in range(number)]) for number in range(12)]
    texts = [proposal.refusal for proposal in refusals if proposal is not None and proposal.config is None]
    assert texts
    assert all(text.startswith("space 'mine' refuses {'rate': ") for text in texts)
    assert any("greater than 0" in text for text in texts)


def test_a_config_that_does_not_fit_the_workers_is_refused() -> None:
    def odd(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        return base.model_copy(update={"batch_size": trial.suggest_int("batch_size", 63, 65, step=2)})

    proposal = search(odd, workers_per_trial=2).ask([])
    assert proposal is not None
    assert proposal.config is None
    assert "batch_size must be a multiple of the 2 workers" in proposal.refusal


def test_a_copy_that_skipped_the_checks_is_checked() -> None:
    def wrong(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        return base.model_copy(update={"epochs": trial.suggest_int("epochs", -3, -1)})

    with pytest.raises(RequestError, match=r"all of 64 random draws were refused.*space 'mine' refuses.*at least 1"):
        search(wrong).check()


def test_a_broken_space_is_named_before_anything_starts() -> None:
    def broken(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        return base.no_such_method()  # type: ignore[attr-defined, no-any-return]

    with pytest.raises(RequestError, match="space 'mine' raised AttributeError"):
        search(broken).check()

    def forgetful(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        trial.suggest_int("width", 1, 2)
        return None  # type: ignore[return-value]

    with pytest.raises(RequestError, match=r"must return a trainers.config.TrialConfig, but returned NoneType"):
        search(forgetful).check()


# ---- what a space may do to what it is given -------------------------------------------------------------------------


def multiplies_in_place(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    vars(base.objective["alignment"])["weight"] *= 10.0
    return with_rate(base, trial.suggest_float("rate", 1e-3, 1.0, log=True))


def adds_in_place(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    objective: Any = base.objective
    objective[f"term_{len(objective)}"] = Alignment(weight=0.5)
    return with_rate(base, trial.suggest_float("rate", 1e-3, 1.0, log=True))


def changes_a_shallow_copy(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    copy = base.model_copy()
    vars(copy.optimizer)["learning_rate"] *= 1.0 + trial.suggest_float("rate", 0.1, 1.0)
    return copy


@pytest.mark.parametrize("space", [multiplies_in_place, adds_in_place, changes_a_shallow_copy])
def test_a_space_that_changes_its_base_in_place_changes_no_other_trial(space: Space) -> None:
    base = BASE.model_copy(deep=True)
    made = search(space, base=base)
    before = made.experiment.base.model_dump_json()
    made.check()
    trials = ask_all(made, 5, lambda trial: finish(trial, "COMPLETE", [0.5]))
    assert made.experiment.base.model_dump_json() == base.model_dump_json() == before
    configs = [TrialConfig.model_validate(trial.config) for trial in trials]
    assert {len(config.objective) for config in configs} == {2 if space is adds_in_place else 1}
    if space is multiplies_in_place:
        assert {config.objective["alignment"].weight for config in configs} == {
            10.0 * BASE.objective["alignment"].weight
        }


def test_a_space_that_sets_a_field_is_an_error_that_names_the_line_and_no_refusal() -> None:
    def sets(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        if trial.suggest_float("rate", 0.0, 1.0) > 0.5:
            base.optimizer.learning_rate = 0.1  # type: ignore[misc]
        return base

    with pytest.raises(RequestError) as error:
        search(sets).check()
    assert "must leave configs as they are" in str(error.value)
    assert f"of {__file__} (`base.optimizer.learning_rate = 0.1" in str(error.value)


def test_an_error_within_a_space_names_its_line() -> None:
    def divides(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        return with_rate(base, 1 / trial.suggest_int("zero", 0, 0))

    with pytest.raises(
        RequestError, match=r"raised ZeroDivisionError in line \d+ of .*test_search.py \(`return with_rate"
    ):
        search(divides).check()


@pytest.mark.parametrize(
    "how", ["sys.exit(0)", "raise SystemExit", "exit()", "argparse.ArgumentParser().parse_args(['x'])"]
)
def test_a_space_that_ends_the_program_is_an_error_that_names_the_line(tmp_path: Path, how: str) -> None:
    (tmp_path / "mine.py").write_text(f"import argparse, sys\ndef space(trial, base):\n    {how}\n")
    found = lookup.space(f"{tmp_path}/mine.py:space")
    with pytest.raises(RequestError, match=r"ends the whole program .* line 3 of .*/mine.py"):
        search(found.function).check()


# ---- a finite space --------------------------------------------------------------------------------------------------


def nothing(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    return base


def one_choice(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    return with_rate(base, trial.suggest_categorical("rate", [0.1]))


def one_float(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    return with_rate(base, trial.suggest_float("rate", 0.1, 0.1, log=True))


def in_steps(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    return with_rate(base, trial.suggest_float("rate", 0.1, 0.7, step=0.2))


def dependent_range(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    high = trial.suggest_int("high", 1, 3)
    return with_rate(base, 0.1 * high + 0.01 * trial.suggest_int("low", 1, high))


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
@pytest.mark.parametrize(
    ("space", "points"),
    [(nothing, 1), (one_choice, 1), (one_float, 1), (in_steps, 4), (dependent_range, 6), (finite, 12)],
)
def test_a_finite_space_ends_when_each_point_was_tried(space: Space, points: int, sampler: str) -> None:
    made = search(space, sampler=sampler, trials=500)
    made.check()
    trials: list[TrialHistory] = []
    while (proposal := made.ask(trials)) is not None:
        config = None if proposal.config is None else proposal.config.model_dump(mode="json")
        number = proposal.number
        trials.append(
            TrialHistory(number, proposal.params, proposal.distributions, config, proposal.duplicate_of, 2 * number)
        )
        finish(trials[-1], "COMPLETE", [0.5 + 0.001 * number])
        assert number < 400, "a finite space must end"
    assert len({json.dumps(trial.params) for trial in trials}) == points


def test_a_space_with_one_continuous_parameter_never_ends() -> None:
    def half(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        if trial.suggest_categorical("how", ["fixed", "free"]) == "free":
            return with_rate(base, trial.suggest_float("rate", 0.1, 1.0))
        return with_rate(base, trial.suggest_categorical("fixed rate", [0.1]))

    assert len(ask_all(search(half, sampler="random"), 30, lambda trial: finish(trial, "COMPLETE", [0.5]))) == 30


# ---- what a sampler can take -------------------------------------------------------------------------------------


def test_the_grid_visits_each_point_once_and_ends() -> None:
    made = search(finite, sampler="grid")
    made.check()
    trials = ask_all(made, 12, complete)
    assert len({tuple(sorted(trial.params.items())) for trial in trials}) == 3 * 3 + 3
    assert made.ask(trials) is None


def test_the_grid_visits_each_point_once_while_several_run() -> None:
    made = search(finite, sampler="grid")
    trials = ask_all(made, 12, lambda trial: None)
    assert len({tuple(sorted(trial.params.items())) for trial in trials}) == 12
    assert made.ask(trials) is None


def test_the_grid_refuses_a_continuous_parameter_by_name_even_in_a_branch() -> None:
    with pytest.raises(
        RequestError, match=r"'grid' needs finitely many points, but parameter 'bandwidth' is continuous"
    ):
        search(conditional, sampler="grid").check()
    with pytest.raises(RequestError, match=r"parameter '(bandwidth|shift)' is continuous"):
        search(conditional, sampler="grid").ask([])


def test_cma_es_refuses_categorical_and_conditional_parameters_by_name() -> None:
    def choice(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        trial.suggest_categorical("kernel", ["rbf", "energy"])
        return numbers(trial, base)

    def sometimes(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        if trial.suggest_int("depth", 1, 3) > 1:
            trial.suggest_float("width", 0.0, 1.0)
        return numbers(trial, base)

    def moving(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        trial.suggest_float("width", 0.0, float(trial.suggest_int("depth", 1, 3)))
        return numbers(trial, base)

    with pytest.raises(RequestError, match=r"'cmaes' takes numbers only, but parameter 'kernel' is categorical"):
        search(choice, sampler="cmaes").check()
    with pytest.raises(RequestError, match=r"'width' is conditional .it appears in some trials only"):
        search(sometimes, sampler="cmaes").check()
    with pytest.raises(RequestError, match=r"'width' is conditional .it changes its range"):
        search(moving, sampler="cmaes").check()


def test_cma_es_moves_its_distribution_and_learns_from_stopped_trials() -> None:
    def end(trial: TrialHistory) -> None:
        value = 1.0 - abs(math.log10(trial.params["rate"]) + 0.3) - abs(trial.params["shift"] - 0.9)
        finish(trial, "PRUNED" if trial.number % 2 else "COMPLETE", [value])

    made = search(numbers, sampler="cmaes", seed=2)
    made.check()
    trials = ask_all(made, 60, end)

    def mean(part: list[TrialHistory]) -> float:
        return sum(trial.epochs[1]["probe/linear"] for trial in part) / len(part)

    # From the middle of the ranges, at about -0.6, nearly to the optimum, at 1.
    assert mean(trials[-15:]) > mean(trials[:15]) + 0.8
    assert mean(trials[-15:]) > 0.5


def test_cma_es_learns_nothing_from_the_last_value_of_a_trial_that_went_on_to_diverge() -> None:
    def diverges(trial: TrialHistory, values: list[float]) -> None:
        if trial.params["shift"] > 0.5:
            finish(trial, "INFEASIBLE", values)
        else:
            complete(trial)

    # The last value before it broke would be the best of all; a trial that broke in its first epoch has none.
    late = ask_all(search(numbers, sampler="cmaes", seed=4), 30, lambda trial: diverges(trial, [0.9, 2.0]))
    early = ask_all(search(numbers, sampler="cmaes", seed=4), 30, lambda trial: diverges(trial, []))
    assert 3 <= sum(trial.state == "INFEASIBLE" for trial in late) <= 27, "both ends occur"
    assert [trial.params for trial in late] == [trial.params for trial in early]
    told = optuna_study(search(numbers, sampler="cmaes", seed=4).experiment, late).trials
    assert all(not trial.intermediate_values for trial in told if trial.constraints)


# ---- parts of one's own --------------------------------------------------------------------------------------------


def test_a_proposals_own_parts_get_their_files_hashes() -> None:
    def space(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        return with_changes(base, {"objective.mine.kind": f"{own_parts.__file__}:Spread"})

    made = search(space)
    made.check()
    proposal = made.ask([])
    assert proposal is not None
    assert proposal.config is not None
    assert proposal.config.own_parts["objective.mine"].source_sha256


def test_a_part_that_cannot_be_in_a_trial_is_the_parameters_fault_and_a_changed_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(Path(own_parts.__file__).read_text())

    def space(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        return with_changes(base, {"objective.mine.strenght": 2.0} if trial.suggest_categorical("bad", [0, 1]) else {})

    base = with_changes(BASE, {"objective.mine.kind": f"{tmp_path}/mine.py:Spread"}).completed()
    made = search(space, base=base)
    made.check()
    refusals = [made.refusal({"bad": bad}) for bad in (0, 1)]
    assert "unknown key: 'objective.mine.strenght'" in refusals[1]
    (tmp_path / "mine.py").write_text("raise AssertionError('another file is not run')")
    with pytest.raises(RequestError, match=r"objective\.mine\.kind: .* must have sha256 .*put the file back"):
        made.ask([])
    (tmp_path / "mine.py").unlink()
    with pytest.raises(RequestError, match="but there is no such file; put the file back"):
        made.ask([])


def test_a_space_may_return_a_child_of_a_shipped_term_and_no_child_of_another_part(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CHILDREN)
    found = {
        name: lookup.space(f"mine.py:{name}", folder=tmp_path).function for name in ("a_term", "a_view", "at_times")
    }
    proposal = search(found["a_term"]).ask([])
    assert proposal is not None
    assert proposal.config is not None
    (part,) = proposal.config.own_parts.values()
    assert (part.kind, bool(part.source_sha256)) == (f"{tmp_path}/mine.py:MyAlignment", True)
    assert not search(found["a_term"]).check()[0].own_parts.keys() - {"objective.alignment"}
    for name in ("a_view", "at_times"):
        with pytest.raises(RequestError, match=r"space 'mine' .* views\.0 is of class MyView \(.*mine.py:\d+\)"):
            search(found[name]).check()


CHILDREN = """
from trainers.terms import Alignment
from trainers.config import ViewConfig

class MyAlignment(Alignment):
    def __call__(self, outputs):
        return 2 * super().__call__(outputs)

class MyView(ViewConfig):
    pass

def a_term(trial, base):
    return base.model_copy(update={"objective": {"alignment": MyAlignment()}})

def a_view(trial, base):
    return base.model_copy(update={"views": (MyView(), ViewConfig())})

def at_times(trial, base):
    return a_view(trial, base) if trial.suggest_float("x", 0, 1) > 0.8 else base
"""
