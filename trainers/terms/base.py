"""What every term of an objective is: a frozen config that computes one unweighted scalar from a model's outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field

from trainers.settings import ModelConfig, ViewConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def wide(rows: Tensor) -> Tensor:
    """Rows in float32 or wider: losses need what half precision drops."""
    import torch

    return rows.to(torch.promote_types(rows.dtype, torch.float32))


SHORTEST = 1e-12
"""Rows shorter than this have no direction."""


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [n, q] over their length, in float32 or wider; 0, without a gradient, those shorter than `SHORTEST`."""
    import torch

    rows = wide(rows)
    length: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    # Where squares overflow, in float64. Without a gradient: one of so long rows is nothing, along them or across.
    exact = torch.linalg.vector_norm(rows.detach(), dim=-1, keepdim=True, dtype=torch.float64).to(rows.dtype)
    length = torch.where(length.isinf(), exact, length)
    return rows / torch.where(length < SHORTEST, torch.inf, length)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products inside keep float32's digits: neither autocast nor TF32. Restores the caller's settings."""
    import torch

    matmul = torch.backends.cuda.matmul
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        precision = matmul.fp32_precision
        matmul.fp32_precision = "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = precision


Head = Literal["prototypes", "center", "decoder", "mismatch_head"]
"""What a model has only where a term reads it."""

_SETTINGS_OF: Mapping[Head, tuple[str, ...]] = {
    "prototypes": ("prototypes",),
    "center": ("prototypes", "teacher"),
    "decoder": ("decoder", "masking"),
    "mismatch_head": ("masking",),
}
"""The settings of `model` without which it cannot have a head."""


class Patches(NamedTuple):
    """One masked view of the student. n = rows on this rank, L = patches of the view, K = kept ones, d = width."""

    view: int
    """Its place among the views."""
    tokens: Tensor
    """Patch tokens after the backbone's last norm, [n, K, d]."""
    kept: Tensor
    """Places in the image of the kept patches, [n, K] int64, from 0, row by row."""
    told: Tensor
    """The places that the network was told, [n, K] int64."""
    dropped: Tensor
    """Places of the dropped patches, [n, L - K] int64."""
    mismatch_logits: Tensor | None = None
    """The detection head's answers, [n, K]; None without a term that reads them."""
    pixels: Tensor | None = None
    """The dropped patches themselves, [n, L - K, 3 P²], P = patch size; None without a term that reads them."""
    reconstruction: Tensor | None = None
    """The decoder's prediction of `pixels`; None without a term that reads it."""

    @property
    def mismatched(self) -> Tensor:
        """Which were told a wrong place, [n, K] bool."""
        return self.kept != self.told


class Outputs(NamedTuple):
    """What a step's forward pass made, on one rank. n = rows on this rank, p = features, q = embedding width."""

    features: tuple[Tensor, ...]
    """Backbone features per view, each [n, p]."""
    projections: tuple[Tensor, ...]
    """Projector outputs per view, each [n, q], not normalized."""
    predictions: tuple[Tensor, ...] | None
    """Predictor outputs per view, each [n, q]; None without a predictor."""
    targets: tuple[Tensor, ...] | None
    """The teacher's projections of the views that it sees, the first ones or all, each [n, q], without gradient; None
    without a teacher."""
    sample_ids: Tensor
    """Global sample ids of the rows, [n], int64: what per-sample randomness is keyed by."""
    seed: int
    """The trial's seed."""
    step: int
    """Optimizer steps done before this one."""
    patches: tuple[Patches, ...] = ()
    """The patch tokens of each masked view; empty without masking."""
    scores: tuple[Tensor, ...] | None = None
    """Cosines of projections with the M prototypes per view, each [n, M]; None without a term that reads them."""
    queued_scores: tuple[Tensor, ...] | None = None
    """Those of earlier images, by view, without gradient: this rank's part of the queue, [K / W, M] each. None without
    a queue, and before it is full."""
    target_scores: tuple[Tensor, ...] | None = None
    """The teacher's, for the views that it sees, without gradient and not centered; None without DINO's term."""
    center: Tensor | None = None
    """Moving average of the mean of `target_scores` over images, as it was before this step, [M]."""


