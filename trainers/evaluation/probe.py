"""How good frozen features are: kNN and a linear probe, fitted on part of `train`, scored on `select`.

Which images judge is a function of the data set alone, so every trial of a sweep is judged by the same ones; only
`labels_per_class` draws, once per trial seed. `report` is read by `report_split` alone, which only `pretune finalize`
calls.

All ranks call these functions together. Each extracts its contiguous share of the images, rank 0 fits and scores, and
its numbers are everybody's. Images are dealt in whole batches, so a feature is computed in the same batch on any
number of ranks.

Letters: n = images, p = features, C = classes, S = view size in pixels.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from trainers import dist
from trainers.data.splits import stratified_order
from trainers.encoder import BATCH_SIZE
from trainers.evaluation.regression import LARGEST, fit_linear
from trainers.operations import Operations
from trainers.weights.opening import starting_model

if TYPE_CHECKING:
    from trainers.config import ProbeConfig, TrialConfig
    from trainers.data.datasets import Dataset
    from trainers.data.loader import Loaders

log = logging.getLogger(__name__)

Integers = NDArray[np.int64]
Encode = Callable[[Tensor], Tensor]
"""`Model.encode`, in evaluation mode: normalized images [n, 3, S, S] -> features [n, p]."""
Beside = Callable[[Tensor, Tensor, Tensor, Tensor], dict[str, float]]
"""What else is measured with the probe's features: those fitted on [n, p], their labels [n], those scored, theirs."""
Embed = Callable[[Tensor], tuple[Tensor, Tensor]]
"""`Model.embed`, in evaluation mode: normalized images [n, 3, S, S] -> features [n, p], projections [n, q]."""

ROUND = 64
"""Batches that each rank extracts between two gathers: what bounds the memory of the ranks that only help."""
FEATURE_BYTES = 4 * 2**30
"""Full probes fit on as many images of `train` as have features of this size on rank 0: all of CIFAR-10 at any
width."""
SIMILARITIES = 1 << 24
"""Similarities between images held at once by kNN: 64 MB in float32."""
PIXEL_SIDE = 32
"""Raw pixels of larger views are averaged down to this side before they are probed."""


class Subset(NamedTuple):
    """Some images of a split, in ascending order. `sha256` is of their ids as little-endian int64: it names the
    subset."""

    ids: Integers
    sha256: str


# --- which images judge -----------------------------------------------------------------------------------------------


def train_subset(dataset: Dataset, config: TrialConfig, *, draw: int = 0) -> Subset:
    """The images of `train` that probes are fitted on: `probe.labels_per_class` of each class, drawn once per trial
    seed; else `probe.train_images`, stratified, the same for all trials. Another `draw` gives other ones.

    ValueError where a class of `train` has fewer images than `probe.labels_per_class`.
    """
    ids = dataset.train_ids
    labels = dataset.search_labels()[ids]
    wanted = config.probe.labels_per_class
    again = f"/draw {draw}" if draw else ""
    if wanted is None:
        order = stratified_order(labels, f"probe/train/{dataset.manifest.split_seed}{again}")
        return _named(np.sort(ids[order[: config.probe.train_images]]))
    order = stratified_order(labels, f"probe/labels/{dataset.manifest.split_seed}/{config.seed}{again}")
    chosen = []
    for label, name in enumerate(dataset.manifest.class_names):
        rows = order[labels[order] == label]
        if len(rows) < wanted:
            raise ValueError(
                f"probe.labels_per_class must be at most {len(rows)}, the images of class {name!r} in `train` of "
                f"{dataset.folder}, but is {wanted}; lower it"
            )
        chosen.append(rows[:wanted])
    return _named(np.sort(ids[np.concatenate(chosen)]))


def select_subset(dataset: Dataset, config: TrialConfig, *, full: bool = False) -> Subset:
    """The images of `select` that probes are scored on: `probe.select_images`, stratified, the same for all trials;
    with `full`, all."""
    ids = dataset.select_ids
    if full:
        return _named(ids)
    order = stratified_order(dataset.search_labels()[ids], f"probe/select/{dataset.manifest.split_seed}")
    return _named(np.sort(ids[order[: config.probe.select_images]]))


