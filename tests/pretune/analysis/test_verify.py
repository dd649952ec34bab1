"""The proof of resuming: it finds what differs, and runs on the recipes of each method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pretune.analysis import verify
from pretune.cli.app import app
from pretune.core.errors import RequestError
from trainers import checkpoint
from trainers.config import TrialConfig
from trainers.report import EpochReport

BASE = TrialConfig.model_validate({"objective": {"alignment": {}}, "batch_size": 64})


def reports(folder: Path, **changes: Any) -> list[EpochReport]:
    """Two epochs as a run tells them, the last with its checkpoint; `changes` replace parts of state or metrics."""
    metrics = {"loss/total": 0.25, "probe/linear": 0.5, "time/epoch_s": 1.0, "budget/seconds": 2.0}
    state: dict[str, dict[str, Any]] = {
        "counters": {"step": 16, "seconds": 3.0},
        "model": {"weight": torch.arange(4.0), "count": torch.tensor(3)},
        "optimizer": {"state": {0: {"momentum": torch.ones(4)}}, "param_groups": [{"lr": 0.1}]},
    }
    state = {name: {**value, **changes.get(name, {})} for name, value in state.items()}
    saved = checkpoint.save(folder, state, epoch=2)
    metrics |= changes.get("metrics", {})
    return [EpochReport(epoch=1, metrics=metrics), EpochReport(epoch=2, metrics=metrics, checkpoint=saved)]


def test_equal_runs_are_equal_whatever_the_time_they_took(tmp_path: Path) -> None:
    other = reports(
        tmp_path / "b", metrics={"time/epoch_s": 9.0, "budget/seconds": 8.0}, counters={"step": 16, "seconds": 7.0}
    )
    verdict = verify.compare(reports(tmp_path / "a"), other)
    assert verdict == verify.Verdict(tensors=3, numbers=2 * 2 + 1 + 1)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metrics": {"loss/total": 0.25 + 2**-53}}, "epoch 1: loss/total: 0.25 and 0.2500000000000001"),
        ({"model": {"weight": torch.tensor([0.0, 1.0, 2.0, 3.0000002])}}, "model.weight: a tensor of [4]"),
        ({"model": {"weight": torch.tensor([-0.0, 1.0, 2.0, 3.0])}}, "model.weight: a tensor of [4]"),
        ({"model": {"weight": torch.arange(4.0).double()}}, "model.weight: a tensor of [4]"),
        ({"model": {"more": torch.zeros(1)}}, "model.more: None and a tensor of [1]"),
        ({"optimizer": {"param_groups": [{"lr": 0.2}]}}, "optimizer.param_groups.0.lr: 0.1 and 0.2"),
        ({"counters": {"step": 15}}, "counters.step: 16 and 15"),
    ],
)
def test_the_first_difference_is_named(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    verdict = verify.compare(reports(tmp_path / "a"), reports(tmp_path / "b", **changes))
    assert verdict.difference.startswith(told)


def test_an_epoch_that_was_told_twice_or_never_is_a_difference(tmp_path: Path) -> None:
    one = reports(tmp_path / "a")
    assert verify.compare(one, [one[0], one[0], one[1]]).difference == "epochs reported: [1, 2] and [1, 1, 2]"
    assert verify.compare(one, one[1:]).difference.startswith("epochs reported: ")


def test_the_run_is_short_and_keeps_what_the_user_asked_for() -> None:
    config = verify.shortened(BASE, 10_000)
    assert (config.epochs, config.data.subset, config.checkpoint_every_steps) == (2, 512, 3)
    assert config.batch_size == BASE.batch_size
    with pytest.raises(RequestError, match="there must be at least 384 images at batch_size=64, but there are 300"):
        verify.shortened(BASE, 300)


@pytest.mark.parametrize("more", [["--resume", "--out", "x"], ["--out", "x"], ["--resume"]])
def test_it_keeps_nothing_and_goes_on_with_nothing(more: list[str]) -> None:
    answer = CliRunner().invoke(app, ["train", "sfrik_tiny", "--verify-resume", *more])
    assert answer.exit_code == 2
    assert "leave out --out and --resume" in answer.output


@pytest.mark.slow
@pytest.mark.ffcv
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("recipe", ["sfrik_tiny", "msbreg_tiny", "cw_rgp_tiny", "dilemma_mocov3_tiny"])
def test_a_recipe_of_each_method_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, workers: int
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(app, ["train", recipe, "--verify-resume", "--workers", str(workers)])
    assert answer.exit_code == 0, answer.output
    assert "goes on from epoch-0000-step-0000003.pt" in answer.output
    assert "goes on from epoch-0001-step-0000012.pt" in answer.output
    assert "VERIFIED" in answer.output
