"""A subject trained on with a linear head: the network's copy, its optimizer, the loop, and what it says of images.

On several ranks each has its rows of every global batch, batch norm is synchronized, and gradients are of the batch's
mean loss: within rounding what one rank computes. Ranks need not have equally many rows.

Letters: n = images, p = features, C = classes, N = images of a global batch, W = ranks.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers import dist
from trainers.data.loader import epoch_order
from trainers.encoder import BATCH_SIZE
from trainers.evaluation.regression import fit_linear
from trainers.settings import ViewConfig

if TYPE_CHECKING:
    from trainers.evaluation.protocol import Data, Integers
    from trainers.evaluation.subject import Subject

RATE_OF = 256
"""Images of a batch that learning rates are for; they are in proportion to the batch."""


class Recipe(NamedTuple):
    """How the network is trained; the fields are those of the protocol `finetune`."""

    optimizer: Literal["sgd", "adamw"]
    epochs: int
    batch_size: int
    momentum: float
    weight_decay: float
    warmup_share: float
    layer_decay: float
    norm: Literal["batch", "frozen"]
    head: Literal["linear", "zero"]
    regularization: float
    crop_scale: tuple[float, float]
    flip: float
    mixup: float
    label_smoothing: float


class DivergedError(ValueError):
    """The loss is not finite."""


class Tuned(nn.Module):
    """A network and a linear head, [n, 3, S, S] -> class scores [n, C]."""

    def __init__(self, network: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.network(images))
        return scores


def tuned_scores(
    subject: Subject,
    data: Data,
    *,
    device: torch.device,
    report: Callable[[float], None],
    ids: Integers,
    recipe: Recipe,
    rate: float,
    seed: int,
    asked: Integers,
    file: Literal["search", "report"],
) -> Tensor | DivergedError:
    """`class_scores` of the rows `asked` after `tune` on the rows `ids`. That it diverged is answered, not raised, as
    all ranks find so and go on.
    """
    try:
        model = tune(subject, data, ids, recipe, rate=rate, seed=seed, device=device, report=report)
    except DivergedError as error:
        return error
    return class_scores(subject, model, data, asked, file=file, device=device)


def tune(
    subject: Subject,
    data: Data,
    ids: Integers,
    recipe: Recipe,
    *,
    rate: float,
    seed: int,
    device: torch.device,
    report: Callable[[float], None],
) -> Tuned:
    """A copy of the subject, trained on the images `ids` of the search file with learning rate `rate` for 256 images.

    The rate rises linearly, then falls as a cosine to 0. At rate 0 nothing moves, statistics of batch norm neither.
    Order and views are functions of `seed` and epoch. DivergedError, on all ranks, where the loss is not finite;
    ValueError where batches are of fewer images than there are ranks.
    """
    labels = torch.from_numpy(data.dataset.search_labels())
    class_count = data.dataset.class_count
    model = Tuned(copy.deepcopy(subject.network), _head(subject, data, ids, recipe, device=device))
    model.requires_grad_(True).to(device).to(memory_format=torch.channels_last)
    model.train()
    if recipe.norm == "frozen" or rate == 0.0:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    elif dist.world_size() > 1:
        _synchronize(model)
    batch_size = min(recipe.batch_size, len(ids))
    own = _own_rows(batch_size)
    steps = len(ids) // batch_size
    total = steps * recipe.epochs
    optimizer = _optimizer(model, recipe, vit=subject.kind == "vit")
    mixes_over_ranks = recipe.mixup > 0.0 and dist.world_size() > 1
    step = 0
    for epoch in range(recipe.epochs):
        order = epoch_order(ids, seed=seed, epoch=epoch)[: steps * batch_size].reshape(steps, batch_size)
        places = np.concatenate([own, _partners(own, batch_size)]) if mixes_over_ranks else own
        for images, rows in _views(subject, data, order[:, places], recipe, seed=seed, epoch=epoch):
            peak = rate * batch_size / RATE_OF
            for group in optimizer.param_groups:
                group["lr"] = group["share"] * rate_at(peak, step, total, round(recipe.warmup_share * total))
            images = images.to(device)
            targets = functional.one_hot(labels[rows], class_count).to(device, images.dtype)
            if recipe.mixup > 0.0:
                images, targets = mixed(images, targets, recipe.mixup, seed=seed, step=step)
                images, targets = images[: len(own)], targets[: len(own)]
            with _autocast(subject, device):
                scores = model(images.to(memory_format=torch.channels_last))
            loss = functional.cross_entropy(scores.float(), targets.float(), label_smoothing=recipe.label_smoothing)
            loss = loss * (len(own) / batch_size)  # this rank's part of the batch's mean
            if not bool(torch.isfinite(dist.sum_over_ranks(loss.detach()))):
                raise DivergedError(
                    f"the loss of fine-tuning {subject.name} must be finite, but is not in epoch {epoch + 1} with "
                    f"learning rate {rate:g}; lower the rates"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            dist.sum_gradients(model.parameters())
            optimizer.step()
            step += 1
            report(step / total)
    return model.eval()


def class_scores(
    subject: Subject,
    model: Tuned,
    data: Data,
    ids: Integers,
    *,
    file: Literal["search", "report"],
    device: torch.device,
) -> Tensor:
    """What the trained network says of images as they are, [n, C] float32 on the CPU; of none on other ranks than 0."""
    model.eval()

    def own() -> Iterator[Tensor]:
        for images, _ in _plain(subject, data, dist.own_batches(ids, BATCH_SIZE), file):
            with torch.no_grad(), _autocast(subject, device):
                yield model(images.to(device).to(memory_format=torch.channels_last)).float().cpu()

    found = list(dist.in_order(own(), -(-len(ids) // BATCH_SIZE)))
    return torch.cat(found) if found else torch.empty(0, data.dataset.class_count)


def rate_at(peak: float, step: int, total: int, warmup: int) -> float:
    """The rate of a step, counted from 0: a linear rise over `warmup` steps, then a cosine to 0 at `total`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1.0 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1))) / 2.0


