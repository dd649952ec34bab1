"""`--compile auto`: measured once for a network, remembered, and then part of the config."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pretune.analysis import fastest
from pretune.core.experiment import Experiment
from pretune.execution import family, launch
from pretune.request import request
from search_spaces import RECIPES
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


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Each measurement with its workers and device; compiled steps are twice as fast."""
    asked: list[tuple[int, str]] = []

    def run(config: TrialConfig, *, workers: int, device: str, make_train: Any, **_: object) -> Outcome:
        assert config.compile == "off"
        (told,) = make_train.args
        asked.append((workers, device))
        found = Compiled(step_s={"off": 0.2, "on": 0.1}, begin_s={"off": 0.2, "on": 1.0})
        told.write_text(found.model_dump_json())
        return Outcome(state="complete", epochs=1)

    monkeypatch.setattr(launch, "run", run)
    return asked


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


def test_a_sweeps_trials_have_what_is_fastest_for_its_base(
    tiny: TrialConfig, measured: list[tuple[int, str]], here: Path
) -> None:
    experiment = Experiment(name="s", space="kernels", base=tiny, storage=str(here), workers_per_trial=2, slots=1)
    found = fastest.for_sweep(experiment, auto_gpus=False, tell=lambda words: None)
    assert found == experiment.model_copy(update={"base": tiny.model_copy(update={"compile": "on"})})
    assert measured == [(2, "cpu")]


@pytest.mark.slow
@pytest.mark.ffcv
@pytest.mark.timeout(600)
def test_it_is_measured_in_processes_of_its_own(tiny: TrialConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    said: list[str] = []
    found = fastest.chosen(tiny, workers=1, device="cpu", tell=said.append)
    assert found.compile in ("off", "on")
    assert "ms with compile=on" in said[-1]
