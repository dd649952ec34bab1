"""The comparison with Ray Tune, and the simulated cluster, at a size that takes seconds."""

from __future__ import annotations

import os

import numpy as np
import pytest

from benchmarks import search, search_cluster, search_surface
from benchmarks.search_cluster import Driver
from benchmarks.search_replay import Clock
from benchmarks.search_surface import FILE, Process, Surface

RECORDING = search_surface.stored()


@pytest.fixture(scope="module")
def process() -> Process:
    return Process(RECORDING)


def test_the_recording_is_of_sixty_full_runs_and_small() -> None:
    assert len(RECORDING.trials) >= 60
    assert {len(trial.values) for trial in RECORDING.trials} == {RECORDING.epochs}
    assert {len(trial.seconds) for trial in RECORDING.trials} == {RECORDING.epochs}
    assert "--no-stopping" in RECORDING.command
    assert len(RECORDING.journal) == len(RECORDING.manifest) == 64
    assert FILE.stat().st_size < 300_000


def test_the_surface_tells_more_of_a_point_that_is_left_out_than_the_mean_does(process: Process) -> None:
    assert process.explained > 0.2


def test_noise_is_a_whole_recorded_curve_of_errors(process: Process) -> None:
    surface, params = Surface(process), RECORDING.trials[0].params
    errors = (np.array(surface.trial(3, params).values) - surface.worth(params)) / process.spread
    assert np.abs(process.errors - errors).max(axis=1).min() < 1e-9


def test_a_trial_of_equal_number_and_point_is_told_the_same_in_a_replay_and_something_else_in_another(
    process: Process,
) -> None:
    params = RECORDING.trials[0].params
    one, again, other = (Surface(process, seed).trial(3, params) for seed in (1, 1, 2))
    assert one == again
    assert one.values != other.values


@pytest.mark.parametrize("name", [search.PLAIN, "tpe, asha (the default)", "random, nothing stopped"])
def test_a_replay_is_a_function_of_its_seed(name: str) -> None:
    entry = search.entries(RECORDING)[name]
    found = [search.replay(FILE, entry, seed=seed, slots=2, trials=8) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert all(one.trials == (8,) for one in found)


def test_nothing_stopped_takes_all_epochs_and_the_two_rules_take_fewer() -> None:
    entries = search.entries(RECORDING)
    whole, ours, tunes = (
        search.replay(FILE, entries[name], seed=0, slots=2, trials=12).epochs[0]
        for name in ("random, nothing stopped", "random, asha", search.PLAIN)
    )
    assert whole == 12 * RECORDING.epochs
    assert max(ours, tunes) < whole


def test_both_tables_have_a_row_for_each_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "RUNS", (2, 3))
    monkeypatch.setattr(search, "TRIALS", (4,))
    settings = {"replays": 2, "seed": 0, "slots": 2, "jobs": 1}
    for rows, place in (search.by_compute(FILE, **settings), 0), (search.by_trials(FILE, **settings), 1):
        found = list(rows)
        assert [row[place] for row in found] == list(search.entries(RECORDING))
        assert len({len(row) for row in found}) == 1


def test_who_asks_a_busy_driver_waits() -> None:
    driver = Driver(Clock(), flush_s=0.02)
    driver.serve(lambda: os.fsync(0), driver.asks)
    driver.clock.now = 0.005  # another one asks meanwhile
    driver.serve(lambda: os.fsync(0), driver.asks)
    assert driver.waits[0] == driver.asks[0] >= 0.02
    assert driver.waits[1] == pytest.approx(sum(driver.asks) - 0.005)
    assert driver.clock.now == pytest.approx(driver.busy)


def test_the_simulated_cluster_runs_all_trials_and_its_slots_wait_for_a_driver_that_is_too_slow() -> None:
    def ran(epoch_s: float) -> search_cluster.Simulated:
        return search_cluster.run(FILE, sampler="random", slots=8, trials=24, epoch_s=epoch_s)

    long, short = ran(600.0), ran(0.001)
    assert (long.trials, short.trials) == (24, 24)
    assert long.share < 0.01 < 0.5 < short.share <= 1.0
    assert short.use < long.use <= 1.0
    assert [what for what, _ in search_cluster.rows(long)] == [what for what, _ in search_cluster.rows(short)]