def _named(ids: Integers) -> Subset:
    return Subset(ids, hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest())


# --- judging an encoder -----------------------------------------------------------------------------------------------


def evaluate(
    encode: Encode,
    *,
    dataset: Dataset,
    loaders: Loaders,
    config: TrialConfig,
    device: torch.device,
    full: bool = False,
    beside: Beside | None = None,
) -> dict[str, float]:
    """Accuracies on `select` of `encode`, frozen and in evaluation mode: `probe/linear`, `probe/knn`, and each one's
    `…_stderr`.

    With `full` also `probe/full_linear` and `probe/full_knn`, fitted on all of `train` and scored on all of `select`.
    Should the features of `train` exceed `FEATURE_BYTES`, the fit is on a stratified part; `probe/full_train_images`
    says on how many. What `beside` makes of the search's own features is in it, too, by its own names.

    Standard errors are the binomial sqrt(a (1 - a) / n) over the n scored images, given the fitted probe: they say
    how well `select` stands for other images, not what another draw of labels or another seed would have given.
    Not-a-number where a feature is not finite. The same numbers on all ranks.
    """
    judge = partial(_judge, encode, "search", dataset=dataset, loaders=loaders, config=config, device=device)
    scored = select_subset(dataset, config, full=full).ids
    found = judge(scored, full=full, beside=beside)
    return {name if "/" in name else f"probe/{name}": value for name, value in found.items()}


class Refits(NamedTuple):
    """An encoder's probes, fitted several times."""

    scores: dict[str, tuple[float, ...]]
    """`probe/linear` and `probe/knn`: the accuracy of each draw's fit on all of `select`."""
    correct: dict[str, NDArray[np.bool_]]
    """Of the search's own fit (draw 0), whether each image of the probe's part of `select` is told right, [n]."""


def refits(
    encode: Encode, *, draws: int, dataset: Dataset, loaders: Loaders, config: TrialConfig, device: torch.device
) -> Refits:
    """The search's probes on `select` with `draws` draws of the images of `train` that they are fitted on; draw 0 is
    the search's own. Features are computed once. Where probes are fitted on all of `train`, all draws are equal.

    On one rank. Not-a-number, and nothing told right, where a feature is not finite.
    """
    look = partial(extract, dataset=dataset, loaders=loaders, config=config, device=device)

    def network(images: Tensor) -> tuple[Tensor, ...]:
        return (encode(images),)

    scored = select_subset(dataset, config, full=True).ids
    counted = _rows(scored, select_subset(dataset, config).ids)
    fitted = [train_subset(dataset, config, draw=draw).ids for draw in range(draws)]
    fit_ids = np.unique(np.concatenate(fitted))
    images, source = (look(network, ids)[0].to(device) for ids in (scored, fit_ids))
    labels = torch.from_numpy(dataset.search_labels()).to(device)
    scores: dict[str, list[float]] = {"probe/linear": [], "probe/knn": []}
    correct: dict[str, NDArray[np.bool_]] = {}
    for draw, ids in enumerate(fitted):
        rows = _rows(fit_ids, ids)
        predicted = _predictions(
            source[rows],
            labels[torch.from_numpy(ids)],
            images,
            class_count=dataset.class_count,
            config=config.probe,
        )
        for name, classes in predicted.items():
            right = torch.zeros(len(scored), dtype=torch.bool, device=device)
            if classes is not None:
                right = classes == labels[torch.from_numpy(scored)]
            scores[f"probe/{name}"].append(math.nan if classes is None else float(right.double().mean()))
            if draw == 0:
                correct[f"probe/{name}"] = right.cpu()[counted].numpy()
    return Refits({name: tuple(values) for name, values in scores.items()}, correct)


