"""Any value may be a choice: it survives the journal, a kill and a resume, and the space gets the very value back."""

from __future__ import annotations

import datetime
import enum
import functools
import json
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, distribution_to_json

from pretune.core import results, study_log
from pretune.core.errors import RequestError
from pretune.core.history import History
from pretune.core.journal import read
from pretune.core.parameters import Names, flat, labels, parsed, written
from pretune.core.records import Asked, Ended
from pretune.core.search import Search, Space
from pretune.display import tables
from tests import toys
from tests.pretune.core.decisions import optuna_study
from tests.pretune.display.screen import shown
from tests.toys import Executor, again, begin, decisions, experiment, follow
from trainers.config import TrialConfig
from trainers.terms import Alignment

BASE = toys.BASE


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is test_journal's business; here thousands of records are written."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Size(enum.Enum):
    SMALL = "small"
    LARGE = 3


class Plain:
    """Its text is an address, which each process has another one of."""


def with_rate(base: TrialConfig, rate: float) -> TrialConfig:
    return base.model_copy(update={"optimizer": base.optimizer.model_copy(update={"learning_rate": rate})})


def among(choices: Sequence[Any]) -> Space:
    """A space that asks for one choice and sets the learning rate by its position; it must be given what it listed."""

    def space(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        chosen = trial.suggest_categorical("choice", choices)
        positions = [at for at, one in enumerate(choices) if type(one) is type(chosen) and repr(one) == repr(chosen)]
        assert positions, f"{chosen!r} is none of {choices!r}"
        return with_rate(base, 0.001 * 2.0 ** positions[0])

    return space


CHOICES: dict[str, Sequence[Any]] = {
    "tuples": [(0.2, 1.0), (0.5, 1.0), ()],
    "lists": [[1, 2], [3], []],
    "none": [None, 0.1],
    "none alone": [None],
    "nested": [((1, 2), [3, {"a": (4, None)}]), ((1, 2), [3, {"a": (5, None)}])],
    "objects": [{"kind": "rbf", "gamma": 1.0}, {"kind": "energy"}, {}],
    "texts": ["rbf", "", "ä – 漢", "a\nb", "\ud800"],
    "numbers": [1, -2, 10**30, 0.1 + 0.2, 5e-324, 1e308],
    "not finite": [math.inf, -math.inf, math.nan, 1.0, "NaN"],
    "switches": [True, False],
    "numpy": list(np.array([0.01, 0.02])),
    "whole numbers of numpy": list(np.array([1, 2])),
    "arrays": [np.zeros(2), np.ones((2, 2))],
    "tensors": [torch.zeros(2), torch.ones(1)],
    "enumerated": list(Size),
    "paths": [PurePosixPath("/a"), PurePosixPath("/b")],
    "functions": [math.sin, math.cos, len],
    "lambdas": [lambda: 1, lambda: 2],
    "classes": [Plain, Alignment],
    "of no text": [Plain(), Plain()],
    "partial": [functools.partial(int, base=2), functools.partial(int, base=8)],
    "configs": [Alignment(), Alignment(weight=2.0)],
    "sets": [frozenset({"a", "b"}), frozenset({"c"})],
    "bytes": [b"\x00", b"\xff"],
    "dates": [datetime.date(2026, 1, 1), datetime.timedelta(1)],
    "like their own text": ["[1, 2]", [1, 2], (1, 2)],
    "twice": ["a", "a", "b"],
}


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
@pytest.mark.parametrize("kind", CHOICES)
def test_every_choice_that_optuna_accepts_is_tried_told_and_tried_the_same_after_a_kill(
    tmp_path: Path, kind: str, sampler: str
) -> None:
    space = among(CHOICES[kind])
    first = begin(tmp_path / "whole", experiment(tmp_path, sampler=sampler, base=BASE, trials=40), space)
    with warnings.catch_warnings(action="error"):
        Executor(first, slots=1, seed=0).run()
    whole = decisions(tmp_path / "whole")
    trials = History(read(tmp_path / "whole")).trials
    tried = {trial.config["optimizer"]["learning_rate"] for trial in trials if trial.config is not None}
    distinct = 2 if kind == "twice" else len(CHOICES[kind])
    assert len(tried) == distinct, "each choice was tried, and no refusal was made up"
    assert not [trial for trial in trials if trial.state == "INFEASIBLE"]
    assert first.exhausted
    for cut in range(1, len(read(tmp_path / "whole")), 5):
        folder = toys.cut_after(tmp_path / "whole", cut)
        follow(again(folder, space), read(tmp_path / "whole")[cut:])
        assert decisions(folder) == whole, f"killed after record {cut}"


@pytest.mark.parametrize("kind", CHOICES)
def test_a_choice_is_shown_in_tables_as_json_and_in_the_file_for_the_dashboard(tmp_path: Path, kind: str) -> None:
    conductor = begin(tmp_path / "s", experiment(tmp_path, trials=3), among(CHOICES[kind]))
    Executor(conductor, slots=1, seed=0).run()
    study_log.write(conductor.experiment, conductor.history.trials, tmp_path / study_log.FILE)
    conductor._journal.close()
    result = results.read(tmp_path / "s")
    json.dumps(result.to_json(), allow_nan=False)
    head, rows = result.table()
    assert "choice" in head
    assert len(rows) == len(result.trials)
    assert "choice=" in shown(tables.trials(result))


def test_labels_are_what_json_can_say_and_the_same_for_a_value_in_each_process() -> None:
    assert labels([None, True, 3, 0.5, "x"]) == [None, True, 3, 0.5, "x"]
    assert labels([(0.2, 1.0), {"a": (1,)}, Size.LARGE]) == [[0.2, 1.0], {"a": [1]}, 3]
    assert labels([Plain(), Plain()]) == ["Plain 0", "Plain 1"]
    assert labels([math.inf, math.nan, np.float32(0.5), np.int64(7)]) == ["Infinity", "NaN", 0.5, 7]
    assert labels([[1], (1,), "[1]"]) == [[1], "[1] (choice 1)", "[1] (choice 2)"]
    assert labels([frozenset("cab")]) == [["a", "b", "c"]]
    assert len({flat(label) for label in labels([lambda: 1, lambda: 2])}) == 2


@pytest.mark.parametrize("choices", [[1, 2.5, "x", None, True], ["only"]])
def test_choices_that_json_knows_are_written_as_optuna_writes_them(choices: list[Any]) -> None:
    distribution = CategoricalDistribution(choices)
    assert written(distribution, labels(choices)) == distribution_to_json(distribution)
    assert parsed(written(distribution, labels(choices))) == distribution


def test_a_copy_of_a_list_is_given_so_that_a_space_cannot_change_the_choices_of_later_trials() -> None:
    lists: list[Any] = [[1], [2]]

    def space(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        chosen: Any = trial.suggest_categorical("choice", lists)
        chosen.append(0)
        return with_rate(base, 0.1 * chosen[0])

    Search(experiment(Path("/nowhere")), space).check()
    assert lists == [[1], [2]]


# ---- one name, several kinds -----------------------------------------------------------------------------------------


def choices_depend(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    small = trial.suggest_categorical("size", ["small", "large"]) == "small"
    return with_rate(base, trial.suggest_categorical("rate", [0.01, 0.02] if small else [0.03, 0.02, 0.01]))


def kind_depends(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    match trial.suggest_categorical("how", ["listed", "stepped", "whole"]):
        case "listed":
            return with_rate(base, trial.suggest_categorical("rate", [0.01, 0.02]))
        case "stepped":
            return with_rate(base, trial.suggest_float("rate", 0.1, 0.3, step=0.1))
        case _:
            return with_rate(base, float(trial.suggest_int("rate", 1, 2)))


def scale_depends(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    return with_rate(base, trial.suggest_float("rate", 0.01, 1.0, log=trial.suggest_categorical("log", [True, False])))


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("space", [choices_depend, kind_depends, scale_depends])
def test_choices_and_kinds_that_depend_on_another_parameter_are_never_told_as_infeasible(
    tmp_path: Path, space: Space, sampler: str
) -> None:
    asked = experiment(tmp_path, sampler=sampler, trials=30)
    Search(asked, space).check()
    first = begin(tmp_path / "whole", asked, space)
    with warnings.catch_warnings(action="error"):
        Executor(first, slots=2, seed=0).run()
    whole = decisions(tmp_path / "whole")
    assert not [record for record in whole if isinstance(record, Ended) and record.state == "INFEASIBLE"]
    for cut in range(1, len(read(tmp_path / "whole")), 7):
        folder = toys.cut_after(tmp_path / "whole", cut)
        follow(again(folder, space), read(tmp_path / "whole")[cut:])
        assert decisions(folder) == whole, f"killed after record {cut}"


def test_a_grid_over_choices_that_depend_visits_each_once(tmp_path: Path) -> None:
    for number, (space, points) in enumerate([(choices_depend, 5), (kind_depends, 7)]):
        conductor = begin(tmp_path / str(number), experiment(tmp_path, sampler="grid", trials=30), space)
        Executor(conductor, slots=1, seed=0).run()
        asked = [record.params for record in conductor._journal.records if isinstance(record, Asked)]
        assert len(asked) == points
        assert len({json.dumps(params) for params in asked}) == points


def test_optuna_sees_each_list_of_choices_under_one_name_as_a_parameter_of_its_own() -> None:
    names = Names()
    small, large = CategoricalDistribution([1, 2]), CategoricalDistribution([3])
    assert [names.of("rate", one) for one in (small, large, small, large)] == ["rate", "rate #2", "rate", "rate #2"]
    assert names.of("other", large) == "other"


def test_a_name_that_one_trial_draws_from_two_lists_is_refused_by_name_before_anything_starts() -> None:
    def space(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        trial.suggest_categorical("rate", [0.1, 0.2])
        return with_rate(base, trial.suggest_categorical("rate", [0.1, 0.3]))

    with pytest.raises(RequestError, match="'rate' is asked for twice"):
        Search(experiment(Path("/nowhere")), space).check()


def test_a_name_that_is_asked_for_again_keeps_its_value(tmp_path: Path) -> None:
    def space(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        choices: list[Any] = [(0.1,), (0.2,)]
        first: Any = trial.suggest_categorical("rate", choices)
        assert trial.suggest_categorical("rate", choices) == first
        assert trial.params == {"rate": first}
        return with_rate(base, first[0])

    conductor = begin(tmp_path / "s", experiment(tmp_path, trials=2), space)
    Executor(conductor, slots=1, seed=0).run()
    assert {trial.state for trial in conductor.history.trials} <= {"COMPLETE", "PRUNED"}


# ---- what older versions wrote ---------------------------------------------------------------------------------------


def test_a_journal_with_tuples_as_an_older_version_left_it_is_gone_on_with(tmp_path: Path) -> None:
    space = among([(0.2, 1.0), (0.5, 1.0)])
    conductor = begin(tmp_path / "s", experiment(tmp_path, trials=4), space)
    conductor._write(
        Asked(
            number=0,
            params={"choice": [0.2, 1.0]},
            distributions={
                "choice": '{"name": "CategoricalDistribution", "attributes": {"choices": [[0.2, 1.0], [0.5, 1.0]]}}'
            },
            config=with_rate(BASE, 0.001).model_dump(mode="json"),
        )
    )
    conductor._journal.close()
    resumed = again(tmp_path / "s", space)
    Executor(resumed, slots=1, seed=0).run()
    assert {trial.state for trial in resumed.history.trials} <= {"COMPLETE", "PRUNED"}
    assert {json.dumps(trial.params["choice"]) for trial in resumed.history.trials} == {"[0.2, 1.0]", "[0.5, 1.0]"}
    assert len(optuna_study(resumed.experiment, resumed.history.trials).trials) == len(resumed.history.trials)
