"""A step on noise, and each of its parts alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from search_spaces import RECIPES
from tests.two_processes import TwoProcesses
from trainers import dist
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.profiling.step import StepAlone, in_turns, slowest, windows

CPU = torch.device("cpu")
SMALL = {"batch_size": 8, "views.*.size": 8, "model.backbone.width": 8, "model.projector.widths": [16, 16]}


def small(recipe: str = "sfrik_tiny", **changes: Any) -> TrialConfig:
    return with_changes(RECIPES[recipe](), {**SMALL, **changes})


def test_a_step_moves_the_parameters_and_a_term_alone_does_not() -> None:
    alone = StepAlone(small(), CPU)
    before = [parameter.clone() for parameter in alone.model.parameters()]
    terms = alone.terms()
    assert set(terms) == {"alignment", "mmd"}
    for term in terms.values():
        term()
        term.forward()
        term.backward()
        with pytest.raises(RuntimeError, match="call forward"):
            term.backward()
    assert all(map(torch.equal, before, alone.model.parameters()))
    alone.step()
    assert not all(map(torch.equal, before, alone.model.parameters()))


def test_the_sentinel_looks_where_it_would_in_training() -> None:
    look = StepAlone(small(sentinel={}), CPU).look()
    assert look is not None
    look()
    assert StepAlone(small(sentinel=None), CPU).look() is None


def test_turns_and_windows_time_each_and_count_none_that_warm_up() -> None:
    calls: list[str] = []
    work = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    found = in_turns(work, 4, CPU)
    assert calls == ["a", "b"] * 7
    assert {name: one.count for name, one in found.items()} == {"a": 4, "b": 4}
    assert windows(work["a"], CPU, steps=3, count=2).count == 2
    assert calls.count("a") == 7 + 3 + 6


def two_ranks() -> tuple[list[float], float]:
    torch.set_num_threads(1)
    alone = StepAlone(small(), CPU)
    alone.step()
    for term in alone.terms().values():
        term()
    with FlopCounterMode(display=False) as counter:
        alone.step()
    return slowest([1.0 + dist.rank(), 5.0 - dist.rank()]), sum(dist.gather_objects(counter.get_total_flops()))


def test_two_workers_share_the_batch_and_the_slower_one_counts(two_processes: TwoProcesses) -> None:
    with FlopCounterMode(display=False) as counter:
        StepAlone(small(), CPU).step()
    alone = counter.get_total_flops()
    assert alone > 0
    for slower, together in two_processes.run(two_ranks):
        assert slower == [2.0, 5.0]
        assert together >= alone, "the network's work is shared, that of the global terms is done on each"
        assert together < 1.5 * alone