def report_split(
    encode: Encode, *, dataset: Dataset, loaders: Loaders, config: TrialConfig, device: torch.device
) -> dict[str, float]:
    """Accuracies on the whole report split: `report/linear` and `report/knn` fitted as in the search,
    `report/full_linear` and `report/full_knn` fitted on all of `train`; each one's `…_stderr`. Beside them those of
    what has to be beaten (`baselines`), fitted as in the search: `report/untrained/linear`, `report/pixels/knn`, ….
    See `evaluate`.

    Only `pretune finalize` may call it: the split is to be read once.
    """
    scored = np.arange(dataset.report_count, dtype=np.int64)
    judge = partial(_judge, dataset=dataset, loaders=loaders, config=config, device=device)
    scores = judge(encode, "report", scored, full=True)
    for baseline, its in _to_beat(config, device).items():
        scores |= {f"{baseline}/{name}": value for name, value in judge(its, "report", scored, full=False).items()}
    return {f"report/{name}": value for name, value in scores.items()}


def baselines(
    config: TrialConfig, *, dataset: Dataset, loaders: Loaders, device: torch.device, full: bool = False
) -> dict[str, float]:
    """What pretraining has to beat, by the same protocol: `untrained/…` for the encoder that this config starts from,
    in evaluation mode as the trained one is, and `pixels/…` for the raw pixels. Names after the slash as in
    `evaluate`. ValueError where the encoder starts from a file that is gone or another one.
    """
    metrics: dict[str, float] = {}
    for name, encode in _to_beat(config, device).items():
        scores = evaluate(encode, dataset=dataset, loaders=loaders, config=config, device=device, full=full)
        metrics |= {key.replace("probe/", f"{name}/"): value for key, value in scores.items()}
    return metrics


def _to_beat(config: TrialConfig, device: torch.device) -> dict[str, Encode]:
    return {"untrained": starting_model(config).to(device).eval().encode, "pixels": _pixels}


def _pixels(images: Tensor) -> Tensor:
    """[n, 3, S, S] -> [n, 3 · S²]; sides above `PIXEL_SIDE` are averaged down to it."""
    if images.shape[-1] > PIXEL_SIDE:
        images = functional.adaptive_avg_pool2d(images, PIXEL_SIDE)
    return images.flatten(1)


def _judge(
    encode: Encode,
    split: Literal["search", "report"],
    scored: Integers,
    *,
    dataset: Dataset,
    loaders: Loaders,
    config: TrialConfig,
    device: torch.device,
    full: bool,
    beside: Beside | None = None,
) -> dict[str, float]:
    """Scores on the `scored` rows of the split's file; with `full` also under `full_…`, fitted on all of `train`.

    The search's own score is on its part of `select` even where `scored` is more.
    """

    def features_of(ids: Integers, split: Literal["search", "report"]) -> Tensor:
        found = extract(
            lambda images: (encode(images),),
            ids,
            dataset=dataset,
            loaders=loaders,
            config=config,
            device=device,
            split=split,
        )
        return found[0]

    if not dataset.has_labels:
        raise ValueError(
            f"a probe must be fitted on labels, but the images of {dataset.folder} have none; look at the health of "
            f"their features instead (trainers.evaluation.health)"
        )
    searched = train_subset(dataset, config)
    features = features_of(scored, split)
    fit_ids = searched.ids
    if full:
        limit = FEATURE_BYTES // (features.shape[1] * features.element_size())
        order = stratified_order(
            dataset.search_labels()[dataset.train_ids], f"probe/full/{dataset.manifest.split_seed}"
        )
        full_ids = np.sort(dataset.train_ids[order[:limit]])
        fit_ids = np.union1d(full_ids, searched.ids)
    fit_features = features_of(fit_ids, "search")

    scores: dict[str, float] = {}
    if dist.rank() == 0:
        log.info("probe fitted on %d images of train, ids sha256 %s", len(searched.ids), searched.sha256)
        labels = dataset.search_labels()
        score = partial(_fit_and_score, class_count=dataset.class_count, config=config.probe, device=device)
        searched_rows = _rows(fit_ids, searched.ids)
        if split == "search":
            counted = select_subset(dataset, config)
            log.info("probe scored on %d images of select, ids sha256 %s", len(counted.ids), counted.sha256)
            counted_rows, scored_labels = _rows(scored, counted.ids), labels[scored]
        else:
            counted_rows, scored_labels = torch.arange(len(scored)), dataset.report_labels()[scored]
        target = torch.from_numpy(scored_labels)
        source = torch.from_numpy(labels[fit_ids])
        searches = fit_features[searched_rows], source[searched_rows], features[counted_rows], target[counted_rows]
        scores = score(*searches)
        if beside is not None:
            scores |= beside(*searches)
        if full:
            rows = _rows(fit_ids, full_ids)
            whole = score(fit_features[rows], source[rows], features, target)
            scores |= {f"full_{name}": value for name, value in whole.items()}
            scores["full_train_images"] = len(full_ids)
    return dist.broadcast_object(scores)


