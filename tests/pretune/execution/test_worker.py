"""One trial in one process, the loop around it, and a training in local processes: all without Ray."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import re
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Unpack

import numpy as np
import pytest
import ray.exceptions
import torch
import torch.distributed

from pretune.core import packing, within
from pretune.execution import family, launch, worker
from pretune.execution.mailbox import Command, Failed, Order, Reported, Returned, Taken
from pretune.execution.worker import Given
from tests.pretune.execution.summing import Summing
from trainers.config import OptimizerConfig, TrialConfig
from trainers.report import EpochReport, Outcome

CPU = torch.device("cpu")
Report = Callable[[EpochReport], bool]
Progress = Callable[[int, int], bool | None]


def config(**changes: Any) -> TrialConfig:
    return TrialConfig.model_validate({"objective": {"alignment": {}}, "epochs": 3, "batch_size": 8, **changes})


def order(folder: Path, run: int = 1, **changes: Any) -> Order:
    return Order(run, 0, config(**changes).model_dump(mode="json"), str(folder))


class Counting:
    """Reports `epochs` epochs; `act` is called at the beginning of each, with the epochs finished."""

    def __init__(self, act: Callable[[int], None] = lambda epoch: None) -> None:
        self.act = act

    def __call__(self, config: TrialConfig, **given: Unpack[Given]) -> Outcome:
        resume = given["resume"]
        for epoch in range(resume.epoch if resume else 0, config.epochs):
            self.act(epoch)
            given["progress"](epoch, epoch)
            if not given["report"](EpochReport(epoch=epoch + 1, metrics={"epoch": epoch + 1.0})):
                return Outcome(state="stopped", epochs=epoch + 1)
        return Outcome(state="complete", epochs=config.epochs)


def run_trial(train: worker.Train, given: Order) -> Outcome:
    return worker.run_trial(train, given, rank=0, device=CPU, report=lambda report: True, progress=lambda *_: None)


class ScriptedLine(worker.Line):
    """A line whose commands are given and whose events are kept."""

    def __init__(self, commands: Iterable[Command]) -> None:
        self.commands = list(commands)
        self.events: list[Reported | Returned | Failed] = []
        self.generation, self.rank = 1, 0

    def take(self) -> Command:
        return self.commands.pop(0)

    def post(self, event: Reported | Returned | Failed) -> None:
        self.events.append(event)

    def pulse(self, epoch: int, step: int) -> bool:
        return False


GO, STOP, SHUTDOWN = Command("continue"), Command("stop"), Command("shutdown")


def served(train: worker.Train, *commands: Command) -> ScriptedLine:
    line = ScriptedLine(commands)
    worker.serve(line, train, CPU)
    assert not line.commands
    return line


def test_the_loop_serves_trial_after_trial_until_it_is_told_to_shut_down(tmp_path: Path) -> None:
    starts = [Command("start", order(tmp_path / str(run), run)) for run in (1, 2)]
    line = served(Counting(), starts[0], GO, GO, GO, starts[1], GO, STOP, SHUTDOWN)
    said = [(type(event).__name__, event.run) for event in line.events]
    assert said == [("Reported", 1)] * 3 + [("Returned", 1)] + [("Reported", 2)] * 2 + [("Returned", 2)]
    ends = [event.outcome for event in line.events if isinstance(event, Returned)]
    assert [end.state for end in ends] == ["complete", "stopped"]


def test_rank_0_says_how_far_it_is_within_an_epoch_until_its_run_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(within, "WRITE_S", 0.0)
    seen: list[str | None] = []

    def train(config: TrialConfig, **given: Any) -> Outcome:
        given["progress"](0, 7)
        seen.append(within.read(tmp_path, epoch=0, since=0.0))
        return Outcome(state="complete", epochs=0)

    served(train, Command("start", order(tmp_path)), SHUTDOWN)
    assert seen == ["step 7"]
    assert not (tmp_path / within.FILE).exists()


def test_a_shutdown_in_the_middle_of_a_trial_stops_it_and_ends_the_loop(tmp_path: Path) -> None:
    line = served(Counting(), Command("start", order(tmp_path)), GO, SHUTDOWN)
    end = line.events[-1]
    assert isinstance(end, Returned)
    assert (end.outcome.state, end.outcome.epochs) == ("stopped", 2)


def test_an_answer_that_crossed_the_end_of_its_trial_is_ignored(tmp_path: Path) -> None:
    line = served(Counting(), STOP, Command("start", order(tmp_path, epochs=1)), GO, SHUTDOWN)
    assert [type(event).__name__ for event in line.events] == ["Reported", "Returned"]


def test_an_exception_is_told_with_its_traceback_and_ends_the_loop(tmp_path: Path) -> None:
    def fail(epoch: int) -> None:
        raise KeyError("no such layer")

    line = ScriptedLine([Command("start", order(tmp_path))])
    with pytest.raises(KeyError):
        worker.serve(line, Counting(fail), CPU)
    (failure,) = line.events
    assert isinstance(failure, Failed)
    assert failure.summary == "KeyError: 'no such layer'"
    assert "in fail" in failure.traceback
    assert failure.bug is not None
    assert re.fullmatch(r"KeyError at test_worker\.py:\d+ in fail", failure.bug)
    assert not failure.begun
    assert "no such layer" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("error", [OSError("no such host"), TimeoutError("storage"), ConnectionResetError()])
def test_what_comes_from_outside_is_no_bug(error: Exception, tmp_path: Path) -> None:
    def fail(epoch: int) -> None:
        raise error

    line = ScriptedLine([Command("start", order(tmp_path))])
    with pytest.raises(type(error)):
        worker.serve(line, Counting(fail), CPU)
    assert [event.bug for event in line.events if isinstance(event, Failed)] == [None]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 80 bytes"),
        MemoryError("numpy"),
    ],
)
def test_being_out_of_memory_is_an_outcome(error: Exception, tmp_path: Path) -> None:
    def fail(epoch: int) -> None:
        if epoch == 2:
            raise error

    outcome = run_trial(Counting(fail), order(tmp_path))
    assert (outcome.state, outcome.epochs) == ("out_of_memory", 2)
    assert str(error) in outcome.reason


def test_any_other_runtime_error_is_not_taken_for_memory(tmp_path: Path) -> None:
    def fail(epoch: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        run_trial(Counting(fail), order(tmp_path))


def test_a_trial_feels_nothing_of_the_one_before(tmp_path: Path) -> None:
    """A trial that leaves every global setting and random state in disorder changes no number of the next."""
    seen: list[tuple[float, ...]] = []

    def look(epoch: int) -> None:
        settings = (
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.get_default_dtype() == torch.float32,
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
        )
        seen.append((*map(float, settings), random.random(), np.random.rand(), float(torch.rand(()))))

    def disturb(epoch: int) -> None:
        torch.set_num_threads(2)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = True
        torch.rand(3)

    try:
        run_trial(Counting(look), order(tmp_path))
        run_trial(Counting(disturb), order(tmp_path, seed=9))
        run_trial(Counting(look), order(tmp_path))
    finally:
        worker.start_clean(config(), CPU)
    assert seen[:3] == seen[3:]
    assert len(set(seen[:3])) == 3, "the draws of one trial differ from epoch to epoch"


@pytest.mark.filterwarnings("default:few images")  # an error elsewhere, a line of the log in a trial
def test_a_trials_log_holds_its_messages_and_warnings_and_nobody_elses(tmp_path: Path) -> None:
    def talk(epoch: int) -> None:
        logging.getLogger("trainers.evaluation.probe").info("probe of epoch %d", epoch)
        if epoch == 0:
            warnings.warn("few images", stacklevel=1)

    run_trial(Counting(talk), order(tmp_path / "first"))
    logging.getLogger("trainers.evaluation.probe").warning("between trials")
    run_trial(Counting(), order(tmp_path / "second"))
    text = (tmp_path / "first" / "log.txt").read_text()
    assert "probe of epoch 2" in text
    assert "few images" in text
    assert "between" not in text
    assert not (tmp_path / "second" / "log.txt").exists()
    assert TrialConfig.model_validate_json((tmp_path / "first" / "config.json").read_text()) == config()


def test_a_sign_of_life_is_sent_about_once_a_second() -> None:
    sent: list[float] = []

    class Method:
        def remote(self, generation: int, rank: int) -> None:
            sent.append(time.monotonic())

    class Handle:
        progress = Method()

    line = worker.Line(Handle(), generation=1, rank=0, abandoned_after_s=1.0)
    deadline = time.monotonic() + 1.5
    step = 0
    while time.monotonic() < deadline:
        line.pulse(0, step)
        step += 1
    assert step > 1000
    assert len(sent) == 2


class FakeMailbox:
    """Answers `take` with what it is given; an exception is raised where Ray would raise it."""

    def __init__(self, *answers: Taken | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[int, int, int, float]] = []

    @property
    def take(self) -> FakeMailbox:
        return self

    def remote(self, *arguments: Any) -> Taken | Exception:
        self.asked.append(arguments)
        return self.answers.pop(0)


@pytest.fixture
def line_to(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeMailbox], worker.Line]:
    def get(answer: Taken | Exception, timeout: float) -> Taken:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("ray.get", get)
    return lambda mailbox: worker.Line(mailbox, generation=4, rank=1, abandoned_after_s=60.0)


def test_a_rank_asks_for_the_same_number_until_it_has_that_command(
    line_to: Callable[[FakeMailbox], worker.Line],
) -> None:
    mailbox = FakeMailbox(Taken(None, 20.0), Taken(GO, 0.0), Taken(STOP, 0.0))
    line = line_to(mailbox)
    assert [line.take(), line.take()] == [GO, STOP]
    assert [(generation, rank, number) for generation, rank, number, _ in mailbox.asked] == [
        (4, 1, n) for n in (0, 0, 1)
    ]


def test_a_group_that_no_slot_asks_for_ends_by_itself(line_to: Callable[[FakeMailbox], worker.Line]) -> None:
    line = line_to(FakeMailbox(Taken(None, 59.0), Taken(None, 61.0)))
    with pytest.raises(worker.Abandoned, match="61 s"):
        line.take()


def test_a_group_whose_mailbox_died_ends_by_itself(line_to: Callable[[FakeMailbox], worker.Line]) -> None:
    line = line_to(FakeMailbox(ray.exceptions.ActorDiedError()))
    with pytest.raises(worker.Abandoned, match="mailbox is gone"):
        line.take()


# ---- local processes -------------------------------------------------------------------------------------------------


def test_two_local_processes_form_one_group_and_stop_together(tmp_path: Path) -> None:
    reports: list[EpochReport] = []

    def two_epochs(report: EpochReport) -> bool:
        reports.append(report)
        return len(reports) < 2

    outcome = launch.run(config(), folder=tmp_path, workers=2, device="cpu", report=two_epochs, make_train=Summing)
    assert outcome == Outcome(state="stopped", epochs=2)
    assert [report.metrics["sum"] for report in reports] == [3.0, 3.0]
    assert reports[0].metrics["sockets"], "gloo listens for the other ranks"
    assert not reports[0].metrics["elsewhere"], "where nobody else can reach it"
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 3


@pytest.mark.parametrize(
    ("misfortune", "text"),
    [("bug", "rank 1 raised KeyError.*in __call__"), ("killed", "rank . (died|raised)"), ("frozen", "hung")],
)
def test_a_local_process_that_fails_takes_the_others_with_it(
    misfortune: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETUNE_TEST_MISFORTUNE", misfortune)
    reports: list[EpochReport] = []

    def keep(report: EpochReport) -> bool:
        reports.append(report)
        return True

    with pytest.raises(family.WorkerFailedError, match=f"(?s){text}"):
        launch.run(
            config(),
            folder=tmp_path,
            workers=2,
            device="cpu",
            report=keep,
            make_train=Summing,
            hang_timeout_s=10.0 if misfortune == "frozen" else 60.0,
        )
    assert [report.epoch for report in reports] == [1]
    assert not [child for child in multiprocessing.active_children() if child.is_alive()]


def test_one_worker_trains_in_this_process(tmp_path: Path) -> None:
    pids: list[int] = []
    train = Counting(lambda epoch: pids.append(os.getpid()))
    assert launch.run(config(), folder=tmp_path, make_train=lambda: train).state == "complete"
    assert set(pids) == {os.getpid()}


def test_workers_that_do_not_divide_the_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 3 workers, but is 8"):
        launch.run(config(), folder=tmp_path, workers=3)


# ---- the real training -----------------------------------------------------------------------------------------------


class ColdOtherWarm:
    """In one fresh process: the trial, then quite another one, then the trial again."""

    def __init__(self) -> None:
        self.train = worker.WarmTrainer()

    def __call__(self, config: TrialConfig, **given: Unpack[Given]) -> Outcome:
        folder, progress, device = given["folder"], given["progress"], given["device"]
        other = config.model_copy(
            update={
                "seed": 5,
                "batch_size": 64,
                "threads": 2,
                "optimizer": OptimizerConfig(kind="lars", learning_rate=1.0),
            }
        )
        outcome = Outcome(state="complete", epochs=0)
        for name, trial in (("cold", config), ("other", other), ("warm", config)):
            metrics: dict[str, float] = {}

            def keep(report: EpochReport, name: str = name, metrics: dict[str, float] = metrics) -> bool:
                metrics.update({f"{report.epoch}/{key}": value for key, value in report.metrics.items()})
                return True

            order = Order(1, 0, trial.model_dump(mode="json"), str(folder / name))
            rank = torch.distributed.get_rank()
            outcome = worker.run_trial(self.train, order, rank=rank, device=device, report=keep, progress=progress)
            (folder / f"{name}.{rank}.json").write_text(json.dumps(metrics))
        return outcome


def tensors(state: Any, path: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by their path in it."""
    if isinstance(state, torch.Tensor):
        return {path: state}
    children = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()
    found: dict[str, torch.Tensor] = {}
    for key, value in children:
        found.update(tensors(value, f"{path}/{key}"))
    return found


