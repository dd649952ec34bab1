"""Which backbone a file's weights are of, told by its names and shapes, as far as these can tell it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from trainers.settings import ResNetConfig, ViTConfig
from trainers.weights.matching import Branch, is_averaged
from trainers.weights.reading import Tensors

_ANCHORS = ("layer1.0.conv1.weight", "patch_embed.proj.weight", "conv_proj.weight", "stages.4.conv2.weight")
"""One of these is in each network that is known here: a ResNet, timm's transformer, torchvision's, our tiny ResNet."""
_RESNETS: dict[tuple[tuple[int, ...], bool], Literal["resnet18", "resnet34", "resnet50"]] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
}
"""Blocks of each stage, and whether they are bottlenecks (He et al., arXiv 1512.03385, table 1)."""
_VITS = {192: "vit_tiny", 384: "vit_small", 768: "vit_base"}


class Guess(NamedTuple):
    """A backbone, and the size of its images in pixels where the weights tell it."""

    config: ResNetConfig | ViTConfig
    size: int | None = None


def guess(file: Tensors, *, branch: Branch = "student") -> Guess:
    """The backbone of a file. A 3x3 stem is called `small`, and heads of attention are taken to be 64 wide: names and
    shapes do not tell these.

    ValueError where it is none that is known.
    """
    found = [
        (name.removesuffix(anchor), anchor)
        for name in file.tensors
        for anchor in _ANCHORS
        if name == anchor or name.endswith(f".{anchor}")
    ]
    if not found:
        raise _unknown(file)
    prefix, anchor = min(found, key=lambda one: (is_averaged(one[0]) != (branch == "teacher"), len(one[0])))
    inside = {name.removeprefix(prefix): tensor for name, tensor in file.tensors.items() if name.startswith(prefix)}
    try:
        if anchor == _ANCHORS[0]:
            return _resnet(inside, file)
        if anchor == _ANCHORS[3]:
            return Guess(ResNetConfig(kind="resnet_tiny", width=inside["stem.0.weight"].shape[0]))
        return _vit(inside, inside[anchor], timm=anchor == _ANCHORS[1])
    except (KeyError, IndexError, ValueError) as error:  # pydantic's, too: a width or depth that ours do not have
        raise _unknown(file) from error


def _resnet(tensors: Mapping[str, Tensor], file: Tensors) -> Guess:
    blocks = tuple(_count(tensors, rf"layer{stage}\.(\d+)\.conv1\.weight") for stage in range(1, 5))
    kind = _RESNETS.get((blocks, "layer1.0.conv3.weight" in tensors))
    if kind is None:
        raise _unknown(file)
    kernel = tensors["conv1.weight"].shape[-1]
    return Guess(ResNetConfig.model_validate({"kind": kind, "stem": "imagenet" if kernel == 7 else "small"}))


def _vit(tensors: Mapping[str, Tensor], patches: Tensor, *, timm: bool) -> Guess:
    width, patch_size = patches.shape[0], patches.shape[-1]
    pattern = r"blocks\.(\d+)\.norm1\.weight" if timm else r"encoder\.layers\.encoder_layer_(\d+)\.ln_1\.weight"
    depth = _count(tensors, pattern)
    positions = tensors["pos_embed" if timm else "encoder.pos_embedding"]
    known = _VITS.get(width) if depth == 12 else None
    values: dict[str, Any] = {"kind": known} if known else {"kind": "vit_micro", "embed_dim": width, "depth": depth}
    config = ViTConfig.model_validate({**values, "patch_size": patch_size})
    return Guess(config, round((positions.shape[1] - 1) ** 0.5) * patch_size)


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in tensors if (match := re.fullmatch(pattern, name))})


def _unknown(file: Tensors) -> ValueError:
    shown = ", ".join(list(file.tensors)[:3])
    return ValueError(
        f"{file.path} must hold a ResNet-18, -34 or -50, a vision transformer of timm's or torchvision's, or a "
        f"resnet_tiny, but looks like none of these ({len(file.tensors)} tensors: {shown}, …); say what it is, for "
        "example --backbone timm:resnet101"
    )
