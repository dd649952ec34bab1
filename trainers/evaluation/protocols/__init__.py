"""The protocols by name, one file each."""

from __future__ import annotations

from collections.abc import Mapping

from trainers.evaluation.protocol import Protocol
from trainers.evaluation.protocols.dense import Dense
from trainers.evaluation.protocols.detection import Detection, Segmentation
from trainers.evaluation.protocols.finetune import Finetune
from trainers.evaluation.protocols.knn import Knn

PROTOCOLS: Mapping[str, type[Protocol]] = {
    "knn": Knn,
    "finetune": Finetune,
    "detection": Detection,
    "segmentation": Segmentation,
    "dense": Dense,
}
