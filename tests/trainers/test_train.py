"""The loop: what a run reports, that it can be repeated, resumed and split over workers, and how it ends.

Data live in memory here; the loaders of FFCV have tests of their own.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.parts import own_parts
from tests.two_processes import TwoProcesses
from trainers import checkpoint, dist, optim
from trainers import train as train_module
from trainers.config import TrialConfig
from trainers.data.feed import moved
from trainers.data.loader import Batch
from trainers.evaluation import probe
from trainers.model import Model, build_model
from trainers.objective import Objective
from trainers.report import Checkpoint, EpochReport, Outcome, is_metric
from trainers.terms import Alignment, KernelMMD
from trainers.train import StepMeter, TrainingStep, train

SIZE, CLASSES, TRAIN, SELECT = 8, 3, 36, 30


class MemoryDataset:
    """As much of a data set as a run asks for: images of three noisy patterns."""

    folder = Path("memory")
    manifest_hash = "0" * 64
    manifest = SimpleNamespace(
        split_seed=0,
        class_names=("a", "b", "c"),
        counts=SimpleNamespace(train=TRAIN),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        gray_white=65535,
        max_side=None,
    )
    class_count = CLASSES
    has_labels = True
    train_count, select_count, unlabeled_count = TRAIN, SELECT, 0
    train_ids, select_ids = np.arange(TRAIN), np.arange(TRAIN, TRAIN + SELECT)

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        patterns = torch.randn(CLASSES, 3, SIZE, SIZE, generator=generator, dtype=torch.float32)
        labels = torch.arange(TRAIN + SELECT) % CLASSES
        noise = torch.randn(TRAIN + SELECT, 3, SIZE, SIZE, generator=generator, dtype=torch.float32)
        self.images = patterns[labels] + noise
        self._labels = labels.numpy()

    def pretrain_ids(self, subset: int | None) -> Any:
        return self.train_ids[:subset]

    def search_labels(self) -> Any:
        return self._labels


class MemoryLoaders:
    """Loaders of `MemoryDataset`: views are images plus noise keyed by (seed, epoch, sample, view)."""

    threads_set = 1
    """What FFCV would leave behind."""

    def epoch(
        self,
        dataset: Any,
        config: TrialConfig,
        *,
        epoch: int,
        rank: int,
        world_size: int,
        first_step: int = 0,
        **_: Any,
    ) -> Iterator[Batch]:
        order = np.random.default_rng((config.seed, epoch)).permutation(dataset.pretrain_ids(config.data.subset))
        share = config.batch_size // world_size
        for step in range(first_step, len(order) // config.batch_size):
            start = step * config.batch_size + rank * share
            ids = order[start : start + share]
            views = tuple(
                torch.stack([self._view(dataset, config, epoch, int(i), view) for i in ids])
                for view in range(len(config.views))
            )
            torch.set_num_threads(self.threads_set)
            yield Batch(views=views, sample_ids=torch.from_numpy(ids))

    def images(self, dataset: Any, ids: Any, *, batch_size: int, **_: Any) -> Iterator[tuple[Tensor, Any]]:
        for start in range(0, len(ids), batch_size):
            part = ids[start : start + batch_size]
            yield dataset.images[part], part

    def augmented(
        self, dataset: Any, ids: Any, *, views: Any, batch_size: int, **_: Any
    ) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
        for images, part in self.images(dataset, ids, batch_size=batch_size):
            yield tuple(images + 0.1 * place for place in range(len(views))), part

    def _view(self, dataset: Any, config: TrialConfig, epoch: int, sample: int, view: int) -> Tensor:
        noise = np.random.default_rng((config.seed, epoch, sample, view)).standard_normal((3, SIZE, SIZE))
        size = config.views[view].size
        return (dataset.images[sample] + 0.5 * torch.from_numpy(noise).float())[:, :size, :size]  # type: ignore[no-any-return]


def config(**changes: Any) -> TrialConfig:
    values: dict[str, Any] = {
        "views": [{"size": SIZE}, {"size": SIZE}],
        "model": {"backbone": {"kind": "resnet_tiny", "width": 8}, "projector": {"widths": [12, 8]}},
        "objective": {"alignment": {"weight": 0.5}, "mmd": {"weight": 2.0}},
        "optimizer": {"learning_rate": 0.05},
        "probe": {"regularization": 1.0},  # its optimum is near: most of a run's time is its way there otherwise
        "epochs": 3,
        "batch_size": 12,
    }
    nested = {part: {**values[part], **changes.pop(part, {})} for part in ("model", "probe")}
    return TrialConfig.model_validate({**values, **changes, **nested})


class Recorder:
    """A `report` that remembers, and stops after `stop_at` epochs."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.reports: list[EpochReport] = []
        self._stop_at = stop_at

    def __call__(self, report: EpochReport) -> bool:
        self.reports.append(report)
        return report.epoch != self._stop_at

    @property
    def checkpoint(self) -> Checkpoint:
        saved = self.reports[-1].checkpoint
        assert saved is not None
        return saved


