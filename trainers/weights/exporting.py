"""A backbone as a folder that torchvision, timm or onnxruntime opens by itself, and that was opened so before it is
believed.

Letters: n = images, S = height and width in pixels, p = features, q = embedding width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from trainers.backbones import timm_options
from trainers.data.views import LEAST_DEVIATION
from trainers.encoder import Trained
from trainers.init_file import CONFIG, ENCODER
from trainers.model import build_backbone
from trainers.settings import OwnBackbone, ResNetConfig, TimmConfig, ViTConfig
from trainers.weights import programs
from trainers.weights.folder import MODEL, ONNX, PROJECTOR, Description, Layout, config_json
from trainers.weights.matching import Branch
from trainers.weights.names import Library, theirs
from trainers.weights.opening import Weights, settled

PROJECTOR_PROGRAM = "projector.py"
TOLERANCE = 1e-4
"""The largest difference to our own features, as a share of the largest of these or of 1, under which an export is
believed: far above what float32 rounds, far below what another network gives.
"""
CHECKED = 3
"""Images that both are given."""


class Exported(NamedTuple):
    """A folder's files, and what was found when it was opened without us."""

    description: Description
    files: tuple[str, ...]
    difference: float
    """The largest difference between its features and ours, over a few random images."""
    largest: float
    """The largest of our features, for comparison."""


class Exportable(NamedTuple):
    """What is to be exported, on the CPU in evaluation mode, with torch's own batch norms."""

    network: nn.Module
    """Normalized images [n, 3, S, S] -> features [n, p]."""
    description: Description
    projector: nn.Sequential | None = None
    """Features -> projections [n, q]."""


def of_run(
    trained: Trained, *, layout: Layout, branch: Branch, projector: bool, source: str, source_sha256: str
) -> Exportable:
    """What a run has trained, or its moving average. ValueError where it has none, or the network cannot be built."""
    model, config, known = trained
    if branch == "teacher" and model.teacher is None:
        raise ValueError(
            "--branch teacher needs a checkpoint with a teacher, but model.teacher is null in its config; take "
            "--branch student"
        )
    part: Mapping[str, nn.Module] | nn.ModuleDict = {"backbone": model.backbone, "projector": model.projector}
    if branch == "teacher" and model.teacher is not None:
        part = model.teacher
    sizes = sorted({view.size for view in config.views}, reverse=True)
    view = config.views[0]
    backbone = config.model.backbone
    network, width = build_backbone(backbone, sizes, config.model.norm)
    network.load_state_dict(part["backbone"].state_dict())
    description = Description.model_validate(
        {
            "layout": layout,
            "backbone": settled(backbone, sizes[0]),
            "norm": config.model.norm,
            "size": view.size,
            "built_size": sizes[0],
            "width": width,
            "mean": known.mean,
            "std": [max(one, LEAST_DEVIATION) for one in known.std],
            "resampling": view.resampling,
            "white": known.gray_white,
            "max_side": known.max_side,
            "precision": config.precision,
            "branch": branch,
            "encoder_sha256": "",
            "source": source,
            "source_sha256": source_sha256,
        }
    )
    head = cast(nn.Sequential, part["projector"]).eval() if projector else None
    return Exportable(network.eval(), description, head)


def of_weights(weights: Weights, *, layout: Layout) -> Exportable:
    """Other people's weights, in a layout of one's own choice."""
    return Exportable(weights.network, weights.description.model_copy(update={"layout": layout}))


def write(folder: Path, given: Exportable) -> Exported:
    """Writes the files into `folder`, and opens them without us.

    ValueError where the layout has no such network; RuntimeError where it gives other features than ours.
    """
    from safetensors.torch import save

    known = given.description
    library: Library = "torchvision" if known.layout == "torchvision" else "timm"
    names = theirs(known.backbone, given.network, library)
    state = {names[ours]: _plain(tensor) for ours, tensor in given.network.state_dict().items()}
    content = save(state, metadata={"format": "pt"})  # its own writer tells of a full disk in an error of its own
    (folder / ENCODER).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    known = known.model_copy(update={"encoder_sha256": digest})
    architecture, arguments = _for_timm(known)
    program = programs.torchvision_program(known) if library == "torchvision" else None
    if known.layout == "timm":
        program = programs.timm_program(known)
    if program is not None:
        (folder / MODEL).write_text(program)
    if library == "torchvision" or program is not None or isinstance(known.backbone, OwnBackbone):
        architecture = f"{architecture} (not timm's)"
    (folder / CONFIG).write_text(config_json(known, architecture=architecture, arguments=arguments))
    if given.projector is not None:
        state = {name: _plain(tensor) for name, tensor in given.projector.state_dict().items()}
        (folder / PROJECTOR).write_bytes(save(state, metadata={"format": "pt"}))
        (folder / PROJECTOR_PROGRAM).write_text(programs.projector_program(given.projector))
    if known.layout == "onnx":
        _write_onnx(folder / ONNX, given)
    difference, largest = _checked(folder, given, known)
    return Exported(known, tuple(sorted(path.name for path in folder.iterdir())), difference, largest)


