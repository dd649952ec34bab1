"""How many trials share a GPU, searched for on machines that are made up: measuring itself is replaced here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pretune.analysis import measurements, packing
from pretune.analysis.packing import Machine
from pretune.core import packing as core
from pretune.core import shape as shapes
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.packing import Packing
from pretune.execution import mps
from pretune.execution.measuring import Measurement, NotFittingError, NotMeasuredError
from search_spaces import RECIPES
from tests import toys
from tests.pretune.found import MEASURED
from trainers.changes import with_changes
from trainers.config import TrialConfig

pytestmark = pytest.mark.usefixtures("own_cache")

GB = 1e9
CARD = Machine(cards=1, cpus=16.0, host_bytes=128 * GB)
HOST = Machine(cards=0, cpus=8.0, host_bytes=64 * GB)


@dataclass
class Made:
    """Answers what a machine would measure. Under MPS all is `gain` times as fast; without a service where None."""

    rate: Callable[[int], float] = lambda count: 100.0 * min(count, 4)
    gpu_bytes: float | None = 2 * GB
    gain: float | None = None
    fails: dict[int, Exception] = field(default_factory=dict)
    reached: bool = True
    seen: list[tuple[int, float, int, bool]] = field(default_factory=list)
    served: bool = False

    def measure(self, config: TrialConfig, **given: Any) -> Measurement:
        copies = given["copies"]
        self.seen.append((copies, given["gpus_per_worker"], config.batch_size, self.served))
        if copies in self.fails:
            raise self.fails[copies]
        rate = self.rate(copies) * ((self.gain or 1.0) if self.served else 1.0)
        size = config.batch_size / 64
        return MEASURED.model_copy(
            update={
                "host_bytes": 1 * GB * size,
                "gpu_bytes": None if self.gpu_bytes is None else self.gpu_bytes * size,
                "gpu_room_bytes": None if self.gpu_bytes is None else 80 * GB,
                "images_per_s": rate if given["together"] else None,
            }
        )

    @contextmanager
    def serving(self) -> Iterator[None]:
        if self.gain is None:
            raise mps.NotServedError("it is not installed")
        self.served = True
        yield
        self.served = False


def found(
    made: Made,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    experiment: Experiment,
    *,
    sizes: tuple[int, ...] = (64,),
    clock: Callable[[], float] = lambda: 0.0,
) -> Packing:
    monkeypatch.setattr(packing, "measure", made.measure)
    monkeypatch.setattr(mps, "serving", made.serving)
    monkeypatch.setattr(mps, "used", lambda: made.reached)
    base = with_changes(RECIPES["sfrik_tiny"](), {"batch_size": 64})
    configs = [base, base, *(base.model_copy(update={"batch_size": size}) for size in sizes)]
    return packing.measured(experiment, configs, machine, clock=clock, tell=lambda words: None)


@pytest.fixture
def asked(tmp_path: Path) -> Experiment:
    return toys.experiment(tmp_path, trials=64)


def test_copies_are_doubled_until_they_no_longer_gain(asked: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made()
    said = found(made, CARD, monkeypatch, asked)
    assert [(copies, share) for copies, share, *_ in made.seen] == [(1, 1.0), (2, 0.5), (4, 0.25), (8, 0.125)]
    assert (said.count, said.gpus_per_worker, said.mps) == (4, 0.25, False)
    assert said.why == "8 at once are +0 % faster than 4; without MPS: it is not installed"
    assert said.ratio == 4.0
    assert said.applied(asked).gpus_per_worker == 0.25


def test_what_was_measured_is_known_to_the_forecast(asked: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    found(Made(), CARD, monkeypatch, asked)
    known = measurements.Known(workers=1, gpus_per_worker=0.25, slots=4)
    base = with_changes(RECIPES["sfrik_tiny"](), {"batch_size": 64})
    assert known.of(shapes.of(base)) is not None


def test_a_machine_without_gpus_shares_its_processors(asked: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(gpu_bytes=None)
    said = found(made, HOST, monkeypatch, asked)
    assert [copies for copies, *_ in made.seen] == [1, 2, 4, 8]
    assert (said.count, said.slots, said.on, said.gpus_per_worker) == (4, 4, "machine", 0.0)
    assert core.in_words(said) == "4 trials per machine, 4 times one alone"


@pytest.mark.parametrize(
    ("changes", "machine", "made", "most", "why"),
    [
        ({"trials": 3}, CARD, Made(lambda count: count), 3, "there are 3 trials"),
        ({"slots": 2}, CARD, Made(lambda count: count), 2, "--slots 2"),
        ({}, Machine(1, 3.0, 128 * GB), Made(lambda count: count), 3, "3 processors"),
        ({"cpus_per_worker": 4.0}, CARD, Made(lambda count: count), 4, "16 processors"),
        ({}, Machine(4, 16.0, 128 * GB), Made(lambda count: count), 4, "16 processors"),
        ({}, Machine(1, 32.0, 128 * GB), Made(lambda count: count), 16, "so many at most are measured"),
        ({}, CARD, Made(lambda count: count, gpu_bytes=11 * GB), 6, "11.6 GB of the card's 80 GB"),
        ({}, CARD, Made(lambda count: count, gpu_bytes=70 * GB), 1, "70.6 GB of the card's 80 GB"),
        ({}, Machine(1, 16.0, 8 * GB), Made(lambda count: count), 4, "1.5 GB of memory"),
        ({}, Machine(1, 0.5, 1 * GB), Made(lambda count: count), 1, "0.5 processors"),
    ],
)
def test_no_more_are_tried_than_there_is_room_for(
    asked: Experiment,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    machine: Machine,
    made: Made,
    most: int,
    why: str,
) -> None:
    said = found(made, machine, monkeypatch, asked.model_copy(update=changes))
    assert said.count == max(copies for copies, *_ in made.seen) == most
    assert why in said.why


def test_all_may_be_of_the_largest_shape(asked: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(lambda count: count, gpu_bytes=2 * GB)
    said = found(made, CARD, monkeypatch, asked, sizes=(32, 1024))
    assert made.seen[1] == (1, 1.0, 1024, False)
    assert said.count == 2, "32.6 GB twice, but not three times"
    assert {size for copies, _, size, _ in made.seen if copies > 1} == {64}


def test_a_largest_shape_that_does_not_fit_leaves_each_trial_a_card(
    asked: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made()
    measure = made.measure

    def no_room(config: TrialConfig, **given: Any) -> Measurement:
        if config.batch_size == 1024:
            raise NotFittingError("out of memory")
        return measure(config, **given)

    monkeypatch.setattr(made, "measure", no_room)
    said = found(made, CARD, monkeypatch, asked, sizes=(1024,))
    assert (said.count, said.why) == (1, "no more: the largest trials of the space do not fit even alone")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (NotFittingError("out of memory"), "4 do not fit into memory"),
        (NotMeasuredError("rank 0 raised KeyError"), "4 could not be measured: rank 0 raised KeyError"),
    ],
)
def test_copies_that_fail_end_the_search(
    asked: Experiment, monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    said = found(Made(fails={4: error}), CARD, monkeypatch, asked)
    assert said.count == 2
    assert said.why.startswith(why)


def test_one_that_cannot_be_measured_at_all_is_refused(asked: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="which failed: rank 0 raised KeyError; give a number, such as --pack 2"):
        found(Made(fails={1: NotMeasuredError("rank 0 raised KeyError")}), CARD, monkeypatch, asked)


def test_no_count_is_begun_when_the_time_is_over(asked: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.chain([0.0, 10.0], itertools.repeat(1e3)).__next__
    said = found(Made(), CARD, monkeypatch, asked, clock=clock)
    assert said.count == 2
    assert said.why.startswith("no more were tried after 150 s")


def test_mps_is_tried_from_the_best_number_on_and_taken_where_it_is_faster(
    asked: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(lambda count: 100.0 + count, gain=1.8)
    said = found(made, CARD, monkeypatch, asked)
    assert [(one.copies, one.mps) for one in said.tried] == [(1, False), (2, False), (2, True), (4, True)]
    assert (said.count, said.mps) == (2, True)
    assert said.why.endswith("; with MPS")
    slower = found(Made(gain=1.02), CARD, monkeypatch, asked)
    assert (slower.count, slower.mps) == (4, False)
    assert [one.copies for one in slower.tried if one.mps] == [4]
    assert slower.why.endswith("without MPS, which is not faster")


def test_mps_that_serves_nobody_or_breaks_trials_is_not_used(
    asked: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = found(Made(gain=2.0, reached=False), CARD, monkeypatch, asked)
    assert not said.mps
    assert "no process could reach its service" in said.why
    made = Made(gain=2.0)
    measure = made.measure

    def broken(config: TrialConfig, **given: Any) -> Measurement:
        if made.served:
            raise NotMeasuredError("rank 0 raised AcceleratorError")
        return measure(config, **given)

    monkeypatch.setattr(made, "measure", broken)
    said = found(made, CARD, monkeypatch, asked)
    assert "without MPS: a trial under it failed: rank 0 raised AcceleratorError" in said.why


def test_mps_is_not_tried_where_a_card_holds_one_trial(asked: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    said = found(Made(gain=2.0, gpu_bytes=70 * GB), CARD, monkeypatch, asked)
    assert "MPS" not in said.why


@pytest.mark.parametrize("pack", ["0", "-1", "65", "1000000", "two", "1.5", "", "AUTO", "nan", 0])
def test_what_is_no_number_of_trials_is_refused(asked: Experiment, pack: str | int) -> None:
    with pytest.raises(RequestError, match="--pack must be auto, or a whole number from 1 to 64, but is"):
        packing.asked(asked, pack, gpus_per_worker=None, local=True, machine=HOST)


@pytest.mark.parametrize(
    ("changes", "given", "said"),
    [
        ({}, {"gpus_per_worker": 0.5}, "--pack 2 and --gpus-per-worker 0.5 both say.*keep one"),
        ({}, {"gpus_per_worker": 0.0}, "--pack 2 and --gpus-per-worker 0 both say"),
        ({"workers_per_trial": 2}, {}, "--workers-per-trial is 2; leave one of the two out"),
        ({"slots": 3}, {"machine": HOST}, "as it has no GPU, and so is --slots 3; keep one"),
        ({}, {"pack": 64}, "takes 64 processors, 1 a worker, but this machine has 16.*--cpus-per-worker 0.25"),
        ({}, {"pack": "auto", "local": False}, "measures on this machine.*give the number"),
    ],
)
def test_what_does_not_go_together_is_refused(
    asked: Experiment, changes: dict[str, Any], given: dict[str, Any], said: str
) -> None:
    settings = {"pack": "2", "gpus_per_worker": None, "local": True, "machine": CARD} | given
    with pytest.raises(RequestError, match=said):
        packing.asked(asked.model_copy(update=changes), settings.pop("pack"), **settings)


def test_a_number_is_applied_and_auto_is_not_yet(asked: Experiment) -> None:
    same, nothing = packing.asked(asked, None, gpus_per_worker=0.5, local=True)
    assert (same, nothing) == (asked, None)
    packed, said = packing.asked(asked, "4", gpus_per_worker=None, local=True, machine=CARD)
    assert isinstance(said, Packing)
    assert (packed.gpus_per_worker, said.count, said.tried) == (0.25, 4, ())
    assert packing.asked(asked, "auto", gpus_per_worker=None, local=True, machine=CARD) == (asked, "auto")
    cluster, _ = packing.asked(asked, "8", gpus_per_worker=None, local=False, machine=HOST)
    assert cluster.gpus_per_worker == 0.125, "the cards are the cluster's"


def test_visible_cards_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gpus"
    for number in range(4):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "information").write_text("Model: \t NVIDIA H200\nIRQ: 1\n")
    monkeypatch.setattr(measurements, "DRIVER", folder)
    for named, count in ((None, 4), ("0,1", 2), ("", 0), ("-1", 0), ("1,-1,2", 1), ("0,1,2,3,4,5", 4)):
        if named is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert len(measurements.gpus()) == count