def run(folder: Path, recorder: Recorder, trial: TrialConfig, **keywords: Any) -> Outcome:
    keywords = {"loaders": MemoryLoaders(), "device": torch.device("cpu"), **keywords}
    return train(trial, dataset=MemoryDataset(), folder=folder, report=recorder, **keywords)  # type: ignore[arg-type]


def fingerprint(saved: Checkpoint) -> str:
    """A hash over every tensor and number of the learned state; time spent is no part of it."""
    state = checkpoint.load(saved)
    digest = hashlib.sha256()

    def feed(value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                digest.update(str(key).encode())
                feed(item)
        elif isinstance(value, list | tuple):
            for item in value:
                feed(item)
        elif isinstance(value, Tensor):
            digest.update(value.contiguous().numpy().tobytes())
        else:
            digest.update(repr(value).encode())

    counters = {name: value for name, value in state["counters"].items() if name != "seconds"}
    feed([state["model"], state["optimizer"], counters])
    return digest.hexdigest()


def learned(report: EpochReport) -> dict[str, float]:
    """The metrics that are not about time or memory."""
    return {k: v for k, v in report.metrics.items() if not k.startswith(("time/", "memory/", "budget/seconds"))}


VIT = {"kind": "vit_micro", "patch_size": 2, "embed_dim": 32, "depth": 2}
MASKED: dict[str, Any] = {
    "model": {
        "backbone": VIT,
        "masking": {"drop_ratio": 0.5, "mismatch_probability": 0.3},
        "teacher": {"momentum": 0.9},
    },
    "objective": {"alignment": {}, "mmd": {}, "found": {"kind": "mismatch_detection"}},
    "optimizer": {"kind": "adamw", "learning_rate": 0.003},
}
DINO: dict[str, Any] = {
    "views": [{"size": SIZE}, {"size": SIZE}, {"size": SIZE // 2}],
    "model": {
        # timm resamples learned positions for other sizes in float32, whatever their dtype.
        "backbone": {**VIT, "positions": "fixed"},
        "projector": {"widths": [16, 8], "hidden_norm": False, "activation": "gelu"},
        "teacher": {"momentum": 0.9, "views": "largest"},
        "prototypes": {"count": 24, "frozen_steps": 3},
        "masking": {"drop_ratio": 0.25, "mismatch_probability": 0.3},
    },
    "objective": {"dino": {}, "mismatch_detection": {}},
    "optimizer": {"kind": "adamw", "learning_rate": 0.003, "clip_norm": 3.0},
}
AUTOENCODER: dict[str, Any] = {
    "views": [{"size": SIZE}],
    "model": {"backbone": VIT, "masking": {"drop_ratio": 0.75}, "decoder": {"width": 32, "depth": 1}},
    "objective": {"reconstruction": {}},
    "optimizer": {"kind": "adamw", "learning_rate": 0.003},
}
MINE = str(Path(own_parts.__file__))
OWN: dict[str, Any] = {
    "views": [
        {"size": SIZE, "operations": {"noise": {"kind": f"{MINE}:noise", "probability": 0.5, "strength": 0.3}}},
        {"size": SIZE},
    ],
    "model": {"backbone": {"kind": f"{MINE}:Net", "width": 8}, "teacher": {"momentum": 0.9}},
    "objective": {"alignment": {}, "mine": {"kind": f"{MINE}:Spread", "strength": 2.0}},
}
VARIANTS = {
    "sgd": {},
    "lars, teacher, predictor": {
        "optimizer": {"kind": "lars", "learning_rate": 2.0, "clip_norm": 0.5},
        "model": {"teacher": {"momentum": 0.9}, "predictor": {"widths": [16, 8]}},
        "schedule": {"kind": "cosine"},
    },
    "adamw, layer norm": {"optimizer": {"kind": "adamw", "learning_rate": 0.01}, "model": {"norm": "layer"}},
    "masked transformer": MASKED,
    "masked autoencoder": AUTOENCODER,
    "dino, multi-crop": DINO,
    "parts of one's own": OWN,
}
variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


# --- what a run reports -----------------------------------------------------------------------------------------------


class SlowLoaders(MemoryLoaders):
    def epoch(self, *given: Any, **keywords: Any) -> Iterator[Batch]:
        for batch in super().epoch(*given, **keywords):
            time.sleep(0.05)
            yield batch


def test_each_epoch_tells_how_much_of_it_was_spent_waiting_for_batches(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path, recorder, config(epochs=2), loaders=SlowLoaders())
    for report in recorder.reports:
        waited = report.metrics["time/wait_share"] * report.metrics["time/epoch_s"]
        assert 3 * 0.05 <= waited < report.metrics["time/epoch_s"], "an epoch has three batches"


def test_each_epoch_is_reported_with_its_metrics_and_its_checkpoint(tmp_path: Path) -> None:
    recorder = Recorder()
    seen: list[tuple[int, int]] = []
    outcome = run(tmp_path, recorder, config(), progress=lambda epoch, step: seen.append((epoch, step)))
    assert outcome == Outcome(state="complete", epochs=3)
    assert [report.epoch for report in recorder.reports] == [1, 2, 3]
    assert seen == [(epoch, 3 * epoch + step) for epoch in range(3) for step in (1, 2, 3)]
    for report in recorder.reports:
        metrics = report.metrics
        assert metrics["epoch"] == report.epoch
        assert metrics["budget/views"] == report.epoch * TRAIN * 2
        assert metrics["loss/total"] == pytest.approx(0.5 * metrics["loss/alignment"] + 2.0 * metrics["loss/mmd"])
        assert metrics["time/images_per_s"] == pytest.approx(TRAIN / metrics["time/epoch_s"])
        assert metrics["model/parameters"] == sum(one.numel() for one in build_model(config()).backbone.parameters())
        assert {"probe/linear", "probe/knn", "health/features/effective_rank", "health/embedding/std"} <= metrics.keys()
        assert {"time/probe_s", "optim/learning_rate", "optim/gradient_norm"} <= metrics.keys()
        assert metrics["memory/host_peak_bytes"] > 2**20
        assert "memory/gpu_peak_bytes" not in metrics  # on a CPU
        assert ("probe/full_linear" in metrics) == (report.epoch == 3)
        assert all(math.isfinite(value) for value in metrics.values())
        assert report.checkpoint is not None
        assert report.checkpoint.epoch == report.epoch
        assert report.checkpoint.path == str(tmp_path / "checkpoints" / f"epoch-{report.epoch:04d}.pt")
    seconds = [report.metrics["budget/seconds"] for report in recorder.reports]
    assert seconds == pytest.approx(np.cumsum([report.metrics["time/epoch_s"] for report in recorder.reports]))


def test_without_labels_nothing_is_probed_and_health_is_told_all_the_same(tmp_path: Path) -> None:
    dataset, recorder = MemoryDataset(), Recorder()
    dataset.has_labels, dataset._labels = False, np.full(TRAIN + SELECT, -1)
    trial = config(probe={"labels_per_class": 5})  # of no use here, and no obstacle
    outcome = train(
        trial,
        dataset=dataset,  # type: ignore[arg-type]
        loaders=MemoryLoaders(),  # type: ignore[arg-type]
        folder=tmp_path,
        report=recorder,
        device=torch.device("cpu"),
    )
    assert outcome.state == "complete"
    names = set(recorder.reports[-1].metrics)
    assert not [name for name in names if name.startswith("probe/")]
    assert {"health/embedding/effective_rank", "health/features/std", "loss/total", "time/probe_s"} <= names
    assert recorder.checkpoint.epoch == 3


def test_every_name_that_a_run_reports_is_listed_with_its_meaning(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path, recorder, config(epochs=1))
    names = recorder.reports[-1].metrics
    assert {"epoch", "probe/full_linear", "loss/mmd", "health/embedding/cosine"} <= names.keys()
    assert [name for name in names if not is_metric(name)] == []
    assert not is_metric("probe/linear/top")
    assert not is_metric("loss")


def test_the_newest_the_best_and_the_last_before_the_decay_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.9, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    monkeypatch.setattr(probe, "evaluate", lambda *_, **__: {"probe/linear": next(scores)})
    kept: list[list[int]] = []

    class Watcher(Recorder):
        def __call__(self, report: EpochReport) -> bool:
            kept.append(sorted(int(path.stem[-4:]) for path in (tmp_path / "checkpoints").glob("epoch-*.pt")))
            return super().__call__(report)

    run(tmp_path, Watcher(), config(epochs=8, schedule={"decay_share": 0.5}))
    # Before the report of an epoch its own file is there already, and nothing was removed yet.
    assert kept[3:] == [[2, 3, 4], [2, 3, 4, 5], [2, 4, 5, 6], [2, 4, 5, 6, 7], [2, 4, 6, 7, 8]]
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*.pt")) == [
        "epoch-0002.pt",
        "epoch-0004.pt",
        "epoch-0008.pt",
    ]


def test_a_damaged_checkpoint_is_passed_over_for_an_earlier_one_and_the_run_is_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    straight, begun, resumed = Recorder(), Recorder(stop_at=2), Recorder()
    run(tmp_path / "straight", straight, config())
    run(tmp_path / "broken", begun, config())
    assert begun.checkpoint is not None
    Path(begun.checkpoint.path).write_bytes(b"not a checkpoint")
    run(tmp_path / "broken", resumed, config(), resume=begun.checkpoint)
    assert "going on from an earlier checkpoint" in caplog.text
    assert [report.epoch for report in resumed.reports] == [2, 3]
    assert fingerprint(resumed.checkpoint) == fingerprint(straight.checkpoint)


def test_a_checkpoint_is_written_where_progress_says_that_the_machine_will_go(tmp_path: Path) -> None:
    straight, resumed = Recorder(), Recorder()
    run(tmp_path / "straight", straight, config())

    def notice(epoch: int, step: int) -> bool:
        if step == 6:
            raise PowerCutError
        return step == 5

    begun = Recorder()
    with pytest.raises(PowerCutError):
        run(tmp_path / "broken", begun, config(), progress=notice)
    (within,) = (tmp_path / "broken" / "checkpoints").glob("*-step-*.pt")
    assert within.name == "epoch-0001-step-0000005.pt"
    steps: list[int] = []

    def count(epoch: int, step: int) -> None:
        steps.append(step)

    run(tmp_path / "broken", resumed, config(), resume=begun.checkpoint, progress=count)
    assert steps[0] == 6
    assert fingerprint(resumed.checkpoint) == fingerprint(straight.checkpoint)


def test_what_terms_have_to_say_beyond_their_values_is_reported_as_health(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path, recorder, config(**MASKED))
    metrics = recorder.reports[-1].metrics
    assert 0.0 < metrics["health/found/balanced_accuracy"] < 1.0
    assert metrics["health/found/mismatch_rate"] == pytest.approx(0.3, abs=0.05)
    assert metrics["health/found/loss_floor"] == pytest.approx(0.61, abs=0.05)


def test_training_lowers_the_loss_and_beats_chance(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path, recorder, config(epochs=8))
    assert recorder.reports[-1].metrics["loss/total"] < recorder.reports[0].metrics["loss/total"]
    assert recorder.reports[-1].metrics["probe/linear"] > 1.5 / CLASSES


def test_steps_taken_one_by_one_are_those_of_the_loop_and_move_nothing_in_their_first_half(tmp_path: Path) -> None:
    """What benchmarks time is what a run does."""
    model_settings = {"predictor": {"widths": [16, 8]}, "teacher": {}}
    trial = config(epochs=1, optimizer={"learning_rate": 0.05, "clip_norm": 0.5}, model=model_settings)
    recorder = Recorder()
    run(tmp_path, recorder, trial)
    trained = checkpoint.load(recorder.checkpoint)["model"]

    model = build_model(trial).to(memory_format=torch.channels_last).train()
    optimizer = optim.build_optimizer(model, trial.optimizer)
    step = TrainingStep(trial, model, Objective(trial.objective), optimizer)
    losses: list[float] = []
    for number, batch in enumerate(MemoryLoaders().epoch(MemoryDataset(), trial, epoch=0, rank=0, world_size=1)):
        before = {name: value.clone() for name, value in model.named_parameters()}
        losses.append(float(step.gradients(*moved(batch, torch.device("cpu")), number).loss.detach()))
        assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
        step.update(optim.learning_rate(0.05, trial.schedule, number, 3), number, 3)
    assert sum(losses) / 3 == pytest.approx(recorder.reports[0].metrics["loss/total"], rel=1e-12)
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())


def test_probes_and_checkpoints_come_when_asked_and_at_the_end(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path, recorder, config(epochs=5, checkpoint_every=3, probe={"every": 2}))
    assert ["probe/linear" in report.metrics for report in recorder.reports] == [False, True, False, True, True]
    assert [report.checkpoint is not None for report in recorder.reports] == [False, False, True, False, True]


def test_a_report_that_answers_false_stops_the_run(tmp_path: Path) -> None:
    recorder = Recorder(stop_at=2)
    outcome = run(tmp_path, recorder, config())
    assert (outcome.state, outcome.epochs) == ("stopped", 2)
    assert len(recorder.reports) == 2
    assert recorder.checkpoint.epoch == 2


COLLAPSING: dict[str, Any] = {
    "objective": {"alignment": {}, "mmd": {"weight": 0.0}},
    "optimizer": {"learning_rate": 1.0},
    "sentinel": {"every": 5},
    "epochs": 8,
    "probe": {"every": 8},
}


def test_without_its_dispersive_term_a_run_ends_inside_an_epoch_and_says_why(tmp_path: Path) -> None:
    recorder = Recorder()
    outcome = run(tmp_path, recorder, config(**COLLAPSING))
    assert outcome.state == "collapsed"
    assert "embeddings of different images are alike: spread" in outcome.reason
    assert "3 times in a row until step 19" in outcome.reason
    assert outcome.epochs == len(recorder.reports) == 6  # step 19 is the second of the seventh epoch's three
    assert run(tmp_path / "off", Recorder(), config(**{**COLLAPSING, "sentinel": None})).state == "complete"


def collapsing_run(folder: str) -> Outcome:
    return run(Path(folder) / f"rank-{dist.rank()}", Recorder(), config(**COLLAPSING))


def test_both_workers_end_a_collapsed_run_alike(two_processes: TwoProcesses, tmp_path: Path) -> None:
    first, second = two_processes.run(collapsing_run, str(tmp_path))
    assert first == second
    assert first.state == "collapsed"


def test_a_run_stopped_at_its_last_epoch_is_complete(tmp_path: Path) -> None:
    assert run(tmp_path, Recorder(stop_at=3), config()).state == "complete"


# --- repeatable, resumable --------------------------------------------------------------------------------------------


def cold_run(folder: str) -> None:
    """What the fresh process of the next test does."""
    recorder = Recorder()
    run(Path(folder), recorder, config(**VARIANTS["lars, teacher, predictor"], seed=3))
    print(json.dumps([fingerprint(recorder.checkpoint), learned(recorder.reports[-1])]))


def test_a_warm_trial_equals_a_cold_one_bit_for_bit(tmp_path: Path) -> None:
    code = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('cold', sys.argv[1]); "
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module); module.cold_run(sys.argv[2])"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, __file__, str(tmp_path / "cold")]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=120)
    cold = json.loads(answer.stdout.splitlines()[-1])

    loaders = MemoryLoaders()
    torch.manual_seed(77)
    run(tmp_path / "other", Recorder(), config(seed=8, epochs=1, model={"norm": "layer"}), loaders=loaders)
    warm = Recorder()
    run(tmp_path / "warm", warm, config(**VARIANTS["lars, teacher, predictor"], seed=3), loaders=loaders)
    assert [fingerprint(warm.checkpoint), learned(warm.reports[-1])] == cold


