"""`pretune train`: a run in its folder, gone on with as if it had never been interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretune.execution import run_folder
from tests.pretune.cli.command import pretune


@pytest.mark.ffcv
def test_train_writes_its_folder_and_goes_on_as_if_never_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def train(*arguments: str) -> str:
        # A constant learning rate: the first of two epochs is then the only one of a shorter run.
        settings = ["schedule.warmup_share=0", "schedule.decay_share=0", "model.backbone.width=8", "views.*.size=8"]
        settings += ["probe.regularization=1"]  # its optimum is near
        options = [part for setting in settings for part in ("--set", setting)]
        result = pretune("train", "sfrik_tiny", "--subset", "256", *options, *arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    text = train("--epochs", "2", "--out", "whole")
    assert "epoch 1 of 2: probe/linear" in text
    assert "linear probe, all labels" in text, "a full probe ends the run"
    train("--epochs", "1", "--out", "parts")
    going_on = ["train", "parts/config.json", "--out", "parts", "--resume", "--epochs", "2"]
    refused = pretune(*going_on, "--set", "batch_size=32")
    assert refused.exit_code == 2
    assert "batch_size: 64 -> 32" in refused.stderr
    config = json.loads((tmp_path / "parts" / "config.json").read_text())
    assert config["batch_size"] == 64, "a refused request changes nothing"
    assert config["data"]["manifest"], "the data set is named by its hash"
    assert pretune(*going_on).exit_code == 0
    whole, parts = run_folder.read(tmp_path / "whole"), run_folder.read(tmp_path / "parts")
    assert [report.epoch for report in parts] == [1, 2]
    for name in ("probe/linear", "probe/full_linear", "loss/total"):
        assert parts[-1].metrics[name] == whole[-1].metrics[name]
    assert list((tmp_path / "parts").glob("events.out.tfevents.*"))
