"""`linear`: a linear classifier on frozen features, by convex regression or as papers train it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Unpack

from pydantic import Field

from trainers.evaluation.protocol import Data, Integers, LabeledImages, ProtocolResult, Report, Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trainers.evaluation.frozen import Features
    from trainers.evaluation.regression import LinearProbe
    from trainers.evaluation.subject import Subject

REGULARIZATIONS = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
Positive = Annotated[float, Field(gt=0.0)]


class Linear(LabeledImages):
    """A linear classifier on frozen features; its strength is chosen on the part of the training images that is
    `held_out`, never on those that are scored, and it is fitted again on all of them.

    `solver` `lbfgs`: logistic regression on standardized features to its optimum, `regularizations` are its λ in mean
    cross-entropy + λ / 2 ||W||². `sgd`: momentum and a cosine from each of `learning_rates` to 0 over `epochs`, all
    rates at once on the same batches, as papers train it (SimCLR, arXiv 2002.05709; MoCo, arXiv 1911.05722); with
    `augmentation` `crop_flip` each epoch sees other crops (area from 0.08 on, ratio 3/4 to 4/3) and flips, which takes
    a pass of the network, with `none` features that are kept.
    """

    name: Literal["linear"] = "linear"
    version: Literal[1] = 1
    solver: Literal["lbfgs", "sgd"] = "lbfgs"
    held_out: float = Field(0.1, gt=0.0, le=0.5)
    regularizations: tuple[Positive, ...] = Field(REGULARIZATIONS, min_length=1)
    learning_rates: tuple[Positive, ...] = Field((0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0), min_length=1)
    epochs: int = Field(100, ge=1)
    batch_size: int = Field(256, ge=1)
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    weight_decay: float = Field(0.0, ge=0.0)
    augmentation: Literal["crop_flip", "none"] = "crop_flip"

    def run(self, subject: Subject, data: Data, **task: Unpack[Task]) -> ProtocolResult:
        """Scores `top1`, `top5`, `mean_class`, `calibration_error`; `chosen` has the grid of each seed."""
        from trainers.evaluation import classification, frozen

        seeds, device, report = task["seeds"], task["device"], task["report"]
        began = time.monotonic()
        looked = self.looked_at(subject)
        fit, scored = frozen.features(looked, data, device=device, report=report)
        found = []
        for place, seed in enumerate(seeds):
            if self.solver == "lbfgs":
                report(f"linear, seed {seed}", place / len(seeds))
                probe, chosen = fit_chosen(
                    fit,
                    data.fit_labels,
                    class_count=data.dataset.class_count,
                    regularizations=self.regularizations,
                    share=self.held_out,
                    key=held_out_key(data, seed),
                    device=device,
                )
                found.append((frozen.class_scores(probe, scored), {"seed": seed, **chosen}))
            else:
                found.append(self._trained(looked, data, fit, scored, seed=seed, device=device, report=report))
        names = data.dataset.manifest.class_names
        judged = classification.judge([scores for scores, _ in found], data.score_labels, names, logits=True)
        chosen_by_seed = tuple(chosen for _, chosen in found)
        return self.result(
            looked,
            data,
            judged,
            seeds=seeds,
            fitted=fit.count,
            chosen=chosen_by_seed,
            notes=at_an_end(chosen_by_seed),
            seconds=time.monotonic() - began,
        )

    def _trained(
        self,
        subject: Subject,
        data: Data,
        fit: Features,
        scored: Features,
        *,
        seed: int,
        device: torch.device,
        report: Report,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Class scores [n, C] of the chosen rate, and what was chosen. One training gives both: of each rate there is a
        head that never sees what is held out, and one that sees all.
        """
        from trainers.evaluation import frozen, heads

        labels = data.fit_labels
        inside, held = frozen.held_out(labels, self.held_out, held_out_key(data, seed))
        check_held(held, data)
        trained = heads.train(
            subject,
            data,
            fit,
            inside,
            heads.Schedule(
                self.learning_rates,
                self.epochs,
                self.batch_size,
                self.momentum,
                self.weight_decay,
                self.augmentation == "crop_flip",
            ),
            seed=seed,
            device=device,
            report=report,
        )
        accuracies = trained.accuracies(fit.some(held), labels[held], device)
        best = max(range(len(accuracies)), key=lambda place: accuracies[place])
        chosen = {
            "seed": seed,
            "chosen": self.learning_rates[best],
            "held_out": dict(zip(map(str, self.learning_rates), accuracies, strict=True)),
            "images": len(held),
        }
        return trained.scores(scored, best, device), chosen


class Chosen(NamedTuple):
    """A probe that was fitted on all, with the regularization that was best on what was held out."""

    probe: LinearProbe
    said: dict[str, Any]


def fit_chosen(
    fit: Features,
    labels: Integers,
    *,
    class_count: int,
    regularizations: Sequence[float],
    share: float,
    key: str,
    device: torch.device,
) -> Chosen:
    """Logistic regression on features [n, p]. Of regularizations with equal accuracy the strongest is taken; one alone
    is taken as it is.
    """
    import torch

    from trainers.evaluation import frozen
    from trainers.evaluation.regression import fit_linear, regularization_path

    target = torch.from_numpy(labels).to(device)
    accuracies: dict[float, float] = {}
    held: Integers = labels[:0]
    best = regularizations[0]
    if len(regularizations) > 1:
        inside, held = frozen.held_out(labels, share, key)
        if not len(held):
            raise ValueError(
                f"the part of the training images that is held out must have some, but {share:g} of {len(labels)} has "
                "none; raise held_out, or give one regularization alone"
            )
        outside = fit.some(held)
        path = regularization_path(
            frozen.matrix(fit.some(inside), device),
            target[torch.from_numpy(inside).to(device)],
            class_count=class_count,
            regularizations=regularizations,
        )
        for regularization, probe in path:
            predicted = frozen.class_scores(probe, outside).argmax(1).numpy()
            accuracies[regularization] = float((predicted == labels[held]).mean())
        best = max(accuracies, key=lambda one: (accuracies[one], one))
    probe = fit_linear(frozen.matrix(fit, device), target, class_count=class_count, regularization=best)
    said = {
        "chosen": best,
        "held_out": {str(one): accuracies[one] for one in sorted(accuracies)},
        "images": len(held),
    }
    return Chosen(probe, said)


def held_out_key(data: Data, seed: int) -> str:
    """What the draw of the held-out part is keyed by: all subjects have the same."""
    return f"evaluate/held-out/{data.dataset.manifest.split_seed}/{seed}"


def check_held(held: Integers, data: Data) -> None:
    """ValueError where nothing is held out to choose on."""
    if not len(held):
        raise ValueError(f"some of the training images of {data.name} must be held out, but none are; raise held_out")


def at_an_end(chosen: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """A note where the best of a grid is its first or last: a wider one might have a better one."""
    ends = [
        one["chosen"]
        for one in chosen
        if len(one["held_out"]) > 1 and one["chosen"] in {func(map(float, one["held_out"])) for func in (min, max)}
    ]
    return (f"what was chosen is at an end of the grid ({ends[0]:g}): a wider grid may do better",) if ends else ()