@variants
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    straight = Recorder()
    run(tmp_path / "straight", straight, config(**changes))

    begun = Recorder(stop_at=1)
    run(tmp_path / "broken", begun, config(**changes))
    torch.manual_seed(5)
    resumed = Recorder()
    outcome = run(tmp_path / "broken", resumed, config(**changes), resume=begun.checkpoint)
    assert (outcome.state, outcome.epochs) == ("complete", 3)
    assert [report.epoch for report in resumed.reports] == [2, 3]
    assert [learned(report) for report in resumed.reports] == [learned(report) for report in straight.reports[1:]]
    assert fingerprint(resumed.checkpoint) == fingerprint(straight.checkpoint)
    # Training seconds go on counting where the first part stopped.
    assert resumed.reports[0].metrics["budget/seconds"] > begun.reports[0].metrics["budget/seconds"]


class PowerCutError(Exception):
    """What ends a run in the middle of an epoch."""


def cut_at(step: int) -> Any:
    """A `progress` that ends the run after so many optimizer steps."""

    def progress(epoch: int, done: int) -> None:
        if done == step:
            raise PowerCutError

    return progress


CUTS = [pytest.param(VARIANTS[name], 5, id=name) for name in VARIANTS]
CUTS += [pytest.param({}, 3, id="in the first epoch"), pytest.param({}, 9, id="in the last epoch")]


