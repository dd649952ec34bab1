"""Features of images that are in no data set of ours: prepared as those of one are.

Letters: n = images, p = features, S = pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainers.data.own_images import OwnImage, rendered
from trainers.encoder import BATCH_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainers.evaluation.subject import Subject


def features(
    subject: Subject,
    images: Sequence[OwnImage] | NDArray[Any],
    *,
    device: torch.device,
    report: Callable[[float], None],
) -> Tensor:
    """[n, p] of files, Pillow's images or arrays of bytes, on the device. ValueError where one is broken, or a feature
    is not finite.
    """
    found: list[Tensor] = []
    done = 0
    for pixels in rendered(
        images,
        size=subject.size,
        mean=subject.mean,
        deviation=subject.std,
        resampling=subject.resampling,
        batch_size=BATCH_SIZE,
        white=subject.white,
        max_side=subject.max_side,
    ):
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device, torch.get_default_dtype())
        found.append(subject.encode(batch))
        done += len(pixels)
        report(done / len(images))
    whole = torch.cat(found)
    if not bool(torch.isfinite(whole).all()):
        raise ValueError(f"the features of {subject.name} must be finite, but some are not; the encoder has diverged")
    return whole
