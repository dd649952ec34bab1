"""How torchvision and timm call the parameters of our backbones.

Our ResNets are torchvision's, whose names are timm's as well; our transformers are timm's. What differs is a matter of
names alone: no tensor is reshaped, split or joined.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from torch import nn

from trainers.settings import Backbone, ViTConfig

Library = Literal["torchvision", "timm"]

_VIT = (
    (r"cls_token", r"class_token"),
    (r"pos_embed", r"encoder.pos_embedding"),
    (r"patch_embed\.proj\.(.+)", r"conv_proj.\1"),
    (r"blocks\.(\d+)\.norm1\.(.+)", r"encoder.layers.encoder_layer_\1.ln_1.\2"),
    (r"blocks\.(\d+)\.attn\.qkv\.(.+)", r"encoder.layers.encoder_layer_\1.self_attention.in_proj_\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.+)", r"encoder.layers.encoder_layer_\1.self_attention.out_proj.\2"),
    (r"blocks\.(\d+)\.norm2\.(.+)", r"encoder.layers.encoder_layer_\1.ln_2.\2"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(.+)", r"encoder.layers.encoder_layer_\1.mlp.0.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(.+)", r"encoder.layers.encoder_layer_\1.mlp.3.\2"),
    (r"norm\.(.+)", r"encoder.ln.\1"),
)
"""timm's VisionTransformer -> torchvision's."""
_SPLIT = ["norm", "drop", "act"]
"""The parts of one of timm's batch norms that also activates (`trainers.backbones`)."""


def theirs(config: Backbone, network: nn.Module, library: Library) -> dict[str, str]:
    """Our name -> theirs, of each parameter and buffer of the backbone `network` that `config` describes."""
    names = list(network.state_dict())
    if isinstance(config, ViTConfig):
        return dict(zip(names, _torchvision_vit(names), strict=True)) if library == "torchvision" else _same(names)
    whole = [
        path
        for path, module in network.named_modules()
        if isinstance(module, nn.Sequential) and [name for name, _ in module.named_children()] == _SPLIT
    ]
    joined = {f"{path}.norm." if path else "norm.": f"{path}." if path else "" for path in whole}
    return {name: _replaced(name, joined) for name in names}


def _torchvision_vit(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        for pattern, replacement in _VIT:
            if match := re.fullmatch(pattern, name):
                yield match.expand(replacement)
                break
        else:
            raise ValueError(f"torchvision's transformer has nothing like {name}")  # the table lacks a row


def _replaced(name: str, prefixes: dict[str, str]) -> str:
    for ours, other in prefixes.items():
        if name.startswith(ours):
            return other + name.removeprefix(ours)
    return name


def _same(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names}
