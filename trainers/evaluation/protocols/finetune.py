"""`finetune`: the whole network, trained on with a linear head; `low-labels-finetune`: the same on few labels."""

from __future__ import annotations

import hashlib
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Unpack

import numpy as np
from pydantic import Field, model_validator

from trainers.data.manifest import Dataset
from trainers.data.splits import count_of, stratified_order
from trainers.evaluation.protocol import (
    Data,
    Integers,
    Judged,
    LabeledImages,
    ProtocolResult,
    Report,
    Task,
    check_batch,
    together,
)
from trainers.evaluation.protocols.linear import at_an_end
from trainers.evaluation.protocols.low_labels import FEW, Shares, check_shares, classes_left_out, few

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trainers.evaluation.finetuning import Recipe
    from trainers.evaluation.outcomes import Arrays
    from trainers.evaluation.subject import Subject

RATES: Mapping[str, tuple[float, ...]] = {"sgd": (0.003, 0.01, 0.03, 0.1), "adamw": (1e-4, 3e-4, 1e-3, 3e-3)}
"""What is tried where no rates are given."""
RATE: Mapping[str, float] = {"sgd": 0.03, "adamw": 1e-3}
"""Where labels are too few to choose."""


class Tuning(LabeledImages):
    """All parameters, by SGD for residual networks (SimCLR, arXiv 2002.05709, appendix B.8.1: Nesterov's momentum of
    0.9) and by AdamW with a rate that falls from layer to layer for transformers (MAE, arXiv 2111.06377, table 9), with
    crops and flips; mixup and label smoothing are off.

    The learning rate is the one of `rates` that tells most images right of a stratified part of what is fitted on,
    `held_out` of it, after a training on the rest; the network is then trained on all of it. What is scored is never
    looked at. The head starts as the linear probe of the frozen features, so that rate 0 is that probe (arXiv
    2202.10054); `head` "zero" starts as most papers do.
    """

    optimizer: Literal["auto", "sgd", "adamw"] = Field("auto", description="auto: adamw for transformers, else sgd")
    rates: tuple[Annotated[float, Field(ge=0.0)], ...] | None = Field(
        None, min_length=1, description="learning rates for 256 images; by default four for the optimizer"
    )
    held_out: float = Field(0.2, gt=0.0, lt=1.0)
    epochs: int = Field(30, ge=1)
    batch_size: int = Field(256, ge=1)
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="of sgd")
    weight_decay: float | None = Field(None, ge=0.0, description="by default 0 with sgd and 0.05 with adamw")
    warmup_share: float = Field(0.1, ge=0.0, lt=1.0, description="of all steps")
    layer_decay: float = Field(
        0.75, gt=0.0, le=1.0, description="of transformers: each layer's rate over the next one's"
    )
    norm: Literal["batch", "frozen"] = Field("batch", description="statistics of batch norm while it is trained")
    head: Literal["linear", "zero"] = "linear"
    regularization: float = Field(1e-3, gt=0.0, description="of the linear probe that the head starts as")
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: float = Field(0.5, ge=0.0, le=1.0)
    mixup: float = Field(0.0, ge=0.0, description="alpha; 0 is off")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _crops_are_a_range(self) -> Self:
        low, high = self.crop_scale
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(f"crop_scale must be (low, high) with 0 < low <= high <= 1, but is ({low}, {high})")
        return self

    def check_workers(self, workers: int, dataset: Dataset | None) -> None:
        """They must divide the batch, and each must have an image of the smallest one."""
        check_batch(self.name, self.batch_size, workers)
        if dataset is None:
            return
        for share in self.amounts().values():
            count = count_of(share, dataset.train_count)
            if workers > (count if self.rates is not None and len(self.rates) == 1 else count * (1 - self.held_out)):
                raise ValueError(
                    f"protocol {self.name!r} needs an image for each worker in a batch, but trains on {count} images "
                    f"or fewer with --workers {workers}; use fewer workers"
                )

    @abstractmethod
    def amounts(self) -> Mapping[str, int | str]:
        """How much of the labels is fitted on, by what the scores' names then begin with."""

    def run(self, subject: Subject, data: Data, **task: Unpack[Task]) -> ProtocolResult:
        """Scores `top1`, `top5`, `mean_class`, each with its beginning; classes and confusion of the last one. `chosen`
        has what each rate told right of the held-out part, None where it diverged. Each seed has its own order, views,
        held-out part and, of few labels, images.
        """
        import torch

        from trainers.evaluation import classification

        seeds, device, report = task["seeds"], task["device"], task["report"]
        began = time.monotonic()
        looked = self.looked_at(subject)
        labels, names = data.fit_labels, data.dataset.manifest.class_names
        judged: list[Judged] = []
        chosen: list[dict[str, Any]] = []
        notes: dict[str, None] = {}
        fitted = 0
        for prefix, share in self.amounts().items():
            found = []
            for place, seed in enumerate(seeds):
                rows, how = few(data, share, seed)
                if prefix:
                    notes[how] = None
                counts = np.bincount(labels[rows], minlength=len(names))
                notes |= dict.fromkeys(classes_left_out(share, counts, names))
                too_few = self.rates is None and int(counts.min()) < FEW
                rates = self._rates(looked.kind, few=too_few)
                if too_few:
                    notes[f"{share} is too few labels to hold some out: rate {rates[0]:g}"] = None
                else:
                    notes[self._tried(looked.kind, rates)] = None
                of = f", {share} of labels" if prefix else ""
                said = f"{of} (seed {place + 1} of {len(seeds)})" if len(seeds) > 1 else of
                made = self.tuned(
                    looked, data, data.fit_ids[rows], rates, seed=seed, device=device, report=report, said=said
                )
                found.append(torch.from_numpy(made["scores"]))
                tried = zip(rates, made["held_out"].tolist(), strict=True)
                held_out = {f"{rate:g}": None if np.isnan(right) else right for rate, right in tried}
                chosen.append(
                    {
                        "seed": seed,
                        **({"share": share} if prefix else {}),
                        "chosen": float(made["rate"]),
                        "held_out": held_out if len(held_out) > 1 else {},
                        "images": int(made["held"]),
                    }
                )
                fitted = max(fitted, len(rows))
            judged.append(classification.judge(found, data.score_labels, names, prefix=prefix))
        return self.result(
            looked,
            data,
            together(judged, shown=-1),
            seeds=seeds,
            fitted=fitted,
            chosen=chosen,
            notes=(*notes, *at_an_end(chosen)),
            seconds=time.monotonic() - began,
        )

    def recipe(self, kind: str) -> Recipe:
        """Its numbers, as the loop takes them, for a network of this kind."""
        from trainers.evaluation.finetuning import Recipe

        own: dict[str, Any] = {name: getattr(self, name) for name in Recipe._fields}
        own["optimizer"] = self._optimizer(kind)
        if self.weight_decay is None:
            own["weight_decay"] = 0.05 if own["optimizer"] == "adamw" else 0.0
        return Recipe(**own)

    def _optimizer(self, kind: str) -> Literal["sgd", "adamw"]:
        if self.optimizer != "auto":
            return self.optimizer
        return "adamw" if kind == "vit" else "sgd"

    def _tried(self, kind: str, rates: Sequence[float]) -> str:
        recipe = self.recipe(kind)
        listed = ", ".join(f"{rate:g}" for rate in rates)
        return f"{self.name} by {recipe.optimizer}, weight decay {recipe.weight_decay:g}, learning rates {listed}"

    def _rates(self, kind: str, *, few: bool) -> tuple[float, ...]:
        """What is tried."""
        optimizer = self._optimizer(kind)
        return self.rates or ((RATE[optimizer],) if few else RATES[optimizer])

    def tuned(
        self,
        subject: Subject,
        data: Data,
        ids: Integers,
        rates: tuple[float, ...],
        *,
        seed: int,
        device: torch.device,
        report: Report,
        said: str = "",
    ) -> Arrays:
        """One seed on the images `ids`, from its file where it was done before: `scores` [n, C] of what is scored,
        `held_out` (the share told right with each of `rates`, of as many images as `held`) and the chosen `rate`.
        """
        from trainers.evaluation import finetuning, together
        from trainers.evaluation.outcomes import outcome

        recipe = self.recipe(subject.kind)
        numbers = data.dataset.search_labels()

        def scores(
            rows: Integers, rate: float, asked: Integers, file: Literal["search", "report"], what: str
        ) -> Tensor:
            found = together.divided(
                finetuning.tuned_scores,
                subject,
                data,
                device=device,
                report=lambda done: report(f"fine-tuning {what}{said}", done),
                ids=rows,
                recipe=recipe,
                rate=rate,
                seed=seed,
                asked=asked,
                file=file,
            )
            if isinstance(found, finetuning.DivergedError):
                raise found
            return found

        def share_right(rate: float, rest: Integers, held: Integers) -> float:
            try:
                found = scores(rest, rate, held, "search", f"with rate {rate:g}")
            except finetuning.DivergedError:
                return float("nan")
            return float((found.argmax(1).numpy() == numbers[held]).mean())

        def make() -> Arrays:
            best, right, count = rates[0], [float("nan")] * len(rates), 0
            if len(rates) > 1:
                rest, held = _divided(ids, numbers[ids], self.held_out, f"held out/{seed}")
                count = len(held)
                right = [share_right(rate, rest, held) for rate in rates]
                if np.isnan(right).all():
                    raise ValueError(
                        f"fine-tuning {subject.name} must not diverge, but does at each rate of "
                        f"{', '.join(f'{rate:g}' for rate in rates)}; lower {self.name}.rates"
                    )
                best = rates[int(np.nanargmax(right))]
            found = scores(ids, best, data.score_ids, data.file, "on all labels")
            return {
                "scores": found.numpy(),
                "held_out": np.array(right),
                "held": np.array(count),
                "rate": np.array(best),
            }

        key = {
            "recipe": recipe._asdict(),
            "rates": rates,
            "held": self.held_out,
            "version": self.version,
            "subject": subject.key,
            "data": data.dataset.manifest_hash,
            "split": data.split,
            "ids": hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest(),
            "seed": seed,
        }
        return outcome(data.store.folder / "outcomes", key, make)