@pytest.mark.ffcv
@pytest.mark.slow
def test_a_warm_trial_equals_a_cold_one_bit_for_bit(tmp_path: Path) -> None:
    """Two workers, digits, the real training: metrics of both ranks, weights and optimizer state."""
    from trainers.data.datasets import ensure_builtin

    dataset = ensure_builtin("digits", tmp_path / "data")
    view = {"size": 16, "flip_probability": 0.0}
    trial = TrialConfig.model_validate(
        {
            "data": {"path": str(dataset.folder), "manifest": dataset.manifest_hash, "subset": 256},
            "views": [view, view],
            "model": {"backbone": {"kind": "resnet_tiny", "width": 8}, "projector": {"widths": [32, 32]}},
            "objective": {"alignment": {}, "mmd": {}},
            "probe": {"train_images": 200, "select_images": 200},
            "batch_size": 128,
            "epochs": 2,
        }
    )
    outcome = launch.run(trial, folder=tmp_path, workers=2, device="cpu", make_train=ColdOtherWarm)
    assert outcome == Outcome(state="complete", epochs=2)
    for rank in (0, 1):
        cold, other, warm = (
            json.loads((tmp_path / f"{name}.{rank}.json").read_text()) for name in ("cold", "other", "warm")
        )
        compared = [key for key in cold if not any(own in key for own in ("time/", "memory/", "budget/seconds"))]
        assert len(compared) > 10
        assert {key: warm[key] for key in compared} == {key: cold[key] for key in compared}
        assert other["2/loss/total"] != cold["2/loss/total"]
    cold, warm = (
        tensors(torch.load(tmp_path / name / "checkpoints" / "epoch-0002.pt", weights_only=True))
        for name in ("cold", "warm")
    )
    assert len(cold) > 20
    assert cold.keys() == warm.keys()
    assert not [name for name in cold if not torch.equal(cold[name], warm[name])]


def test_a_share_of_a_gpu_caps_its_memory_and_leaves_room_for_what_others_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    capped: list[float] = []
    card = SimpleNamespace(total_memory=80 * 10**9)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda fraction, device: capped.append(fraction))
    assert worker.choose_device(1.0) == torch.device("cuda", 0)
    assert capped == [], "alone it may take all"
    assert worker.choose_device(0.25) == torch.device("cuda", 0)
    assert capped == [packing.memory_fraction(0.25, 80e9)]
    assert 0.24 < capped[0] < 0.25
