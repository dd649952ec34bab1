"""`make bench-gpu` at toy size, so that it still runs when a GPU is at hand."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from benchmarks import fused_trials, gpu
from benchmarks.bounded import ROOT

TRIED = [
    {"copies": 1, "images_per_s": 1000.0, "mps": False},
    {"copies": 2, "images_per_s": 1900.0, "mps": True},
]


@pytest.mark.ffcv
def test_a_rows_parts_run_on_a_cpu(tmp_path: Path) -> None:
    size = replace(gpu.TOY, steps=1)
    gpu.make_data(size, tmp_path)
    row = size.rows["sfrik-tiny"]
    stepped = gpu.step(row, size, tmp_path)
    assert set(stepped["shares"]) == {"alignment", "mmd"}
    for found in (stepped, gpu.real(row, size, tmp_path), gpu.loader(row, size, tmp_path)):
        assert 0 < found["least"] <= found["images_per_s"] <= found["most"]


def test_fused_trials_are_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlp = {"MLP": replace(fused_trials.CASES["MLP, 16 px"], batch=4)}
    monkeypatch.setattr(fused_trials, "CASES", mlp)
    found = gpu.fused(gpu.TOY, tmp_path)
    assert found["times_as_fast"]["MLP, 2"] > 0.0


def test_the_table_has_a_line_for_each_part_whatever_became_of_it() -> None:
    rate = {"least": 90.0, "most": 110.0}
    results: list[dict[str, Any]] = [
        {"part": "step a", "images_per_s": 100.0, **rate, "shares": {"mmd": 0.05}},
        {"part": "real a", "images_per_s": 95.0, **rate},
        {"part": "real b", "images_per_s": 95.0, **rate},
        {"part": "compiled a", "images_per_s": 125.0, **rate, "first_step_s": 30.0},
        {"part": "waits a", "left out": "takes a GPU"},
        {"part": "together", "images_per_s_together": {"1": 1.0, "2": 2.0}, "ratio": {"1": 1.0, "2": 2.0}},
        {"part": "packing", "packing": {"tried": TRIED}, "words": "2 trials per card (why)"},
        {"part": "fused", "times_as_fast": {"a, 2": 1.5, "a, 4": 0.5}},
        {"part": "sweep", "seconds": 20.0, "trials": 8, "use_percent": 85.0},
        {"part": "resume", "error": "killed"},
    ]
    assert gpu.table(results)[2:] == [
        "| step a | 100 images/s (90 to 110); mmd 5.0 % |  |",
        "| real a | 95 images/s (90 to 110) | 0.95 of the step alone |",
        "| real b | 95 images/s (90 to 110) |  |",
        "| compiled a | 125 images/s (90 to 110), first step 30 s | 1.25 of the step alone |",
        "| waits a | – (takes a GPU) |  |",
        "| together | 1: 1.00 times one, 2: 2.00 times one |  |",
        "| packing | 2 trials per card (why); images/s 1: 1,000, 2 under MPS: 1,900 |  |",
        "| fused | a, 2: 1.50 times; a, 4: 0.50 times |  |",
        "| sweep | 20 s, card in use 85 % |  |",
        "| resume | **failed**: killed |  |",
    ]


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (TimeoutError("not done after 5 s"), {"left out": "not done after 5 s"}),
        (RuntimeError("no GPU"), {"error": "no GPU"}),
    ],
)
def test_a_part_that_takes_too_long_is_left_out_and_one_that_fails_says_why(
    error: Exception, found: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*_: object, limit_s: float) -> NoReturn:
        raise error

    monkeypatch.setattr(gpu, "lines_of", ends)
    assert gpu.bounded("step sfrik-tiny", tmp_path, toy=True, limit_s=1.0) == {"left out": "no time left"}
    assert gpu.bounded("together", tmp_path, toy=True, limit_s=5.0) == found


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_all_of_it_runs_at_toy_size(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--toy", "--minutes", "14", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in (tmp_path / gpu.RESULTS).read_text().splitlines()]
    assert [one["part"] for one in found] == list(gpu.parts(gpu.TOY))
    assert not [one for one in found if "error" in one]