class Finetune(Tuning):
    """On all labels that may be fitted on."""

    name: Literal["finetune"] = "finetune"
    version: Literal[1] = 1

    def amounts(self) -> Mapping[str, int | str]:
        return {"": "100%"}


class LowLabelsFinetune(Tuning):
    """On each of `shares` of the training images' labels, the ones that `low-labels` draws with the same seed, so that
    both tell what the same labels are worth. 60 epochs as SimCLR's on 1 % of ImageNet (arXiv 2002.05709, B.5).

    Where no `rates` are named and a class has fewer than 5 of these labels, nothing is chosen.
    """

    name: Literal["low-labels-finetune"] = "low-labels-finetune"
    version: Literal[1] = 1
    shares: Shares = ("1%", "10%")
    epochs: int = Field(60, ge=1)

    def check(self, dataset: Dataset) -> None:
        """Also that each class gets a label."""
        super().check(dataset)
        check_shares(self.name, self.shares, dataset)

    def amounts(self) -> Mapping[str, int | str]:
        return {f"{share}/": share for share in self.shares}


def _divided(ids: Integers, labels: Integers, share: float, key: str) -> tuple[Integers, Integers]:
    """(the rest, a stratified share) of images; at least one each. Classes with a single image stay in the rest.
    ValueError where none can be held out.
    """
    counts = np.bincount(labels)
    order = stratified_order(labels, key)
    order = order[counts[labels[order]] > 1]
    held = order[: max(1, round(share * len(ids)))]
    if not len(held) or len(held) == len(ids):
        raise ValueError(
            f"a learning rate is chosen on a part of the images with labels, but {len(ids)} are too few; name one rate "
            "with --set NAME.rates=[0.01]"
        )
    return np.sort(np.delete(ids, held)), np.sort(ids[held])
