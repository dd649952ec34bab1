"""Each trial has the `compile` of its network: whoever proposes it, and however often its sweep goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from pretune.analysis import reseeding
from pretune.analysis.candidates import Candidate
from pretune.core import points, results
from pretune.core.experiment import Experiment
from pretune.core.fastest import Fastest, Network, in_words
from pretune.core.journal import read
from pretune.core.records import Asked, Opened
from pretune.core.search import Proposal
from pretune.request import enqueue, request
from search_spaces import RECIPES
from tests import toys
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.profiling.compiled import Compiled, Way
from trainers.report import Checkpoint

SECONDS = Compiled(step_s={"off": 0.2, "on": 0.1}, begin_s={"off": 0.2, "on": 1.0})


def found(base: TrialConfig, left_out: int = 0, **ways: Way) -> Fastest:
    """Of networks whose batch size is in their names: `b32="on"`."""
    networks = [
        Network(
            config=base.model_copy(update={"batch_size": int(name[1:])}),
            words=name,
            share=0.5,
            compile=way,
            found=SECONDS,
        )
        for name, way in ways.items()
    ]
    return Fastest(networks=tuple(networks), left_out=left_out, why="too many")


def sized(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
    return toys.space(trial, base).model_copy(
        update={"batch_size": trial.suggest_categorical("batch_size", [32, 64, 128, 256])}
    )


CHOSEN = found(toys.BASE, b32="off", b64="on", b128="cuda_graphs")
BY_SIZE = {32: "off", 64: "on", 128: "cuda_graphs", 256: "off"}
"""What follows: the last one was not measured."""


def compiled(folder: Path) -> list[tuple[int, str]]:
    """Of each trial that was asked its batch size, and which `compile` it has."""
    configs = [record.config for record in read(folder) if isinstance(record, Asked) and record.config is not None]
    return [(config["batch_size"], config["compile"]) for config in configs]


def test_each_trial_has_what_is_fastest_for_its_network_also_after_a_kill(tmp_path: Path) -> None:
    made = toys.experiment(tmp_path, trials=12, fastest=CHOSEN)
    first = toys.begin(tmp_path / "whole", made, sized)
    toys.Executor(first, slots=3, seed=1).run()
    whole, records = toys.decisions(tmp_path / "whole"), read(tmp_path / "whole")
    told = compiled(tmp_path / "whole")
    assert {size for size, _ in told} == set(BY_SIZE)
    assert all(way == BY_SIZE[size] for size, way in told)
    for cut in range(1, len(records), 23):
        folder = toys.cut_after(tmp_path / "whole", cut)
        toys.follow(toys.again(folder, sized), records[cut:])
        assert toys.decisions(folder) == whole


def test_a_sweep_without_it_has_what_its_base_says(tmp_path: Path) -> None:
    made = toys.experiment(tmp_path, base=toys.BASE.model_copy(update={"compile": "on"}))
    older = made.model_dump(mode="json")
    del older["fastest"]
    made = Experiment.model_validate(older)
    toys.Executor(toys.begin(tmp_path / "s", made, sized), slots=1, seed=0).run()
    assert {way for _, way in compiled(tmp_path / "s")} == {"on"}


def test_levels_have_that_of_their_networks_and_seeds_the_same(tmp_path: Path) -> None:
    levels: list[dict[str, Any]] = [{}, {"batch_size": 32}, {"batch_size": 128}, {"batch_size": 256}]
    every = tuple({**level, "seed": seed} for seed in range(2) for level in levels)
    made = toys.experiment(tmp_path, points=every, trials=8, fastest=CHOSEN, stopping={"enabled": False})
    toys.Executor(toys.begin(tmp_path / "s", made, points.unvaried), slots=1, seed=0).run()
    assert [way for _, way in compiled(tmp_path / "s")] == ["on", "off", "cuda_graphs", "off"] * 2


def test_what_a_space_asks_to_be_compiled_stays_so(tmp_path: Path) -> None:
    def own(trial: optuna.Trial, base: TrialConfig) -> TrialConfig:
        return sized(trial, base).model_copy(update={"compile": "on"})

    asked = points.proposer(toys.experiment(tmp_path, fastest=CHOSEN), own).ask([])
    assert isinstance(asked, Proposal)
    assert asked.config is not None
    assert asked.config.compile == "on"


def test_what_is_handed_in_has_it_too_unless_somebody_says_otherwise(here: Path) -> None:
    base, _ = request.with_data(RECIPES["sfrik_tiny"](), "digits")
    chosen = found(base, b64="on", b32="off")
    made = Experiment(name="s", space="mine", base=base, storage=str(here / "sweeps"), fastest=chosen)

    def way(*typed: str) -> str:
        return enqueue.check(made, sized, typed).config.compile

    assert way("rate=0.1", "batch_size=64") == "on", "a point of the space"
    assert way("seed=3") == "on", "beside it"
    assert way("batch_size=96", "seed=3") == way("batch_size=32", "seed=3") == "off"
    assert way("seed=3", "compile=off") == "off"
    assert way("batch_size=32", "seed=3", "compile=on") == "on"


def test_the_best_run_again_as_they_ran(tmp_path: Path) -> None:
    made = toys.experiment(tmp_path / "sweeps", name="mine", fastest=CHOSEN)
    toys.begin(tmp_path / "sweeps" / "mine", made, sized)
    ran = [(64, "on"), (64, "off"), (32, "off"), (256, "on")]
    configs = [with_changes(toys.BASE, {"batch_size": size, "compile": way}) for size, way in ran]
    nowhere = Checkpoint(path="/c", sha256="h", epoch=1)
    chosen = [Candidate(number, 0.5, config, nowhere) for number, config in enumerate(configs)]
    again = reseeding.experiment(results.read(tmp_path / "sweeps" / "mine"), chosen, 1)
    found = points.proposer(again, points.unvaried).check()
    assert [(config.batch_size, config.compile) for config in found] == ran


def test_it_travels_with_the_journal(tmp_path: Path) -> None:
    made = toys.experiment(tmp_path, fastest=CHOSEN)
    toys.begin(tmp_path / "s", made, sized)
    [opened] = [record for record in read(tmp_path / "s") if isinstance(record, Opened)]
    assert opened.experiment.fastest == CHOSEN
    assert opened.experiment.compiles == {"off", "on", "cuda_graphs"}


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (found(toys.BASE, b32="on"), "compile: on"),
        (found(toys.BASE, b32="off", b64="off"), "compile: off"),
        (CHOSEN, "compile of networks: off for 1, on for 1, cuda_graphs for 1"),
        (found(toys.BASE, 3, b32="on", b64="on"), "compile of networks: on for 2, off for 3 that were not measured"),
        (found(toys.BASE, 3), "compile of networks: off for 3 that were not measured"),
        (found(toys.BASE), "compile: off"),
    ],
)
def test_a_line_says_what_was_chosen(chosen: Fastest, words: str) -> None:
    assert in_words(chosen) == words
