"""The terms an objective can be made of. `Term` is the list: add a class here and its `kind` works everywhere."""

from typing import Annotated

from pydantic import Field

from trainers.terms.alignment import Alignment
from trainers.terms.base import Facts, Outputs, Patches, TermConfig
from trainers.terms.brownian import Brownian
from trainers.terms.centroid import MultiviewCentroid
from trainers.terms.covariance import Covariance
from trainers.terms.cross_correlation import CrossCorrelation
from trainers.terms.dino import Dino
from trainers.terms.info_nce import InfoNCE
from trainers.terms.mismatch import MismatchDetection
from trainers.terms.mmd import KernelMMD
from trainers.terms.momentum_contrast import MomentumContrast
from trainers.terms.prediction import Prediction
from trainers.terms.reconstruction import Reconstruction
from trainers.terms.singular_value import SingularValue
from trainers.terms.spectral import Spectral
from trainers.terms.variance import Variance
from trainers.terms.whitening import BatchWhitening, ChannelWhitening

Term = Annotated[
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
    | Variance,
    Field(discriminator="kind"),
]

__all__ = [
    "Alignment",
    "BatchWhitening",
    "Brownian",
    "ChannelWhitening",
    "Covariance",
    "CrossCorrelation",
    "Dino",
    "Facts",
    "InfoNCE",
    "KernelMMD",
    "MismatchDetection",
    "MomentumContrast",
    "MultiviewCentroid",
    "Outputs",
    "Patches",
    "Prediction",
    "Reconstruction",
    "SingularValue",
    "Spectral",
    "Term",
    "TermConfig",
    "Variance",
]