@pytest.mark.parametrize(("changes", "cut"), CUTS)
def test_a_run_cut_within_an_epoch_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, changes: dict[str, Any], cut: int
) -> None:
    straight = Recorder()
    run(tmp_path / "straight", straight, config(**changes))

    often = config(**changes, checkpoint_every_steps=2)
    begun, resumed = Recorder(), Recorder()
    with pytest.raises(PowerCutError):
        run(tmp_path / "broken", begun, often, progress=cut_at(cut))
    torch.manual_seed(5)
    steps: list[int] = []
    newest = begun.checkpoint if begun.reports else None
    outcome = run(tmp_path / "broken", resumed, often, resume=newest, progress=lambda epoch, step: steps.append(step))
    assert (outcome.state, outcome.epochs) == ("complete", 3)
    # Steps 2, 4 and 8 were saved, each after `progress` heard of it.
    assert steps == list(range(cut, 10))
    assert [learned(report) for report in begun.reports + resumed.reports] == [
        learned(report) for report in straight.reports
    ]
    assert fingerprint(resumed.checkpoint) == fingerprint(straight.checkpoint)
    # Nothing of the middle of an epoch is left once the epoch's own checkpoint is there.
    assert not list((tmp_path / "broken" / "checkpoints").glob("*-step-*"))


