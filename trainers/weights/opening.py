"""A backbone with somebody's weights: to start a run from, to evaluate, to export again.

Letters: n = images, S = height and width in pixels, p = features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from trainers import usercode
from trainers.config import TrialConfig
from trainers.data.sources.base import WHITE
from trainers.encoder import check_trusted
from trainers.model import Model, build_backbone, build_model
from trainers.settings import Backbone, OwnBackbone, Resampling, ResNetConfig, ViTConfig
from trainers.weights import reading
from trainers.weights.architecture import guess
from trainers.weights.folder import Description, described
from trainers.weights.matching import Branch, Found, is_averaged, match
from trainers.weights.reading import Tensors

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue: what torchvision's files and most others were trained with."""
SIZE = 224
"""Pixels, of images for networks whose weights do not tell it."""


@dataclass(frozen=True, eq=False)
class Weights:
    """A backbone with its weights, on the CPU in evaluation mode, and how images are prepared for it."""

    network: nn.Module
    """Normalized images [n, 3, S, S] -> features [n, p]."""
    description: Description
    prefix: str
    """What stood before all names in the file."""
    dropped: tuple[str, ...]
    """Names of a classifier or another head that were left out."""


def opened(
    place: Path | str,
    *,
    backbone: Backbone | None = None,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resampling: Resampling | None = None,
    branch: Branch = "student",
    trust_code: bool = False,
) -> Weights:
    """The weights in a file or an export's folder; nothing in it is run.

    What is not given is as an export's `config.json` has it. A file without one tells its architecture by names and
    shapes; its images are taken to be of ImageNet's mean, 224 px where positions tell no size, and resized bicubically.

    Args:
        place: a `.safetensors`, what `torch.save` wrote, or a folder.
        backbone: what network it is of, where it does not tell.
        size: S, in pixels.
        mean: of red, green and blue, on a scale of 0..1.
        std: their standard deviations.
        resampling: how images are resized to S.
        branch: of a trained network and its moving average in one file, which.
        trust_code: whether code that an export names as its network may be run, a `file.py:Name` or `module:Name` of
            this machine. What `backbone` names is trusted.

    ValueError as of `reading.read` and `matching.match`; where a stem cannot be told, or an export would be called
    another network than it is.
    """
    file = reading.read(place)
    known = described(file.path)
    if known is not None and known.encoder_sha256 != file.sha256:
        raise ValueError(
            f"{file.path} must have sha256 {known.encoder_sha256[:12]}…, as config.json beside it says, but has "
            f"{file.sha256[:12]}…: it is damaged or was replaced; export again"
        )
    if known is not None:
        config, told = backbone or known.backbone, known.size
        if backbone is None:
            check_trusted(config, file.path, trust_code=trust_code)
        _check_called_alike(file, known, config)
    elif backbone is not None:
        config, told = backbone, None
        if isinstance(config, ViTConfig):
            told = guess(file, branch=branch).size
    else:
        config, told = guess(file, branch=branch)
        _check_stem(file, config)
    side = size or told or SIZE
    if isinstance(config, ViTConfig) and side % config.patch_size:
        raise ValueError(
            f"the size of images must be a multiple of the {config.patch_size} pixels of a patch of {file.path}, but "
            f"is {side}; change --size"
        )
    built = known.built_size if known is not None else told or side
    norm = "batch" if known is None else known.norm
    network, width = build_backbone(config, sorted({built, side}, reverse=True), norm)
    found = match(config, network, file, branch=branch)
    if branch == "teacher" and not is_averaged(found.prefix) and (known is None or known.branch != "teacher"):
        raise ValueError(
            f"--branch teacher needs a file with a network's moving average beside it, but {file.path} holds one "
            "network alone; leave --branch out"
        )
    network.load_state_dict(found.state)
    values: dict[str, Any] = {
        "layout": "timm" if known is None else known.layout,
        "backbone": settled(config, side),
        "norm": norm,
        "size": side,
        "built_size": built,
        "width": width,
        "mean": mean or (IMAGENET_MEAN if known is None else known.mean),
        "std": std or (IMAGENET_STD if known is None else known.std),
        "resampling": resampling or ("bicubic" if known is None else known.resampling),
        "white": WHITE if known is None else known.white,
        "max_side": None if known is None else known.max_side,
        "precision": "float32" if known is None else known.precision,
        "branch": branch if known is None else known.branch,
        "encoder_sha256": file.sha256,
        "source": f"{file.path.name}" if known is None else known.source,
        "source_sha256": file.sha256 if known is None else known.source_sha256,
    }
    return Weights(network.eval(), Description.model_validate(values), found.prefix, found.dropped)


