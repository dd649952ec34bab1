"""Trials that are fused take the steps that each would take alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.fused_trials import CASES, Trials, ratios

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["resnet_tiny, 16 px", "MLP, 16 px"])
def test_fused_trials_step_as_each_alone(name: str) -> None:
    trials = Trials(replace(CASES[name], batch=8), 3, CPU, torch.float64)
    before = {key: value.clone() for key, value in trials.stacked.items()}
    for _ in range(2):
        trials.in_turn()
        trials.fused()
    for key, stacked in trials.stacked.items():
        alone = torch.stack([network.get_parameter(key) for network in trials.networks])
        torch.testing.assert_close(stacked, alone, rtol=1e-9, atol=1e-12)
        if key.endswith("weight"):
            assert not torch.equal(stacked, before[key])
            assert not torch.equal(stacked[0], stacked[2]), "each has a rate and a weight of its own"


def test_both_sides_are_timed() -> None:
    found, seconds = ratios(replace(CASES["MLP, 16 px"], batch=4), 2, CPU, runs=2)
    assert len(found) == 2
    assert min(*found, seconds) > 0.0
