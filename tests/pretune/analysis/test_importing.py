"""`pretune import` makes a folder of other people's weights that everything else opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pretune.core.messages import validated
from pretune.request import request
from pretune.request.lookup import Recipe
from search_spaces import RECIPES
from tests.imports import imported
from tests.pretune.analysis.test_export import refusing
from tests.pretune.cli.command import pretune
from tests.trainers.weights import foreign
from trainers.config import TrialConfig
from trainers.evaluation.subject import from_weights
from trainers.weights.opening import opened


@pytest.fixture
def moco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ResNet-18 as MoCo leaves one, in the folder that commands work in."""
    monkeypatch.chdir(tmp_path)
    state = foreign.below("module.encoder_q.", foreign.resnet(classes=128).state_dict())
    return foreign.saved(tmp_path / "moco.pth.tar", {"epoch": 200, "state_dict": state})


def test_a_file_becomes_a_folder_to_start_from_to_evaluate_and_to_export(moco: Path, tmp_path: Path) -> None:
    done = pretune("import", "moco.pth.tar")
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "found resnet18 behind 'state_dict.module.encoder_q.'; left out" in said
    assert "as no part of a backbone: fc.weight, fc.bias" in said
    folder = tmp_path / "imports" / "moco"
    assert opened(folder).description.source == "moco.pth.tar"
    subject = from_weights(folder)
    assert (subject.name, subject.kind, subject.size, list(subject.sources)) == ("moco", "resnet", 224, ["features"])
    with torch.no_grad():
        rows = subject.encode(foreign.images(64))
        network: Any = foreign.resnet(classes=128)
        network.fc = torch.nn.Identity()
        wanted = network(foreign.images(64))
        assert wanted.abs().max() > 1.0
        assert float((rows - wanted).abs().max() / wanted.abs().max()) < 1e-5
    assert from_weights(folder).digest == subject.digest
    again = pretune("export", "imports/moco", "--format", "torchvision", "--out", "again", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["difference"] < 1e-4
    assert from_weights(tmp_path / "again").digest == subject.digest
    card = (folder / "README.md").read_text()
    assert "What it was trained on is not known here" in card
    assert "license: unknown" in card


def test_preprocessing_and_backbone_may_be_said(moco: Path, tmp_path: Path) -> None:
    arguments = ["--size", "64", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--resampling", "bilinear"]
    done = pretune("import", "moco.pth.tar", "--out", "out", "--backbone", "timm:resnet18", *arguments, "--json")
    assert done.exit_code == 0, done.output
    known = json.loads(done.stdout)["encoder"]
    assert (known["size"], known["mean"], known["std"]) == (64, [0.5] * 3, [0.25] * 3)
    assert (known["resampling"], known["backbone"]["kind"]) == ("bilinear", "timm:resnet18")


def test_a_recipe_that_starts_from_a_file_names_it_by_hash_and_is_checked_before_anything_starts(
    moco: Path, tmp_path: Path
) -> None:
    recipe = Recipe("mine", "mine", RECIPES["sfrik_cifar10"]())
    settings = ["model.backbone.kind=resnet18", "model.backbone.stem=imagenet", "model.backbone.init=moco.pth.tar"]
    config = request.configure(recipe, assignments=settings)
    assert config.init is not None
    assert (config.init.path, len(config.init.sha256 or "")) == (str(moco), 64)
    stored = validated(TrialConfig, config.model_dump(mode="json"))
    assert stored == config
    for wrong, message in (
        ([*settings[:2], "model.backbone.init=none.pth"], r"model\.backbone\.init: there is no file .*none\.pth"),
        (["model.backbone.stem=small", settings[0], settings[2]], r"convolution of 7x7; set model\.backbone\.stem"),
        (["model.backbone.kind=resnet50", *settings[1:]], r"must hold the weights of resnet50, but"),
        ([*settings[:2], "model.backbone.init=s3://bucket/file.pth"], r"is a URI; copy it to a shared folder"),
    ):
        with pytest.raises(ValueError, match=message):
            request.configure(recipe, assignments=wrong)


REFUSED = (
    ("none.pth", "there is no file"),
    ("moco.pth.tar --mean 1,2", "--mean must be three numbers"),
    ("moco.pth.tar --std 0,0.1,0.1", "--std must be three numbers"),
    ("moco.pth.tar --backbone resnet51", "'backbone.kind' is 'resnet51', which is not known"),
    ("moco.pth.tar --backbone resnet18 --set stem=big", "'backbone.stem' is 'big'"),
    ("moco.pth.tar --backbone timm:resnet101 --format torchvision", "take --format timm or onnx"),
    ("moco.pth.tar --backbone mine.py:Net", "code of one's own; take --format onnx"),
    ("moco.pth.tar --out .", "must be a new or an empty folder"),
    (".", "but has no encoder.safetensors"),
)


def test_a_wrong_request_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "moco.pth.tar").write_bytes(b"")
    assert imported(refusing("import", tmp_path, REFUSED), "torch ray timm torchvision") == []


def test_what_is_no_backbone_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    foreign.saved(tmp_path / "other.pth", {"lstm.weight": torch.zeros(3)})
    foreign.saved(tmp_path / "tiny.pth", foreign.resnet().state_dict())
    for arguments, message in (
        (["other.pth"], "looks like none of these"),
        (["tiny.pth", "--backbone", "vit_tiny"], "must hold the weights of vit_tiny, but none of its"),
        (["tiny.pth", "--backbone", "timm:resnet50"], "must hold the weights of timm:resnet50, but"),
        (["tiny.pth", "--set", "stem=small"], "its stem is a convolution of 7x7; set"),
    ):
        done = pretune("import", *arguments)
        assert (done.exit_code, message in " ".join(done.output.split())) == (2, True), done.output
    assert not (tmp_path / "imports").exists() or not list((tmp_path / "imports").iterdir())