def check_init(config: TrialConfig) -> Found | None:
    """Whether the backbone of `config` can start from the weights that it names; None where it names none.

    ValueError, as of `opened`, with the setting's path in front; ChangedError where the file is another one.
    """
    init = config.init
    if init is None:
        return None
    with usercode.named("model.backbone", key="init"):
        sizes = sorted({view.size for view in config.views}, reverse=True)
        network, _ = build_backbone(config.model.backbone, sizes, config.model.norm)
        return _found(config, network)


def initialize(model: Model, config: TrialConfig) -> None:
    """Puts the weights that `config` names into a model that was just built, and into its teacher. Errors as of
    `check_init`.
    """
    if config.init is None:
        return
    with usercode.named("model.backbone", key="init"):
        state = _found(config, model.backbone).state
    model.backbone.load_state_dict(state)
    if model.teacher is not None:
        model.teacher["backbone"].load_state_dict(state)


def starting_model(config: TrialConfig) -> Model:
    """The backbone alone, as a run of `config` starts from it. Errors as of `check_init`."""
    model = build_model(config, heads=())
    initialize(model, config)
    return model


def _found(config: TrialConfig, network: nn.Module) -> Found:
    init = config.init
    assert init is not None
    file = reading.read(init.path, sha256=init.sha256)
    known = described(file.path)
    backbone = settled(config.model.backbone, max(view.size for view in config.views))
    if known is not None:
        _check_called_alike(file, known, backbone)
        if known.norm == "layer" and config.model.norm != "layer":
            raise ValueError(
                f"{file.path} is of a network with model.norm=layer, but model.norm is {config.model.norm}; set it"
            )
    return match(backbone, network, file)


def _check_called_alike(file: Tensors, known: Description, config: Backbone) -> None:
    """What shapes do not tell: a stem with pooling or without, and heads of attention."""
    theirs: Backbone | None = known.backbone
    if isinstance(theirs, ResNetConfig) and isinstance(config, ResNetConfig) and theirs.kind == config.kind:
        stem, settled_config = theirs.stem, settled(config, known.size)
        assert isinstance(settled_config, ResNetConfig)
        ours = settled_config.stem
        if stem != ours:
            raise ValueError(
                f"{file.path} is of a {theirs.kind} with stem {stem}, but model.backbone.stem is {ours}; set "
                f"model.backbone.stem={stem}"
            )
    if not (isinstance(theirs, ViTConfig) and isinstance(config, ViTConfig) and theirs.width == config.width):
        return
    if theirs.head_count != config.head_count:
        raise ValueError(
            f"{file.path} is of a transformer with {theirs.head_count} heads, but model.backbone.heads is "
            f"{config.head_count}; set model.backbone.heads={theirs.head_count}"
        )


def _check_stem(file: Tensors, config: ResNetConfig | ViTConfig) -> None:
    if isinstance(config, ResNetConfig) and config.kind != "resnet_tiny" and config.stem == "small":
        raise ValueError(
            f"{file.path} is a {config.kind} with a stem of 3x3, whose weights do not tell whether it pools and pads; "
            f"say it, for example --backbone {config.kind} --set stem=small (or small_pooled, small_padded)"
        )


def settled(config: Backbone, size: int) -> Backbone:
    """`config` with the stem that it has for views of `size` pixels, and without the weights that it started from."""
    if isinstance(config, OwnBackbone):
        return config
    stem = {"stem": config.stem_for(size)} if isinstance(config, ResNetConfig) else {}
    return config.model_copy(update={"init": None, **stem})
