"""The folder of one `pretune train`: written as epochs end, gone on with after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pretune.cli.app import app
from pretune.core.errors import RequestError
from pretune.display.run import line
from pretune.execution import run_folder
from search_spaces import RECIPES
from trainers.config import TrialConfig
from trainers.report import Checkpoint, EpochReport

CONFIG = RECIPES["sfrik_tiny"]()


def epoch(number: int, folder: Path) -> EpochReport:
    path = folder / "checkpoints" / f"epoch-{number:04d}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"state")
    checkpoint = Checkpoint(path=str(path), sha256="0" * 64, epoch=number)
    metrics = {"probe/linear": 0.5 + 0.1 * number, "probe/linear_stderr": 0.02, "loss/total": 1.0 / number}
    return EpochReport(epoch=number, metrics=metrics, checkpoint=checkpoint)


def written(folder: Path, epochs: int) -> None:
    with run_folder.RunLog(folder, CONFIG, resume=None) as record:
        for number in range(1, epochs + 1):
            record.add(epoch(number, folder))


def test_each_epoch_is_a_line_with_its_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    written(folder, 3)
    assert [report.epoch for report in run_folder.read(folder)] == [1, 2, 3]
    assert TrialConfig.model_validate_json((folder / "config.json").read_text()) == CONFIG
    last = run_folder.last_checkpoint(folder)
    assert last is not None
    assert last.epoch == 3


def test_a_torn_last_line_is_the_end_of_a_run_that_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    written(folder, 2)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "metr')
    assert [report.epoch for report in run_folder.read(folder)] == [1, 2]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    written(folder, 3)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], "?", lines[2]]) + "\n")
    with pytest.raises(RequestError, match="line 2"):
        run_folder.read(folder)


def test_going_on_drops_epochs_after_the_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    written(folder, 3)
    (folder / "checkpoints" / "epoch-0003.pt").unlink()
    checkpoint = run_folder.last_checkpoint(folder)
    assert checkpoint is not None
    assert checkpoint.epoch == 2
    with run_folder.RunLog(folder, CONFIG, resume=checkpoint) as record:
        record.add(epoch(3, folder))
    assert [report.epoch for report in run_folder.read(folder)] == [1, 2, 3]


def test_a_run_without_any_of_its_checkpoints_does_not_start_anew_silently(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    written(folder, 1)
    (folder / "checkpoints" / "epoch-0001.pt").unlink()
    with pytest.raises(RequestError, match="is gone"):
        run_folder.last_checkpoint(folder)


def test_a_request_that_turns_out_wrong_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    written(folder, 2)
    before = {path.name: path.read_text() for path in folder.glob("*.json*")}
    other = CONFIG.model_copy(update={"batch_size": 32})
    with run_folder.RunLog(folder, other, resume=run_folder.last_checkpoint(folder)) as record:
        record.undo()
    assert {path.name: path.read_text() for path in folder.glob("*.json*")} == before
    with run_folder.RunLog(tmp_path / "new", CONFIG, resume=None) as record:
        record.undo()
    assert not (tmp_path / "new").exists()


def test_a_line_of_an_epoch_has_the_probes_with_their_errors(tmp_path: Path) -> None:
    assert line(epoch(2, tmp_path), 8) == "epoch 2 of 8: probe/linear 0.700 ± 0.020, loss 0.5"


@pytest.mark.ffcv
def test_train_writes_its_folder_and_goes_on_as_if_never_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def train(*arguments: str) -> str:
        # A constant learning rate: the first of two epochs is then the only one of a shorter run.
        settings = ["schedule.warmup_share=0", "schedule.decay_share=0", "model.backbone.width=8", "views.*.size=8"]
        options = [part for setting in settings for part in ("--set", setting)]
        result = CliRunner().invoke(app, ["train", "sfrik_tiny", "--subset", "256", *options, *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    text = train("--epochs", "2", "--out", "whole")
    assert "epoch 1 of 2: probe/linear" in text
    assert "linear probe, all labels" in text, "a full probe ends the run"
    train("--epochs", "1", "--out", "parts")
    refused = CliRunner().invoke(
        app, ["train", "parts/config.json", "--out", "parts", "--resume", "--epochs", "2", "--set", "batch_size=32"]
    )
    assert refused.exit_code == 2
    assert "batch_size: 64 -> 32" in refused.stderr
    config = json.loads((tmp_path / "parts" / "config.json").read_text())
    assert config["batch_size"] == 64, "a refused request changes nothing"
    assert config["data"]["manifest"], "the data set is named by its hash"
    going_on = ["train", "parts/config.json", "--out", "parts", "--resume", "--epochs", "2"]
    assert CliRunner().invoke(app, going_on).exit_code == 0
    whole, parts = run_folder.read(tmp_path / "whole"), run_folder.read(tmp_path / "parts")
    assert [report.epoch for report in parts] == [1, 2]
    for name in ("probe/linear", "probe/full_linear", "loss/total"):
        assert parts[-1].metrics[name] == whole[-1].metrics[name]
    assert list((tmp_path / "parts").glob("events.out.tfevents.*"))
