"""What a protocol is, what it is given and what it answers. Imports no torch: a request is checked without.

Letters: n = images, C = classes, K = seeds.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from trainers.data.manifest import Dataset

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trainers.data.loader import Loaders
    from trainers.evaluation.features import Store
    from trainers.evaluation.subject import Subject
    from trainers.settings import ViewConfig

Split = Literal["select", "report"]
Integers = NDArray[np.int64]
Report = Callable[[str, float], None]
"""What is being done, and how much of it is done, from 0 to 1."""

CONFIDENCE = 0.95
"""Of every interval."""
RESAMPLES = 1000
"""Of a bootstrap over images."""


class _Value(BaseModel):
    """What is stored; what a later version adds is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")


class Score(_Value):
    """One number of a protocol."""

    measure: str
    """`top1`, `top5`, `knn20`, `map`, …: shares are of 1."""
    value: float
    """The mean over seeds."""
    per_seed: tuple[float, ...]
    interval: tuple[float, float] | None = None
    """95 %: other images of the kind, and with several seeds other seeds, too. None where it can not be told."""
    count: int
    """Images that it is of."""


class ClassScore(_Value):
    """One class's row: `value` is a share of its `count` images (a class's average precision where images have
    several); None where it has none.
    """

    name: str
    value: float | None
    count: int


class ProtocolResult(_Value):
    """What came out of one protocol on one subject and data set. It says all that is needed to do it again."""

    protocol: dict[str, Any]
    """Its `name`, `version` and every number."""
    subject: str
    digest: str
    """Of the subject: weights, and how they are used."""
    data: str
    """What the data set is called."""
    manifest: str
    """The data set's hash."""
    split: Split
    """Whose images are scored. What is fitted is fitted on `train`; on `train` and `select` where `report` is."""
    seeds: tuple[int, ...]
    fitted: int
    """Images with labels that were fitted on."""
    scores: tuple[Score, ...]
    classes: tuple[ClassScore, ...] = ()
    confusion: tuple[tuple[int, int, int], ...] = ()
    """(class, what it was taken for, images), of the first seed; pairs that occur."""
    chosen: tuple[dict[str, Any], ...] = ()
    """For each seed what was chosen on the held-out part, and each candidate's accuracy there."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers has to know."""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return str(self.protocol["name"])

    def score(self, measure: str) -> Score:
        """KeyError where it has none of that name."""
        found = {one.measure: one for one in self.scores}
        return found[measure]


class Judged(NamedTuple):
    """What a subject is worth, of a `ProtocolResult`."""

    scores: tuple[Score, ...]
    classes: tuple[ClassScore, ...] = ()
    confusion: tuple[tuple[int, int, int], ...] = ()


def together(judged: Sequence[Judged], *, shown: int = 0) -> Judged:
    """All of their scores, with the classes and the confusion of the one at place `shown`."""
    return judged[shown]._replace(scores=tuple(score for one in judged for score in one.scores))


@dataclass(frozen=True)
class Data:
    """A data set as protocols see it: which images are fitted on, which are scored."""

    known: Dataset | None
    """None where images are annotated otherwise than by a label."""
    name: str
    split: Split
    loaders: Loaders
    store: Store
    """Features that were computed before, for this protocol or another one."""
    threads: int = 1
    annotations: Path | None = None
    """The folder of boxes, masks or several labels for each image, of a protocol that needs such."""

    @property
    def dataset(self) -> Dataset:
        """ValueError where images have no labels but annotations."""
        if self.known is None:
            raise ValueError(f"{self.name} must be a data set that `pretune data` wrote; name one with --data")
        return self.known

    @property
    def fit_ids(self) -> Integers:
        """Rows of the search file that may be fitted on: all images with labels that are not scored."""
        if self.split == "select":
            return self.dataset.train_ids
        return np.concatenate([self.dataset.train_ids, self.dataset.select_ids])

    @property
    def fit_labels(self) -> Integers:
        return self.dataset.search_labels()[self.fit_ids]

    @property
    def file(self) -> Literal["search", "report"]:
        """Which file the scored images are in."""
        return "report" if self.split == "report" else "search"

    @property
    def score_ids(self) -> Integers:
        """Rows of that file."""
        if self.split == "select":
            return self.dataset.select_ids
        return np.arange(self.dataset.report_count, dtype=np.int64)

    @property
    def score_labels(self) -> Integers:
        if self.split == "report":
            return self.dataset.report_labels()
        return self.dataset.search_labels()[self.dataset.select_ids]

    def augmented(
        self, subject: Subject, ids: Integers, view: ViewConfig, *, batch_size: int, seed: int, epoch: int
    ) -> Iterator[tuple[Tensor, Integers]]:
        """Batches of rows `ids` of the search file, changed as `view` says and normalized as the subject's own, and
        which rows these are.
        """
        batches = self.loaders.augmented(
            self.dataset,
            ids,
            views=(view,),
            batch_size=batch_size,
            threads=self.threads,
            seed=seed,
            epoch=epoch,
            normalization=(subject.mean, subject.std),
        )
        return ((views[0], rows) for views, rows in batches)


