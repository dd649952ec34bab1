"""Changes of normalized images that leave what they show: moved, blurred, gray, coarse. Nothing is drawn at random.

Letters: n = images, S = pixels of a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from trainers.evaluation.features import PLAIN, View

if TYPE_CHECKING:
    from trainers.evaluation.subject import Subject

LUMA = (0.299, 0.587, 0.114)
RADIUS = 3.0
"""Deviations of a Gaussian up to which it is summed."""


def views(
    subject: Subject, *, shifts: Sequence[float], blurs: Sequence[float], gray: bool, resolutions: Sequence[float]
) -> tuple[View, ...]:
    """Images as they are first, then each change by its name; strengths are shares of a side."""
    return (
        PLAIN,
        *(View(f"shift{share:g}", partial(shifted, share=share)) for share in shifts),
        *(View(f"blur{share:g}", partial(blurred, share=share)) for share in blurs),
        *([View("gray", partial(grayed, mean=subject.mean, std=subject.std))] if gray else []),
        *(View(f"resolution{share:g}", partial(coarse, share=share)) for share in resolutions),
    )


def shifted(images: Tensor, *, share: float) -> Tensor:
    """[n, 3, S, S] moved right and down by `share` of S; what comes in is mirrored, so that no edge is new."""
    size = images.shape[-1]
    by = min(size - 1, max(1, round(share * size)))
    return functional.pad(images, (by, 0, by, 0), mode="reflect")[..., :size, :size]


def blurred(images: Tensor, *, share: float) -> Tensor:
    """[n, 3, S, S] under a Gaussian with a deviation of `share` of S; edges are mirrored."""
    size = images.shape[-1]
    deviation = share * size
    radius = min(size - 1, max(1, round(RADIUS * deviation)))
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-(offsets**2) / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    padded = functional.pad(images, (radius,) * 4, mode="reflect")
    rows = functional.conv2d(padded, kernel[:, :, None, :], groups=images.shape[1])
    return functional.conv2d(rows, kernel[:, :, :, None], groups=images.shape[1])


def grayed(images: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """[n, 3, S, S], normalized by `mean` and `std`, with their luma (ITU-R 601, as Pillow's) in each channel."""
    center, scale, weights = (images.new_tensor(values)[:, None, None] for values in (mean, std, LUMA))
    luma = ((images * scale + center) * weights).sum(dim=1, keepdim=True)
    return (luma - center) / scale


def coarse(images: Tensor, *, share: float) -> Tensor:
    """[n, 3, S, S] brought down to `share` of S, by means, and back, both bilinear."""
    size = images.shape[-1]
    small = max(1, round(share * size))
    down = functional.interpolate(images, size=(small, small), mode="bilinear", antialias=True, align_corners=False)
    return functional.interpolate(down, size=(size, size), mode="bilinear", align_corners=False)
