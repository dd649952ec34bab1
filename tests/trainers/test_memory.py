"""The most memory that a run held: its own, whatever its process held before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainers import memory

CPU = torch.device("cpu")
MUCH = 128 * 2**20


def held(size: int) -> None:
    """Touches every page of so many bytes, and gives them back."""
    assert bytearray(b"\1") * size


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
