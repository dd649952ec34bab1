"""A few steps of training, recorded."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from trainers.profiling.trace import TENSORBOARD, TRACE, Recorder, covered


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [
        ([], 0.0),
        ([(0.0, 1.0), (2.0, 4.0)], 3.0),
        ([(2.0, 4.0), (0.0, 3.0)], 4.0),
        ([(0.0, 10.0), (1.0, 2.0), (9.0, 11.0)], 11.0),
    ],
)
def test_what_overlaps_is_counted_once(spans: list[tuple[float, float]], seconds: float) -> None:
    assert covered(spans) == seconds


def test_the_steps_asked_for_are_recorded_and_written_for_both_programs(tmp_path: Path) -> None:
    recorder = Recorder(torch.device("cpu"), first=2, count=3)
    a = torch.randn(8, 8)
    done = []
    for step in range(1, 7):
        torch.mm(a, a)
        recorder(0, step)
        done.append(recorder.done)
    assert done == [False] * 4 + [True] * 2
    assert recorder.collectives_s() == 0.0
    recorder.write(tmp_path)
    events = json.loads(gzip.decompress((tmp_path / TRACE).read_bytes()))["traceEvents"]
    assert sum(event.get("name") == "aten::mm" for event in events) == 3
    (again,) = (tmp_path / TENSORBOARD).glob("rank-0.*.pt.trace.json.gz")
    assert again.read_bytes() == (tmp_path / TRACE).read_bytes()