@dataclass(frozen=True)
class Facts:
    """What a term may know of the run that it is part of, so that it can refuse one that it cannot work in."""

    views: tuple[ViewConfig, ...]
    model: ModelConfig
    batch_size: int
    """Global: images of a step, over all workers."""
    masked_patch_counts: Mapping[int, int]
    """Views that the student sees masked: place in `views` -> number of patches of the whole view."""

    @property
    def width(self) -> int:
        """q, of the projections."""
        return self.model.projector.widths[-1]

    def require_two_views(self, name: str, kind: str) -> None:
        """ValueError where there is but one view: term `name` of this kind compares views of one image."""
        if len(self.views) < 2:
            raise ValueError(
                f"objective.{name} ({kind}) compares views of one image and needs at least 2, but views has "
                f"{len(self.views)}; add a view, or set objective.{name}.weight=0"
            )

    def require_predictions_like_projections(self, name: str, kind: str) -> None:
        """ValueError where a predictor ends in another width: term `name` of this kind compares the two."""
        predictor, width = self.model.predictor, self.width
        if predictor is not None and predictor.widths[-1] != width:
            raise ValueError(
                f"objective.{name} ({kind}) compares predictions with projections, so the last of "
                f"model.predictor.widths must be that of model.projector.widths, {width}, but is "
                f"{predictor.widths[-1]}; change it to {width}"
            )

    def require_heads(self, name: str, heads: Collection[str]) -> None:
        """ValueError where the model cannot have one of the `heads` that term `name` reads."""
        if unknown := sorted(set(heads) - set(get_args(Head))):
            raise ValueError(
                f"objective.{name} reads the heads {', '.join(unknown)}, which no model has; `reads_heads` may have "
                f"{', '.join(get_args(Head))}"
            )
        for head in get_args(Head):
            missing = [f"model.{key}" for key in _SETTINGS_OF[head] if getattr(self.model, key) is None]
            if head in heads and missing:
                raise ValueError(
                    f"objective.{name} reads the model's {head}, which needs {' and '.join(missing)}, but "
                    f"{'they are' if len(missing) > 1 else 'it is'} null; set {'them' if len(missing) > 1 else 'it'}, "
                    f"or objective.{name}.weight=0"
                )


class TermConfig(BaseModel, ABC):
    """A term: its settings, and its formula as `__call__`.

    The mean over ranks of what `__call__` returns is the value over the *global* batch; `trainers.objective` takes it,
    of all terms at once, and applies the weights. So a mean over rows is of this rank's rows. What is no mean over
    rows needs something from other ranks and asks it of `trainers.dist`, whose functions are differentiable with true
    adjoints, so that DDP's mean over ranks is the exact gradient. Torch is imported inside functions: building a
    config stays fast.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    reads_embeddings: ClassVar[bool] = True
    """Whether the value depends on projections: where no term's does, nothing keeps them apart, and none should."""

    reads_heads: ClassVar[frozenset[Head]] = frozenset()
    """What the model must have for this term beyond features and projections; a child's are its parent's."""

    weight: Annotated[float, Field(ge=0.0)] = 1.0

    @abstractmethod
    def __call__(self, outputs: Outputs) -> Tensor:
        """The unweighted scalar, a tensor of shape []: this rank's, or where ranks have spoken the global batch's."""

    @property
    def loaded(self) -> TermConfig:
        """What computes: the term itself, or for one that a config names by reference, its own class' instance."""
        return self

    def metrics(self, outputs: Outputs) -> dict[str, Tensor]:
        """More to log each step, as `health/<name>/<key>`: scalars over the *global* batch, equal on all ranks, finite.

        Called without gradients, on every rank, after `__call__`. `information`, the nats that a term's answer tells of
        an image, is what the sentinel reads of it.
        """
        return {}

    def check(self, name: str, facts: Facts) -> None:
        """Raise ValueError (what, rule, value, remedy) where this term cannot work in a run with these `facts`."""

    def check_workers(self, name: str, facts: Facts, workers: int) -> None:
        """Raise ValueError (what, rule, value, remedy) where this term cannot be computed by so many workers."""
