"""The report split is read for the winner alone, each read is counted, and a second one must be asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretune.analysis import finalize
from pretune.core import results
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.journal import Asked, Closed, Ended, Epoch, Journal, Opened, Started
from search_spaces import RECIPES
from tests.pretune.cli.command import pretune
from trainers.config import TrialConfig
from trainers.data import datasets, report_reads
from trainers.data.report_reads import ReportRead
from trainers.report import Checkpoint


@pytest.fixture
def data(tmp_path: Path) -> datasets.Dataset:
    return datasets.ensure_builtin("digits", tmp_path / "data")


def finished_sweep(folder: Path, config: TrialConfig, checkpoint: Checkpoint | None) -> results.SweepResult:
    """A sweep of one trial with this checkpoint."""
    experiment = Experiment(name=folder.name, space="kernels", base=config, trials=1, storage=str(folder.parent))
    with Journal(folder, new=True) as journal:
        journal.append(Opened(experiment=experiment))
        journal.append(Asked(number=0, params={}, distributions={}, config=config.model_dump(mode="json")))
        journal.append(Started(number=0, attempt=0, epoch=0))
        journal.append(Epoch(number=0, epoch=1, metrics={"probe/linear": 0.5}, checkpoint=checkpoint))
        journal.append(Ended(number=0, state="COMPLETE", value=0.5))
        journal.append(Closed(reason="finished"))
    return results.read(folder)


def on(dataset: datasets.Dataset) -> TrialConfig:
    values: dict[str, Any] = RECIPES["sfrik_tiny"]().model_dump(mode="json")
    values["data"] = {"path": str(dataset.folder), "manifest": dataset.manifest_hash}
    values["model"]["backbone"]["width"] = 8
    values["views"] = [{**view, "size": 8} for view in values["views"]]
    return TrialConfig.model_validate(values)


def untrained_checkpoint(folder: Path, config: TrialConfig) -> Checkpoint:
    from trainers import checkpoint
    from trainers.model import build_model

    state = {"config": config.model_dump(mode="json"), "model": build_model(config).state_dict()}
    return checkpoint.save(folder, state, epoch=1)


def test_a_sweep_is_not_finalized_while_it_runs(tmp_path: Path, data: datasets.Dataset) -> None:
    result = finished_sweep(tmp_path / "sweeps" / "known", on(data), None)
    with Journal(result.folder, new=False), pytest.raises(RequestError, match="finalize it when it has ended"):
        finalize.check(results.read(result.folder), again=False)


def test_a_winner_whose_checkpoint_is_gone_is_refused_before_a_read_is_counted(
    tmp_path: Path, data: datasets.Dataset
) -> None:
    gone = Checkpoint(path=str(tmp_path / "gone.pt"), sha256="0" * 64, epoch=1)
    result = finished_sweep(tmp_path / "sweeps" / "known", on(data), gone)
    with pytest.raises(RequestError, match=r"gone\.pt is gone"):
        finalize.check(result, again=False)
    assert not finalize.path(result).exists()


@pytest.mark.ffcv
def test_report_is_read_once_and_each_further_read_is_asked_for_and_counted(
    tmp_path: Path, data: datasets.Dataset
) -> None:
    config = on(data)
    folder = tmp_path / "sweeps" / "known"
    result = finished_sweep(folder, config, untrained_checkpoint(folder / "trials" / "0000" / "checkpoints", config))
    storage = ["--storage", str(folder.parent)]

    first = pretune("finalize", "known", *storage, "--json")
    assert first.exit_code == 0, first.output
    record = json.loads(first.stdout)
    written = json.loads(finalize.path(result).read_text())
    below, whole = (told["reads"][0].pop("checkpoint")["path"] for told in (written, record))
    assert (folder / below == Path(whole), Path(below).is_absolute()) == (True, False)
    assert record == written
    assert record["report_reads"] == 1
    metrics = record["reads"][0]["metrics"]
    assert 0.0 < metrics["report/linear"] < 1.0
    assert metrics["report/full_linear"] > metrics["report/linear"], "all labels beat five per class"
    assert metrics["report/linear_stderr"] == pytest.approx(
        (metrics["report/linear"] * (1 - metrics["report/linear"]) / data.report_count) ** 0.5
    )

    for baseline in ("untrained", "pixels"):
        assert 0.0 < metrics[f"report/{baseline}/linear"] < 1.0
    assert metrics["report/untrained/linear"] == metrics["report/linear"], "this winner was never trained"

    second = pretune("finalize", "known", *storage)
    assert second.exit_code == 2
    assert "was read before" in second.stderr
    assert json.loads(finalize.path(result).read_text())["report_reads"] == 1

    third = pretune("finalize", "known", *storage, "--again")
    assert third.exit_code == 0
    assert "was read 2 times" in " ".join(third.stdout.split())
    record = json.loads(finalize.path(result).read_text())
    assert record["report_reads"] == 2
    assert record["reads"][0]["metrics"] == record["reads"][1]["metrics"] == metrics


@pytest.mark.ffcv
def test_without_labels_the_health_of_the_winner_is_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "all.npz", images=pixels)
    config = on(datasets.build("npz", unlabeled=tmp_path / "all.npz", out=tmp_path / "flat"))
    folder = tmp_path / "sweeps" / "known"
    result = finished_sweep(folder, config, untrained_checkpoint(folder / "trials" / "0000" / "checkpoints", config))
    (read,) = finalize.run(result, finalize.check(result, again=False)).reads
    assert {name.removeprefix("report/") for name in read.metrics} == {
        name for name in read.metrics if not name.startswith("report/")
    }
    assert read.metrics["report/health/features/std"] != read.metrics["health/features/std"]


@pytest.fixture
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainers.evaluation import probe

    monkeypatch.setattr(probe, "evaluate", lambda *arguments, **options: {"probe/linear": 0.5})
    monkeypatch.setattr(probe, "report_split", lambda *arguments, **options: {"report/linear": 0.4})


@pytest.mark.usefixtures("quick_probes")
def test_reads_are_counted_beside_the_data_through_whichever_sweep(tmp_path: Path, data: datasets.Dataset) -> None:
    config = on(data)
    for number, name in enumerate(("one", "other"), start=1):
        folder = tmp_path / "sweeps" / name
        result = finished_sweep(folder, config, untrained_checkpoint(folder / "checkpoints", config))
        found = finalize.run(result, finalize.check(result, again=False))
        assert (found.report_reads, len(found.of_the_data), found.recorded) == (1, number, True)
    assert [Path(read.sweep).name for read in found.of_the_data] == ["one", "other"]
    assert "through 2 sweeps" in " ".join(pretune("finalize", str(folder), "--again").stdout.split())
    assert datasets.open_dataset(data.folder).manifest_hash == data.manifest_hash


@pytest.mark.usefixtures("quick_probes")
def test_data_that_cannot_be_written_to_are_no_obstacle_and_said(
    tmp_path: Path, data: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = on(data)
    folder = tmp_path / "sweeps" / "known"
    result = finished_sweep(folder, config, untrained_checkpoint(folder / "checkpoints", config))
    winner = finalize.check(result, again=False)
    assert not report_reads.record(str(tmp_path / "unmounted"), ReportRead(time="now", sweep="s", trial=0))
    monkeypatch.setattr(report_reads, "record", lambda *arguments: False)
    found = finalize.run(result, winner)
    assert not found.recorded
    assert found.report_reads == 1


@pytest.mark.usefixtures("quick_probes")
def test_a_sweep_that_was_moved_is_finalized_where_it_lies_and_keeps_its_count(
    tmp_path: Path, data: datasets.Dataset
) -> None:
    config, folder = on(data), tmp_path / "sweeps" / "known"
    result = finished_sweep(folder, config, untrained_checkpoint(folder / "trials" / "0000" / "checkpoints", config))
    finalize.run(result, finalize.check(result, again=False))
    folder.rename(tmp_path / "my sweep (copy)")
    moved = results.read(tmp_path / "my sweep (copy)")
    with pytest.raises(RequestError, match="was read before for sweep 'my sweep"):
        finalize.check(moved, again=False)
    found = finalize.run(moved, finalize.check(moved, again=True))
    assert (found.sweep, found.report_reads) == ("my sweep (copy)", 2)
    assert {read.checkpoint for read in found.reads} == {moved.trials[0].checkpoint}
    assert str(folder) not in finalize.path(moved).read_text().partition("of_the_data")[0]


@pytest.mark.usefixtures("quick_probes")
def test_two_at_once_count_once_each(tmp_path: Path, data: datasets.Dataset) -> None:
    """Both looked before either wrote: the second is refused, or counted where it was asked for."""
    config = on(data)
    folder = tmp_path / "sweeps" / "known"
    result = finished_sweep(folder, config, untrained_checkpoint(folder / "checkpoints", config))
    first, second, third = (finalize.check(result, again=again) for again in (False, False, True))
    assert finalize.run(result, first).report_reads == 1
    with pytest.raises(RequestError, match="was read before"):
        finalize.run(result, second)
    found = finalize.run(result, third)
    assert found.report_reads == 2
    assert all(read.metrics for read in found.reads)


@pytest.mark.ffcv
def test_a_read_that_fails_halfway_is_counted(
    tmp_path: Path, data: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainers.evaluation import probe

    def fails(*arguments: object, **options: object) -> dict[str, float]:
        raise RuntimeError("power cut")

    monkeypatch.setattr(probe, "report_split", fails)
    config = on(data)
    folder = tmp_path / "sweeps" / "known"
    result = finished_sweep(folder, config, untrained_checkpoint(folder / "checkpoints", config))
    winner = finalize.check(result, again=False)
    with pytest.raises(RuntimeError, match="power cut"):
        finalize.run(result, winner)
    assert json.loads(finalize.path(result).read_text())["report_reads"] == 1
    with pytest.raises(RequestError, match="was read before"):
        finalize.check(result, again=False)
