"""The report split is read for the winner alone, each read is counted, and a second one must be asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretune.analysis import candidates, evaluated, finalize
from pretune.core import results
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.journal import Journal
from pretune.core.records import Asked, Closed, Ended, Epoch, Opened, Started
from search_spaces import RECIPES
from tests.pretune.cli.command import pretune
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.data import datasets, report_reads
from trainers.data.report_reads import ReportRead
from trainers.evaluation.protocol import ClassScore, ProtocolResult, Score
from trainers.evaluation.protocols.knn import Knn
from trainers.report import Checkpoint


@pytest.fixture
def data(data: Path, tmp_path: Path) -> datasets.Dataset:
    """A copy of the digits for each test, as what was read of `report` is kept beside them."""
    return datasets.open_dataset(Path(shutil.copytree(data / "digits", tmp_path / "data" / "digits")))


def finished_sweep(
    folder: Path,
    config: TrialConfig,
    *checkpoints: Checkpoint | None,
    metric: str = "probe/linear",
    seeds: tuple[int, ...] = (),
) -> results.SweepResult:
    """A sweep of a trial with each of these checkpoints, the first one best; of these seeds, if given."""
    experiment = Experiment(
        name=folder.name,
        space="kernels",
        base=config,
        trials=len(checkpoints),
        storage=str(folder.parent),
        metric=metric,
    )
    with Journal(folder, new=True) as journal:
        journal.append(Opened(experiment=experiment))
        for number, checkpoint in enumerate(checkpoints):
            rate = config.optimizer.learning_rate / (number + 1)
            ran = with_changes(
                config, {"seed": seeds[number] if seeds else config.seed, "optimizer.learning_rate": rate}
            )
            value = 0.5 - number / 100
            journal.append(Asked(number=number, params={}, distributions={}, config=ran.model_dump(mode="json")))
            journal.append(Started(number=number, attempt=0, epoch=0))
            journal.append(Epoch(number=number, epoch=1, metrics={metric: value}, checkpoint=checkpoint))
            journal.append(Ended(number=number, state="COMPLETE", value=value))
        journal.append(Closed(reason="finished"))
    return results.read(folder)


def on(dataset: datasets.Dataset) -> TrialConfig:
    values: dict[str, Any] = RECIPES["sfrik_tiny"]().model_dump(mode="json")
    values["data"] = {"path": str(dataset.folder), "manifest": dataset.manifest_hash}
    values["model"]["backbone"]["width"] = 8
    values["views"] = [{**view, "size": 8} for view in values["views"]]
    values["probe"]["regularization"] = 1.0  # its optimum is near, where most of the time is the way there otherwise
    return TrialConfig.model_validate(values)


def untrained_checkpoint(folder: Path, config: TrialConfig) -> Checkpoint:
    from trainers import checkpoint
    from trainers.model import build_model

    state = {
        "config": config.model_dump(mode="json"),
        "manifest": config.data.manifest,
        "model": build_model(config).state_dict(),
    }
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
    assert not result.reads_file.exists()


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
    written = json.loads(result.reads_file.read_text())
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
    assert json.loads(result.reads_file.read_text())["report_reads"] == 1

    third = pretune("finalize", "known", *storage, "--again")
    assert third.exit_code == 0
    assert "was read 2 times" in " ".join(third.stdout.split())
    record = json.loads(result.reads_file.read_text())
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
def no_refits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "refit", lambda *arguments, **options: ([], []))


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
    assert str(folder) not in moved.reads_file.read_text().partition("of_the_data")[0]


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
    assert json.loads(result.reads_file.read_text())["report_reads"] == 1
    with pytest.raises(RequestError, match="was read before"):
        finalize.check(result, again=False)


# --- the best few, judged again ---------------------------------------------------------------------------------------


def sweep_of(tmp_path: Path, config: TrialConfig, trials: int, **changes: Any) -> results.SweepResult:
    """Untrained encoders of as many seeds."""
    folder = tmp_path / "sweeps" / "known"
    seeds = tuple(range(trials))
    made = [
        untrained_checkpoint(folder / "trials" / str(seed), config.model_copy(update={"seed": seed})) for seed in seeds
    ]
    return finished_sweep(folder, config, *made, seeds=seeds, **changes)


@pytest.mark.ffcv
def test_the_best_few_are_judged_by_several_fits_and_the_best_of_them_is_read_once(
    tmp_path: Path, data: datasets.Dataset
) -> None:
    result = sweep_of(tmp_path, on(data), 4)
    told = pretune("finalize", str(result.folder), "--top", "2", "--probe-seeds", "3", "--json")
    assert told.exit_code == 0, told.output
    (read,) = json.loads(told.stdout)["reads"]
    first, second = read["candidates"]
    assert read["chosen_by"] == "probe seeds"
    assert (first["trial"], first["searched"], second["trial"]) == (0, 0.5, 1)
    assert [len(one["values"]) for one in (first, second)] == [3, 3]
    assert len(set(first["values"])) > 1, "each is fitted on other labels"
    chosen = max((first, second), key=lambda one: one["mean"])
    assert (read["trial"], chosen["place"]) == (chosen["trial"], 1)
    gap = read["optimism"]
    assert (gap["trials"], gap["judged"], gap["report_images"]) == (4, 4, data.report_count)
    assert gap["gap"] == pytest.approx(chosen["searched"] - read["metrics"]["report/linear"])
    assert gap["gap_low"] < gap["gap"] < gap["gap_high"]
    assert 0.0 < gap["shared_noise"] < 1.0
    assert len(report_reads.known(str(data.folder))) == 1
    again = " ".join(pretune("finalize", str(result.folder), "--top", "2", "--again").stdout.split())
    assert "mean of 5 fits of the probe" in again
    assert "choosing the best of 4 trials on" in again
    shown = pretune("show", str(result.folder)).stdout
    assert f"finalized: trial {read['trial']} on report" in shown
    assert json.loads(pretune("show", str(result.folder), "--json").stdout)["finalized"]["report_reads"] == 2


@pytest.mark.ffcv
def test_draw_0_of_a_refit_is_the_searchs_own_probe(tmp_path: Path, data: datasets.Dataset) -> None:
    import torch

    from trainers.data.loader import Loaders
    from trainers.evaluation import probe
    from trainers.model import build_model

    config = on(data)
    encode = build_model(config).eval().encode
    given: dict[str, Any] = {"dataset": data, "loaders": Loaders(), "config": config, "device": torch.device("cpu")}
    refits = probe.refits(encode, draws=2, **given)
    searched = probe.evaluate(encode, **given)
    for name in ("probe/linear", "probe/knn"):
        assert refits.correct[name].mean() == pytest.approx(searched[name], abs=0.01)
        assert len(refits.scores[name]) == 2
    assert probe.train_subset(data, config, draw=1).sha256 != probe.train_subset(data, config).sha256


def test_a_metric_that_no_refit_tells_is_refused_with_what_does_it(tmp_path: Path, data: datasets.Dataset) -> None:
    result = sweep_of(tmp_path, on(data), 2, metric="health/features/rankme")
    with pytest.raises(RequestError, match="run the best ones again with --seeds N"):
        finalize.check(result, again=False, top=2)
    assert len(finalize.check(result, again=False, top=2, reseeded=True).candidates) == 2


def test_a_checkpoint_of_the_best_few_that_is_gone_is_refused_and_fewer_trials_are_taken_as_they_are(
    tmp_path: Path, data: datasets.Dataset
) -> None:
    result = sweep_of(tmp_path, on(data), 3)
    assert len(finalize.check(result, again=False, top=9).candidates) == 3
    third = result.trials[2].checkpoint
    assert third is not None
    Path(third.path).unlink()
    with pytest.raises(RequestError, match=r"trial 2 .* is gone; choose among fewer with a smaller --top"):
        finalize.check(result, again=False, top=3)
    assert [one.trial for one in finalize.check(result, again=False, top=1).others] == [1]


@pytest.mark.usefixtures("quick_probes", "no_refits")
def test_the_best_by_its_mean_over_seeds_is_read_though_the_search_saw_another_first(
    tmp_path: Path, data: datasets.Dataset
) -> None:
    result = sweep_of(tmp_path, on(data), 3)
    request = finalize.check(result, again=False, top=3, reseeded=True)
    judged = candidates.judged
    retrained = [judged(0, 0.5, [0.3, 0.32]), judged(1, 0.49, [], reason="diverged"), judged(2, 0.48, [0.4, 0.41])]
    found = finalize.run(result, request, retrained=retrained)
    (read,) = found.reads
    assert (read.trial, read.chosen_by, found.searched_value) == (2, "seeds", 0.48)
    assert [one.place for one in read.candidates] == [2, 3, 1]
    assert finalize.stored(result) is not None


def test_where_nothing_could_be_judged_again_nothing_is_read(tmp_path: Path, data: datasets.Dataset) -> None:
    result = sweep_of(tmp_path, on(data), 2)
    request = finalize.check(result, again=False, top=2, reseeded=True)
    lost = [candidates.judged(number, 0.5, [], reason="trial 4 FAIL: lost") for number in (0, 1)]
    with pytest.raises(ValueError, match="could be judged again"):
        finalize.run(result, request, retrained=lost)
    assert not result.reads_file.exists()
    assert report_reads.known(str(data.folder)) == []


@pytest.mark.usefixtures("quick_probes")
def test_what_older_versions_wrote_is_opened(tmp_path: Path, data: datasets.Dataset) -> None:
    result = sweep_of(tmp_path, on(data), 1)
    finalize.run(result, finalize.check(result, again=False))
    written = json.loads(result.reads_file.read_text())
    for name in ("chosen_by", "candidates", "optimism"):
        del written["reads"][0][name]
    result.reads_file.write_text(json.dumps(written))
    found = finalize.stored(result)
    assert found is not None
    assert (found.reads[0].candidates, found.reads[0].optimism) == ((), None)
    result.reads_file.write_text("{}")
    shown = pretune("show", str(result.folder))
    assert (shown.exit_code, "must be what `pretune finalize` wrote" in shown.stdout) == (0, True)
    assert "finalized" not in json.loads(pretune("show", str(result.folder), "--json").stdout)


@pytest.mark.usefixtures("quick_probes")
def test_protocols_are_run_on_the_winner_once_and_their_results_are_kept_and_shown(
    tmp_path: Path, data: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def run(protocol: Knn, subject: Any, on: Any, **given: Any) -> ProtocolResult:
        asked.append((subject.name, on.split))
        one = Score(
            measure="knn20/top1", value=0.7, per_seed=(0.7,), interval=(0.6, 0.8), count=on.dataset.report_count
        )
        return ProtocolResult(
            protocol=protocol.model_dump(mode="json"),
            subject=subject.name,
            digest=subject.digest,
            data=on.name,
            manifest=on.dataset.manifest_hash,
            split=on.split,
            seeds=(0,),
            fitted=9,
            scores=(one,),
            classes=(ClassScore(name="0", value=0.7, count=3),),
        )

    monkeypatch.setattr(Knn, "run", run)
    config, folder = on(data), tmp_path / "sweeps" / "known"
    result = finished_sweep(folder, config, untrained_checkpoint(folder / "trials" / "0000" / "checkpoints", config))
    for wrong, said in (("knnn", "there is no protocol 'knnn'"), ("knn,", "there is no protocol ''")):
        refused = pretune("finalize", str(folder), "--protocol", wrong)
        assert refused.exit_code == 2
        assert said in refused.stderr
    assert not result.reads_file.exists()
    done = pretune("finalize", str(folder), "--protocol", "knn")
    assert done.exit_code == 0, done.output
    assert asked == [("known/0", "report")]
    assert "knn20/top1" in done.stdout
    assert "0.6000 to 0.8000" in done.stdout
    found = finalize.stored(results.read(folder))
    assert found is not None
    (read,) = found.reads
    assert read.metrics["report/linear"] == 0.4
    assert [(one.name, one.scores[0].value, one.classes) for one in read.evaluations] == [("knn", 0.7, ())]
    assert len(report_reads.known(str(data.folder))) == 1, "probes and protocols are one read"
    (beside,) = evaluated.of(results.read(folder))
    assert (beside.checkpoint, beside.result.classes[0].count) == ("trial 0, epoch 1", 3)
    again = pretune("finalize", str(folder), "--protocol", "knn", "--again")
    assert again.exit_code == 0
    assert len(asked) == 1, "what is there is not done again"
