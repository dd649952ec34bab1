"""What a network's maps say of the class of each pixel: a linear probe on patches, and votes of the nearest ones.

Letters: n = images, g = side of a map in patches, c = channels, N = patches, K = classes, the ground among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from trainers import dist
from trainers.data.annotations import VOID, AnnotatedImage
from trainers.data.splits import keyed_ranks
from trainers.evaluation.regression import LinearProbe
from trainers.evaluation.stages import backbone_of, maps_of

if TYPE_CHECKING:
    from trainers.evaluation.protocol import Data
    from trainers.evaluation.subject import Subject

T = TypeVar("T")

BATCH = 16
"""Images that go through the network at once."""
ITERATIONS = 100
"""Of the linear probe's search."""


class Patches(NamedTuple):
    """Patches of images, one after the other."""

    features: Tensor
    """[N, c], float32, on the CPU."""
    shares: Tensor
    """Of each patch's pixels, how many are of each class, [N, K]; rows sum to 1."""
    images: Tensor
    """The place of each one's image, [N]."""


@torch.no_grad()
def maps(subject: Subject, images: Sequence[AnnotatedImage], *, side: int, device: torch.device) -> Tensor:
    """Of images stretched to `side` x `side` pixels, as the subject has them normalized, its last maps [n, c, g, g]."""
    rows = []
    mean, std = (torch.tensor(values)[:, None, None] for values in (subject.mean, subject.std))
    for image in images:
        pixels = torch.from_numpy(image.pixels()).permute(2, 0, 1)[None].float() / 255
        square = functional.interpolate(
            pixels, (side, side), mode=subject.resampling, align_corners=False, antialias=True
        )
        rows.append((square[0].clamp(0, 1) - mean) / std.clamp_min(1e-6))
    found = maps_of(backbone_of(subject), subject.kind, torch.stack(rows).to(device)).float()
    if not bool(torch.isfinite(found).all()):
        raise ValueError(
            f"the features of {subject.name} must be finite, but some are not; the encoder has diverged: evaluate "
            "another checkpoint"
        )
    return found


def collect(
    subject: Subject,
    data: Data,
    *,
    device: torch.device,
    report: Callable[[float], None],
    images: Sequence[AnnotatedImage],
    side: int,
    class_count: int,
    most: int,
) -> Iterator[Patches]:
    """Patches of the images whose pixels are not all without a class: an equal number of each image, `most` in all,
    drawn by a key. `class_count` counts the ground. Batch by batch, for `joined`; `together.divided` calls it.
    """
    each = max(1, most // len(images))
    subject.to(device)

    def own() -> Iterator[Patches]:
        for places in _own_batches(images):
            batch = [images[place] for place in places]
            found = []
            for place, image, of_image in zip(
                places, batch, maps(subject, batch, side=side, device=device), strict=True
            ):
                features = of_image.cpu()
                counted = shares_of(image.class_map(), features.shape[1], class_count)
                known = torch.nonzero(counted.sum(1) > 0)[:, 0]
                ranks = keyed_ranks(len(known), f"patches/{image.name}")
                kept = known[torch.from_numpy(np.sort(np.argsort(ranks, kind="stable")[:each]))]
                shares = counted[kept] / counted[kept].sum(1, keepdim=True)
                found.append(Patches(features.flatten(1).T[kept], shares, torch.full((len(kept),), place)))
            yield joined(found)

    return _told(dist.in_order(own(), _batch_count(images)), _batch_count(images), report)


def joined(parts: Sequence[Patches]) -> Patches:
    """All of them, one after the other."""
    return Patches(*(torch.cat(its) for its in zip(*parts, strict=True)))


def score(
    subject: Subject,
    data: Data,
    *,
    device: torch.device,
    report: Callable[[float], None],
    images: Sequence[AnnotatedImage],
    side: int,
    linear: LinearProbe,
    bank: Patches,
    neighbors: int,
    temperature: float,
) -> Iterator[list[dict[str, NDArray[np.int64]]]]:
    """Of each image its pixels by (class, what they are taken for), [K, K], `linear` and `knn`; the bank's features
    have length 1. Batch by batch; `together.divided` calls it.
    """
    subject.to(device)
    linear = LinearProbe(*(values.to(device) for values in linear))
    bank = Patches(*(values.to(device) for values in bank))

    def nearest(own: Tensor) -> Tensor:
        votes = vote(bank, own.flatten(1).T, neighbors=neighbors, temperature=temperature)
        return votes.T.reshape(-1, *own.shape[1:])

    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "linear": lambda own: linear.scores(own.permute(1, 2, 0)).permute(2, 0, 1),
        "knn": nearest,
    }

    def own() -> Iterator[list[dict[str, NDArray[np.int64]]]]:
        for places in _own_batches(images):
            batch = [images[place] for place in places]
            pairs = zip(batch, maps(subject, batch, side=side, device=device), strict=True)
            with torch.no_grad():
                yield [
                    {way: confusion(scores(of_image), classes) for way, scores in ways.items()}
                    for classes, of_image in ((image.class_map(), of_image) for image, of_image in pairs)
                ]

    return _told(dist.in_order(own(), _batch_count(images)), _batch_count(images), report)


