"""Parts that each break one rule: what `pretune check` and the checks of a request must find."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers import dist
from trainers.keyed_random import Draws
from trainers.terms import Facts, Outputs, TermConfig

# ---- terms -----------------------------------------------------------------------------------------------------------


class Vector(TermConfig):
    """One number for each image."""

    def __call__(self, outputs: Outputs) -> Tensor:
        return outputs.projections[0].square().mean(1)


class NotANumber(TermConfig):
    """0 / 0, at any weight but 0."""

    def __call__(self, outputs: Outputs) -> Tensor:
        nothing = (outputs.projections[0] - outputs.projections[0]).sum()
        return nothing / nothing


class PerRankRoot(TermConfig):
    """The root of the mean over this rank's rows alone: the mean of such roots is another one's."""

    def __call__(self, outputs: Outputs) -> Tensor:
        return outputs.projections[0].square().mean().sqrt()


class PerRankGradient(TermConfig):
    """The value of the global batch, but a gradient that is not summed over ranks."""

    def __call__(self, outputs: Outputs) -> Tensor:
        rows = functional.normalize(outputs.projections[0], dim=1)
        everyone, first = dist.gather_rows_detached(rows), dist.row_offset(len(rows))
        everyone = torch.cat([everyone[:first], rows, everyone[first + len(rows) :]])
        return (everyone @ everyone.T).square().mean()


class Remembers(TermConfig):
    """Counts its calls."""

    calls: ClassVar[list[int]] = []

    def __call__(self, outputs: Outputs) -> Tensor:
        self.calls.append(1)
        return dist.mean_over_ranks(outputs.projections[0].square().mean()) * len(self.calls)


class DrawsUnkeyed(TermConfig):
    """Draws from torch's own random state."""

    def __call__(self, outputs: Outputs) -> Tensor:
        return dist.mean_over_ranks((outputs.projections[0] * torch.rand(())).square().mean())


class Detached(TermConfig):
    """No gradient comes back."""

    def __call__(self, outputs: Outputs) -> Tensor:
        return dist.mean_over_ranks(outputs.projections[0].detach().square().mean())


class InfiniteGradient(TermConfig):
    """The root of zero."""

    def __call__(self, outputs: Outputs) -> Tensor:
        first = outputs.projections[0]
        return dist.mean_over_ranks((first.square().sum() * 0.0).sqrt() + first.mean())


class Misspelt(TermConfig):
    """Reads what outputs do not have."""

    def __call__(self, outputs: Outputs) -> Tensor:
        return outputs.projectoins[0].mean()  # type: ignore[attr-defined, no-any-return]


class NeedsPredictions(TermConfig):
    """Reads what outputs have with a predictor only."""

    def __call__(self, outputs: Outputs) -> Tensor:
        return dist.mean_over_ranks(outputs.predictions[0].square().mean())  # type: ignore[index]


class NeedsThreeViews(TermConfig):
    """Refuses runs of two views."""

    def __call__(self, outputs: Outputs) -> Tensor:
        return dist.mean_over_ranks(outputs.projections[2].square().mean())

    def check(self, name: str, facts: Facts) -> None:
        if len(facts.views) < 3:
            raise ValueError(f"objective.{name} needs 3 views, but there are {len(facts.views)}; add one")


class NoFormula(TermConfig):
    """Nothing to compute."""


# ---- backbones -------------------------------------------------------------------------------------------------------


class Maps(nn.Module):
    """Gives a map of features in place of a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.convolution(images)
        return features


class Flat(nn.Module):
    """Takes images of 16 pixels only."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.Dropout(dropout))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features


class Counts(nn.Module):
    """Keeps state that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 8)
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        features: Tensor = self.linear(images.mean(dim=(2, 3))) + 0.01 * self.calls
        return features


class OwnNorm(nn.BatchNorm1d):
    """A batch norm with a forward pass of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1.0


class Normed(nn.Module):
    """Has such a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = OwnNorm(3)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.norm(images.mean(dim=(2, 3)))
        return features


# ---- view operations -------------------------------------------------------------------------------------------------


def smaller(images: Tensor, draws: Draws) -> Tensor:
    """Another shape."""
    return images[:, :, ::2, ::2]


def in_place(images: Tensor, draws: Draws) -> Tensor:
    """Changes what it was given."""
    return images.mul_(2.0)


def unkeyed(images: Tensor, draws: Draws) -> Tensor:
    """Draws from torch's own random state."""
    return images + torch.rand(())


def over_the_batch(images: Tensor, draws: Draws) -> Tensor:
    """Depends on the other images."""
    return images - images.mean(0)


def infinite(images: Tensor, draws: Draws) -> Tensor:
    """Divides by zero."""
    return images / (images - images)


def raises(images: Tensor, draws: Draws) -> Tensor:
    """Raises."""
    raise KeyError("angle")
