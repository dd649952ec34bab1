"""A warm slot on a local Ray cluster: who is blamed for what, what stays warm, and that nothing is left behind.

The training is a toy without FFCV: sub-second epochs, an all-reduce in each, scripted misfortunes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Unpack

import pytest
import ray
import torch
import torch.distributed
from ray import tune

from pretune.core.rows import Handout, Row
from pretune.execution import ray_private
from pretune.execution.cluster import connected
from pretune.execution.processes import process_started
from pretune.execution.slot import POINTER_FILE, Slot, SlotSettings
from pretune.execution.worker import Given
from trainers.config import TrialConfig
from trainers.report import Checkpoint, EpochReport, Outcome

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

# Workers cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

EPOCHS = 3
Script = dict[tuple[int, int], str]
"""(trial number, epoch) -> what happens at the beginning of that epoch, on rank 1 or on the last rank there is."""


class Toy:
    """Counts epochs, keeps a checkpoint of each, obeys its script. Misfortunes strike once, "bug" strikes always."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def __call__(self, config: TrialConfig, **given: Unpack[Given]) -> Outcome:
        folder, report, resume, progress = given["folder"], given["report"], given["resume"], given["progress"]
        number, rank = int(folder.name), torch.distributed.get_rank()
        last = rank == torch.distributed.get_world_size() - 1
        epoch = json.loads(Path(resume.path).read_text())["epoch"] if resume else 0
        with (folder / f"began.rank-{rank}").open("a") as began:
            began.write(f"{os.getpid()} {epoch}\n")
        while epoch < config.epochs:
            action = self._script.get((number, epoch + 1), "")
            if action == "diverged":
                return Outcome(state="diverged", reason="loss/total is not finite", epochs=epoch)
            mark = folder / f"struck-{epoch + 1}"
            if last and action and action != "taken away" and (action == "bug" or not mark.exists()):
                mark.touch()
                strike(action)
            values = torch.ones(1)
            torch.distributed.all_reduce(values)
            for step in range(3):
                progress(epoch, step)
            if action == "taken away" and not mark.exists():
                heed(progress, mark, last)
            epoch += 1
            checkpoint = folder / f"epoch-{epoch}.json"
            text = json.dumps({"epoch": epoch})
            if rank == 0:
                checkpoint.write_text(text)
            logging.getLogger("toy").info("epoch %d done", epoch)
            metrics = {"probe/linear": number + epoch / 10, "workers": float(values)}
            pointer = Checkpoint(path=str(checkpoint), sha256=hashlib.sha256(text.encode()).hexdigest(), epoch=epoch)
            if not report(EpochReport(epoch=epoch, metrics=metrics, checkpoint=pointer)):
                return Outcome(state="stopped", epochs=epoch)
        return Outcome(state="complete", epochs=epoch)


def heed(progress: Callable[[int, int], object], mark: Path, last: bool) -> None:
    """Waits until it is told that the machine goes, and goes with it."""
    deadline = time.monotonic() + 20.0
    while not progress(1, 0):
        assert time.monotonic() < deadline, "no notice was given"
        time.sleep(0.05)
    if last:
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60.0)


def strike(action: str) -> None:
    if action == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "frozen":
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(5.0)  # another thread may take the signal: this one must not get any further meanwhile
    elif action == "bug":
        raise KeyError("no such layer")
    elif action == "out_of_memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


SCRIPT: Script = {
    (20, 2): "diverged",
    (30, 2): "out_of_memory",
    (40, 2): "killed",
    (50, 3): "frozen",
    (60, 2): "bug",
    (70, 2): "taken away",
}


def trial(number: int, epochs: int = EPOCHS, resume: Checkpoint | None = None) -> dict[str, Any]:
    config = TrialConfig.model_validate({"objective": {"alignment": {}}, "epochs": epochs})
    return Handout(number, config.model_dump(mode="json"), {}, f"{number:04d}", resume).to_config()


def make_slot(settings: SlotSettings, first: dict[str, Any]) -> Slot:
    """A slot without Tune: the methods that Tune would call are called by the test."""
    slot: Slot = Slot.__new__(Slot)
    slot.setup(first, settings=settings, make_train=functools.partial(Toy, SCRIPT))
    return slot