class Task(TypedDict):
    """How a protocol is run, beside on what."""

    seeds: Sequence[int]
    device: torch.device
    report: Report


class Protocol(BaseModel, ABC):
    """How a subject is judged: a frozen value whose fields are all of its numbers, `name` and `version` among them.

    A version is raised when the same numbers would give another result. Files of protocols import torch in functions
    alone, so that a request is checked without.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    version: int
    source: str = "features"
    """What is looked at: a name in `Subject.sources`."""

    draws: ClassVar[bool] = True
    """Whether a seed changes anything; where it does not, one is enough."""
    annotated: ClassVar[Literal["several labels", "boxes", "masks"] | None] = None
    """What images have instead of one label each, where `--data` says; `Data.annotations` is then that place."""
    elsewhere: ClassVar[bool] = False
    """Whether it is about other data than the network was trained on, so that these have to be named."""

    def check(self, dataset: Dataset) -> None:
        """ValueError where it can not be done on that data set. Nothing has been started yet."""
        if not dataset.has_labels:
            raise ValueError(
                f"protocol {self.name!r} needs labels, but the images of {dataset.folder} have none; evaluate on a "
                "data set with labels: --data"
            )
        if dataset.class_count == 1:
            raise ValueError(
                f"protocol {self.name!r} needs two classes or more, but all images of {dataset.folder} are of one, "
                "which makes every answer right; evaluate on another data set: --data"
            )
        counts = zip(dataset.manifest.class_names, dataset.manifest.class_counts["train"], strict=True)
        empty = [repr(name) for name, count in counts if not count]
        if empty:
            raise ValueError(
                f"protocol {self.name!r} needs images of each class in `train`, but {dataset.folder} has none of "
                f"{', '.join(empty[:5])}; build the data set again without them"
            )

    def check_annotated(self, place: Path, split: Split) -> str:
        """The hash of the images at `place` and of what is looked at of their annotations. ValueError where they will
        not do. Nothing has been started yet.
        """
        raise ValueError(f"protocol {self.name!r} takes data sets that `pretune data` wrote, no annotated images")

    def check_workers(self, workers: int, dataset: Dataset | None) -> None:
        """ValueError where `workers` processes cannot divide the work on that data set, None of annotated images.
        Nothing has been started yet.
        """

    def check_subject(self, subject: Subject) -> None:
        """ValueError where it has no such source, or the protocol can not look at a network of its kind."""
        subject.at(self.source)

    @abstractmethod
    def run(self, subject: Subject, data: Data, **task: Unpack[Task]) -> ProtocolResult:
        """Judge `subject` on `data`, once for each seed.

        ValueError where the subject has no such source, or its numbers are not finite.
        """

    def result(
        self,
        subject: Subject,
        data: Data,
        judged: Judged,
        *,
        seeds: Sequence[int],
        fitted: int,
        seconds: float,
        manifest: str | None = None,
        chosen: Sequence[dict[str, Any]] = (),
        notes: Sequence[str] = (),
    ) -> ProtocolResult:
        """With what every result says of its protocol, subject and data. `manifest` is the data set's hash, by default
        that of images with one label each.
        """
        return ProtocolResult(
            protocol=self.model_dump(mode="json"),
            subject=subject.name,
            digest=subject.digest,
            data=data.name,
            manifest=data.dataset.manifest_hash if manifest is None else manifest,
            split=data.split,
            seeds=tuple(seeds),
            fitted=fitted,
            scores=judged.scores,
            classes=judged.classes,
            confusion=judged.confusion,
            chosen=tuple(chosen),
            notes=tuple(notes),
            seconds=seconds,
        )


class LabeledImages(Protocol):
    """A protocol on a data set's images, of which each has one label. Those that nothing is drawn of are resized to the
    subject's size / `crop_pct` and their center cropped: 1 shows most, 0.875 is the 256 and 224 of papers.
    """

    crop_pct: float = Field(1.0, gt=0.0, le=1.0)

    def looked_at(self, subject: Subject) -> Subject:
        """The subject at `source`, with this crop. ValueError where it has no such source."""
        return subject.at(self.source, crop_pct=self.crop_pct)


def check_batch(name: str, batch_size: int, workers: int) -> None:
    """ValueError where so many workers do not divide the batch of protocol `name`."""
    if batch_size % workers:
        nearest = max(1, batch_size // workers) * workers
        raise ValueError(
            f"{name}.batch_size must be divisible by the number of workers, but is {batch_size} with --workers "
            f"{workers}; use --set {name}.batch_size={nearest}, or other workers"
        )


def digest(values: Mapping[str, Any]) -> str:
    """sha256 of plain values, whatever the order of their names."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# --- intervals --------------------------------------------------------------------------------------------------------


