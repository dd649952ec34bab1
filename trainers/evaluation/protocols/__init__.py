"""The protocols by name, one file each."""

from __future__ import annotations

from collections.abc import Mapping

from trainers.evaluation.protocol import Protocol
from trainers.evaluation.protocols.dense import Dense
from trainers.evaluation.protocols.detection import Detection, Segmentation
from trainers.evaluation.protocols.finetune import Finetune, LowLabelsFinetune
from trainers.evaluation.protocols.knn import Knn
from trainers.evaluation.protocols.linear import Linear
from trainers.evaluation.protocols.low_labels import LowLabels
from trainers.evaluation.protocols.multilabel import Multilabel
from trainers.evaluation.protocols.robustness import Robustness
from trainers.evaluation.protocols.transfer import Transfer

PROTOCOLS: Mapping[str, type[Protocol]] = {
    "linear": Linear,
    "knn": Knn,
    "low-labels": LowLabels,
    "robustness": Robustness,
    "transfer": Transfer,
    "multilabel": Multilabel,
    "finetune": Finetune,
    "low-labels-finetune": LowLabelsFinetune,
    "detection": Detection,
    "segmentation": Segmentation,
    "dense": Dense,
}
