"""`low-labels`: a linear classifier on frozen features that is fitted on few labels; how few are drawn and checked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Unpack

import numpy as np
from pydantic import BeforeValidator, Field

from trainers.data.manifest import Dataset
from trainers.data.splits import count_of, stratified_order
from trainers.evaluation.protocol import Data, Integers, Judged, LabeledImages, ProtocolResult, Task, together
from trainers.evaluation.protocols.linear import REGULARIZATIONS, Positive, at_an_end, fit_chosen, held_out_key
from trainers.settings import amount

if TYPE_CHECKING:
    from trainers.evaluation.subject import Subject

FEW = 5
"""Images of a class below which none is held out to choose by."""


def _amounts(values: Any) -> Any:
    return [amount(value, "shares") for value in values] if isinstance(values, list | tuple) else values


Shares = Annotated[tuple[int | str, ...], BeforeValidator(_amounts), Field(min_length=1)]
"""Of the training images' labels: shares such as 1%, or numbers of images."""


class LowLabels(LabeledImages):
    """`linear` by `lbfgs`, fitted on each of `shares` of the training images' labels: shares such as 1%, or numbers of
    images. Of ImageNet's 1% and 10% these are SimCLR's published lists (arXiv 2002.05709, section 4.2); otherwise a
    seed draws which, stratified and keyed by the data set, and smaller draws lie within larger ones.

    The regularization is chosen on the part of these labels that is `held_out`; where a class has fewer than 5 of them
    it is `regularization`.
    """

    name: Literal["low-labels"] = "low-labels"
    version: Literal[1] = 1
    shares: Shares = ("1%", "10%")
    held_out: float = Field(0.2, gt=0.0, le=0.5)
    regularizations: tuple[Positive, ...] = Field(REGULARIZATIONS, min_length=1)
    regularization: float = Field(0.1, gt=0.0)

    def check(self, dataset: Dataset) -> None:
        """Also that each class gets a label."""
        super().check(dataset)
        check_shares(self.name, self.shares, dataset)

    def run(self, subject: Subject, data: Data, **task: Unpack[Task]) -> ProtocolResult:
        """Scores `<share>/top1`, `<share>/top5`, `<share>/mean_class`; classes and confusion of the last share."""
        from trainers.evaluation import classification, frozen

        seeds, device, report = task["seeds"], task["device"], task["report"]
        began = time.monotonic()
        looked = self.looked_at(subject)
        fit, scored = frozen.features(looked, data, device=device, report=report)
        labels, names = data.fit_labels, data.dataset.manifest.class_names
        judged: list[Judged] = []
        chosen: list[dict[str, Any]] = []
        notes: dict[str, None] = {}
        fitted = 0
        for place, share in enumerate(self.shares):
            found = []
            for turn, seed in enumerate(seeds):
                report(f"low-labels {share}, seed {seed}", (place + turn / len(seeds)) / len(self.shares))
                ids, how = few(data, share, seed)
                fitted = max(fitted, len(ids))
                notes[how] = None
                counts = np.bincount(labels[ids], minlength=len(names))
                notes |= dict.fromkeys(classes_left_out(share, counts, names))
                too_few = int(counts.min()) < FEW
                if too_few:
                    notes[f"{share} is too few labels to hold some out: regularization {self.regularization:g}"] = None
                probe, said = fit_chosen(
                    fit.some(ids),
                    labels[ids],
                    class_count=len(names),
                    regularizations=(self.regularization,) if too_few else self.regularizations,
                    share=self.held_out,
                    key=held_out_key(data, seed),
                    device=device,
                )
                found.append(frozen.class_scores(probe, scored))
                chosen.append({"seed": seed, "share": share, **said})
            judged.append(classification.judge(found, data.score_labels, names, prefix=f"{share}/"))
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


class Few(NamedTuple):
    """A share of the labels."""

    places: Integers
    """Of these images among those that may be fitted on, ascending."""
    how: str
    """How they were chosen, in words."""


def few(data: Data, share: int | str, seed: int) -> Few:
    """The published list where the data set was written from ImageNet and knows one of that share; else `drawn`."""
    name = f"{float(share.removesuffix('%')):g}%" if isinstance(share, str) else ""
    listed = data.dataset.manifest.label_lists.get(name)
    if listed is None:
        places = drawn(data.fit_labels, share, data.dataset, seed)
        return Few(places, f"{share} of the labels: drawn by seed, stratified")
    places = np.flatnonzero(np.isin(data.fit_ids, listed.ids))
    how = f"{share} of the labels: SimCLR's published list, {len(places):,} images"
    if missing := listed.listed - len(places):
        how += f" (the other {missing:,} of these classes are not among those that are fitted on)"
    return Few(places, how)


def drawn(labels: Integers, share: int | str, dataset: Dataset, seed: int) -> Integers:
    """Places among the training images' `labels` [n] that a seed draws, ascending."""
    order = stratified_order(labels, f"evaluate/labels/{dataset.manifest.split_seed}/{seed}")
    return np.sort(order[: count_of(share, len(labels))])


def check_shares(name: str, shares: Sequence[int | str], dataset: Dataset) -> None:
    """ValueError where one of protocol `name`'s shares is no label for each class, or more than there are."""
    for share in shares:
        count = count_of(share, dataset.train_count)
        if not dataset.class_count <= count <= dataset.train_count:
            raise ValueError(
                f"{name}.shares must be at least {dataset.class_count} images, one for each class, and at most "
                f"{dataset.train_count} of {dataset.folder}, but {share} is {count}; change it with "
                f"--set {name}.shares='[\"10%\"]'"
            )


def classes_left_out(share: int | str, counts: Integers, names: Sequence[str]) -> list[str]:
    """What a reader has to know of a draw that has `counts` [C] labels of each class."""
    missing = [name for name, count in zip(names, counts, strict=True) if not count]
    return [f"{share} of the labels has none of some classes, such as {missing[0]!r}"] if missing else []
