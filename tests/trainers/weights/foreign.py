"""Networks of torchvision's and timm's as files of other people's have them: seeded, with norms that are not new."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SIZE = 32


def resnet(kind: str = "resnet18", *, classes: int | None = None) -> nn.Module:
    """torchvision's; with its classifier where `classes` are given."""
    import torchvision  # type: ignore[import-untyped]

    torch.manual_seed(0)
    network: Any = getattr(torchvision.models, kind)(weights=None, num_classes=classes or 10)
    if classes is None:
        network.fc = nn.Identity()
    return _seen(network)


def vit(**changes: Any) -> nn.Module:
    """timm's, small enough for a moment."""
    import timm

    torch.manual_seed(0)
    settings = {"img_size": SIZE, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 0}
    return _seen(timm.create_model("vit_tiny_patch16_224", **(settings | changes)))


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer  # type: ignore[import-untyped]

    torch.manual_seed(0)
    network = VisionTransformer(SIZE, 8, num_layers=2, num_heads=1, hidden_dim=64, mlp_dim=256)
    nn.init.normal_(network.encoder.pos_embedding)
    network.heads = nn.Identity()
    return _seen(network)


def images(size: int = SIZE, count: int = 3) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def safetensors(path: Path, state: Mapping[str, Tensor]) -> Path:
    from safetensors.torch import save_file

    save_file(dict(state), path)
    return path


def below(prefix: str, state: Mapping[str, Tensor], *, times: float = 1.0) -> dict[str, Tensor]:
    """Each name behind `prefix`; floats times a number, so that two networks in one file can be told apart."""
    return {
        f"{prefix}{name}": tensor * times if tensor.is_floating_point() else tensor for name, tensor in state.items()
    }


def _seen(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):  # small, or every ReLU is 0 and so are all features
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        elif buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return network.eval()
