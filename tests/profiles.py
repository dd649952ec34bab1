"""What a profile measures, made up for tests of what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

from pretune.execution import launch
from trainers.profiling.figures import Figures, Spread, StepCost, TermCost
from trainers.report import Outcome

TINY = {
    "batch_size": 16,
    "views.*.size": 8,
    "model.backbone.width": 8,
    "model.projector.widths": [16, 16],
    "probe.train_images": 40,
    "probe.select_images": 40,
    "probe.regularization": 1.0,  # its optimum is near
    "optimizer.learning_rate": 1e6,  # a run of its own would diverge
}
"""Changes of a recipe that make a run short enough to be measured in a test."""


def runs_end(monkeypatch: pytest.MonkeyPatch, ends: Outcome | Exception) -> None:
    """A run in processes of its own ends like that, and starts none."""

    def run(*_: object, **__: object) -> Outcome:
        if isinstance(ends, Exception):
            raise ends
        return ends

    monkeypatch.setattr(launch, "run", run)


def spread(seconds: float) -> Spread:
    return Spread(median=seconds, least=0.9 * seconds, most=1.2 * seconds, count=5)


STEP = StepCost(
    whole=spread(0.1),
    terms={
        "alignment": TermCost(forward=spread(0.001), backward=spread(0.001)),
        "mmd": TermCost(forward=spread(0.002), backward=spread(0.004)),
    },
    optimizer=spread(0.005),
    sentinel=spread(0.0001),
    collectives=None,
)
FIGURES = Figures(
    device="cpu",
    cores=4,
    workers=1,
    threads=2,
    precision="float32",
    batch_size=64,
    views=2,
    images=6400,
    steps=100,
    epochs=20,
    loader_s=spread(0.02),
    first_batch_s=spread(0.03),
    synthetic_s=spread(0.1),
    real_s=spread(0.104),
    wait_s=spread(0.001),
    step=STEP,
    boundary_s=spread(0.04),
    probe_s=spread(1.0),
    probed_share=1.0,
    full_probe_s=2.0,
    probe_every=1,
    checkpoint_s=spread(0.05),
    checkpoint_every=1,
    checkpoint_bytes=3e6,
    startup_s={"Python, imports, workers meet": 4.0, "model, first step": 1.0},
    host_peak_bytes=9e8,
    gpu_peak_bytes=None,
    flops=4e9,
    measured_peak=1e11,
    published_peak=None,
)
"""A run that its network limits."""


def figures(**changes: Any) -> Figures:
    return FIGURES.model_copy(update=changes)


def with_step(**changes: Any) -> Figures:
    return figures(step=STEP.model_copy(update=changes))
