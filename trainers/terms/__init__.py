"""The terms an objective can be made of. `Term` is the list: add a class here and its `kind` works everywhere."""

from typing import Annotated

from pydantic import Field

from trainers.terms.alignment import Alignment
from trainers.terms.base import Outputs, Patches, TermConfig
from trainers.terms.dino import Dino
from trainers.terms.mismatch import MismatchDetection
from trainers.terms.mmd import KernelMMD
from trainers.terms.reconstruction import Reconstruction

Term = Annotated[Alignment | Dino | KernelMMD | MismatchDetection | Reconstruction, Field(discriminator="kind")]

__all__ = [
    "Alignment",
    "Dino",
    "KernelMMD",
    "MismatchDetection",
    "Outputs",
    "Patches",
    "Reconstruction",
    "Term",
    "TermConfig",
]