def _plain(tensor: Tensor) -> Tensor:
    """Of its own memory, row by row, float32 where it is a float."""
    wanted = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", wanted).clone(memory_format=torch.contiguous_format)


def _for_timm(known: Description) -> tuple[str, dict[str, Any]]:
    """The name of an architecture of timm, and what it is made with."""
    config = known.backbone
    if isinstance(config, ViTConfig):
        name = {"vit_small": "vit_small_patch16_224", "vit_base": "vit_base_patch16_224"}.get(config.kind)
        return name or "vit_tiny_patch16_224", {
            "img_size": known.built_size,
            "patch_size": config.patch_size,
            "embed_dim": config.width,
            "depth": config.block_count,
            "num_heads": config.head_count,
            "dynamic_img_size": True,
        }
    if isinstance(config, TimmConfig):
        sizes = sorted({known.built_size, known.size}, reverse=True)
        return config.kind.removeprefix("timm:"), timm_options(config, sizes)
    if isinstance(config, ResNetConfig):
        return config.kind, {"norm_layer": "groupnorm1"} if known.norm == "layer" else {}
    return config.kind, {}


# --- ONNX -------------------------------------------------------------------------------------------------------------


class _WithProjections(nn.Module):
    def __init__(self, network: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.network, self.projector = network, projector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network(images)
        return features, self.projector(features)


def _write_onnx(path: Path, given: Exportable) -> None:
    """One file, of any number of images: `images` -> `features`, and `projections` where there is a projector."""
    from torch.export import Dim
    from torch.onnx.errors import OnnxExporterError

    size = given.description.size
    network, outputs = given.network, ["features"]
    if given.projector is not None:
        network, outputs = _WithProjections(network, _unsynchronized(given.projector)).eval(), [*outputs, "projections"]
    try:
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, size, size),),
            path,
            dynamo=True,
            external_data=False,
            input_names=["images"],
            output_names=outputs,
            dynamic_shapes=({0: Dim("n", min=1)},),
            verbose=False,
        )
    except OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"torch's exporter cannot write {given.description.backbone.kind} as ONNX: {reason}"
        ) from error


def _unsynchronized(projector: nn.Sequential) -> nn.Sequential:
    """The same with torch's own batch norms."""
    layers: list[nn.Module] = []
    for layer in projector:
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            plain = nn.BatchNorm1d(layer.num_features, affine=layer.affine)
            plain.load_state_dict(layer.state_dict())
            layers.append(plain)
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


# --- opened without us ------------------------------------------------------------------------------------------------


@torch.no_grad()
def _checked(folder: Path, given: Exportable, known: Description) -> tuple[float, float]:
    """The largest difference to our features, and the largest of these. RuntimeError where it is too large; ValueError
    where ours are not finite.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(CHECKED, 3, known.size, known.size, generator=generator)
    ours = [given.network(images)]
    if given.projector is not None:
        ours.append(given.projector(ours[0]))
    if not all(bool(one.isfinite().all()) for one in ours):
        raise ValueError(
            "features must be finite, but the network's are not, even of random images: it has diverged; export "
            "another checkpoint"
        )
    found = _outputs(folder, given, known, images)
    difference = max(float((one - other).abs().max()) for one, other in zip(ours, found, strict=True))
    largest = max(float(one.abs().max()) for one in ours)
    if not difference <= TOLERANCE * max(1.0, largest):
        raise RuntimeError(
            f"what was written gives other features than the checkpoint: they differ by {difference:.3g}, where the "
            f"largest is {largest:.3g}; nothing was kept"
        )
    return difference, largest


def _outputs(folder: Path, given: Exportable, known: Description, images: Tensor) -> list[Tensor]:
    """As whoever has the folder alone gets them."""
    if known.layout == "onnx":
        import onnxruntime  # type: ignore[import-untyped]

        session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
        halves = [session.run(None, {"images": part.numpy()}) for part in (images[:1], images[1:])]
        return [torch.cat([torch.from_numpy(part) for part in parts]) for parts in zip(*halves, strict=True)]
    if (folder / MODEL).is_file():
        network = _program(folder / MODEL).load()
    else:
        import timm

        network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    found = [network(images)]
    if given.projector is not None:
        found.append(_program(folder / PROJECTOR_PROGRAM).load()(found[0]))
    return found


def _program(path: Path) -> Any:
    """What was just written, as a module that nothing else knows; no bytecode is left beside it."""
    module = ModuleType(f"_exported_{path.stem}")
    module.__file__ = str(path)
    exec(compile(path.read_text(), str(path), "exec"), vars(module))
    return module
