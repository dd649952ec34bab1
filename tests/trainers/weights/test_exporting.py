"""An export opens with torchvision, timm or onnxruntime alone, strictly, with our features; a wrong one is not kept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from tests.trainers.weights import foreign
from tests.trainers.weights.test_opening import difference
from trainers.config import TrialConfig
from trainers.encoder import Preparation, Trained
from trainers.init_file import CONFIG, ENCODER
from trainers.model import Model, build_model
from trainers.settings import ResNetConfig, ViTConfig
from trainers.weights import exporting
from trainers.weights.exporting import Exported
from trainers.weights.folder import MODEL, Layout
from trainers.weights.matching import Branch
from trainers.weights.opening import opened

PREPARED = Preparation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
TINY = {"kind": "resnet_tiny", "width": 8}
VIT = {"kind": "vit_micro", "patch_size": 8, "embed_dim": 32, "depth": 1}
ALONE = {
    "torchvision": "import torch; sys.path.insert(0, FOLDER); from model import load; network = load()",
    "timm": "import timm, torch; network = timm.create_model('local-dir:' + FOLDER, pretrained=True).eval()",
}
"""What whoever has the folder types."""


def trained(backbone: dict[str, Any], *, sizes: tuple[int, ...] = (foreign.SIZE,), norm: str = "batch") -> Trained:
    """A network, and its moving average, whose norms have seen something."""
    config = TrialConfig.model_validate(
        {
            "views": [{"size": size} for size in sizes],
            "model": {"backbone": backbone, "projector": {"widths": [12, 8]}, "norm": norm, "teacher": {}},
            "objective": {"mmd": {}},
        }
    )
    model = build_model(config).train()
    for _ in range(2):
        model.embed(foreign.images(sizes[0], 4))
    model.update_teacher(0, 10)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.mul_(1.1 if parameter.requires_grad else 1.0)  # fixed positions are what they are
    return Trained(model.eval(), config, PREPARED)


def exported(
    folder: Path, run: Trained, layout: Layout, *, branch: Branch = "student", projector: bool = False
) -> Exported:
    folder.mkdir()
    given = exporting.of_run(
        run, layout=layout, branch=branch, projector=projector, source="a test", source_sha256="0" * 64
    )
    found = exporting.write(folder, given)
    print(
        f"{layout}, {run.config.model.backbone.kind}: largest difference {found.difference:.3g} of {found.largest:.3g}"
    )
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a ResNet-18 for small images, not to be changed."""
    folder = tmp_path_factory.mktemp("small") / "export"
    exported(folder, trained({"kind": "resnet18", "stem": "small"}), "torchvision")
    return folder


NETWORKS: dict[str, dict[str, Any]] = {
    "tiny": {"backbone": TINY},
    "tiny without a batch": {"backbone": TINY, "norm": "layer"},
    "small": {"backbone": {"kind": "resnet18", "stem": "small"}},
    "small, pooled": {"backbone": {"kind": "resnet18", "stem": "small_pooled"}, "norm": "layer"},
    "small, padded": {"backbone": {"kind": "resnet18", "stem": "small_padded"}},
    "imagenet": {"backbone": {"kind": "resnet50", "stem": "imagenet"}},
    "imagenet without a batch": {"backbone": {"kind": "resnet18", "stem": "imagenet"}, "norm": "layer"},
    "a transformer": {"backbone": VIT},
    "a transformer with fixed positions": {"backbone": {**VIT, "positions": "fixed", "heads": 2}},
}


QUICK = ("tiny", "small", "a transformer")


@pytest.mark.parametrize("layout", ["torchvision", "timm"])
@pytest.mark.parametrize(
    "what", [what if what in QUICK else pytest.param(what, marks=pytest.mark.slow) for what in NETWORKS]
)
def test_each_network_opens_strictly_without_us_with_our_features_and_comes_back(
    tmp_path: Path, what: str, layout: Layout
) -> None:
    run = trained(**NETWORKS[what])
    found = exported(tmp_path / "export", run, layout)  # which opens it, with strict=True
    assert found.difference < 1e-5 * max(1.0, found.largest)
    again = opened(tmp_path / "export")
    assert difference(again.network, run.model.backbone) == 0.0
    assert again.description == found.description
    assert (again.description.mean, again.description.std) == (PREPARED.mean, PREPARED.std)
    assert not list((tmp_path / "export").rglob("*.pyc"))


def test_timm_opens_a_folder_of_its_own_architectures_with_its_preprocessing(tmp_path: Path) -> None:
    import timm

    run = trained({"kind": "timm:efficientnet_lite0"}, norm="batch")
    found = exported(tmp_path / "export", run, "timm")
    assert found.difference < 1e-5 * max(1.0, found.largest)
    network = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    assert difference(network, run.model.backbone) < 1e-5
    data = timm.data.resolve_model_data_config(network)  # type: ignore[attr-defined, no-untyped-call]
    assert (tuple(data["input_size"]), data["crop_pct"]) == ((3, 32, 32), 1.0)
    assert (tuple(data["mean"]), tuple(data["std"])) == (PREPARED.mean, PREPARED.std)
    assert data["interpolation"] == "bilinear"
    with pytest.raises(ValueError, match=r"torchvision has no timm:efficientnet_lite0; take --format timm or onnx"):
        exported(tmp_path / "other", run, "torchvision")