def _rows(ids: Integers, wanted: Integers) -> Tensor:
    """Positions in the ascending `ids` of the ids in `wanted`."""
    return torch.from_numpy(np.searchsorted(ids, wanted))


# --- features ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def extract(
    network: Callable[[Tensor], tuple[Tensor, ...]],
    ids: Integers,
    *,
    dataset: Dataset,
    loaders: Loaders,
    config: TrialConfig,
    device: torch.device,
    split: Literal["search", "report"] = "search",
    views: int | None = None,
) -> tuple[Tensor, ...]:
    """What `network` makes of the images `ids` (rows of the split's file), without augmentation: on rank 0, on the
    CPU, in the order of `ids`, [n, …] each; on the other ranks [0, …].

    With `views`, of so many augmented views of each image, one image's after another's: [n · views, …]. They are those
    of the config's first view, with draws that depend on image and place alone.
    """
    world_size, rank = dist.world_size(), dist.rank()
    batch_size = BATCH_SIZE if views is None else max(1, BATCH_SIZE // views)
    batch_count = -(-len(ids) // batch_size)
    # Rank r takes batches first[r] to first[r + 1]; rank 0 has at least one, from which all learn the shapes.
    first = [-(-batch_count * r // world_size) for r in range(world_size + 1)]
    shares = [ids[first[r] * batch_size : first[r + 1] * batch_size] for r in range(world_size)]
    view = config.views[0]
    batches: Iterator[tuple[Tensor, Integers]]
    if views is None:
        batches = loaders.images(
            dataset,
            shares[rank],
            size=view.size,
            batch_size=batch_size,
            threads=config.threads,
            resampling=view.resampling,
            split=split,
        )
    else:
        batches = _augmented(
            loaders.augmented(
                dataset,
                shares[rank],
                views=(view,) * views,
                batch_size=batch_size,
                first_batch=first[rank],
                threads=config.threads,
                split=split,
            ),
            Operations((view,) * views),
            device,
        )
    autocast = partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")

    collected: list[list[list[NDArray[Any]]]] = []  # by output, rank, round
    template: list[NDArray[Any]] = []
    for turn in range(-(-(first[1] - first[0]) // ROUND)):
        outputs: list[tuple[NDArray[Any], ...]] = []
        for images, _ in islice(batches, ROUND):
            images = images.to(device, torch.get_default_dtype(), memory_format=torch.channels_last)
            with autocast():
                made = network(images)
            outputs.append(tuple(rows.cpu().numpy() for rows in made))
        if turn == 0:
            template = dist.broadcast_object([rows[:0] for rows in outputs[0]] if rank == 0 else [])
            collected = [[[] for _ in range(world_size)] for _ in template]
        taken = slice(turn * ROUND * batch_size, (turn + 1) * ROUND * batch_size)
        sizes = [len(share[taken]) * (views or 1) for share in shares]
        for index, empty in enumerate(template):
            mine = np.concatenate([empty, *(made[index] for made in outputs)])
            everybody = dist.all_gather_numpy(mine)
            if rank == 0:
                for r, part in enumerate(np.split(everybody, np.cumsum(sizes)[:-1])):
                    collected[index][r].append(part)
    return tuple(
        torch.from_numpy(np.concatenate([empty, *(part for parts in by_rank for part in parts)]))
        for empty, by_rank in zip(template, collected, strict=True)
    )


def _augmented(
    batches: Iterator[tuple[tuple[Tensor, ...], Integers]], operations: Operations, device: torch.device
) -> Iterator[tuple[Tensor, Integers]]:
    """Each batch's views [n, 3, S, S] with the config's own operations, as [n · views, 3, S, S], image by image."""
    for views, ids in batches:
        on_device = [view.to(device, torch.get_default_dtype(), memory_format=torch.channels_last) for view in views]
        changed = operations(on_device, torch.from_numpy(ids).to(device), seed=0, epoch=0)
        yield torch.stack(changed, dim=1).flatten(0, 1), ids


# --- the two probes ---------------------------------------------------------------------------------------------------


def _fit_and_score(
    train: Tensor,
    train_labels: Tensor,
    images: Tensor,
    labels: Tensor,
    *,
    class_count: int,
    config: ProbeConfig,
    device: torch.device,
) -> dict[str, float]:
    """Fit on features [n, p], score on features [m, p]: accuracies and their standard errors."""
    train, train_labels, images, labels = (x.to(device) for x in (train, train_labels, images, labels))
    scores = {}
    predicted = _predictions(train, train_labels, images, class_count=class_count, config=config)
    for name, classes in predicted.items():
        accuracy = math.nan if classes is None else _share_correct(classes, labels)
        scores[name] = accuracy
        scores[f"{name}_stderr"] = math.sqrt(accuracy * (1 - accuracy) / len(labels))
    return scores


def _predictions(
    train: Tensor, train_labels: Tensor, images: Tensor, *, class_count: int, config: ProbeConfig
) -> dict[str, Tensor | None]:
    """Classes [m] of features [m, p] by each probe, fitted on features [n, p]; None where one is not finite."""
    if max(float(train.abs().max()), float(images.abs().max())) > LARGEST:
        train, images = train.double(), images.double()
    if not (bool(torch.isfinite(train).all()) and bool(torch.isfinite(images).all())):
        return {"linear": None, "knn": None}
    linear = fit_linear(train, train_labels, class_count=class_count, regularization=config.regularization)
    nearest = nearest_neighbors(
        train,
        train_labels,
        images,
        class_count=class_count,
        neighbors=config.neighbors,
        temperature=config.temperature,
    )
    return {"linear": linear.predict(images), "knn": nearest}


def _share_correct(predicted: Tensor, labels: Tensor) -> float:
    return float((predicted == labels).double().mean())


@torch.no_grad()
def nearest_neighbors(
    features: Tensor, labels: Tensor, queries: Tensor, *, class_count: int, neighbors: int, temperature: float
) -> Tensor:
    """Classes [m] of `queries` [m, p] by a vote of the `neighbors` rows of `features` [n, p] (all, if fewer) that are
    most similar.

    Similarity s is the cosine; a vote weighs exp(s / temperature) (Wu et al. 2018, arXiv 1805.01978, section 3.4).
    """
    features, queries = functional.normalize(features, dim=1), functional.normalize(queries, dim=1)
    count = min(neighbors, len(features))
    predicted = []
    for block in torch.split(queries, max(1, SIMILARITIES // len(features))):
        similarities, nearest = (block @ features.T).topk(count, dim=1)
        weights = ((similarities - similarities[:, :1]) / temperature).exp()  # relative to the best: no overflow
        votes = torch.zeros(len(block), class_count, dtype=weights.dtype, device=weights.device)
        rows = torch.arange(len(block), device=votes.device)
        for place in range(count):  # one vote per row at a time: the sum has one order on every device
            votes[rows, labels[nearest[:, place]]] += weights[:, place]
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)
