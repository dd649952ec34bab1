"""A residual network by its stages, for detectors that look into it, and any network's last maps.

Letters: n = images, S = side in pixels, c = channels, g = side of a map.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from trainers.evaluation.subject import Kind, Subject


class Stages(NamedTuple):
    """A copy of a residual network, cut: `stages` one after the other behind `stem` give its features before they are
    averaged.
    """

    stem: nn.Module
    stages: tuple[nn.Module, ...]
    channels: tuple[int, ...]
    """c after each stage."""
    strides: tuple[int, ...]
    """Pixels of an image for each of the map, after each stage."""


def stages_of(subject: Subject) -> Stages:
    """ValueError where the subject is no residual network of torchvision's or ours."""
    if subject.kind != "resnet":
        raise ValueError(
            "detection needs a residual network (model.backbone.kind resnet18, resnet34, resnet50 or resnet_tiny)"
            f", but {subject.name} is {'a vision transformer' if subject.kind == 'vit' else 'another one'}; of a "
            "transformer the protocol `dense` asks for a class for each patch"
        )
    network: Any = copy.deepcopy(backbone_of(subject))
    if hasattr(network, "layer4"):
        stem: nn.Module = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        stages: tuple[nn.Module, ...] = (network.layer1, network.layer2, network.layer3, network.layer4)
    else:  # trainers.model.TinyResNet
        blocks = list(network.stages)
        stem, stages = network.stem, (blocks[0], blocks[1], nn.Sequential(*blocks[2:]))
    side = 64
    parameter = next(network.parameters())
    channels, strides = [], []
    with torch.no_grad():
        network.eval()
        maps = stem(torch.zeros(1, 3, side, side, device=parameter.device, dtype=parameter.dtype))
        for stage in stages:
            maps = stage(maps)
            channels.append(maps.shape[1])
            strides.append(side // maps.shape[3])
    return Stages(stem, stages, tuple(channels), tuple(strides))


def backbone_of(subject: Subject) -> nn.Module:
    """The network of `subject.source`, where that is one alone: `features` or `teacher`. ValueError for another one,
    and for a network whose images do not have three channels.
    """
    if subject.source not in ("features", "teacher"):
        raise ValueError(
            f"source must be features or teacher, whose layers are to be seen, but is {subject.source!r}; leave "
            "--source out"
        )
    first = next((module for module in subject.network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None and first.in_channels != 3:
        raise ValueError(
            f"{subject.name} must take images of 3 channels, as annotated images have, but takes {first.in_channels}; "
            "evaluate another one"
        )
    return subject.network


def check_maps(subject: Subject) -> None:
    """ValueError where the subject is no network whose last maps are known."""
    if subject.kind == "other":
        raise ValueError(
            "a class for each pixel needs a network whose maps are known, a residual network of torchvision's or a "
            f"vision transformer of timm's, but {subject.name} is {type(backbone_of(subject)).__name__}; evaluate "
            "another one"
        )
    backbone_of(subject)


def maps_of(network: nn.Module, kind: Kind, images: Tensor) -> Tensor:
    """A network's last maps, [n, 3, S, S] -> [n, c, g, g]: what a residual network averages, or the patch tokens of
    timm's transformer after its last norm. `check_maps` says of which networks.
    """
    known: Any = network
    if kind == "vit":
        tokens: Tensor = known.forward_features(images)[:, known.num_prefix_tokens :]
        side = round(tokens.shape[1] ** 0.5)
        return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
    if hasattr(known, "layer4"):
        maps = known.maxpool(known.relu(known.bn1(known.conv1(images))))
        for stage in (known.layer1, known.layer2, known.layer3, known.layer4):
            maps = stage(maps)
    else:  # trainers.model.TinyResNet
        maps = known.stages(known.stem(images))
    found: Tensor = maps
    return found
