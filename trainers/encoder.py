"""A trained encoder to go on with: a plain `torch.nn.Module` from images to features, read from a checkpoint.

    encoder = trainers.load_encoder("sweeps/NAME/trials/0003/checkpoints/epoch-0006.pt")
    features = encoder.features(["cat.jpg", "dog.png"])     # files, Pillow's images or arrays -> [2, p]

Letters: n = images, S = height and width in pixels, p = features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from trainers import checkpoint as checkpoints
from trainers.config import Backbone, OwnBackbone, TrialConfig
from trainers.data.data_cache import open_anywhere
from trainers.data.own_images import OwnImage, rendered
from trainers.data.sources.base import WHITE
from trainers.data.views import LEAST_DEVIATION
from trainers.model import Model, trained_model
from trainers.report import Checkpoint
from trainers.upgrade import upgrade_config

Branch = Literal["student", "teacher"]

BATCH_SIZE = 256
"""Images per forward pass of an evaluation, whatever a trial's own batch size."""


class Preparation(NamedTuple):
    """What a data set does to its images, from its manifest: mean and standard deviation of red, green and blue on a
    scale of 0..1, the value of 16-bit gray that is white, the longest side that images are brought down to.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    gray_white: int = WHITE
    max_side: int | None = None


class Trained(NamedTuple):
    """What a checkpoint holds of a run."""

    model: Model
    config: TrialConfig
    preparation: Preparation


class Encoder(nn.Module):
    """Images [n, 3, S, S] -> features [n, p], those that the probe judged. `load_encoder` makes it.

    Images are RGB in 0..1, or bytes in 0..255; they are normalized in here. Its parameters ask for gradients, so that
    it can be trained on.
    """

    mean: Tensor
    """Of the red, green and blue of the images it was trained on, [3], on a scale of 0..1."""
    std: Tensor
    """Their standard deviations, [3]."""

    def __init__(self, backbone: nn.Module, *, config: TrialConfig, width: int, preparation: Preparation) -> None:
        super().__init__()
        self.backbone = backbone
        """From normalized images to features; most take other sizes of images too."""
        self.config = config
        """What it was trained as."""
        self.size = config.views[0].size
        """S, in pixels: the size of images at which it was judged."""
        self.width = width
        """p, how many features an image has."""
        self._preparation = preparation  # not rounded to the buffers' dtype
        self.register_buffer("mean", torch.tensor(preparation.mean))
        self.register_buffer("std", torch.tensor(preparation.std).clamp(min=LEAST_DEVIATION))

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, 3, S, S], floats in 0..1 or bytes, to features [n, p] in the dtype of the parameters.

        ValueError where the shape is another one.
        """
        if images.ndim != 4 or images.shape[1:] != (3, self.size, self.size):
            raise ValueError(
                f"images must have the shape [n, 3, {self.size}, {self.size}], but have {list(images.shape)}; "
                "`encoder.features` takes images of any size, and `encoder.backbone` normalized ones"
            )
        pixels = images.to(self.mean.dtype)
        if images.dtype == torch.uint8:
            pixels = pixels / 255
        return self._encode((pixels - self.mean[:, None, None]) / self.std[:, None, None])

    @torch.no_grad()
    def features(self, images: Sequence[OwnImage] | NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
        """Features [n, p] of image files, Pillow's images or arrays of bytes ([height, width, 3] or gray), of any size.

        Images are prepared as for the probe, and go through the network in its batches: the features are those that it
        judged, bit for bit on one type of CPU where torch has `config.threads` threads.

        ValueError, naming the image, where one is broken or of another kind, and in training mode.
        """
        if isinstance(images, str | Path) or not hasattr(images, "__getitem__"):
            raise ValueError(f"images must be a list of images, but is {images!r}; put it into a list: [image]")
        if self.training:
            raise ValueError(
                "features are those of the evaluation mode, but the encoder is in training mode; call encoder.eval()"
            )
        known = self._preparation
        found = [np.zeros((0, self.width), dtype=torch.empty(0, dtype=self.mean.dtype).numpy().dtype)]
        for pixels in rendered(
            images,
            size=self.size,
            mean=known.mean,
            deviation=known.std,
            resampling=self.config.views[0].resampling,
            batch_size=BATCH_SIZE,
            white=known.gray_white,
            max_side=known.max_side,
        ):
            batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.mean.device, self.mean.dtype)
            found.append(self._encode(batch).cpu().numpy())
        return np.concatenate(found)

    def _encode(self, normalized: Tensor) -> Tensor:
        """As `trainers.evaluation.probe.extract` does it."""
        device = normalized.device.type
        autocast = partial(torch.autocast, device, dtype=torch.bfloat16, enabled=self.config.precision == "bf16")
        with autocast():
            rows = cast(Tensor, self.backbone(normalized.to(memory_format=torch.channels_last)))
        return rows.to(normalized.dtype)


