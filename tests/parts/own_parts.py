"""A term, a backbone and a view operation of one's own, as a user would write them: tests name them by reference.

In a folder of their own: a part's folder comes first among those that Python imports from, and tests/ has a `pretune`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers import dist
from trainers.keyed_random import Draws
from trainers.terms import Outputs, TermConfig


class Spread(TermConfig):
    """Pushes embeddings apart: the mean squared cosine between different images, over the global batch."""

    strength: float = 1.0

    def __call__(self, outputs: Outputs) -> Tensor:
        values = []
        for view in outputs.projections:
            rows = dist.gather_rows(functional.normalize(view, dim=1))
            cosines = rows @ rows.T  # [N, N]
            values.append((cosines.square().sum() - len(rows)) / (len(rows) * (len(rows) - 1)))
        return self.strength * torch.stack(values).mean()


class Net(nn.Module):
    """Three convolutions with batch norm."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for factor in (1, 2, 4):
            layers += [nn.Conv2d(channels, factor * width, 3, 2, 1, bias=False), nn.BatchNorm2d(factor * width)]
            layers.append(nn.ReLU())
            channels = factor * width
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images).mean(dim=(2, 3))
        return features


def noise(images: Tensor, draws: Draws, *, strength: float = 0.1) -> Tensor:
    """Adds noise to each pixel."""
    return images + strength * draws.normals("noise", images[0].numel()).view(images.shape).to(images)
