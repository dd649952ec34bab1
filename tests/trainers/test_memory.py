"""The most memory that a run held: its own, whatever its process held before."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers import memory
from trainers.config import TrialConfig

CPU = torch.device("cpu")
MUCH = 128 * 2**20


def held(size: int) -> None:
    """Touches every page of so many bytes, and gives them back. Pages of its own: an allocator may have free ones."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        pages[:: mmap.PAGESIZE] = b"\1" * (size // mmap.PAGESIZE)


def test_a_peak_is_seen_though_the_memory_was_given_back() -> None:
    memory.reset_peaks(CPU)
    before = memory.peaks(CPU)["memory/host_peak_bytes"]
    held(MUCH)
    assert memory.peaks(CPU)["memory/host_peak_bytes"] > before + 0.9 * MUCH


def test_a_run_does_not_have_the_peak_of_one_before_it() -> None:
    held(MUCH)
    before = memory.host_peak_bytes()
    if not memory.reset_peaks(CPU):
        pytest.skip("this system keeps a process's peak for ever")
    assert memory.host_peak_bytes() < before - 0.5 * MUCH


def test_where_the_system_keeps_the_mark_the_peak_is_that_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "none" / "clear_refs")
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none" / "status")
    before = memory.host_peak_bytes()
    assert not memory.reset_peaks(CPU)
    assert memory.host_peak_bytes() >= before > 2**20


def test_on_a_cpu_nothing_is_said_of_a_gpu() -> None:
    assert memory.peaks(CPU).keys() == {"memory/host_peak_bytes"}


GIB = float(2**30)


@pytest.mark.parametrize(
    ("changes", "peak", "fixed", "capacity", "said"),
    [
        ({}, 75.0, 5.0, 80.0, "; it may fit with accumulate=2 or more, or with a smaller batch_size"),
        # It divides the 64 images of a worker.
        ({"accumulate": 4}, 75.0, 5.0, 80.0, "; it may fit with accumulate=8 or more, or with a smaller batch_size"),
        ({"accumulate": 64}, 20.0, 5.0, 25.0, "; its batch cannot be cut into more parts: choose a smaller model or"),
        ({}, 20.0, 30.0, 25.0, "; these do not fit, whatever the batch: choose a smaller model"),
        ({}, 20.0, 5.0, None, "; it may fit with accumulate=2 or more, or with a smaller batch_size"),
        (
            {"model": {}},
            20.0,
            5.0,
            None,
            "=2 or more, with model.norm=layer or accumulate_batch_norm=per_part, or with",
        ),
    ],
)
def test_a_run_that_did_not_fit_is_told_what_may(
    changes: dict[str, Any], peak: float, fixed: float, capacity: float | None, said: str
) -> None:
    values = {"model": {"norm": "layer"}, "objective": {"alignment": {}}, "batch_size": 128, **changes}
    found = memory.remedy(
        TrialConfig.model_validate(values),
        workers=2,
        peak_bytes=peak * GIB,
        fixed_bytes=fixed * GIB,
        capacity_bytes=None if capacity is None else capacity * GIB,
    )
    assert said in found
    assert found.startswith(f"this run held {peak:.2f} GiB at most")
    assert f"{fixed:.2f} GiB of it for parameters" in found