def load_encoder(
    checkpoint: Checkpoint | Path | str,
    *,
    branch: Branch = "student",
    data: Path | str | None = None,
    device: torch.device | str = "cpu",
    trust_code: bool = False,
) -> Encoder:
    """The encoder of a checkpoint, in evaluation mode.

    Args:
        checkpoint: the file (`epoch-0006.pt`) or its URI, or what a sweep says of it
            (`pretune.open(…).best.checkpoint`). Its bytes are compared with the manifest beside it, where there is
            one; nothing in it is run, nor what it names.
        branch: the network that was trained and that the probe judged, or its moving average, the "teacher".
        data: the data set it was trained on, a folder or a URI; needed for a checkpoint that does not hold the mean and
            standard deviation of its images (written before 0.2), where the data have moved.
        device: where it is put.
        trust_code: whether code that the file names as its network may be run, a `file.py:Name` or `module:Name` of
            this machine. What a sweep of yours says of a checkpoint is trusted as it is.

    ValueError where the file is missing or damaged, names code that is not trusted, holds no teacher, or the images'
    statistics are not to be found.
    """
    told = isinstance(checkpoint, Checkpoint)
    found = checkpoint if isinstance(checkpoint, Checkpoint) else checkpoints.find(checkpoint)
    model, config, preparation = load_trained(found, data=data, trust_code=told or trust_code)
    if branch == "teacher" and model.teacher is None:
        raise ValueError(
            f"checkpoint {found.path} must hold a teacher for branch='teacher', but model.teacher is null in its "
            "config; take branch='student'"
        )
    backbone = model.backbone if model.teacher is None or branch == "student" else model.teacher["backbone"]
    encoder = Encoder(backbone, config=config, width=model.feature_count, preparation=preparation)
    return encoder.requires_grad_(True).to(device).to(memory_format=torch.channels_last).eval()


def load_trained(checkpoint: Checkpoint, *, data: Path | str | None = None, trust_code: bool) -> Trained:
    """The whole network of a checkpoint, on the CPU. Arguments and errors as of `load_encoder`."""
    state, config = _stored(checkpoint)
    check_trusted(config.model.backbone, checkpoint.path, trust_code=trust_code)
    try:
        model = trained_model(config, state["model"])
    except (RuntimeError, TypeError, AttributeError) as error:  # other parameters than its config's network has
        raise _not_a_runs(checkpoint, f"its parameters are not those of its config ({_beginning(error)})") from error
    return Trained(model, config, _preparation(checkpoint, state, config, data))


def config_of(checkpoint: Checkpoint) -> TrialConfig:
    """What a checkpoint was trained as; no network is made. ValueError where it is damaged or none of a run."""
    return _stored(checkpoint)[1]


def check_trusted(backbone: Backbone, place: Path | str, *, trust_code: bool) -> None:
    """ValueError where the file at `place` names code as its network, which who made it may have chosen freely."""
    if isinstance(backbone, OwnBackbone) and not trust_code:
        raise ValueError(
            f"{place} names code of its own as its network, {backbone.kind}, which would be run on this machine; "
            "nothing was. Where you trust whoever wrote both, add --trust-code (in Python: trust_code=True)"
        )


def _stored(checkpoint: Checkpoint) -> tuple[dict[str, Any], TrialConfig]:
    state = checkpoints.load(checkpoint)
    if missing := {"config", "manifest", "model"} - state.keys():
        raise _not_a_runs(checkpoint, f"has no {', '.join(sorted(missing))}")
    try:
        return state, TrialConfig.model_validate(upgrade_config(state["config"]))
    except (ValueError, TypeError, AttributeError) as error:
        raise _not_a_runs(checkpoint, f"its config is none ({_beginning(error)})") from error


def _not_a_runs(checkpoint: Checkpoint, reason: str) -> ValueError:
    return ValueError(
        f"checkpoint {checkpoint.path} must be of a run of pretune, but {reason}; take one from a run's or a trial's "
        "folder"
    )


def _beginning(error: Exception) -> str:
    """Of pydantic's errors the first one, with its path."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2])[:300]  # torch's first line says what it did, and its second what was wrong


def _preparation(
    checkpoint: Checkpoint, state: Mapping[str, Any], config: TrialConfig, data: Path | str | None
) -> Preparation:
    """What was done to the images that the run saw."""
    known = state.get("normalization")
    if known is None:
        place = config.data.path if data is None else str(data)
        try:
            manifest = open_anywhere(place, expected_hash=state["manifest"], files=()).manifest
        except ValueError as error:
            raise ValueError(
                f"the checkpoint does not hold the mean of its images, so the data set it was trained on is needed: "
                f"{error}; name it with load_encoder(…, data=FOLDER)"
            ) from error
        return Preparation(manifest.mean, manifest.std, manifest.gray_white, manifest.max_side)
    try:
        mean, std = (tuple(map(float, known[name])) for name in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3:
            raise ValueError("there are three colors")
    except (TypeError, ValueError, KeyError) as error:
        raise _not_a_runs(checkpoint, "its images' mean and deviation are not three numbers each") from error
    # Older checkpoints say no more than these two.
    return Preparation(mean, std, known.get("gray_white", WHITE), known.get("max_side"))