def test_a_damaged_checkpoint_within_an_epoch_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    straight, begun, resumed = Recorder(), Recorder(), Recorder()
    run(tmp_path / "straight", straight, config())
    often = config(checkpoint_every_steps=1)
    with pytest.raises(PowerCutError):
        run(tmp_path / "broken", begun, often, progress=cut_at(6))
    (within,) = (tmp_path / "broken" / "checkpoints").glob("*-step-*.pt")
    assert within.name == "epoch-0001-step-0000005.pt"
    within.write_bytes(within.read_bytes()[:-1])
    run(tmp_path / "broken", resumed, often, resume=begun.checkpoint)
    assert "going on from the end of epoch 1 instead" in caplog.text
    assert fingerprint(resumed.checkpoint) == fingerprint(straight.checkpoint)


def cut_run(folder: str, trial: dict[str, Any]) -> list[str]:
    """A run that is cut within its second epoch and goes on, on this rank: what it learned, and the same uncut."""
    often = TrialConfig.model_validate({**trial, "checkpoint_every_steps": 2})
    straight, begun, resumed = Recorder(), Recorder(), Recorder()
    run(Path(folder) / "straight", straight, TrialConfig.model_validate(trial))
    with suppress(PowerCutError):
        run(Path(folder) / "broken", begun, often, progress=cut_at(5))
    run(Path(folder) / "broken", resumed, often, resume=begun.checkpoint)
    reports = [learned(report) for report in begun.reports + resumed.reports]
    assert reports == [learned(report) for report in straight.reports]
    return [fingerprint(resumed.checkpoint), fingerprint(straight.checkpoint)]


@pytest.mark.parametrize(
    "changes", [DINO, {"model": {"norm": "batch_per_rank"}}], ids=["dino, multi-crop", "statistics of each worker"]
)
def test_two_workers_go_on_within_an_epoch_as_well(
    two_processes: TwoProcesses, tmp_path: Path, changes: dict[str, Any]
) -> None:
    for resumed, straight in two_processes.run(cut_run, str(tmp_path), config(**changes).model_dump(mode="json")):
        assert resumed == straight