def share(measure: str, correct: NDArray[Any]) -> Score:
    """The score of `correct` [K, n], whether each image was told right with each seed.

    The interval joins two: Wilson's over images (of the mean over seeds: it is never narrower than of 0 and 1), and
    Student's over seeds, as the root of the sum of their squares.
    """
    per_seed = correct.mean(axis=1)
    return joined(measure, per_seed, count=correct.shape[1], images=_wilson(float(per_seed.mean()), correct.shape[1]))


def joined(
    measure: str, per_seed: Sequence[float] | NDArray[Any], *, count: int, images: tuple[float, float] | None
) -> Score:
    """A score whose interval over images is `images`, widened by what seeds vary, within 0 and 1. Not-a-number has
    none.
    """
    values = tuple(float(value) for value in per_seed)
    mean = math.fsum(values) / len(values)
    interval = None
    if images is not None and math.isfinite(mean):
        half = _of_seeds(values)
        low, high = mean - math.hypot(mean - images[0], half), mean + math.hypot(images[1] - mean, half)
        interval = (max(low, min(0.0, mean)), min(high, max(1.0, mean)))
    return Score(measure=measure, value=mean, per_seed=values, interval=interval, count=count)


def bootstrapped(
    statistic: Callable[[NDArray[np.int64]], float], count: int, *, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The interval over images of a `statistic` of some rows of [0, count): the normal one around its value with the
    bootstrap's standard error. Draws are keyed by `count` alone.
    """
    generator = np.random.Generator(np.random.Philox(key=count))
    drawn = [statistic(generator.integers(0, count, count)) for _ in range(resamples)]
    return around(statistic(np.arange(count)), drawn, count)


def around(value: float, drawn: Sequence[float], count: int) -> tuple[float, float]:
    """The normal interval around a value from 0 to 1 of `count` images, with the deviation of a bootstrap's draws.

    Where all draws are equal, as with every image right, these images do not show what others would do: then it is
    Wilson's, of a share of the images.
    """
    deviation = float(np.std(drawn, ddof=1))
    if deviation <= 1e-12 and 0.0 <= value <= 1.0:
        return _wilson(value, count)
    return value - NORMAL * deviation, value + NORMAL * deviation


NORMAL = 1.959963984540054
"""The normal law's quantile of 97.5 %."""


def _wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's interval of a share of `count` images."""
    square = NORMAL**2
    center = (share + square / (2 * count)) / (1 + square / count)
    half = NORMAL / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return min(center - half, share), max(center + half, share)


def _of_seeds(values: Sequence[float]) -> float:
    """Half of Student's interval of a mean; 0 of one value alone, which tells nothing of others."""
    if len(values) < 2:
        return 0.0
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
