"""Weights in others' files become our backbones with their features; what does not fit is refused in words."""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainers.weights import foreign
from trainers import checkpoint
from trainers.config import TrialConfig
from trainers.model import build_model
from trainers.report import Checkpoint
from trainers.settings import ResNetConfig, TimmConfig, ViTConfig
from trainers.usercode import ChangedError
from trainers.weights import reading
from trainers.weights.opening import check_init, initialize, opened


@torch.no_grad()
def difference(ours: nn.Module, theirs: nn.Module, size: int = foreign.SIZE) -> float:
    batch = foreign.images(size)
    wanted = theirs(batch)
    assert wanted.abs().max() > 0.1  # features that are all 0 would be equal whatever the weights
    return float((ours(batch) - wanted).abs().max())


def config(backbone: dict[str, Any], *, size: int = foreign.SIZE, **model: Any) -> TrialConfig:
    values = {
        "views": [{"size": size}],
        "model": {"backbone": backbone, "projector": {"widths": [8]}, **model},
        "objective": {"mmd": {}},
    }
    return TrialConfig.model_validate(values).completed(Path.cwd())


Wrap = Callable[[dict[str, Tensor]], Any]
AS_THEY_HAVE_THEM: dict[str, tuple[Wrap, str]] = {
    "a state dict": (lambda state: state, ""),
    "timm": (lambda state: {"state_dict": state, "epoch": 3}, "state_dict."),
    "MAE": (lambda state: {"model": state | {"decoder_pos_embed": torch.zeros(1)}}, "model."),
    "MoCo": (
        lambda state: {
            "state_dict": foreign.below("module.encoder_k.", state, times=2.0)
            | foreign.below("module.encoder_q.", state),
            "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}},
        },
        "state_dict.module.encoder_q.",
    ),
    "DINO": (
        lambda state: {
            "teacher": foreign.below("backbone.", state, times=2.0) | {"head.mlp.0.weight": torch.zeros(2, 2)},
            "student": foreign.below("module.backbone.", state),
            "args": argparse.Namespace(arch="vit_small"),
        },
        "student.module.backbone.",
    ),
    "solo-learn": (
        lambda state: {
            "state_dict": foreign.below("momentum_backbone.", state, times=2.0)
            | foreign.below("backbone.", state)
            | {"classifier.weight": torch.zeros(2, 2)}
        },
        "state_dict.backbone.",
    ),
}


@pytest.mark.parametrize("who", AS_THEY_HAVE_THEM)
def test_weights_are_found_behind_whatever_stands_before_their_names(tmp_path: Path, who: str) -> None:
    network = foreign.vit()
    wrap, prefix = AS_THEY_HAVE_THEM[who]
    file = foreign.saved(tmp_path / "file.pth", wrap(network.state_dict()))
    found = opened(file, backbone=ViTConfig(kind="vit_micro", patch_size=8, depth=2, heads=1))
    assert (found.prefix, difference(found.network, network)) == (prefix, 0.0)
    assert found.description.size == foreign.SIZE


def test_the_moving_average_is_taken_where_it_is_asked_for(tmp_path: Path) -> None:
    wrap, _ = AS_THEY_HAVE_THEM["MoCo"]
    network = foreign.resnet()
    file = foreign.saved(tmp_path / "moco.pth.tar", wrap(network.state_dict()))
    student, teacher = (opened(file, branch=branch) for branch in ("student", "teacher"))
    assert (student.prefix, teacher.prefix) == ("state_dict.module.encoder_q.", "state_dict.module.encoder_k.")
    assert torch.equal(teacher.network.state_dict()["conv1.weight"], 2.0 * network.state_dict()["conv1.weight"])


@pytest.mark.parametrize("kind", ["resnet18", "resnet50"])
def test_torchvisions_resnets_are_known_by_their_names_and_lose_their_classifier(tmp_path: Path, kind: str) -> None:
    network: Any = foreign.resnet(kind, classes=1000)
    found = opened(foreign.safetensors(tmp_path / "file.safetensors", network.state_dict()))
    network.fc = nn.Identity()
    seen = difference(found.network, network, 64)
    print(f"{kind}: largest difference {seen:.3g}")
    assert seen < 1e-5
    assert found.dropped == ("fc.bias", "fc.weight")
    assert found.description.backbone == ResNetConfig.model_validate({"kind": kind, "stem": "imagenet"})
    assert (found.description.size, found.description.resampling) == (224, "bicubic")