def test_views_of_several_sizes_keep_the_positions_of_the_largest(tmp_path: Path) -> None:
    run = trained(VIT, sizes=(16, 32))
    found = exported(tmp_path / "export", run, "timm")
    assert (found.description.size, found.description.built_size) == (16, 32)
    assert found.difference < 1e-5
    assert difference(opened(tmp_path / "export").network, run.model.backbone, 16) == 0.0


@pytest.mark.parametrize("layout", get_args(Layout))
def test_the_teacher_and_the_projector_are_exported_where_they_are_wanted(tmp_path: Path, layout: Layout) -> None:
    run = trained(TINY)
    assert run.model.teacher is not None
    found = exported(tmp_path / "export", run, layout, branch="teacher", projector=True)
    assert found.difference < 1e-5
    assert {"projector.py", "projector.safetensors"} <= set(found.files)
    again = opened(tmp_path / "export")
    assert (again.description.branch, again.description.layout) == ("teacher", layout)
    assert difference(again.network, run.model.teacher["backbone"]) == 0.0
    assert difference(again.network, run.model.backbone) > 1e-3


@pytest.mark.parametrize("backbone", [TINY, VIT], ids=["resnet", "transformer"])
def test_onnxruntime_gives_our_features_of_any_number_of_images(tmp_path: Path, backbone: dict[str, Any]) -> None:
    import onnxruntime  # type: ignore[import-untyped]

    run = trained(backbone)
    found = exported(tmp_path / "export", run, "onnx")
    assert found.difference < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "export" / "model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        batch = foreign.images(count=count)
        with torch.no_grad():
            ours = run.model.backbone(batch).numpy()
        (theirs,) = session.run(["features"], {"images": batch.numpy()})
        assert np.abs(ours - theirs).max() < 1e-5


@pytest.mark.parametrize(
    ("make", "layout"),
    [(foreign.resnet, "torchvision"), (foreign.vit, "timm")],
    ids=["torchvision's ResNet-18", "timm's transformer"],
)
def test_others_weights_imported_and_exported_keep_their_features_in_a_process_without_us(
    tmp_path: Path, make: Any, layout: Layout
) -> None:
    network: nn.Module = make()
    file = foreign.safetensors(tmp_path / "theirs.safetensors", network.state_dict())
    backbone = None if make is foreign.resnet else ViTConfig(kind="vit_micro", patch_size=8, depth=2, heads=1)
    weights = opened(file, backbone=backbone, size=foreign.SIZE)
    folder = tmp_path / "export"
    folder.mkdir()
    exporting.write(folder, exporting.of_weights(weights, layout=layout))
    np.save(tmp_path / "images.npy", foreign.images().numpy())
    program = (
        f"import sys\nFOLDER = {str(folder)!r}\n{ALONE[layout]}\nimport numpy as np\n"
        f"images = torch.from_numpy(np.load({str(tmp_path / 'images.npy')!r}))\n"
        f"with torch.no_grad(): np.save({str(tmp_path / 'found.npy')!r}, network(images).numpy())\n"
        "assert not {'pretune', 'trainers', 'search_spaces'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-B", "-I", "-c", program], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        seen = np.abs(np.load(tmp_path / "found.npy") - network(foreign.images()).numpy()).max()
    print(f"{layout}: largest difference {seen:.3g}")
    assert seen < 1e-5


def test_what_gives_other_features_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = exporting._outputs

    def wrong(*arguments: Any) -> Any:
        return [rows + 0.01 for rows in load(*arguments)]

    monkeypatch.setattr(exporting, "_outputs", wrong)
    with pytest.raises(RuntimeError, match=r"gives other features than the checkpoint: they differ by 0\.01"):
        exported(tmp_path / "export", trained(TINY), "timm")


def test_an_export_that_was_changed_or_is_called_otherwise_is_refused(tmp_path: Path, small: Path) -> None:
    shutil.copytree(small, tmp_path / "export")
    other = ResNetConfig(kind="resnet18", stem="small_padded")
    with pytest.raises(ValueError, match=r"with stem small, but model\.backbone\.stem is small_padded; set"):
        opened(tmp_path / "export", backbone=other)
    assert "(not timm's)" in json.loads((tmp_path / "export" / CONFIG).read_text())["architecture"]
    file = tmp_path / "export" / ENCODER
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"as config\.json beside it says, .*it is damaged or was replaced"):
        opened(tmp_path / "export")


def test_a_teacher_that_is_not_there_is_refused(tmp_path: Path) -> None:
    run = trained(TINY)
    config = run.config.model_copy(update={"model": run.config.model.model_copy(update={"teacher": None})})
    without = Trained(Model(config), config, PREPARED)
    with pytest.raises(ValueError, match="--branch teacher needs a checkpoint with a teacher"):
        exported(tmp_path / "export", without, "timm", branch="teacher")


def test_the_program_is_short_and_names_no_file_of_ours(small: Path) -> None:
    program = (small / MODEL).read_text()
    assert "network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)\n    network.maxpool = nn.Identity()" in program
    assert "import trainers" not in program
    assert len(program.splitlines()) < 50