def test_a_finished_run_can_be_trained_longer_and_has_nothing_to_do_otherwise(tmp_path: Path) -> None:
    first = Recorder()
    run(tmp_path, first, config())
    again = Recorder()
    assert run(tmp_path, again, config(), resume=first.checkpoint) == Outcome(state="complete", epochs=3)
    assert again.reports == []
    longer = Recorder()
    assert run(tmp_path, longer, config(epochs=5), resume=first.checkpoint).epochs == 5
    assert [report.epoch for report in longer.reports] == [4, 5]


def test_going_on_with_another_config_is_refused_before_anything_runs(tmp_path: Path) -> None:
    first = Recorder(stop_at=1)
    run(tmp_path, first, config())
    second = Recorder()
    with pytest.raises(ValueError, match=r"seed: 0 -> 1"):
        run(tmp_path, second, config(seed=1), resume=first.checkpoint)
    Path(first.checkpoint.path).write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="damaged or was replaced"):
        run(tmp_path, second, config(), resume=first.checkpoint)
    assert second.reports == []


def test_the_number_of_threads_is_the_configs_at_each_step(tmp_path: Path) -> None:
    loaders = MemoryLoaders()
    loaders.threads_set = 2  # as FFCV does, behind our back
    seen: list[int] = []
    run(
        tmp_path,
        Recorder(),
        config(threads=1),
        loaders=loaders,
        progress=lambda *_: seen.append(torch.get_num_threads()),
    )
    assert seen == [1] * 9


# --- several workers --------------------------------------------------------------------------------------------------


def on_predictions(settings: TrialConfig) -> Any:
    """The objective of `settings`, but on the predictor's outputs where there is one, so that gradients reach it."""
    objective = Objective(settings.objective)
    if settings.model.predictor is None:
        return objective
    return lambda outputs: objective(outputs._replace(projections=outputs.predictions))


