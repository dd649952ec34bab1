"""`--compile auto`: measured once for a network, remembered, and then part of the config or of the sweep."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest

from pretune.analysis import fastest
from pretune.core import corners
from pretune.core.experiment import Experiment
from pretune.core.fastest import Fastest
from pretune.core.points import unvaried
from pretune.core.search import Space
from pretune.execution import family, launch
from pretune.request import request
from search_spaces import RECIPES, kernels
from tests.profiles import TINY
from trainers import compiling
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.profiling.compiled import Compiled
from trainers.report import Outcome


@pytest.fixture
def tiny(here: Path, monkeypatch: pytest.MonkeyPatch) -> TrialConfig:
    monkeypatch.setenv("PRETUNE_CACHE", str(here / "cache"))
    bound, _ = request.with_data(with_changes(RECIPES["sfrik_tiny"](), TINY), "digits", root=here / "data")
    return bound


class Machine:
    """What it measures: compiled steps take half as long, but not those of a batch of 32; more than 100 is too much
    for its memory.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []
        self.sizes: list[int] = []

    def run(self, config: TrialConfig, *, workers: int, device: str, make_train: Any, **_: object) -> Outcome:
        assert config.compile == "off"
        told, host_bytes = make_train.args
        assert host_bytes > 0
        self.asked.append((workers, device))
        self.sizes.append(config.batch_size)
        if config.batch_size > 100:
            return Outcome(state="out_of_memory", reason="1 GB of 1 GB", epochs=0)
        on = 0.2 if config.batch_size == 32 else 0.1
        told.write_text(Compiled(step_s={"off": 0.2, "on": on}, begin_s={"off": 0.2, "on": 1.0}).model_dump_json())
        return Outcome(state="complete", epochs=1)


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corners, "random_draws", partial(corners.random_draws, count=80))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(launch, "run", made.run)
    return made


@pytest.fixture
def measured(machine: Machine) -> list[tuple[int, str]]:
    """Each measurement with its workers and device."""
    return machine.asked


def test_it_is_measured_once_for_a_network_and_said(tiny: TrialConfig, measured: list[tuple[int, str]]) -> None:
    said: list[str] = []
    choose = partial(fastest.chosen, workers=1, device="cpu", tell=said.append)
    assert choose(tiny) == tiny.model_copy(update={"compile": "on"})
    assert said[1] == "compile: on; a step takes 200 ms as it is, 100 ms with compile=on (the first one 1 s)"
    # The same network: other terms, rates and seeds.
    choose(with_changes(tiny, {"seed": 7, "objective.mmd.weight": 3.0, "optimizer.learning_rate": 0.1}))
    assert measured == [(1, "cpu")]
    choose(with_changes(tiny, {"batch_size": 32}))
    choose(with_changes(tiny, {"model.projector.widths": [8, 8]}))
    choose(tiny, workers=2)
    assert measured == [(1, "cpu")] * 3 + [(2, "cpu")]


def test_a_damaged_measurement_is_made_again(tiny: TrialConfig, measured: list[tuple[int, str]]) -> None:
    for _ in range(2):
        fastest.chosen(tiny, workers=1, device="cpu", tell=lambda words: None)
        (kept,) = compiling.folder().glob("step-*.json")
        kept.write_text("{}")
    assert len(measured) == 2