def test_torchvisions_transformers_become_timms(tmp_path: Path) -> None:
    network = foreign.torchvision_vit()
    file = foreign.saved(tmp_path / "file.pth", network.state_dict())
    found = opened(file, backbone=ViTConfig(kind="vit_micro", patch_size=8, depth=2, heads=1))
    assert difference(found.network, network) < 1e-5


def test_timms_models_are_opened_by_name_and_half_precision_is_widened(tmp_path: Path) -> None:
    import timm

    network = timm.create_model("efficientnet_lite0", num_classes=7).eval()
    file = foreign.safetensors(tmp_path / "file.safetensors", network.half().state_dict())
    found = opened(file, backbone=TimmConfig(kind="timm:efficientnet_lite0"), size=64)
    network.float().reset_classifier(0)  # type: ignore[operator]
    assert difference(found.network, network, 64) < 1e-5
    assert found.dropped == ("classifier.bias", "classifier.weight")


def test_a_checkpoint_of_ours_is_a_file_to_start_from(tmp_path: Path) -> None:
    model = build_model(config({"kind": "resnet_tiny", "width": 8}, teacher={}))
    saved = checkpoint.save(tmp_path, {"model": model.state_dict()}, epoch=1)
    found = opened(saved.path)
    assert (found.prefix, difference(found.network, model.backbone.eval())) == ("model.backbone.", 0.0)


# ---- to start from ---------------------------------------------------------------------------------------------------


def test_backbone_and_teacher_start_from_the_file_and_the_heads_as_ever(tmp_path: Path) -> None:
    file = foreign.saved(tmp_path / "file.pth", foreign.vit().state_dict())
    backbone = {"kind": "vit_micro", "patch_size": 8, "depth": 2, "heads": 1}
    plain = build_model(config(backbone, teacher={}))
    wanted = config({**backbone, "init": str(file)}, teacher={})
    model = build_model(wanted)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), plain.parameters(), strict=True))
    initialize(model, wanted)
    assert model.teacher is not None
    for network in (model.backbone, model.teacher["backbone"]):
        assert difference(network.eval(), foreign.vit()) == 0.0
    assert torch.equal(model.projector.state_dict()["0.weight"], plain.projector.state_dict()["0.weight"])
    assert not next(iter(model.teacher.parameters())).requires_grad


def test_without_init_nothing_is_read_and_old_configs_mean_what_they_meant() -> None:
    made = config({"kind": "resnet_tiny", "width": 8})
    values = made.model_dump(mode="json")
    assert values["model"]["backbone"].pop("init") is None
    assert TrialConfig.model_validate(values) == made
    assert check_init(made) is None


def test_a_worker_that_finds_other_bytes_refuses(tmp_path: Path) -> None:
    file = foreign.saved(tmp_path / "file.pth", foreign.resnet().state_dict())
    wanted = config({"kind": "resnet18", "stem": "imagenet", "init": str(file)})
    assert wanted.init is not None
    assert wanted.init.sha256 is not None
    foreign.saved(file, foreign.below("", foreign.resnet().state_dict(), times=1.5))
    with pytest.raises(ChangedError, match=r"model\.backbone\.init: .*file\.pth must have sha256 .* put the file back"):
        initialize(build_model(wanted), wanted)
    with pytest.raises(ChangedError, match="put the file back"):
        wanted.completed()


# ---- what does not fit -----------------------------------------------------------------------------------------------

RESNET18 = {"kind": "resnet18", "stem": "imagenet"}
VIT = {"kind": "vit_micro", "patch_size": 8, "depth": 2, "heads": 1}


def _without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name not in names}


def _gray(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"conv1.weight": state["conv1.weight"].sum(1, keepdim=True)}


