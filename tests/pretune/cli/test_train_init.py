"""A run that starts from an export of another one: as told by its file's hash, gone on with, replayed, refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pretune.analysis import replay
from pretune.execution import run_folder
from tests.pretune.cli.command import pretune
from trainers.config import TrialConfig
from trainers.encoder import Preparation
from trainers.evaluation.subject import from_weights, untrained
from trainers.init_file import file_of

pytestmark = [pytest.mark.ffcv, pytest.mark.usefixtures("one_thread")]

# A constant learning rate: the first of two epochs is then the only one of a shorter run.
SETTINGS = ("schedule.warmup_share=0", "schedule.decay_share=0", "views.*.size=8")
BACKBONES = {
    "torchvision": ("model.backbone.width=8",),
    "timm": (
        "model.backbone.kind=vit_micro",
        "model.backbone.patch_size=4",
        "model.backbone.depth=2",
        "model.backbone.embed_dim=32",
    ),
}
"""By the format that weights are exported in."""


def options(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def done(*arguments: str) -> None:
    found = pretune(*arguments)
    assert found.exit_code == 0, found.output


def refused(*arguments: str) -> str:
    found = pretune(*arguments)
    assert found.exit_code == 2, found.output
    return " ".join(found.stderr.split())


@pytest.fixture(scope="module", params=["torchvision", pytest.param("timm", marks=pytest.mark.slow)])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an `export`, and with two runs that begin from it: `whole` of two epochs, `parts` of one."""
    root: Path = tmp_path_factory.mktemp("init")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        backbone = options(*SETTINGS, *BACKBONES[request.param])
        done("train", "sfrik_tiny", "--subset", "256", *backbone, "--epochs", "1", "--out", "first")
        done("export", "first", "--format", request.param, "--out", "export")
        begin = ["train", "sfrik_tiny", "--subset", "256", *backbone, *options("model.backbone.init=export")]
        done(*begin, "--epochs", "2", "--out", "whole")
        done(*begin, "--epochs", "1", "--out", "parts")
    return root


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def without_export(here: Path) -> Iterator[Path]:
    """While the weights are gone."""
    (here / "export").rename(here / "away")
    yield here
    (here / "away").rename(here / "export")


def config_of(run: Path) -> TrialConfig:
    return TrialConfig.model_validate_json((run / "config.json").read_text())


def judged(run: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in report.metrics.items() if name.split("/")[0] in ("loss", "probe", "health")}
        for report in run_folder.read(run)
    ]


def test_the_file_is_in_the_config_by_path_and_hash_and_the_run_starts_from_it(here: Path) -> None:
    config = config_of(here / "whole")
    assert config.init is not None
    assert config.init.path == str(here / "export" / "encoder.safetensors")
    assert config.init == config.init.completed()
    weights = from_weights(here / "export")
    began = untrained(config, Preparation(weights.mean, weights.std))
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(began.encode(images), weights.encode(images), rtol=0, atol=1e-6)
    drawn = untrained(config.with_init(None), Preparation(weights.mean, weights.std))
    assert began.digest != drawn.digest


def test_a_replay_of_it_is_equal_bit_for_bit(here: Path, tmp_path: Path) -> None:
    told = {report.epoch: report.metrics for report in run_folder.read(here / "whole")}
    compared, _ = replay.run(config_of(here / "whole"), told, tmp_path, workers=1)
    assert [one.epoch for one in compared] == [1, 2]
    assert [one.different for one in compared] == [[], []]


def test_it_goes_on_where_the_file_is_gone_as_its_checkpoint_has_all(without_export: Path, tmp_path: Path) -> None:
    run = tmp_path / "parts"
    shutil.copytree(without_export / "parts", run)
    done("train", str(run / "config.json"), "--out", str(run), "--resume", "--epochs", "2")
    assert judged(run)[-1] == judged(without_export / "whole")[-1]
    assert config_of(run).init == config_of(without_export / "whole").init


def test_where_it_would_begin_anew_it_is_refused_without_the_file(without_export: Path, tmp_path: Path) -> None:
    again = ["train", "whole/config.json", "--out", str(tmp_path / "again")]
    assert "model.backbone.init: there is no file" in refused(*again)
    begun = tmp_path / "begun"  # ended before its first checkpoint
    begun.mkdir()
    shutil.copy(without_export / "whole" / "config.json", begun)
    (begun / "metrics.jsonl").touch()
    assert "there is no file" in refused("train", str(begun / "config.json"), "--out", str(begun), "--resume")
    with pytest.raises(ValueError, match="there is no file"):
        untrained(config_of(without_export / "whole"), Preparation((0.0,) * 3, (1.0,) * 3))
    assert not (tmp_path / "again").exists()


def test_a_file_with_other_bytes_is_refused(here: Path, tmp_path: Path) -> None:
    file = file_of("export", here)
    before = file.read_bytes()
    file.write_bytes(before[:-1] + b"x")
    try:
        said = refused("train", "whole/config.json", "--out", str(tmp_path / "again"))
    finally:
        file.write_bytes(before)
    assert "must have sha256" in said
    assert "put the file back, or begin a new run" in said