def test_where_nothing_can_be_measured_it_is_off_and_says_why(
    tiny: TrialConfig, measured: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    on = tiny.model_copy(update={"compile": "on"})
    with monkeypatch.context() as without:
        without.setenv("CXX", "no-such-compiler")
        assert fastest.chosen(on, workers=1, device="cpu", tell=said.append).compile == "off"
    assert said == [
        "compile: off, as torch.compile needs a C++ compiler, but there is no no-such-compiler; "
        "install g++, or set CXX to one"
    ]
    assert measured == []

    def fails(config: TrialConfig, **_: object) -> Outcome:
        raise family.HungError("rank 0 hung: no sign of life for 600 s\nand more")

    monkeypatch.setattr(launch, "run", fails)
    assert fastest.chosen(tiny, workers=1, device="cpu", tell=said.append).compile == "off"
    assert said[-1] == "compile: off, as it could not be measured: rank 0 hung: no sign of life for 600 s"


# ---- a sweep ---------------------------------------------------------------------------------------------------------


def sized(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    rate = trial.suggest_float("rate", 0.1, 1.0)
    size = trial.suggest_categorical("batch_size", [16, 32, 128])
    return with_changes(base, {"optimizer.learning_rate": rate, "batch_size": size})


def wide(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    """Nearly each draw has a network of its own."""
    return with_changes(base, {"model.projector.widths": [trial.suggest_int("width", 8, 10**6), 16]})


def several(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    return with_changes(base, {"model.projector.widths": [trial.suggest_int("width", 8, 15), 16]})


def found(
    base: TrialConfig, space: Space, said: list[str] | None = None, *, seconds: float = 0.0, **changes: Any
) -> Fastest | None:
    """Of a sweep over `space`, on a machine on which each look at the clock takes so long."""
    made = Experiment(name="s", space="mine", base=base, slots=1, **changes)
    told = fastest.for_sweep(
        made,
        space,
        auto_gpus=False,
        clock=itertools.count(0.0, seconds).__next__,
        tell=(said or []).append,
    )
    assert told == made.model_copy(update={"fastest": told.fastest})
    return told.fastest


def chosen(told: Fastest | None) -> dict[int, str]:
    assert told is not None
    return {one.config.batch_size: one.compile for one in told.networks}


def test_each_network_of_a_space_is_measured_once_the_most_common_one_first(
    tiny: TrialConfig, machine: Machine
) -> None:
    said = ["before"]
    told = found(tiny, sized, said, workers_per_trial=2)
    assert chosen(told) == {16: "on", 32: "off", 128: "off"}
    assert told is not None
    shares = [one.share for one in told.networks]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1.0)
    assert (told.left_out, told.why) == (0, "")
    assert "compile: measuring batch_size=16, once for a network" in said
    assert len(said) == 4
    assert {device for _, device in machine.asked} == {"cpu"}
    assert {workers for workers, _ in machine.asked} == {2}
    [failed] = [one for one in told.networks if one.found is None]
    assert (failed.config.batch_size, failed.problem) == (128, "out of memory: 1 GB of 1 GB")
    again = found(tiny, sized, workers_per_trial=2)
    assert chosen(again) == chosen(told)
    assert sorted(machine.sizes) == [16, 32, 128, 128], "what was measured is remembered, what failed is tried again"


def test_a_space_of_one_network_is_one_measurement(tiny: TrialConfig, machine: Machine) -> None:
    told = found(tiny, kernels.space)
    assert chosen(told) == {16: "on"}
    assert told is not None
    assert [one.words for one in told.networks] == [""]
    assert len(machine.asked) == 1


def test_levels_of_an_ablation_are_measured_by_network(tiny: TrialConfig, machine: Machine) -> None:
    points = tuple({**level, "seed": seed} for seed in range(2) for level in ({}, {"batch_size": 32}, {"epochs": 3}))
    told = found(tiny, unvaried, points=points, trials=6, stopping={"enabled": False})
    assert chosen(told) == {16: "on", 32: "off"}
    assert told is not None
    assert [one.share for one in told.networks] == pytest.approx([4 / 6, 2 / 6])
    assert machine.sizes == [16, 32]


@pytest.mark.parametrize(("longest", "way"), [(2, "off"), (200, "on")])
def test_what_counts_is_all_that_trials_of_a_network_take_together(
    tiny: TrialConfig, machine: Machine, longest: int, way: str
) -> None:
    # Two steps an epoch, each of which gains 0.1 s, and 0.8 s to win back.
    base = with_changes(tiny, {"data.subset": 32, "epochs": 2})
    points: tuple[dict[str, Any], ...] = ({}, {"epochs": 1}, {"epochs": longest})
    told = found(base, unvaried, points=points, trials=3, stopping={"enabled": False})
    assert chosen(told) == {16: way}, "one for all of them, so that they compare"


def test_of_many_networks_few_are_measured_and_the_next_time_the_others(tiny: TrialConfig, machine: Machine) -> None:
    told = found(tiny, several, trials=200)
    assert told is not None
    assert len(told.networks) == len(machine.asked) == fastest.MOST_NETWORKS
    assert (told.left_out, told.why) == (2, "2 beyond the 6 that are measured at once")
    more = found(tiny, several, trials=200)
    assert more is not None
    assert len(more.networks) == len(machine.asked) == 8
    assert (more.left_out, more.why) == (0, "")


def test_no_other_network_is_begun_after_some_minutes(tiny: TrialConfig, machine: Machine) -> None:
    told = found(tiny, several, trials=200, seconds=90.0)
    assert told is not None
    assert len(machine.asked) == 3
    assert (told.left_out, told.why) == (5, "5 after the 300 s that measuring may take")


@pytest.mark.parametrize(("space", "trials"), [(several, 2), (wide, 10_000)])
def test_a_network_that_rather_no_trial_will_have_is_not_measured(
    tiny: TrialConfig, machine: Machine, space: Space, trials: int
) -> None:
    told = found(tiny, space, trials=trials)
    assert told is not None
    assert len(told.networks) == len(machine.asked) <= 1
    assert told.left_out >= 7
    assert told.why == f"{told.left_out} that rather no trial will have"


def test_networks_that_a_space_compiles_itself_are_left_to_it(tiny: TrialConfig, machine: Machine) -> None:
    def own(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        config = sized(trial, base)
        return config.model_copy(update={"compile": "on"}) if config.batch_size > 16 else config

    assert chosen(found(tiny, own)) == {16: "on"}


def test_what_the_data_has_too_few_images_for_is_not_measured(tiny: TrialConfig, machine: Machine) -> None:
    points: tuple[dict[str, Any], ...] = ({}, {"batch_size": 10_000}, {"batch_size": 32, "data.subset": 10**6})
    told = found(tiny, unvaried, points=points, trials=3, stopping={"enabled": False})
    assert chosen(told) == {16: "on"}
    assert machine.sizes == [16]


def test_without_a_compiler_nothing_is_measured_and_trials_are_as_their_base(
    tiny: TrialConfig, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    said = ["before"]
    assert found(tiny, sized, said) is None
    assert "compile: off, as torch.compile needs a C++ compiler" in said[1]
    assert machine.asked == []


@pytest.mark.slow
@pytest.mark.ffcv
@pytest.mark.timeout(1200)
def test_networks_are_measured_in_processes_of_their_own(tiny: TrialConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    said: list[str] = []
    alone = fastest.chosen(tiny, workers=1, device="cpu", tell=said.append)
    assert alone.compile in ("off", "on")
    assert "ms with compile=on" in said[-1]
    # Activations of 3 TB: it is told that there is no such memory, and the machine goes on.
    points: tuple[dict[str, Any], ...] = ({}, {"model.projector.widths": [10**9, 16]})
    told = found(tiny, unvaried, said, points=points, trials=2, stopping={"enabled": False})
    assert told is not None
    known, too_large = told.networks
    assert known.found is not None
    assert "ms with compile=on" not in said[-1]
    assert (too_large.compile, too_large.found) == ("off", None)
    assert too_large.problem.startswith("out of memory")
