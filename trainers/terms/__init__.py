"""The terms an objective can be made of. `ShippedTerm` is the list: add a class here and its `kind` works everywhere.

A term of one's own needs no place in it: its kind is a reference (`trainers.terms.own`).
"""

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import Discriminator, Field, Tag

from trainers.terms.alignment import Alignment
from trainers.terms.base import Facts, Head, Outputs, Patches, TermConfig
from trainers.terms.brownian import Brownian
from trainers.terms.centroid import MultiviewCentroid
from trainers.terms.covariance import Covariance
from trainers.terms.cross_correlation import CrossCorrelation
from trainers.terms.dino import Dino
from trainers.terms.info_nce import InfoNCE
from trainers.terms.mismatch import MismatchDetection
from trainers.terms.mmd import KernelMMD
from trainers.terms.momentum_contrast import MomentumContrast
from trainers.terms.own import OwnTerm
from trainers.terms.prediction import Prediction
from trainers.terms.reconstruction import Reconstruction
from trainers.terms.singular_value import SingularValue
from trainers.terms.spectral import Spectral
from trainers.terms.swav import Swav
from trainers.terms.variance import Variance
from trainers.terms.whitening import BatchWhitening, ChannelWhitening
from trainers.usercode import is_reference

ShippedTerm = Annotated[
    Alignment
    | BatchWhitening
    | Brownian
    | ChannelWhitening
    | Covariance
    | CrossCorrelation
    | Dino
    | InfoNCE
    | KernelMMD
    | MismatchDetection
    | MomentumContrast
    | MultiviewCentroid
    | Prediction
    | Reconstruction
    | SingularValue
    | Spectral
    | Swav
    | Variance,
    Field(discriminator="kind"),
]


def _form(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return "own" if is_reference(kind) else "shipped"


Term = Annotated[
    Annotated[ShippedTerm, Tag("shipped")] | Annotated[OwnTerm, Tag("own")],
    Discriminator(_form),
]
SHIPPED_TERMS: tuple[type[TermConfig], ...] = get_args(get_args(ShippedTerm)[0])

__all__ = [
    "SHIPPED_TERMS",
    "Alignment",
    "BatchWhitening",
    "Brownian",
    "ChannelWhitening",
    "Covariance",
    "CrossCorrelation",
    "Dino",
    "Facts",
    "Head",
    "InfoNCE",
    "KernelMMD",
    "MismatchDetection",
    "MomentumContrast",
    "MultiviewCentroid",
    "Outputs",
    "OwnTerm",
    "Patches",
    "Prediction",
    "Reconstruction",
    "ShippedTerm",
    "SingularValue",
    "Spectral",
    "Swav",
    "Term",
    "TermConfig",
    "Variance",
]
