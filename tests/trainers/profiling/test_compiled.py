"""Which way of a network's passes a run takes least with."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from search_spaces import RECIPES
from trainers import compiling
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.profiling import compiled
from trainers.profiling.compiled import Compiled, Way

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("step_s", "begin_s", "steps", "way"),
    [
        ({"off": 0.10, "on": 0.05}, {"off": 0.1, "on": 20.0}, 1000, "on"),
        ({"off": 0.10, "on": 0.05}, {"off": 0.1, "on": 20.0}, 100, "off"),  # 20 s are not won back
        ({"off": 0.10, "on": 0.097}, {"off": 0.1, "on": 0.1}, 10**6, "off"),  # 3 % might be noise
        ({"off": 0.10, "on": 0.20}, {"off": 0.1, "on": 20.0}, 1000, "off"),
        ({"off": 0.10}, {"off": 0.1}, 1000, "off"),
        (
            {"off": 0.10, "on": 0.05, "cuda_graphs": 0.04},
            {"off": 0.1, "on": 20.0, "cuda_graphs": 25.0},
            1000,
            "cuda_graphs",
        ),
    ],
)
def test_the_way_is_what_a_whole_run_takes_least_with(
    step_s: dict[Way, float], begin_s: dict[Way, float], steps: int, way: Way
) -> None:
    assert Compiled(step_s=step_s, begin_s=begin_s).fastest(steps) == way


def tiny(**changes: Any) -> TrialConfig:
    small = {"batch_size": 16, "model.backbone.width": 8, "views.0.size": 8, "views.1.size": 8}
    return with_changes(RECIPES["sfrik_tiny"](), {**small, **changes})


def test_cuda_graphs_are_for_gpus_and_for_whole_batches() -> None:
    card = torch.device("cuda")
    parts = tiny(accumulate=2, accumulate_batch_norm="per_part")
    assert compiled.ways(tiny(), CPU) == compiled.ways(parts, card) == ("off", "on")
    assert compiled.ways(tiny(), card) == ("off", "on", "cuda_graphs")


def test_plain_steps_are_timed_around_the_others_and_what_cannot_be_compiled_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    steps = iter([1.0, 0.5, 0.8])

    def timed(config: TrialConfig, *_: object) -> tuple[float, float]:
        asked.append(config.compile)
        return 3.0, next(steps)

    monkeypatch.setattr(compiled, "_timed", timed)
    assert compiled.measure(tiny(), CPU, lambda: None).step_s == {"off": 0.8, "on": 0.5}
    assert asked == ["off", "on", "off"]

    def fails(config: TrialConfig, *_: object) -> tuple[float, float]:
        if config.compile == "on":
            raise compiling.CompilationError("no")
        return 3.0, 1.0

    monkeypatch.setattr(compiled, "_timed", fails)
    assert compiled.measure(tiny(), CPU, lambda: None).step_s == {"off": 1.0}


def test_steps_are_timed_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "WINDOW_S", 0.01)
    monkeypatch.setattr(compiled, "ways", lambda config, device: ("off",))
    told: list[None] = []
    found = compiled.measure(tiny(), CPU, lambda: told.append(None))
    assert 0.0 < found.step_s["off"] < 5.0
    assert len(told) >= 10
