"""The golden curves: a change that is not meant to change numbers does not."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.golden import curves
from trainers.config import ScheduleConfig
from trainers.optim import learning_rate

SHOWN = 24
"""Differences that a failure lists; one wrong step changes nearly all later numbers."""


@pytest.mark.ffcv
@pytest.mark.parametrize("recipe", curves.NAMES)
def test_a_tiny_recipe_reports_what_it_always_has(recipe: str) -> None:
    stored, here = curves.read(recipe), curves.arithmetic()
    exact = stored["arithmetic"] == here
    found = curves.differences(stored["epochs"], curves.run(recipe), exact=exact)
    rule = "bit for bit, as CPU type and versions are its own" if exact else f"within tolerances, as this is {here}"
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    lines = [f"{len(found)} numbers are not those of {curves.path(recipe)}, compared {rule}:", *found[:SHOWN], *more]
    assert not found, "\n  ".join(lines)


@pytest.mark.parametrize("recipe", curves.NAMES)
def test_a_file_says_how_it_was_made_and_has_every_kind_of_number(recipe: str) -> None:
    stored = curves.read(recipe)
    assert (stored["recipe"], stored["settings"]) == (recipe, curves.SETTINGS)
    assert len(stored["epochs"]) == curves.SETTINGS["epochs"]
    for metrics in stored["epochs"]:
        assert metrics.keys() >= {
            "loss/total",
            "optim/learning_rate",
            "optim/gradient_norm",
            "probe/linear",
            "probe/knn",
            "health/features/effective_rank",
        }
        assert not [name for name in metrics if name.startswith(("time/", "budget/", "memory/"))]
        assert all(math.isfinite(value) for value in metrics.values())
    rates = [metrics["optim/learning_rate"] for metrics in stored["epochs"]]
    assert rates[0] < rates[1] < rates[2] > rates[3] > rates[4] > rates[5], "it warms up and decays"


@pytest.mark.parametrize("recipe", curves.NAMES)
def test_a_learning_rate_that_is_one_step_late_is_noticed_at_every_epoch_on_any_machine(recipe: str) -> None:
    epochs: list[dict[str, float]] = curves.read(recipe)["epochs"]
    peak, steps = epochs[2]["optim/learning_rate"], 4
    schedule = ScheduleConfig(warmup_share=0.375, decay_share=0.5)
    total = steps * len(epochs)
    for late in (0, 1):
        ends = [learning_rate(peak, schedule, steps * epoch - 1 + late, total) for epoch in range(1, len(epochs) + 1)]
        measured = [metrics | {"optim/learning_rate": rate} for metrics, rate in zip(epochs, ends, strict=True)]
        assert len(curves.differences(epochs, measured, exact=False)) == late * len(epochs)


def changed(epochs: list[dict[str, float]], epoch: int, name: str, factor: float) -> list[dict[str, float]]:
    """A copy with one number of `epoch` (counted from 1) times `factor`."""
    copy = [dict(metrics) for metrics in epochs]
    copy[epoch - 1][name] *= factor
    return copy


@pytest.mark.parametrize(
    ("name", "factor", "noticed"),
    [
        ("loss/total", 1.0 + 2e-16, {True}),
        ("loss/total", 1.1, {True, False}),
        ("optim/learning_rate", 1.0 + 1e-11, {True, False}),
        ("optim/gradient_norm", 2.0, {True, False}),
        ("probe/linear", 1.02, {True}),
        ("probe/linear", 0.5, {True, False}),
        ("health/features/std", 1.5, {True}),
        ("health/features/std", math.nan, {True, False}),
        ("loss/total", math.nan, {True, False}),
    ],
)
def test_a_number_that_is_off_is_named_with_its_epoch(name: str, factor: float, noticed: set[bool]) -> None:
    epochs: list[dict[str, Any]] = curves.read("sfrik_tiny")["epochs"]
    for exact in (True, False):
        found = curves.differences(epochs, changed(epochs, 3, name, factor), exact=exact)
        assert len(found) == (exact in noticed), found
        assert all(line.startswith(f"epoch 3  {name}: stored ") for line in found)
        assert curves.differences(epochs, epochs, exact=exact) == []


def test_a_number_or_an_epoch_that_is_missing_is_a_difference_and_a_new_one_is_not() -> None:
    epochs: list[dict[str, float]] = curves.read("sfrik_tiny")["epochs"]
    fewer = [{name: value for name, value in metrics.items() if name != "loss/mmd"} for metrics in epochs]
    assert len(curves.differences(epochs, fewer, exact=False)) == len(epochs)
    assert curves.differences(fewer, epochs, exact=True) == []
    assert curves.differences(epochs, epochs[:3], exact=True) == ["6 epochs were stored, but 3 were reported"]