def mixed(images: Tensor, targets: Tensor, alpha: float, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """mixup (arXiv 1710.09412): each image and its target with those of the batch's order reversed, in shares that are
    drawn from Beta(alpha, alpha) once for a batch, by a key.
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, step], dtype=np.uint64)))
    share = float(generator.beta(alpha, alpha))
    return share * images + (1 - share) * images.flip(0), share * targets + (1 - share) * targets.flip(0)


# --- its parts -------------------------------------------------------------------------------------------------------


def _synchronize(model: Tuned) -> None:
    try:
        dist.synchronize_batch_norm(model)
    except ValueError as error:
        raise ValueError(
            "fine-tuning by several workers synchronizes torch's own batch norms, but this network has others; set "
            "norm=frozen of the protocol, or leave --workers out"
        ) from error


def _own_rows(batch_size: int) -> Integers:
    """This rank's places in a global batch, as many as any other's or one more or less."""
    own: Integers = np.array_split(np.arange(batch_size), dist.world_size())[dist.rank()]
    if batch_size < dist.world_size():
        raise ValueError(
            f"a batch must have an image for each worker, but is of {batch_size} images with {dist.world_size()} "
            "workers; use fewer workers"
        )
    return own


def _partners(own: Integers, batch_size: int) -> Integers:
    """Places whose images `mixed` mixes with those at `own`: behind them, a reversal puts each beside its own."""
    return np.asarray(batch_size - 1 - own[::-1])


def _head(subject: Subject, data: Data, ids: Integers, recipe: Recipe, *, device: torch.device) -> nn.Linear:
    """The linear probe of the frozen features, or zeros."""
    class_count = data.dataset.class_count
    subject.to(device)
    if recipe.head == "zero":
        width = subject.encode(next(_plain(subject, data, ids[:1], "search"))[0].to(device)).shape[1]
        head = nn.Linear(width, class_count)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head
    own = dist.own_batches(ids, BATCH_SIZE)
    rows = (subject.encode(images.to(device)).cpu() for images, _ in _plain(subject, data, own, "search"))
    found = list(dist.in_order(rows, -(-len(ids) // BATCH_SIZE)))
    fitted = torch.empty(0), torch.empty(0)
    if dist.rank() == 0:
        fitted = _probe(subject, data, ids, torch.cat(found).to(device), recipe)
    weight, bias = dist.broadcast_object(fitted)
    head = nn.Linear(weight.shape[0], class_count)
    with torch.no_grad():
        head.weight.copy_(weight.T)
        head.bias.copy_(bias)
    return head


def _probe(subject: Subject, data: Data, ids: Integers, features: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Weight [p, C] and bias [C] of the linear probe of features [n, p], on the CPU."""
    if not bool(torch.isfinite(features).all()):
        raise ValueError(
            f"the features of {subject.name} must be finite, but some of {data.name} are not; the encoder has "
            "diverged: evaluate another checkpoint"
        )
    labels = torch.from_numpy(data.dataset.search_labels()[ids]).to(features.device)
    probe = fit_linear(features, labels, class_count=data.dataset.class_count, regularization=recipe.regularization)
    weight = probe.weight / probe.scale[:, None]
    return weight.cpu(), (probe.bias - probe.mean @ weight).cpu()


def _optimizer(model: Tuned, recipe: Recipe, *, vit: bool) -> torch.optim.Optimizer:
    """Each parameter's group has its `share` of the rate; vectors are not decayed."""
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    shares = layer_shares(model, recipe.layer_decay) if vit else {}
    for name, parameter in model.named_parameters():
        share, decays = shares.get(name, 1.0), parameter.ndim > 1
        weight_decay = recipe.weight_decay if decays else 0.0
        group = groups.setdefault((share, decays), {"params": [], "share": share, "weight_decay": weight_decay})
        group["params"].append(parameter)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(list(groups.values()), lr=0.0, betas=(0.9, 0.999))
    return torch.optim.SGD(list(groups.values()), lr=0.0, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def layer_shares(model: nn.Module, decay: float) -> dict[str, float]:
    """Of each parameter of timm's transformer the share of the rate: decay^(layers above it) (arXiv 2111.06377, A.1).

    Layers are the embeddings, each block, and the last norm with the head, which has the whole rate.
    """
    names = [name for name, _ in model.named_parameters()]
    blocks = {name: int(match[1]) for name in names if (match := re.search(r"(?:^|\.)blocks\.(\d+)\.", name))}
    depth = max(blocks.values(), default=-1) + 1
    shares = {}
    for name in names:
        first = any(part in ("patch_embed", "pos_embed", "cls_token", "reg_token") for part in name.split("."))
        layer = 0 if first else blocks[name] + 1 if name in blocks else depth + 1
        shares[name] = decay ** (depth + 1 - layer)
    return shares


def _views(
    subject: Subject, data: Data, batches: Integers, recipe: Recipe, *, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Integers]]:
    """Crops and flips of each row of `batches`, [steps, n]."""
    view = ViewConfig(
        size=subject.size,
        crop_scale=recipe.crop_scale,
        flip_probability=recipe.flip,
        jitter_probability=0.0,
        grayscale_probability=0.0,
        resampling=subject.resampling,
    )
    return data.augmented(subject, batches.ravel(), view, batch_size=batches.shape[1], seed=seed, epoch=epoch)


def _plain(
    subject: Subject, data: Data, ids: Integers, file: Literal["search", "report"]
) -> Iterator[tuple[Tensor, Integers]]:
    return subject.images(data.dataset, ids, loaders=data.loaders, file=file, threads=data.threads)


def _autocast(subject: Subject, device: torch.device) -> AbstractContextManager[None]:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=subject.precision == "bf16")
