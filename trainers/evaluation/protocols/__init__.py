"""The protocols by name, one file each."""

from __future__ import annotations

from collections.abc import Mapping

from trainers.evaluation.protocol import Protocol
from trainers.evaluation.protocols.knn import Knn

PROTOCOLS: Mapping[str, type[Protocol]] = {"knn": Knn}
