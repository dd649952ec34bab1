"""What every term of an objective is: a frozen config that computes one unweighted scalar from a model's outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.config import TrialConfig


class Outputs(NamedTuple):
    """What one step's forward pass made, on one rank. Letters: n = rows on this rank, p = features, q = embedding width."""

    features: tuple[Tensor, ...]
    """Backbone features per view, each [n, p]."""
    projections: tuple[Tensor, ...]
    """Projector outputs per view, each [n, q], not normalized."""
    predictions: tuple[Tensor, ...] | None
    """Predictor outputs per view, each [n, q]; None without a predictor."""
    targets: tuple[Tensor, ...] | None
    """The teacher's projections per view, each [n, q], without gradient; None without a teacher."""
    sample_ids: Tensor
    """Global sample ids of the rows, [n], int64: what per-sample randomness is keyed by."""
    seed: int
    """The trial's seed."""
    step: int
    """Optimizer steps done before this one."""


class TermConfig(BaseModel, ABC):
    """A term: its settings, and its formula as `__call__`.

    `__call__` returns the value over the *global* batch, the same on every rank; what it needs from other ranks it asks of
    `trainers.dist`, whose functions are differentiable with true adjoints, so that DDP's mean over ranks is the exact gradient.
    The weight is applied by `trainers.objective` alone. Torch is imported inside functions: building a config stays fast.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight: Annotated[float, Field(ge=0.0)] = 1.0

    @abstractmethod
    def __call__(self, outputs: Outputs) -> Tensor:
        """The unweighted scalar, a tensor of shape []."""

    def check(self, name: str, config: TrialConfig) -> None:
        """Raise ValueError (what, rule, value, remedy) where this term cannot work with the rest of `config`."""
