"""An export: a folder with a backbone's weights, and what must be known to build it and to prepare its images.

`config.json` is as timm's `create_model("local-dir:…")` reads it, with a part of our own, `pretune`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainers.init_file import CONFIG, ENCODER
from trainers.settings import Backbone, Resampling

PROJECTOR = "projector.safetensors"
ONNX = "model.onnx"
MODEL = "model.py"
FORMAT = 1

Layout = Literal["torchvision", "timm", "onnx"]


class Description(BaseModel):
    """What the backbone of a folder is. Mean and standard deviation are of red, green and blue, on a scale of 0..1."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = Field(FORMAT, le=FORMAT)
    layout: Layout
    backbone: Backbone
    norm: Literal["batch", "batch_per_rank", "layer"] = "batch"
    size: int = Field(ge=1)
    """S, at which images are looked at, in pixels: the shorter side is resized to it, the center cropped."""
    built_size: int = Field(ge=1)
    """The size in pixels that the network was built for, whose patches a transformer's positions are of."""
    width: int
    """p, how many features an image has."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resampling: Resampling
    white: int
    """The value of 16-bit gray that is white."""
    max_side: int | None = None
    """The longest side that images were brought down to."""
    precision: Literal["float32", "bf16"] = "float32"
    branch: Literal["student", "teacher"] = "student"
    encoder_sha256: str
    source: str
    """What it was made from, in words."""
    source_sha256: str
    """Of the checkpoint, or of the file of weights."""


def described(place: Path) -> Description | None:
    """What lies beside the weights at `place`, a file or an export's folder; None where that is no export's file.

    ValueError where it is, and cannot be read.
    """
    folder = place if place.is_dir() else place.parent
    path = folder / CONFIG
    if not path.is_file() or (not place.is_dir() and place.name != ENCODER):
        return None
    try:
        values = json.loads(path.read_bytes())
        ours = values.get("pretune") if isinstance(values, dict) else None
        return None if ours is None else Description.model_validate(ours)
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError, RecursionError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ValueError(
            f"{path} must be what `pretune export` of this version or an older one wrote, but is not ({reason}); "
            "export again"
        ) from error


def config_json(found: Description, *, architecture: str, arguments: dict[str, Any]) -> str:
    """`config.json`: architecture and preprocessing for timm, and all of it for us."""
    values = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": found.width,
        "model_args": {"num_classes": 0, **arguments},
        "pretrained_cfg": {
            "input_size": [3, found.size, found.size],
            "fixed_input_size": False,
            "interpolation": found.resampling,
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(found.mean),
            "std": list(found.std),
            "num_classes": 0,
        },
        "pretune": found.model_dump(mode="json"),
    }
    return json.dumps(values, indent=2) + "\n"