def next_row(slot: Slot) -> Row:
    result = slot.step()
    return Row.from_result(result["number"], result)


def finish(slot: Slot) -> list[Row]:
    rows = [next_row(slot)]
    while not rows[-1].done:
        rows.append(next_row(slot))
    return rows


def serve(slot: Slot, number: int) -> list[Row]:
    assert slot.reset_config(trial(number))
    return finish(slot)


def began(sweep: Path, number: int, rank: int = 0) -> list[tuple[int, int]]:
    """(pid, epoch it began from) of each attempt at a trial."""
    lines = (sweep / "trials" / f"{number:04d}" / f"began.rank-{rank}").read_text().splitlines()
    return [(int(pid), int(epoch)) for pid, epoch in (line.split() for line in lines)]


def wait_until(condition: Callable[[], bool], bound_s: float = 20.0) -> bool:
    deadline = time.monotonic() + bound_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def cpus_free() -> float:
    resources: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return resources.get("CPU", 0.0)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with connected(None, cpus=4, logs=tmp_path_factory.mktemp("logs")):
        yield


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def slot(cluster: None, sweep: Path) -> Iterator[Slot]:
    """One slot of two workers that serves most tests of this file, as it would serve a sweep."""
    settings = SlotSettings(
        sweep_folder=str(sweep), workers=2, process_group_timeout_s=5, hang_timeout_s=30, max_failures=1
    )
    slot = make_slot(settings, trial(0))
    finish(slot)
    yield slot
    slot.cleanup()


def test_the_next_trial_runs_in_the_same_processes(slot: Slot, sweep: Path) -> None:
    # Not 1: on a busy machine the first group may be up only with Ray Train's second try.
    starts = slot._group.generation
    rows = serve(slot, 1)
    assert [row.epoch for row in rows] == [1, 2, 3, 3]
    assert [row.outcome for row in rows] == ["running"] * EPOCHS + ["complete"]
    assert rows[-1].metrics["probe/linear"] == rows[-2].metrics["probe/linear"] == 1.3
    assert rows[-1].metrics["workers"] == 2.0
    assert rows[-1].failures == 0
    assert rows[-1].group_starts == starts
    assert rows[-1].checkpoint is not None
    assert rows[-1].checkpoint.epoch == EPOCHS
    for rank in (0, 1):
        assert began(sweep, 0, rank)[-1][0] == began(sweep, 1, rank)[0][0]


def test_a_trial_keeps_its_log_and_its_config(slot: Slot, sweep: Path) -> None:
    serve(slot, 2)
    folder = sweep / "trials" / "0002"
    assert "epoch 3 done" in (folder / "log.txt").read_text()
    assert TrialConfig.model_validate_json((folder / "config.json").read_text()).epochs == EPOCHS


def test_an_idle_slot_outlives_the_process_groups_timeout(slot: Slot) -> None:
    starts = serve(slot, 3)[-1].group_starts
    time.sleep(6.0)
    row = serve(slot, 4)[-1]
    assert (row.outcome, row.failures, row.group_starts) == ("complete", 0, starts)


def test_a_trial_that_tune_stops_makes_room_for_the_next(slot: Slot, sweep: Path) -> None:
    slot.reset_config(trial(5))
    starts = next_row(slot).group_starts
    rows = serve(slot, 6)
    assert rows[-1].outcome == "complete"
    assert rows[-1].group_starts == starts
    assert not (sweep / "trials" / "0005" / "epoch-2.json").exists()


