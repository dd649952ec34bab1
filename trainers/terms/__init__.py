"""The terms an objective can be made of. `Term` is the list: add a class here and its `kind` works everywhere."""

from typing import Annotated

from pydantic import Field

from trainers.terms.alignment import Alignment
from trainers.terms.base import Outputs, TermConfig
from trainers.terms.mmd import KernelMMD

Term = Annotated[Alignment | KernelMMD, Field(discriminator="kind")]

__all__ = ["Alignment", "KernelMMD", "Outputs", "Term", "TermConfig"]
