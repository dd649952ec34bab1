"""The benchmark of a sweep's start reads what a sweep prints of it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from benchmarks import first_step
from pretune.core.experiment import Experiment
from pretune.core.records import Asked, Epoch, Opened, Started
from pretune.display.live import PlainLines, Progress
from search_spaces import RECIPES


def test_the_parts_that_a_sweep_prints_are_read_and_sum_up() -> None:
    now = 0.0
    console = Console(width=80, file=io.StringIO(), record=True)
    experiment = Experiment(name="s", space="kernels", base=RECIPES["sfrik_tiny"](), storage="sweeps")
    lines = PlainLines(Progress(experiment, before_s=2.0, clock=lambda: now), console, interval=0.0)
    now = 7.0
    lines.on_event(Opened(experiment=experiment))
    lines.on_event(Asked(number=0, params={}, distributions={}, config={}))
    lines.on_event(Started(number=0, attempt=0, epoch=0))
    now = 75.0
    spent = {"time/group_start_s": 20.0, "time/first_step_s": 9.0, "time/epoch_s": 3.0, "time/probe_s": 2.0}
    lines.on_event(Epoch(number=0, epoch=1, metrics=spent))
    parts = {"checks": 2.0, "Ray": 7.0, "slots": 43.0, "workers": 20.0, "data, model and compilers": 9.0}
    assert first_step.parts(console.export_text()) == {**parts, "total": sum(parts.values())}


def test_a_sweep_that_says_nothing_is_no_measurement() -> None:
    with pytest.raises(ValueError, match="must tell of its first step"):
        first_step.parts("12 s  sweep finished")