def test_a_paused_trial_goes_on_from_its_pointer(slot: Slot, sweep: Path, tmp_path: Path) -> None:
    slot.reset_config(trial(7))
    slot.step()
    slot.save_checkpoint(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [POINTER_FILE]
    slot.reset_config(trial(7))
    slot.load_checkpoint(str(tmp_path))
    assert [row.epoch for row in finish(slot)] == [2, 3, 3]
    assert [epoch for _, epoch in began(sweep, 7)] == [0, 1]


def test_a_diverged_trial_is_a_result_and_the_group_stays_warm(slot: Slot) -> None:
    starts = serve(slot, 19)[-1].group_starts
    rows = serve(slot, 20)
    assert (rows[-1].outcome, rows[-1].reason) == ("diverged", "loss/total is not finite")
    assert (rows[-1].failures, rows[-1].epoch) == (0, 1)
    assert serve(slot, 21)[-1].group_starts == starts


def test_a_config_that_is_none_costs_no_worker_group(slot: Slot) -> None:
    starts = serve(slot, 22)[-1].group_starts
    slot.reset_config({**trial(23), "config": {"objective": {"alignment": {}}, "epochs": 0}})
    row = next_row(slot)
    assert (row.done, row.outcome, row.group_starts) == (True, "failed", starts)
    assert "epochs" in row.reason


def test_one_rank_out_of_memory_ends_the_trial_and_replaces_the_group(slot: Slot) -> None:
    starts = serve(slot, 29)[-1].group_starts
    row = serve(slot, 30)[-1]
    assert (row.outcome, row.failures) == ("out_of_memory", 0)
    assert "20.00 GiB" in row.reason
    row = serve(slot, 31)[-1]
    assert (row.outcome, row.group_starts) == ("complete", starts + 1)


def test_a_killed_worker_heals_from_the_last_checkpoint(slot: Slot, sweep: Path) -> None:
    rows = serve(slot, 40)
    assert [row.epoch for row in rows] == [1, 1, 2, 3, 3], "the loss is told when it happens"
    assert (rows[-1].outcome, rows[-1].failures) == ("complete", 1)
    # Which rank is told only where the survivor's error arrives before Ray Train's new group does.
    assert "was lost" in rows[1].reason
    assert [epoch for _, epoch in began(sweep, 40)] == [0, 1]
    assert "was lost" in (sweep / "trials" / "0040" / "log.txt").read_text()


def test_a_frozen_worker_is_killed_and_the_trial_heals(slot: Slot, sweep: Path) -> None:
    rows = serve(slot, 50)
    assert [row.epoch for row in rows] == [1, 2, 2, 3, 3]
    assert (rows[-1].outcome, rows[-1].failures) == ("complete", 1)
    attempts = began(sweep, 50, rank=1)
    assert [epoch for _, epoch in attempts] == [0, 2]
    assert process_started(attempts[0][0]) is None, "the frozen process must be gone"


def test_a_machine_that_is_taken_away_is_announced_to_the_workers_and_is_no_failure(
    slot: Slot, sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ray.get_runtime_context().get_node_id()
    monkeypatch.setattr(ray_private, "draining_nodes", lambda: {here} if slot._trial.number == 70 else set())
    rows = serve(slot, 70)
    assert [row.epoch for row in rows] == [1, 2, 3, 3]
    assert (rows[-1].outcome, rows[-1].failures) == ("complete", 0)
    assert rows[1].reason.startswith("its machine was taken away: ")
    assert [epoch for _, epoch in began(sweep, 70, rank=1)] == [0, 1]


def test_a_bug_fails_its_own_trial_alone(slot: Slot, sweep: Path) -> None:
    rows = serve(slot, 60)
    assert [row.epoch for row in rows] == [1, 1, 1]
    assert (rows[-1].outcome, rows[-1].failures) == ("failed", 2)
    assert "no such layer" in rows[-1].reason
    assert "KeyError" in rows[-1].traceback
    assert "in strike" in rows[-1].traceback
    assert "no such layer" in (sweep / "trials" / "0060" / "log.txt").read_text()
    # Of rank 1, which raises: its second failure may end rank 0 before that one has begun.
    assert [epoch for _, epoch in began(sweep, 60, rank=1)] == [0, 1]
    row = serve(slot, 61)[-1]
    assert (row.outcome, row.failures) == ("complete", 0)
    assert began(sweep, 61, rank=1)[0][0] not in {pid for pid, _ in began(sweep, 60, rank=1)}


def test_cleanup_gives_everything_back(slot: Slot) -> None:
    """Runs last of those that share the slot: it is over afterwards."""
    pids = [worker.pid for worker in slot._group.workers]
    slot.cleanup()
    assert wait_until(lambda: cpus_free() == 4.0)
    assert {group["state"] for group in ray.util.placement_group_table().values()} == {"REMOVED"}
    assert wait_until(lambda: all(process_started(pid) is None for pid in pids))


class SlotProcess:
    """A slot in a process of its own, as Tune would hold it."""

    def __init__(self, settings: SlotSettings, first: dict[str, Any], make_train: Callable[[], Toy]) -> None:
        self._slot = Slot.__new__(Slot)
        self._slot.setup(first, settings=settings, make_train=make_train)

    def finish(self) -> Row:
        return finish(self._slot)[-1]

    def pid(self) -> int:
        return os.getpid()

    def cleanup(self) -> None:
        self._slot.cleanup()


@pytest.mark.slow
def test_the_slot_that_follows_a_dead_one_takes_its_place(cluster: None, tmp_path: Path) -> None:
    """A slot that held the whole cluster is killed: its successor can only start on what that one held."""
    settings = SlotSettings(sweep_folder=str(tmp_path), workers=1, cpus_per_worker=4)
    make_train = functools.partial(Toy, SCRIPT)
    assert wait_until(lambda: cpus_free() == 4.0)
    process: Any = ray.remote(num_cpus=0)(SlotProcess)
    first = process.remote(settings, trial(0), make_train)
    assert ray.get(first.finish.remote(), timeout=180).outcome == "complete"
    assert cpus_free() == 0.0
    os.kill(ray.get(first.pid.remote()), signal.SIGKILL)
    workers_pid = began(tmp_path, 0)[0][0]
    assert wait_until(lambda: process_started(workers_pid) is None)
    second = process.remote(settings, trial(1), make_train)
    assert ray.get(second.finish.remote(), timeout=180).outcome == "complete"
    ray.get(second.cleanup.remote(), timeout=60)
    assert wait_until(lambda: cpus_free() == 4.0)


def test_a_group_that_finds_no_place_says_what_is_missing(cluster: None, tmp_path: Path) -> None:
    slot = make_slot(
        SlotSettings(sweep_folder=str(tmp_path), workers=3, cpus_per_worker=2, group_start_timeout_s=4), trial(0)
    )
    row = next_row(slot)
    assert (row.done, row.outcome, row.failures) == (True, "no_room", 0)
    assert re.search(r"3 workers of 2 CPU each .* holds 4 CPU", row.reason)
    started = time.monotonic()
    slot.cleanup()
    assert time.monotonic() - started < 40.0
    assert {group["state"] for group in ray.util.placement_group_table().values()} == {"REMOVED"}


@pytest.mark.slow
def test_tune_runs_many_trials_on_two_slots_and_leaves_nothing(cluster: None, tmp_path: Path) -> None:
    class StopHalf(tune.schedulers.FIFOScheduler):
        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            return "STOP" if result["number"] % 2 else "CONTINUE"

    settings = SlotSettings(sweep_folder=str(tmp_path))
    trials = [{**trial(number), "number": number} for number in range(10)]
    tuner = tune.Tuner(
        tune.with_parameters(Slot, settings=settings, make_train=functools.partial(Toy, {(4, 2): "killed"})),
        param_space={
            **trial(0),
            "number": tune.grid_search([one["number"] for one in trials]),
            "folder": tune.sample_from(lambda spec: f"{spec.config.number:04d}"),  # type: ignore[attr-defined]
        },
        tune_config=tune.TuneConfig(max_concurrent_trials=2, reuse_actors=True, scheduler=StopHalf()),  # type: ignore[no-untyped-call]
        run_config=tune.RunConfig(storage_path=str(tmp_path / "tune"), verbose=0),
    )
    results = tuner.fit()
    assert not results.errors
    every = [results[index].metrics or {} for index in range(len(results))]
    rows = {row["number"]: row for row in every}
    assert sorted(rows) == list(range(10))
    assert {number: row["outcome"] for number, row in rows.items() if number % 2 == 0} == dict.fromkeys(
        range(0, 10, 2), "complete"
    )
    assert all(row["epoch"] == 1 for number, row in rows.items() if number % 2)
    assert rows[4]["failures"] == 1
    pids = {began(tmp_path, number)[-1][0] for number in range(10)} | {began(tmp_path, 4)[0][0]}
    assert len(pids) <= 3, "two slots and one replacement"
    assert wait_until(lambda: cpus_free() == 4.0)
    assert {group["state"] for group in ray.util.placement_group_table().values()} == {"REMOVED"}