def _own_batches(images: Sequence[AnnotatedImage]) -> Iterator[NDArray[np.int64]]:
    """Places of the images of each of this rank's batches."""
    places = dist.own_batches(np.arange(len(images)), BATCH)
    return (places[start : start + BATCH] for start in range(0, len(places), BATCH))


def _batch_count(images: Sequence[AnnotatedImage]) -> int:
    return -(-len(images) // BATCH)


def _told(values: Iterator[T], count: int, report: Callable[[float], None]) -> Iterator[T]:
    for number, value in enumerate(values):
        report((number + 1) / count)
        yield value


def shares_of(classes: NDArray[np.uint8], side: int, class_count: int) -> Tensor:
    """How much of each of side x side patches is of each class, [side², K]; pixels without a class do not count.

    An image's pixels are split evenly: one at a border belongs to the patch that its center is in.
    """
    height, width = classes.shape
    rows = ((np.arange(height) + 0.5) * side / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * side / width).astype(np.int64)
    places = rows[:, None] * side + columns
    known = classes != VOID
    counts = np.bincount(places[known] * class_count + classes[known], minlength=side * side * class_count)
    areas = np.bincount(places.ravel(), minlength=side * side).reshape(-1, 1)
    return torch.from_numpy(counts.reshape(-1, class_count) / np.maximum(areas, 1)).float()


# --- the linear probe ------------------------------------------------------------------------------------------------


def fit(patches: Patches, *, regularization: float, device: torch.device) -> LinearProbe:
    """The minimum of the mean cross-entropy to the patches' shares of classes + regularization / 2 |W|², by L-BFGS from
    0; features are standardized. Convex: there is one, and no randomness.
    """
    features, shares = patches.features.to(device), patches.shares.to(device)
    mean, scale = features.mean(0), features.std(0, correction=0)
    scale = torch.where(scale > 1e-6 * mean.abs() + 1e-12, scale, 1.0)
    x = (features - mean) / scale
    weight = torch.zeros(x.shape[1], shares.shape[1], device=device, requires_grad=True)
    bias = torch.zeros(shares.shape[1], device=device, requires_grad=True)
    search = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, tolerance_grad=1e-6, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        search.zero_grad()
        value = functional.cross_entropy(x @ weight + bias, shares) + regularization / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(loss)  # type: ignore[no-untyped-call]
    return LinearProbe(mean, scale, weight.detach(), bias.detach())


def cross_entropy(linear: LinearProbe, patches: Patches) -> float:
    """To the patches' shares of classes, the mean."""
    scores = linear.scores(patches.features.to(linear.weight.device))
    return float(functional.cross_entropy(scores, patches.shares.to(scores.device)))


# --- nearest patches -------------------------------------------------------------------------------------------------


@torch.no_grad()
def vote(bank: Patches, queries: Tensor, *, neighbors: int, temperature: float) -> Tensor:
    """Shares of classes [m, K] of queries [m, c]: the mean of the `neighbors` most similar patches', each weighted by
    exp(cosine / temperature). The bank's features have length 1.
    """
    similar = functional.normalize(queries, dim=1) @ bank.features.T
    values, places = similar.topk(min(neighbors, len(bank.features)), dim=1)
    weights = torch.softmax(values / temperature, dim=1)
    return (weights[:, :, None] * bank.shares[places]).sum(1)


# --- figures ---------------------------------------------------------------------------------------------------------


def confusion(scores: Tensor, classes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels by (class, what they are taken for), [K, K], where class scores [K, g, g] are brought to an image's size
    bilinearly; pixels without a class do not count.
    """
    count = len(scores)
    whole = functional.interpolate(scores[None], classes.shape, mode="bilinear", align_corners=False)[0]
    taken = whole.argmax(0).cpu().numpy()
    known = classes != VOID
    pairs = np.bincount(classes[known].astype(np.int64) * count + taken[known], minlength=count * count)
    return pairs.reshape(count, count)


def intersection_over_union(pixels: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each class, [K], from pixels by (class, what they are taken for); not-a-number of a class that is nowhere."""
    right = np.diag(pixels).astype(np.float64)
    union = pixels.sum(0) + pixels.sum(1) - right
    found: NDArray[np.float64] = np.divide(right, union, out=np.full(len(right), np.nan), where=union > 0)
    return found