WRONG: dict[str, tuple[Callable[[], dict[str, Tensor]], dict[str, Any], str]] = {
    "another depth": (
        lambda: foreign.resnet("resnet34").state_dict(),
        RESNET18,
        r"weights of resnet18, but differs: \d+ unexpected \(layer1\.2\.conv1\.weight, .*…\)",
    ),
    "another architecture": (
        lambda: foreign.resnet().state_dict(),
        VIT,
        r"must hold the weights of vit_micro, but none of its 120 tensors has a name of one \(conv1\.weight",
    ),
    "gray images": (
        lambda: _gray(foreign.resnet().state_dict()),
        RESNET18,
        r"images of 3 channels, but its first convolution takes 1; weights are not made to fit",
    ),
    "another stem": (
        lambda: foreign.resnet().state_dict(),
        {"kind": "resnet18", "stem": "small"},
        r"its stem is a convolution of 7x7; set model\.backbone\.stem=imagenet",
    ),
    "another patch size": (
        lambda: foreign.vit(patch_size=16).state_dict(),
        VIT,
        r"patches of 8 pixels, but has patches of 16; set model\.backbone\.patch_size=16",
    ),
    "another size of images": (
        lambda: foreign.vit(img_size=64).state_dict(),
        VIT,
        r"positions of 16 patches, but has those of 64, of views of 64 pixels; .* set the largest views' size",
    ),
    "another width": (
        lambda: foreign.vit(embed_dim=96).state_dict(),
        VIT,
        r"differs: \d+ of another shape \(cls_token has \[1, 1, 96\], not \[1, 1, 64\]",
    ),
    "something missing": (
        lambda: _without(foreign.resnet().state_dict(), "bn1.weight", "layer4.1.bn2.bias"),
        RESNET18,
        r"differs: 2 missing \(bn1\.weight, layer4\.1\.bn2\.bias\); name",
    ),
    "something more": (
        lambda: foreign.resnet().state_dict() | {"attention.weight": torch.zeros(2)},
        RESNET18,
        r"differs: 1 unexpected \(attention\.weight\)",
    ),
    "no numbers": (
        lambda: foreign.resnet().state_dict() | {"bn1.bias": torch.full((64,), float("nan"))},
        RESNET18,
        r"bn1\.bias are not finite; name a file of a run that did not diverge",
    ),
    "complex numbers": (
        lambda: foreign.resnet().state_dict() | {"bn1.bias": torch.zeros(64, dtype=torch.complex64)},
        RESNET18,
        r"as plain numbers, .* but bn1\.bias is quantized, complex, sparse",
    ),
    "integers for weights": (
        lambda: foreign.resnet().state_dict() | {"conv1.weight": torch.ones(64, 3, 7, 7, dtype=torch.int8)},
        RESNET18,
        r"as plain numbers, floating point where the network's are, but conv1\.weight",
    ),
    "weights without values": (
        lambda: foreign.resnet().state_dict() | {"bn1.bias": torch.zeros(64, device="meta")},
        RESNET18,
        r"as plain numbers, .* but bn1\.bias is .* or without values",
    ),
    "positions that are not fixed ones": (
        lambda: foreign.vit().state_dict(),
        {**VIT, "positions": "fixed"},
        r"its positions are others; set model\.backbone\.positions=learned",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused_with_what_rule_value_and_remedy(tmp_path: Path, what: str) -> None:
    make, backbone, message = WRONG[what]
    file = foreign.saved(tmp_path / "file.pth", make())
    with pytest.raises(ValueError, match=rf"model\.backbone\.init: .*{message}"):
        check_init(config({**backbone, "init": str(file)}))


class Runs:
    """Whoever unpickles it runs this."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return print, ("it was run",)


def test_files_that_cannot_be_read_without_running_them_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = foreign.safetensors(tmp_path / "cut.safetensors", {"fc.weight": torch.zeros(64)})
    damaged.write_bytes(damaged.read_bytes()[:-100])
    (tmp_path / "text.pth").write_text("no weights")
    endless: dict[str, Any] = {}
    endless["again"] = endless
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Runs()))
    for path, message in (
        (
            foreign.saved(tmp_path / "program.pth", {"state_dict": Runs()}),
            r"nothing in it was run \(it names \S*print, ",
        ),
        (tmp_path / "pickle.pth", "nothing in it was run"),
        (tmp_path / "text.pth", r"or safetensors, but is not; nothing in it was run \(it is damaged or another kind"),
        (damaged, "must be a whole safetensors file, but is damaged"),
        (foreign.saved(tmp_path / "endless.pth", endless), "is damaged or another kind of file"),
        (foreign.saved(tmp_path / "empty.pth", {"epoch": 3}), "must hold a state dict, but there is no tensor in it"),
        (foreign.saved(tmp_path / "other.pth", {"weight": torch.zeros(2)}), "looks like none of these"),
        (tmp_path / "none.pth", "there is no file"),
        (tmp_path, "but has no encoder.safetensors; name the file of weights itself"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(path)
    assert "it was run" not in capsys.readouterr().out


@pytest.mark.parametrize("zipped", [True, False])
def test_whatever_happens_to_a_files_bytes_is_told_with_its_name(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "file.pt"
    content = {"state_dict": {"a.weight": torch.ones(3, 4), "b": torch.ones(2)}, "epoch": 3}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    whole, draw = file.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged, place = bytearray(whole), draw.randrange(min(len(whole), 600))
        damaged[place : place + draw.randrange(8)] = draw.randbytes(draw.randrange(8))
        file.write_bytes(damaged[: draw.choice([len(damaged), place])])
        saved = Checkpoint(path=str(file), sha256=hashlib.sha256(file.read_bytes()).hexdigest(), epoch=1)
        for read in (lambda: reading.read(file), lambda one=saved: checkpoint.load(one)):
            with suppress(ValueError):
                read()


def test_a_stem_of_3x3_must_be_said_as_its_weights_do_not_tell_its_pooling(tmp_path: Path) -> None:
    network: Any = foreign.resnet()
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    file = foreign.saved(tmp_path / "file.pth", network.state_dict())
    with pytest.raises(ValueError, match=r"do not tell whether it pools and pads; say it, for example --backbone"):
        opened(file)
    pooled = opened(file, backbone=ResNetConfig(kind="resnet18", stem="small_pooled"), size=64)
    assert difference(pooled.network, network.eval(), 64) == 0.0


def test_a_config_that_is_no_exports_is_refused(tmp_path: Path) -> None:
    foreign.safetensors(tmp_path / "encoder.safetensors", foreign.resnet().state_dict())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json must be what `pretune export`"):
        opened(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json must be what `pretune export`"):
        opened(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18"}))  # of timm's own hub
    assert opened(tmp_path).description.backbone == ResNetConfig(kind="resnet18", stem="imagenet")
    (tmp_path / "config.json").write_text(json.dumps({"pretune": {"format": 2}}))
    with pytest.raises(ValueError, match="of this version or an older one"):
        opened(tmp_path)


def test_half_an_export_is_none(tmp_path: Path) -> None:
    foreign.safetensors(tmp_path / "encoder.safetensors", foreign.resnet().state_dict())
    with pytest.raises(ValueError, match=r"must be a whole export, but has no config\.json"):
        opened(tmp_path)


def test_code_that_an_export_names_as_its_network_is_not_run(tmp_path: Path) -> None:
    file = foreign.safetensors(tmp_path / "encoder.safetensors", foreign.resnet().state_dict())
    ours = opened(file).description.model_dump(mode="json")
    ours |= {"backbone": {"kind": "os:mkdir", "path": str(tmp_path / "ran")}}
    (tmp_path / "config.json").write_text(json.dumps({"pretune": ours}))
    with pytest.raises(ValueError, match=r"names code of its own as its network, os:mkdir, .*add --trust-code"):
        opened(tmp_path)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match=r"must make a torch\.nn\.Module"):
        opened(tmp_path, trust_code=True)
    assert (tmp_path / "ran").exists()


def test_a_moving_average_that_is_not_there_is_not_another_network_under_its_name(tmp_path: Path) -> None:
    file = foreign.saved(tmp_path / "file.pth", foreign.resnet().state_dict())
    with pytest.raises(ValueError, match=r"--branch teacher needs .* but .* holds one network alone; leave --branch"):
        opened(file, branch="teacher")


def test_timms_options_name_no_weights(tmp_path: Path) -> None:
    file = foreign.saved(tmp_path / "file.pth", foreign.resnet().state_dict())
    for option in ("checkpoint_path", "pretrained_cfg"):
        backbone = TimmConfig(kind="timm:resnet18", options={option: str(file)})
        with pytest.raises(ValueError, match=rf"must not name weights, but has {option}; .*model\.backbone\.init"):
            opened(file, backbone=backbone)