def one_step(trial: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """The loss and all gradients of the first step, as the loop makes them, on this rank."""
    torch.set_default_dtype(dtype)
    try:
        settings = TrialConfig.model_validate(trial)
        model = build_model(settings)
        objective = on_predictions(settings)
        network = train_module.data_parallel(model, objective, settings, torch.device("cpu"))
        (batch, *_) = MemoryLoaders().epoch(
            MemoryDataset(), settings, epoch=0, rank=dist.rank(), world_size=dist.world_size()
        )
        model.train()
        loss, _ = objective(network(*moved(batch, torch.device("cpu")), settings.seed, 0))
        loss.backward()
        gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        return {"loss": loss.detach(), **gradients}
    finally:
        torch.set_default_dtype(torch.float32)


WORKER_VARIANTS = {
    "batch norm": {},
    "batch norm in all heads": {
        # No bias before a batch norm, which cancels it: its gradient would be rounding alone.
        "model": {
            "projector": {"widths": [12, 8], "final_bias": False},
            "predictor": {"widths": [16, 8], "final_norm": True, "final_bias": False},
            "teacher": {},
            "backbone": {"kind": "resnet_tiny", "width": 8, "zero_init_residual": False},
        }
    },
    "layer norm": {"model": {"norm": "layer"}},
    "masked transformer": MASKED,
    "masked autoencoder": AUTOENCODER,
    "dino, multi-crop": DINO,
    "parts of one's own": OWN,
    "one term": {"objective": {"alignment": {"weight": 0.0}, "mmd": {}}},
}


@pytest.mark.parametrize("changes", WORKER_VARIANTS.values(), ids=WORKER_VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_workers_have_the_loss_and_gradients_of_one(
    two_processes: TwoProcesses, changes: dict[str, Any], dtype: torch.dtype
) -> None:
    trial = config(**changes).model_dump(mode="json")
    alone = one_step(trial, dtype)
    assert len(alone) > 10
    for together in two_processes.run(one_step, trial, dtype):
        assert together.keys() == alone.keys()
        if dtype == torch.float64:
            for name, value in alone.items():
                error = float((together[name] - value).norm() / value.norm())
                assert error < 1e-10, f"{name}: {error}"
            continue
        # In float32 the gradient as a whole: on one worker, too, a single small tensor of it, a norm's scale over 12
        # rows, is 0.85e-5 from float64.
        assert float(together["loss"]) == pytest.approx(float(alone["loss"]), rel=1e-5)
        whole, other = (torch.cat([step[name].flatten() for name in alone]) for step in (alone, together))
        assert float((other - whole).norm() / whole.norm()) < 1e-5


Run = tuple[Outcome, list[EpochReport], dict[str, Tensor]]


def whole_run(folder: str, trial: dict[str, Any]) -> Run:
    """A run in float64 on this rank: its outcome, its reports, and this rank's model at the end."""
    models: list[Model] = []

    def keep(settings: TrialConfig) -> Model:
        models.append(build_model(settings))
        return models[-1]

    recorder = Recorder()
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(train_module, "build_model", keep):
            outcome = run(Path(folder), recorder, TrialConfig.model_validate(trial))
    finally:
        torch.set_default_dtype(torch.float32)
    return outcome, recorder.reports, {name: value.detach() for name, value in models[0].state_dict().items()}


def assert_same_run(found: Run, expected: Run, *, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """Of `whole_run`: outcome, weights and what was learned are the same but for rounding."""
    outcome, reports, model = expected
    assert found[0] == outcome
    for name, value in model.items():
        assert torch.allclose(found[2][name], value, rtol=rtol, atol=atol), name
    for ours, theirs in zip(reports, found[1], strict=True):
        assert learned(theirs) == pytest.approx(learned(ours), rel=1e-6)


@pytest.mark.parametrize("changes", [VARIANTS["lars, teacher, predictor"], DINO, OWN], ids=["lars", "dino", "own"])
def test_two_workers_train_the_model_of_one(
    two_processes: TwoProcesses, tmp_path: Path, changes: dict[str, Any]
) -> None:
    trial = config(**changes).model_dump(mode="json")
    alone = whole_run(str(tmp_path / "one"), trial)
    for found in two_processes.run(whole_run, str(tmp_path / "two"), trial):
        assert_same_run(found, alone)


def test_all_ranks_get_the_same_reports_and_one_checkpoint(two_processes: TwoProcesses, tmp_path: Path) -> None:
    trial = config(model={"norm": "batch_per_rank"}).model_dump(mode="json")
    (_, first, first_model), (_, second, second_model) = two_processes.run(whole_run, str(tmp_path), trial)
    assert first == second
    assert len(first) == 3
    # Statistics that each rank kept for itself were averaged, so that all ranks judge and save one model.
    assert all(torch.equal(first_model[name], second_model[name]) for name in first_model)
    saved = first[-1].checkpoint
    assert saved is not None
    assert all(torch.equal(value, first_model[name]) for name, value in checkpoint.load(saved)["model"].items())


def test_parameters_that_no_term_reaches_do_not_stall_two_workers(two_processes: TwoProcesses, tmp_path: Path) -> None:
    trial = config(model={"predictor": {"widths": [16, 8]}}).model_dump(mode="json")
    start = build_model(config(model={"predictor": {"widths": [16, 8]}})).state_dict()
    for outcome, _, model in two_processes.run(whole_run, str(tmp_path), trial):
        assert outcome.state == "complete"
        assert model["predictor.0.weight"].shape == start["predictor.0.weight"].shape
        assert not torch.equal(model["projector.0.weight"].float(), start["projector.0.weight"])


def layout_is_settled(trial: dict[str, Any]) -> bool:
    """Whether DDP is ready for its final layout of gradients before the first step, and has left no other trace."""
    settings = TrialConfig.model_validate(trial)
    model = build_model(settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    objective = Objective(settings.objective)
    network: Any = train_module.data_parallel(model, objective, settings, torch.device("cpu"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    return bool(network.reducer._rebuild_buckets())  # what the next forward pass begins with


def test_gradients_are_laid_out_alike_in_a_run_from_its_start_and_a_resumed_one(two_processes: TwoProcesses) -> None:
    # On three ranks and more, float sums depend on the layout, and DDP changes it once, after its first step.
    assert two_processes.run(layout_is_settled, config().model_dump(mode="json")) == [True, True]


def failing_save(folder: str, trial: dict[str, Any]) -> str:
    """Rank 0's disk is full."""

    def full(*_: Any, **__: Any) -> Checkpoint:
        raise OSError(28, "No space left on device")

    with patch.object(checkpoint, "save", full), pytest.raises(OSError, match="No space left") as caught:
        whole_run(folder, trial)
    return str(caught.value)


def test_a_full_disk_fails_all_ranks_at_once(two_processes: TwoProcesses, tmp_path: Path) -> None:
    errors = two_processes.run(failing_save, str(tmp_path), config().model_dump(mode="json"))
    assert errors == ["[Errno 28] No space left on device"] * 2


# --- how a run ends badly ---------------------------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, term: type, step: int, value: Callable[[Tensor], Tensor]) -> None:
    """From optimizer step `step` on, `term` gives `value(its own value)`."""
    original = term.__call__

    def poisoned(self: Any, outputs: Any) -> Tensor:
        result: Tensor = original(self, outputs)
        return value(result) if outputs.step >= step else result

    monkeypatch.setattr(term, "__call__", poisoned)


@pytest.mark.parametrize(("term", "name"), [(KernelMMD, "loss/mmd"), (Alignment, "loss/alignment")])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_term_that_is_not_finite_ends_the_trial_before_the_update_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, term: type, name: str, bad: float
) -> None:
    poison(monkeypatch, term, 4, lambda value: value * bad)
    models: list[Model] = []
    snapshots: list[dict[str, Tensor]] = []

    def keep(settings: TrialConfig) -> Model:
        models.append(build_model(settings))
        return models[-1]

    def snapshot(epoch: int, step: int) -> None:
        snapshots.append({key: value.detach().clone() for key, value in models[0].named_parameters()})

    monkeypatch.setattr(train_module, "build_model", keep)
    recorder = Recorder()
    outcome = run(tmp_path, recorder, config(), progress=snapshot)
    assert outcome == Outcome(state="diverged", reason=f"{name} was not finite at step 4, in epoch 2", epochs=1)
    assert len(recorder.reports) == 1
    assert len(snapshots) == 4
    assert all(torch.equal(value, snapshots[-1][key]) for key, value in models[0].named_parameters())


def test_a_gradient_that_is_not_finite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, KernelMMD, 1, lambda value: value + (value - value).sqrt())  # 0, of infinite slope
    outcome = run(tmp_path, Recorder(), config())
    assert outcome.state == "diverged"
    assert outcome.reason == "optim/gradient_norm was not finite at step 1, in epoch 1"


def test_a_loss_that_overflows_says_how_large_the_embeddings_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Model.forward

    def enlarged(self: Model, *inputs: Any) -> Any:
        outputs = forward(self, *inputs)
        return outputs._replace(projections=tuple(1e25 * rows for rows in outputs.projections))

    monkeypatch.setattr(Model, "forward", enlarged)
    terms = {"alignment": Alignment(normalize=False)}
    outcome = run(tmp_path, Recorder(), config().model_copy(update={"objective": terms}))
    assert outcome.state == "diverged"
    said = r"loss/alignment was not finite at step 0, in epoch 1; projections up to \d\.?\d*e\+2\d: lower the .*"
    assert re.fullmatch(said, outcome.reason)


def test_weights_that_explode_in_the_last_step_are_never_saved(tmp_path: Path) -> None:
    # One step to the epoch: its loss and gradients are fine, the weights after it are not.
    recorder = Recorder()
    outcome = run(
        tmp_path, recorder, config(batch_size=36, optimizer={"learning_rate": 1e38}, schedule={"warmup_share": 0})
    )
    assert outcome.state == "diverged"
    assert outcome.reason.endswith("was not finite after epoch 1")
    assert recorder.reports == []
    assert not list(tmp_path.rglob("*epoch-*"))


def test_out_of_memory_is_an_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Model.forward

    def greedy(self: Model, views: Any, sample_ids: Tensor, seed: int, step: int) -> Any:
        if step == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd more lines.")
        return original(self, views, sample_ids, seed, step)

    monkeypatch.setattr(Model, "forward", greedy)
    outcome = run(tmp_path / "greedy", Recorder(), config())
    assert outcome.state == "out_of_memory"
    assert outcome.epochs == 1
    said = (
        r"GPU memory ran out: CUDA out of memory\. Tried to allocate 2\.00 GiB; this run held \d+\.\d\d GiB at most, "
        r"0\.00 GiB of it for parameters, gradients and moments; it may fit with accumulate=2 or more, with "
        r"model\.norm=layer or accumulate_batch_norm=per_part, or with a smaller batch_size"
    )
    assert re.fullmatch(said, outcome.reason)
    monkeypatch.undo()
    after, fresh = Recorder(), Recorder()
    run(tmp_path / "after", after, config(epochs=1))
    run(tmp_path / "fresh", fresh, config(epochs=1))
    assert fingerprint(after.checkpoint) == fingerprint(fresh.checkpoint), "the next trial in this process is sound"


def starved(trial: dict[str, Any], folder: str) -> str:
    def greedy(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with patch.object(TrainingStep, "gradients", greedy):
        try:
            run(Path(folder), Recorder(), TrialConfig.model_validate(trial))
        except torch.OutOfMemoryError as error:
            return str(error)
    return "an outcome"


def test_out_of_memory_on_several_workers_is_raised_with_what_would_fit(
    two_processes: TwoProcesses, tmp_path: Path
) -> None:
    trial = config(model={"norm": "layer"}, accumulate=2).model_dump(mode="json")
    for said in two_processes.run(starved, trial, str(tmp_path)):
        assert said.startswith("GPU memory ran out: CUDA out of memory; this run held ")
        assert said.endswith("; it may fit with accumulate=3 or more, or with a smaller batch_size")


def test_too_large_a_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size must be at most"):
        run(tmp_path, Recorder(), config(batch_size=TRAIN + 1))


def test_a_loader_that_loses_batches_is_a_bug_and_not_an_epoch(tmp_path: Path) -> None:
    class Lossy(MemoryLoaders):
        def epoch(self, *arguments: Any, **keywords: Any) -> Iterator[Batch]:
            yield next(super().epoch(*arguments, **keywords))

    with pytest.raises(RuntimeError, match="an epoch must have 3 steps, but the loader gave 1 batches"):
        run(tmp_path, Recorder(), config(), loaders=Lossy())


# --- the meter --------------------------------------------------------------------------------------------------------


def test_the_meter_averages_and_remembers_the_first_bad_number() -> None:
    meter = StepMeter()
    meter.add(10, {"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
    meter.add(11, {"a": torch.tensor(3.0), "b": torch.tensor(2.0)})
    assert meter.first_not_finite() is None
    assert meter.means() == {"a": 2.0, "b": 2.0}
    # Looked at late, as on a GPU: `b` was bad first, `a` only after the update that followed.
    meter.add(12, {"a": torch.tensor(1.0), "b": torch.tensor(math.inf)})
    meter.add(13, {"a": torch.tensor(math.nan), "b": torch.tensor(math.nan)})
    meter.add(14, {"a": torch.tensor(1.0), "b": torch.tensor(1.0)})
    assert meter.first_not_finite() == ("b", 12)
