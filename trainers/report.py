"""What a run tells whoever started it: a report each epoch, and one outcome. Plain values, readable without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from trainers import storage

MANIFEST = ".json"
"""Ending of a checkpoint's manifest."""

WITHIN_EPOCHS = "epoch-*-step-*.pt*"
"""What checkpoints that are written within an epoch, and their manifests, are called."""

METRICS: Mapping[str, str] = {
    "epoch": "epochs finished, counted from 1",
    "probe/linear": "accuracy on `select` of a linear probe that is fitted on part of `train`: what a search maximizes",
    "probe/knn": "the same of k nearest neighbors",
    "probe/full_linear": "linear probe fitted on all of `train`, on all of `select`; at the end of a run",
    "probe/full_knn": "kNN with all of `train`, on all of `select`; at the end of a run",
    "probe/<probe>_stderr": "standard error of a probe's accuracy over the images it is scored on",
    "probe/full_train_images": "images that the full probes are fitted on",
    "eval/<protocol>": "accuracy on `select` of a protocol with fixed numbers, fitted on the images of `train` that "
    "the probe is fitted on; where it is asked for (`--metric`, `probe.protocols`): `knn5`, `knn20`, `knn200`, each "
    "about what the linear probe takes, and `linear_lbfgs`, whose regularization is chosen on a held-out fifth, which "
    "takes six to seven times as long",
    "eval/<protocol>_stderr": "its standard error over the images it is scored on",
    "report/<probe>": "the same probes on `report`; by `pretune finalize` alone",
    "report/<probe>_stderr": "their standard errors",
    "report/health/<kind>/<measure>": "health on `report`, of data without labels; by `pretune finalize` alone",
    "loss/total": "the weighted sum, mean over the epoch's steps",
    "loss/<name>": "a term's value without its weight, mean over the epoch's steps",
    "health/features/<measure>": "of backbone features of images of `select`: `rank`, `effective_rank` (exponential of "
    "the spectrum's entropy), `stable_rank`, `whitening` (stable rank over width), `std`; and what stands for a probe "
    "where there are no labels: `rankme` (Garrido et al. 2023), `lidar` (Thilak et al. 2023), of 4 augmented views "
    "each of 256 images, and `alpha_req` (Agrawal et al. 2022), the exponent of the covariance's spectrum, best near 1",
    "health/embedding/<measure>": "the same of normalized projections, but `rankme` and `lidar` of projections as they "
    "are; and `cosine`, the mean between different ones",
    "health/<name>/<measure>": "what a term adds: `balanced_accuracy`, `mismatch_rate` and `loss_floor` of mismatch "
    "detection, `information` of DINO's and SwAV's prototypes in nats",
    "budget/views": "augmented views seen so far, over all workers",
    "budget/seconds": "seconds spent in training so far, without probes and checkpoints",
    "time/images_per_s": "images trained on per second in this epoch, over all workers",
    "time/epoch_s": "seconds of training in this epoch",
    "time/probe_s": "seconds of this epoch's probes and health",
    "time/wait_share": "share of this epoch's training, 0 to 1, in which a batch was waited for: by the process on a "
    "CPU, by the device on a GPU; the largest over all workers",
    "time/first_step_s": "seconds from the start of a run to its first step; of a run's first epoch",
    "time/group_start_s": "seconds that the worker group's newest start took; of the first epoch after it",
    "memory/host_peak_bytes": "most resident memory of a worker since the run began, with mapped pages of the data set "
    "that workers share; the largest over all workers (since the process began, where Linux keeps the mark)",
    "memory/gpu_peak_bytes": "most memory that torch held on a worker's GPU since the run began; the largest over all "
    "workers; on GPUs alone",
    "memory/slot_bytes": "what the slot takes of the head beside its workers; of the first epoch after a start",
    "model/parameters": "of the encoder: all numbers that its backbone trains",
    "optim/learning_rate": "of the epoch's last step",
    "optim/gradient_norm": "before clipping, mean over the epoch's steps",
}
"""Each metric's name, in which `<…>` stands for one word, and what it is. The names are part of the interface."""


def is_metric(name: str) -> bool:
    """Whether a run may report a number of that name."""
    return any(re.fullmatch(re.sub("<[^>]*>", "[a-z0-9_]+", pattern), name) for pattern in METRICS)


class Checkpoint(BaseModel):
    """Where a run's whole state lies: `path` is a file that every worker sees, or a URI; `sha256` is of its bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    sha256: str
    epoch: int
    """Epochs finished when it was written."""

    @property
    def manifest(self) -> str:
        """Where this value itself lies, there once all bytes of the file are: beside it, `epoch-0003.pt.json`."""
        if not storage.is_uri(self.path):
            return f"{self.path}{MANIFEST}"
        return storage.join(storage.parent_of(self.path), f"{storage.name_of(self.path)}{MANIFEST}")


class EpochReport(BaseModel):
    """One finished epoch, agreed by all ranks. `METRICS` lists the names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    """Epochs finished, counted from 1 over the whole run, resumed or not."""
    metrics: dict[str, float]
    """`probe/linear`, `probe/knn`, `loss/total`, `loss/<name>`, `health/…`, `budget/…`, `time/…`, `memory/…`."""
    checkpoint: Checkpoint | None = None
    """The newest checkpoint, if one was written at this epoch."""


class Outcome(BaseModel):
    """How a run ended, as a result: a configuration that diverges or does not fit in memory is no machine's failure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Literal["complete", "stopped", "diverged", "collapsed", "out_of_memory"]
    """`complete`: all epochs done. `stopped`: `report` asked for it. The rest: the configuration's own fault."""
    reason: str = ""
    epochs: int
