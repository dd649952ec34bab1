"""How far a trial is within an epoch, as a file that nothing depends on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pretune.core import within
from pretune.core.within import FILE, Within


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_first_epoch_of_a_run_tells_its_step_and_later_ones_their_share(tmp_path: Path) -> None:
    clock = Clock()
    told, found = Within(tmp_path, clock=clock), []
    for step in range(1, 31):  # three epochs of ten steps
        epoch = (step - 1) // 10
        clock.now += 1.0
        told.step(epoch, step)
        found.append(within.read(tmp_path, epoch=epoch, since=0.0))
    assert found[:10] == [f"step {step}" for step in range(1, 11)]
    assert found[10:20] == [f"{share} %" for share in range(10, 101, 10)]
    assert found[20:] == found[10:20]
    told.over()
    assert list(tmp_path.iterdir()) == []
    told.over()


def test_a_run_that_goes_on_in_the_middle_of_an_epoch_learns_its_length_with_the_next(tmp_path: Path) -> None:
    clock = Clock()
    told = Within(tmp_path, clock=clock)
    for epoch, step, expected in [(3, 37, "step 37"), (3, 40, "step 40"), (4, 41, "10 %"), (4, 45, "50 %")]:
        clock.now += 1.0
        told.step(epoch, step)
        assert within.read(tmp_path, epoch=epoch, since=0.0) == expected


def test_it_is_written_at_most_once_a_second(tmp_path: Path) -> None:
    clock = Clock()
    told = Within(tmp_path, clock=clock)
    for step in range(1, 100):
        told.step(0, step)
    assert list(tmp_path.iterdir()) == []
    clock.now = 1.0
    told.step(0, 100)
    clock.now = 1.9
    told.step(0, 101)
    assert within.read(tmp_path, epoch=0, since=0.0) == "step 100"


def test_what_is_of_another_epoch_of_an_earlier_driver_or_broken_is_not_shown(tmp_path: Path) -> None:
    clock = Clock()
    told = Within(tmp_path, clock=clock)
    clock.now = 1.0
    told.step(0, 5)
    assert within.read(tmp_path, epoch=1, since=0.0) is None
    os.utime(tmp_path / FILE, (50.0, 50.0))
    assert within.read(tmp_path, epoch=0, since=100.0) is None
    assert within.read(tmp_path, epoch=0, since=10.0) == "step 5"
    for text in ("", "[]", "{}", '{"epoch": 0, "step": "x", "steps": null}', '{"epoch": 0, "step": 1, "steps": 0}'):
        (tmp_path / FILE).write_text(text)
        assert within.read(tmp_path, epoch=0, since=0.0) is None
    assert within.read(tmp_path / "nowhere", epoch=0, since=0.0) is None


def test_a_folder_that_cannot_be_written_to_does_no_harm(tmp_path: Path) -> None:
    clock = Clock()
    told = Within(tmp_path / "nowhere", clock=clock)
    clock.now = 1.0
    told.step(0, 1)
    told.over()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", [1, 3])
def test_an_epoch_of_few_steps_is_counted_as_well(tmp_path: Path, steps: int) -> None:
    clock = Clock()
    told = Within(tmp_path, clock=clock)
    for step in range(1, 3 * steps + 1):
        clock.now += 1.0
        told.step((step - 1) // steps, step)
    assert within.read(tmp_path, epoch=2, since=0.0) == "100 %"
