"""What is evaluated: a frozen network from normalized images to numbers, and how images have to be prepared for it.

A checkpoint, a network that has learned nothing yet and a file of other people's weights become the same thing here, so
that every protocol judges all of them alike.

Letters: n = images, S = height and width in pixels, p = features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainers import checkpoint as checkpoints
from trainers.config import TrialConfig
from trainers.data.sources.base import WHITE
from trainers.encoder import BATCH_SIZE, Preparation, load_trained
from trainers.init_file import ENCODER
from trainers.model import Model, TinyResNet
from trainers.report import Checkpoint
from trainers.settings import Resampling

if TYPE_CHECKING:
    from trainers.data.loader import Loaders
    from trainers.data.manifest import Dataset

Kind = Literal["resnet", "vit", "other"]
LAST_BLOCKS = 4
"""Of a transformer, whose class tokens the source `last4` joins (DINO's linear evaluation of small networks)."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A frozen network in evaluation mode. `network` maps normalized images [n, 3, S, S] to features [n, p]; it is
    `sources[source]`.
    """

    name: str
    """What a table calls it."""
    digest: str
    """sha256 of all weights and of how they are used: equal subjects give equal features, source by source."""
    size: int
    """S, at which images are looked at."""
    mean: tuple[float, ...]
    """Of red, green and blue, on a scale of 0..1: what images are normalized by, whatever data they are of."""
    std: tuple[float, ...]
    resampling: Resampling
    kind: Kind
    """What is known of its layers: torchvision's and our residual networks, timm's vision transformers, neither."""
    sources: Mapping[str, nn.Module]
    """What may be looked at, by name: `features`; `embedding`, what the projector makes of them; `teacher`, features of
    the moving average; of a transformer `class`, `mean` (of the patch tokens) and `last4` (class tokens of the last
    blocks). Each maps normalized images to [n, p].
    """
    source: str = "features"
    """The one of them that `network` is."""
    precision: Literal["float32", "bf16"] = "float32"
    """What it computes in, as it was trained."""
    white: int = WHITE
    """The value of 16-bit gray that is white."""
    max_side: int | None = None
    """The longest side that its data's images were brought down to."""
    crop_pct: float = 1.0
    """Of images as they are, the part of the shorter side that is looked at: 0.875 resizes to 256 and crops 224."""

    @property
    def key(self) -> str:
        """The digest, of another crop one of its own: what features and outcomes are kept by."""
        return self.digest if self.crop_pct == 1.0 else digest_of({}, {"of": self.digest, "crop_pct": self.crop_pct})

    @property
    def network(self) -> nn.Module:
        return self.sources[self.source]

    def at(self, source: str, *, crop_pct: float = 1.0) -> Subject:
        """The same, looked at another place, with another crop. ValueError where it has no such source."""
        if source not in self.sources:
            raise ValueError(
                f"source must be one of {', '.join(self.sources)}, which {self.name} has, but is {source!r}; choose "
                "one of these with --source"
            )
        return replace(self, source=source, crop_pct=crop_pct)

    def images(
        self,
        dataset: Dataset,
        ids: NDArray[np.int64],
        *,
        loaders: Loaders,
        file: Literal["search", "report"],
        threads: int = 1,
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        """Batches of a data set's rows `ids` and which these are, whole and normalized as its own. Sets torch's number
        of threads.
        """
        return loaders.images(
            dataset,
            ids,
            size=self.size,
            batch_size=BATCH_SIZE,
            threads=threads,
            resampling=self.resampling,
            split=file,
            normalization=(self.mean, self.std),
            crop_pct=self.crop_pct,
        )

    def to(self, device: torch.device | str) -> Subject:
        """Its networks are moved, as modules are: in place."""
        for network in self.sources.values():
            network.to(device).to(memory_format=torch.channels_last)
        return self

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Normalized images [n, 3, S, S] -> [n, p], in the images' dtype, computed in `precision`."""
        autocast = partial(torch.autocast, images.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")
        with autocast():
            rows = cast(Tensor, self.network(images.to(memory_format=torch.channels_last)))
        return rows.to(images.dtype)


def subject(
    checkpoint: Checkpoint | Path | str,
    *,
    name: str | None = None,
    data: Path | str | None = None,
    trust_code: bool = False,
) -> Subject:
    """The encoder of a checkpoint of ours, on the CPU; nothing in the file is run. `name` defaults to its file's.

    `data`, `trust_code` and ValueError as of `trainers.load_encoder`.
    """
    told = isinstance(checkpoint, Checkpoint)
    found = checkpoint if isinstance(checkpoint, Checkpoint) else checkpoints.find(checkpoint)
    model, config, preparation = load_trained(found, data=data, trust_code=told or trust_code)
    return _of(model, config, preparation, name or Path(found.path).stem)


def untrained(config: TrialConfig, preparation: Preparation, *, name: str = "untrained") -> Subject:
    """The network that a run of `config` starts from, on the CPU: what pretraining has to beat.

    ValueError where that is a file of weights that is gone or another one.
    """
    from trainers.weights.opening import starting_model

    return _of(starting_model(config), config, preparation, name)


def from_weights(place: Path | str, *, name: str | None = None, trust_code: bool = False) -> Subject:
    """The encoder of other people's weights or of an export (a file or its folder), on the CPU: a table's line of
    reference. `name` defaults to the file's, or the folder's.

    `trust_code` and ValueError as of `trainers.weights.opening.opened`.
    """
    from trainers.weights.opening import opened

    weights = opened(place, trust_code=trust_code)
    known = weights.description
    sources = sources_of(weights.network)
    for network in sources.values():
        network.eval().requires_grad_(False)
    use = known.model_dump(mode="json", include={"size", "mean", "std", "resampling", "precision", "backbone", "norm"})
    path = Path(place)
    return Subject(
        name=name or (path.parent.name if path.name == ENCODER else path.stem if path.is_file() else path.name),
        digest=digest_of({"backbone": weights.network}, use),
        size=known.size,
        mean=known.mean,
        std=known.std,
        resampling=known.resampling,
        kind=kind_of(weights.network),
        sources=sources,
        precision=known.precision,
        white=known.white,
        max_side=known.max_side,
    )


def kind_of(network: nn.Module) -> Kind:
    """Which of the architectures whose layers protocols know."""
    if isinstance(network, TinyResNet):
        return "resnet"
    module = type(network).__module__
    if module.startswith("torchvision."):
        from torchvision.models import ResNet  # type: ignore[import-untyped]

        return "resnet" if isinstance(network, ResNet) else "other"
    if module.startswith("timm."):
        from timm.models.vision_transformer import VisionTransformer

        return "vit" if isinstance(network, VisionTransformer) else "other"
    return "other"


def sources_of(backbone: nn.Module) -> dict[str, nn.Module]:
    """What may be looked at of a backbone alone."""
    found = {"features": backbone}
    if kind_of(backbone) == "vit":
        found |= {name: Tokens(backbone, name) for name in ("class", "mean", "last4")}
    return found


class Tokens(nn.Module):
    """A look at tokens of timm's transformer after the last norm, [n, 3, S, S] -> [n, p]."""

    def __init__(self, network: nn.Module, which: str) -> None:
        super().__init__()
        self.network, self.which = network, which

    def forward(self, images: Tensor) -> Tensor:
        vit: Any = self.network
        if self.which == "last4":
            count = min(LAST_BLOCKS, len(vit.blocks))
            layers = vit.get_intermediate_layers(images, n=count, return_prefix_tokens=True, norm=True)
            return torch.cat([prefix[:, 0] for _, prefix in layers], dim=1)
        tokens: Tensor = vit.forward_features(images)
        return tokens[:, 0] if self.which == "class" else tokens[:, vit.num_prefix_tokens :].mean(1)


def digest_of(networks: Mapping[str, nn.Module], use: Mapping[str, Any]) -> str:
    """sha256 of `use`, plain values that say how images are prepared and what the networks are, and of all weights."""
    sha = hashlib.sha256(json.dumps(use, sort_keys=True).encode())
    for name, network in networks.items():
        for key, value in network.state_dict().items():
            sha.update(f"{name}.{key} {value.dtype} {list(value.shape)}".encode())
            sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _of(model: Model, config: TrialConfig, preparation: Preparation, name: str) -> Subject:
    view = config.views[0]
    networks: dict[str, nn.Module] = {"backbone": model.backbone, "projector": model.projector}
    sources = sources_of(model.backbone)
    sources["embedding"] = nn.Sequential(model.backbone, model.projector)
    if model.teacher is not None:
        sources["teacher"] = networks["teacher"] = model.teacher["backbone"]
    for network in sources.values():
        network.eval().requires_grad_(False)
    use = {
        "size": view.size,
        "mean": preparation.mean,
        "std": preparation.std,
        "resampling": view.resampling,
        "precision": config.precision,
        "model": config.model.model_dump(mode="json"),
    }
    return Subject(
        name=name,
        digest=digest_of(networks, use),
        size=view.size,
        mean=preparation.mean,
        std=preparation.std,
        resampling=view.resampling,
        kind=kind_of(model.backbone),
        sources=sources,
        precision=config.precision,
        white=preparation.gray_white,
        max_side=preparation.max_side,
    )
