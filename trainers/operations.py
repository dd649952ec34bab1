"""View operations of one's own: torch functions on the batch of a view, after it was rendered and normalized.

    def noise(images: Tensor, draws: Draws, *, strength: float = 0.1) -> Tensor:
        return images + strength * draws.normals("noise", images[0].numel()).view_as(images)

`images` [n, 3, S, S] are this rank's, on the device where the run is, float32, normalized by the data set's mean and
deviation. The result has their shape and dtype, is finite, and `images` are left as they were. Row i of it depends on
row i and on the draws of row i alone, as it must not matter which other images are in the batch, or on this rank. All
other parameters are settings: `views.0.operations.<name>.strength` in a config.

Evaluation sees images without them. The draws are keyed by (seed, epoch, sample, view, name of the operation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from trainers.keyed_random import Draws, key_of, keys_of
from trainers.settings import OwnOperation, ViewConfig
from trainers.usercode import named, where

Operation = Callable[[Tensor, Draws], Tensor]
CHOSEN = "whether this image undergoes it"
"""The name of our own draw, which an operation's should not be."""


class Operations:
    """The operations of all views of a run, loaded once. ValueError where one is missing or not what it was."""

    def __init__(self, views: Sequence[ViewConfig]) -> None:
        self._views: list[dict[str, tuple[OwnOperation, Operation]]] = []
        for index, view in enumerate(views):
            loaded: dict[str, tuple[OwnOperation, Operation]] = {}
            for name, operation in view.operations.items():
                with named(f"views.{index}.operations.{name}"):
                    loaded[name] = operation, partial(operation.load(), **operation.settings)
            self._views.append(loaded)

    @torch.no_grad()
    def __call__(self, views: Sequence[Tensor], sample_ids: Tensor, *, seed: int, epoch: int) -> tuple[Tensor, ...]:
        """Views [n, 3, S, S] each and sample ids [n] to views, in channels-last memory; epochs count from 0."""
        changed = []
        for index, (images, operations) in enumerate(zip(views, self._views, strict=True)):
            for name, (operation, function) in operations.items():
                draws = Draws(keys_of(key_of("view operation", name), seed, epoch, index, sample_ids))
                images = applied(function, images, draws, operation.probability)
            changed.append(images)
        return tuple(changed)


def applied(function: Operation, images: Tensor, draws: Draws, probability: float) -> Tensor:
    """The images [n, 3, S, S], each changed with this probability. ValueError where shape or dtype is not kept."""
    result = function(images, draws)
    check_kept(result, images, function)
    if probability < 1.0:
        chosen = draws.uniforms(CHOSEN, 1) < probability
        result = torch.where(chosen.view(-1, 1, 1, 1), result, images)
    return result.contiguous(memory_format=torch.channels_last)


def check_kept(result: object, images: Tensor, function: Operation) -> None:
    """ValueError unless the `result` of `function` is of the images' shape and dtype."""
    if not isinstance(result, Tensor) or result.shape != images.shape or result.dtype != images.dtype:
        found = f"{list(result.shape)} {result.dtype}" if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(
            f"{where(function.func if isinstance(function, partial) else function)} must return images of the same "
            f"shape and dtype, {list(images.shape)} {images.dtype}, but returned {found}; convert its result"
        )
