"""`finetune`: the whole network, trained on with a linear head."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from trainers.evaluation.protocol import Data, Integers, Protocol, ProtocolResult, Report

if TYPE_CHECKING:
    import torch

    from trainers.evaluation.finetuning import Recipe
    from trainers.evaluation.outcomes import Arrays
    from trainers.evaluation.subject import Subject

SGD_RATES, ADAMW_RATES = (0.003, 0.01, 0.03, 0.1), (1e-4, 3e-4, 1e-3, 3e-3)
"""What is tried where no rates are given."""


class Finetune(Protocol):
    """All parameters, by SGD for residual networks (SimCLR, arXiv 2002.05709, appendix B.8.1: Nesterov's momentum of
    0.9) and by AdamW with a rate that falls from layer to layer for transformers (MAE, arXiv 2111.06377, table 9), with
    crops and flips; mixup and label smoothing are off.

    The learning rate is the one of `rates` that tells most images right of a stratified part of what is fitted on,
    `held_out` of it, after a training on the rest; the network is then trained on all of it. What is scored is never
    looked at. The head starts as the linear probe of the frozen features, so that rate 0 is that probe (arXiv
    2202.10054); `head` "zero" starts as most papers do.
    """

    name: Literal["finetune"] = "finetune"
    version: Literal[1] = 1
    share: float = Field(1.0, gt=0.0, le=1.0, description="of the labels, stratified; less than 1: few labels")
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

    trains: ClassVar[bool] = True

    @model_validator(mode="after")
    def _crops_are_a_range(self) -> Finetune:
        low, high = self.crop_scale
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(f"crop_scale must be (low, high) with 0 < low <= high <= 1, but is ({low}, {high})")
        return self

    def run(
        self,
        subject: Subject,
        data: Data,
        *,
        seeds: Sequence[int],
        device: torch.device,
        report: Report,
        workers: int = 1,
    ) -> ProtocolResult:
        """Scores `top1` and, of more than five classes, `top5`; `chosen` has what each rate told right of the held-out
        part, None where it diverged. Each seed has its own order, views, held-out part and,
        with a `share`, its own images.
        """
        import torch

        from trainers.evaluation import classification, frozen

        began = time.monotonic()
        looked = subject.at(self.source)
        names = data.dataset.manifest.class_names
        scores, chosen, fitted = [], [], 0
        for place, seed in enumerate(seeds):
            ids = self.fit_ids(data, seed)
            said = f" (seed {place + 1} of {len(seeds)})" if len(seeds) > 1 else ""
            found = self.tuned(looked, data, ids, seed=seed, device=device, report=report, said=said)
            scores.append(torch.from_numpy(found["scores"]))
            tried = zip(found["rates"].tolist(), found["held_out"].tolist(), strict=True)
            held_out = {f"{rate:g}": None if np.isnan(right) else right for rate, right in tried}
            chosen.append({"rate": float(found["rate"]), "held_out": held_out if len(held_out) > 1 else {}})
            fitted = len(ids)
        judged = classification.judge(scores, data.score_labels, names)
        return frozen.result(
            self,
            looked,
            data,
            seeds=seeds,
            scores=judged.scores,
            judged=judged,
            fitted=fitted,
            chosen=tuple(chosen),
            notes=("trained by one process",) if workers > 1 else (),
            seconds=time.monotonic() - began,
        )

    def fit_ids(self, data: Data, seed: int) -> Integers:
        """The images that are fitted on, in ascending order. ValueError where a class has none of them."""
        from trainers.data.splits import stratified_order

        ids, labels = data.fit_ids, data.fit_labels
        if self.share < 1.0:
            order = stratified_order(labels, f"finetune/{data.dataset.manifest.split_seed}/{seed}")
            kept = order[: max(1, round(self.share * len(ids)))]
            ids, labels = np.sort(ids[kept]), labels[kept]
        counts = np.bincount(labels, minlength=data.dataset.class_count)
        if empty := [repr(data.dataset.manifest.class_names[label]) for label in np.flatnonzero(counts == 0)]:
            raise ValueError(
                f"finetune.share must leave an image of each class, but {self.share:g} of {len(data.fit_ids):,} images "
                f"leaves none of {', '.join(empty[:5])}; raise it"
            )
        return ids

    def recipe(self, kind: str) -> Recipe:
        """Its numbers, as the loop takes them, for a network of this kind."""
        from trainers.evaluation.finetuning import Recipe

        own: dict[str, Any] = {name: getattr(self, name) for name in Recipe._fields}
        if self.optimizer == "auto":
            own["optimizer"] = "adamw" if kind == "vit" else "sgd"
        if self.weight_decay is None:
            own["weight_decay"] = 0.05 if own["optimizer"] == "adamw" else 0.0
        return Recipe(**own)

    def tuned(
        self,
        subject: Subject,
        data: Data,
        ids: Integers,
        *,
        seed: int,
        device: torch.device,
        report: Report,
        said: str = "",
    ) -> Arrays:
        """One seed, from its file where it was done before: `scores` [n, C] of what is scored, `rates`, `held_out`
        (the share told right with each) and the chosen `rate`.
        """
        from trainers.evaluation import finetuning
        from trainers.evaluation.outcomes import outcome

        recipe = self.recipe(subject.kind)
        rates = self.rates or (ADAMW_RATES if recipe.optimizer == "adamw" else SGD_RATES)
        numbers = data.dataset.search_labels()

        def trained(rows: Integers, rate: float, what: str) -> finetuning.Tuned:
            return finetuning.tune(
                subject,
                data,
                rows,
                recipe,
                rate=rate,
                seed=seed,
                device=device,
                report=lambda done: report(f"fine-tuning {what}{said}", done),
            )

        def share_right(rate: float, rest: Integers, held: Integers) -> float:
            try:
                model = trained(rest, rate, f"with rate {rate:g}")
            except finetuning.DivergedError:
                return float("nan")
            found = finetuning.class_scores(subject, model, data, held, file="search", device=device)
            return float((found.argmax(1).numpy() == numbers[held]).mean())

        def make() -> Arrays:
            best, right = rates[0], [float("nan")] * len(rates)
            if len(rates) > 1:
                rest, held = _divided(ids, numbers[ids], self.held_out, f"held out/{seed}")
                right = [share_right(rate, rest, held) for rate in rates]
                if np.isnan(right).all():
                    raise ValueError(
                        f"fine-tuning {subject.name} must not diverge, but does at each rate of "
                        f"{', '.join(f'{rate:g}' for rate in rates)}; lower finetune.rates"
                    )
                best = rates[int(np.nanargmax(right))]
            model = trained(ids, best, "on all labels")
            found = finetuning.class_scores(subject, model, data, data.score_ids, file=data.file, device=device)
            return {
                "scores": found.numpy(),
                "rates": np.array(rates),
                "held_out": np.array(right),
                "rate": np.array(best),
            }

        key = {
            "protocol": self.model_dump(mode="json"),
            "subject": subject.digest,
            "data": data.dataset.manifest_hash,
            "split": data.split,
            "ids": hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest(),
            "seed": seed,
        }
        return outcome(data.store.folder / "outcomes", key, make)


def _divided(ids: Integers, labels: Integers, share: float, key: str) -> tuple[Integers, Integers]:
    """(the rest, a stratified share) of images; at least one each. Classes with a single image stay in the rest."""
    from trainers.data.splits import stratified_order

    counts = np.bincount(labels)
    order = stratified_order(labels, key)
    order = order[counts[labels[order]] > 1]
    held = order[: max(1, round(share * len(ids)))]
    if not len(held) or len(held) == len(ids):
        raise ValueError(
            f"a learning rate is chosen on a part of the images with labels, but {len(ids)} are too few; name one rate "
            "with finetune.rates"
        )
    return np.sort(np.delete(ids, held)), np.sort(ids[held])
