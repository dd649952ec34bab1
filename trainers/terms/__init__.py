"""The terms an objective can be made of. `Term` is the list: add a class here and its `kind` works everywhere."""

from typing import Annotated

from pydantic import Field

from trainers.terms.alignment import Alignment
from trainers.terms.base import Outputs, TermConfig
from trainers.terms.brownian import Brownian
from trainers.terms.centroid import MultiviewCentroid
from trainers.terms.mmd import KernelMMD
from trainers.terms.singular_value import SingularValue
from trainers.terms.whitening import BatchWhitening, ChannelWhitening

Term = Annotated[
    Alignment | BatchWhitening | Brownian | ChannelWhitening | KernelMMD | MultiviewCentroid | SingularValue,
    Field(discriminator="kind"),
]

__all__ = [
    "Alignment",
    "BatchWhitening",
    "Brownian",
    "ChannelWhitening",
    "KernelMMD",
    "MultiviewCentroid",
    "Outputs",
    "SingularValue",
    "Term",
    "TermConfig",
]
