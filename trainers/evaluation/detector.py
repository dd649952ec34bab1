"""torchvision's Faster R-CNN and Mask R-CNN on a subject's residual network: built, trained on annotated images, asked.

Letters: n = images, c = channels, k = detections of an image.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from trainers.data.annotations import AnnotatedImage, Instance
from trainers.data.annotations.base import encoded
from trainers.data.splits import keyed_ranks
from trainers.evaluation.average_precision import Found
from trainers.evaluation.stages import Stages, stages_of

if TYPE_CHECKING:
    from trainers.evaluation.subject import Subject

Neck = Literal["c4", "fpn"]
RATIOS = (0.5, 1.0, 2.0)
"""Of anchors, height over width."""
LEVELS = 5
"""Sizes of anchors where all are on one map."""
SMALLEST, LARGEST = 0.04, 0.64
"""Sides of the smallest and the largest anchor as a share of the image's shorter side: 32 and 512 of 800 pixels."""
CANONICAL = 0.28
"""An object of this share of the shorter side belongs to the map before the last: 224 of 800 pixels (Lin et al. 2017,
arXiv 1612.03144, equation 1)."""


class Settings(NamedTuple):
    """How a detector is built and trained; the fields are those of the protocol `detection`."""

    neck: Neck
    masks: bool
    frozen: bool
    norm: Literal["frozen", "batch"]
    sides: tuple[int, ...]
    longest: int
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    momentum: float
    warmup: int
    drops: tuple[float, ...]
    flip: float
    pyramid_width: int
    head_width: int
    samples: int
    proposals: int


# --- the network -----------------------------------------------------------------------------------------------------


class _BeforeLast(nn.Module):
    """C4: the map before the last stage, [n, 3, h, w] -> [n, c, h', w']."""

    def __init__(self, found: Stages) -> None:
        super().__init__()
        self.stem = found.stem
        self.stages = nn.ModuleList(found.stages[:-1])
        self.out_channels = found.channels[-2]

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.stem(images)
        for stage in self.stages:
            maps = stage(maps)
        return maps


class _Pyramid(nn.Module):
    """Feature pyramid (arXiv 1612.03144) over the maps of all stages, and one of half the last one's size."""

    def __init__(self, found: Stages, width: int) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork  # type: ignore[import-untyped]
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool  # type: ignore[import-untyped]

        self.stem = found.stem
        self.stages = nn.ModuleList(found.stages)
        self.fpn = FeaturePyramidNetwork(list(found.channels), width, LastLevelMaxPool())
        self.out_channels = width

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps: Tensor = self.stem(images)
        levels: OrderedDict[str, Tensor] = OrderedDict()
        for place, stage in enumerate(self.stages):
            maps = stage(maps)
            levels[str(place)] = maps
        pyramid: OrderedDict[str, Tensor] = self.fpn(levels)
        return pyramid


class _LastStage(nn.Module):
    """C4's head: the last stage on each region, averaged: [k, c, 14, 14] -> [k, c']."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, regions: Tensor) -> Tensor:
        return self.stage(regions).mean(dim=(2, 3))  # type: ignore[no-any-return]


def build(subject: Subject, settings: Settings, class_count: int) -> nn.Module:
    """The detector, on the CPU; new layers are drawn from torch's global generator. Class 0 is the ground.

    ValueError where the subject is no residual network.
    """
    from torchvision.models.detection import FasterRCNN, MaskRCNN  # type: ignore[import-untyped]
    from torchvision.models.detection.anchor_utils import AnchorGenerator  # type: ignore[import-untyped]
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead  # type: ignore[import-untyped]
    from torchvision.models.detection.mask_rcnn import (  # type: ignore[import-untyped]
        MaskRCNNHeads,
        MaskRCNNPredictor,
    )
    from torchvision.ops import MultiScaleRoIAlign

    found = stages_of(subject)
    for module in (found.stem, *found.stages):
        module.requires_grad_(not settings.frozen)
    side = max(settings.sides)
    parts: dict[str, Any]
    if settings.neck == "c4":
        last, width = found.stages[-1], found.channels[-1]
        body: nn.Module = _BeforeLast(found)
        sizes: tuple[tuple[float, ...], ...] = (anchor_sizes(side, LEVELS),)
        pool = MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2)
        parts = {"box_roi_pool": pool, "box_head": _LastStage(last)}
        parts["box_predictor"] = FastRCNNPredictor(width, class_count + 1)
        mask_head, mask_width, mask_pool = last, width, pool
    else:
        body = _Pyramid(found, settings.pyramid_width)
        sizes = tuple((size,) for size in anchor_sizes(side, len(found.stages) + 1))
        names = [str(place) for place in range(len(found.stages))]
        where = {
            "canonical_scale": CANONICAL * side,
            "canonical_level": int(math.log2(found.strides[-2])),
        }
        parts = {
            "box_roi_pool": MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2, **where),
            "box_head": TwoMLPHead(settings.pyramid_width * 7**2, settings.head_width),
            "box_predictor": FastRCNNPredictor(settings.head_width, class_count + 1),
        }
        mask_pool = MultiScaleRoIAlign(names, output_size=14, sampling_ratio=2, **where)
        mask_head = MaskRCNNHeads(settings.pyramid_width, (settings.pyramid_width,) * 4, 1)
        mask_width = settings.pyramid_width
    if settings.masks:
        parts |= {"mask_roi_pool": mask_pool, "mask_head": mask_head}
        parts["mask_predictor"] = MaskRCNNPredictor(mask_width, settings.pyramid_width, class_count + 1)
    scored = max(1, settings.proposals // 2)  # torchvision's proportion
    network: nn.Module = (MaskRCNN if settings.masks else FasterRCNN)(
        body,
        min_size=side,
        max_size=settings.longest,
        image_mean=list(subject.mean),
        image_std=list(subject.std),
        rpn_anchor_generator=AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
        box_batch_size_per_image=settings.samples,
        rpn_pre_nms_top_n_train=settings.proposals,
        rpn_post_nms_top_n_train=settings.proposals,
        rpn_pre_nms_top_n_test=scored,
        rpn_post_nms_top_n_test=scored,
        **parts,
    )
    return network


def anchor_sizes(side: int, count: int) -> tuple[float, ...]:
    """Sides of anchors in pixels, where images' shorter side is `side`: those of the papers at 800, in proportion."""
    steps = max(count - 1, 1)
    return tuple(side * SMALLEST * (LARGEST / SMALLEST) ** (place / steps) for place in range(count))


# --- training --------------------------------------------------------------------------------------------------------


def train(
    network: nn.Module,
    images: Sequence[AnnotatedImage],
    settings: Settings,
    *,
    seed: int,
    device: torch.device,
    threads: int,
    report: Callable[[float], None],
) -> None:
    """SGD with a linear warm-up and drops by ten, images of one size in a batch, flipped with probability `flip`.

    Which images are in a batch, their size and their flips are functions of `seed`; the detector's own samples are
    drawn from torch's global generator. ValueError where the loss is not finite.
    """
    moving = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        moving, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    network.train()
    if settings.frozen or settings.norm == "frozen":
        _keep_statistics(network)
    transform: Any = network.transform
    sides = keyed_ranks(settings.steps, f"side/{seed}") % np.uint64(len(settings.sides))
    for step, batch in enumerate(_batches(images, settings, seed=seed, threads=threads)):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, settings)
        transform.min_size = (settings.sides[int(sides[step])],)
        pixels = [example.pixels.to(device) for example in batch]
        targets = [{name: value.to(device) for name, value in example.target.items()} for example in batch]
        losses: dict[str, Tensor] = network(pixels, targets)
        total = torch.stack(list(losses.values())).sum()
        if not bool(torch.isfinite(total.detach())):
            parts = ", ".join(f"{name} {float(value.detach()):g}" for name, value in losses.items())
            raise ValueError(
                f"the detector's loss must be finite, but is not at step {step + 1} of {settings.steps} ({parts}); "
                f"learning_rate is {settings.learning_rate:g}: lower it with --set NAME.learning_rate=…"
            )
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        report((step + 1) / settings.steps)
    transform.min_size = (max(settings.sides),)


def rate_at(step: int, settings: Settings) -> float:
    """The learning rate of a step, counted from 0: a linear rise from a thousandth, then a tenth at each drop."""
    if step < settings.warmup:
        return settings.learning_rate * (0.001 + 0.999 * step / settings.warmup)
    return settings.learning_rate * 0.1 ** sum(step >= round(drop * settings.steps) for drop in settings.drops)


def _keep_statistics(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


class _Example(NamedTuple):
    pixels: Tensor
    """[3, height, width], 0..1."""
    target: dict[str, Tensor]


def _batches(
    images: Sequence[AnnotatedImage], settings: Settings, *, seed: int, threads: int
) -> Iterator[list[_Example]]:
    """A batch for each step. Images without an object that counts are left out, as torchvision's and Detectron's
    training does.
    """
    usable = [image for image in images if _counted(image, masks=settings.masks)]
    needed = settings.steps * settings.batch_size
    order: list[int] = []
    while len(order) < needed:
        ranks = keyed_ranks(len(usable), f"detector/{seed}/{len(order)}")
        order += np.argsort(ranks, kind="stable").tolist()
    flips = keyed_ranks(needed, f"flip/{seed}").astype(np.float64) / 2.0**64 < settings.flip

    def example(number: int) -> _Example:
        return _example(usable[order[number]], flipped=bool(flips[number]), masks=settings.masks)

    batch: list[_Example] = []
    for found in _ahead(example, range(needed), threads=threads, ahead=2 * settings.batch_size):
        batch.append(found)
        if len(batch) == settings.batch_size:
            yield batch
            batch = []


Item = TypeVar("Item")
Read = TypeVar("Read")


def _ahead(read: Callable[[Item], Read], items: Iterable[Item], *, threads: int, ahead: int) -> Iterator[Read]:
    """`read` of each item in order, by threads, so many ahead of the one in use."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        waiting: deque[Future[Read]] = deque()
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _counted(image: AnnotatedImage, *, masks: bool) -> list[Instance]:
    """The objects that are trained on."""
    return [each for each in image.instances if not each.ignored and not (masks and each.mask is None)]


def _example(image: AnnotatedImage, *, flipped: bool, masks: bool) -> _Example:
    pixels = _pixels(image)
    counted = _counted(image, masks=masks)
    boxes = torch.tensor([instance.box for instance in counted], dtype=torch.float32).reshape(-1, 4)
    target = {"labels": torch.tensor([instance.label + 1 for instance in counted], dtype=torch.int64)}
    if masks:
        found = [instance.mask.pixels() for instance in counted if instance.mask is not None]
        shape = (0, image.height, image.width)
        target["masks"] = torch.from_numpy(np.stack(found) if found else np.zeros(shape, bool)).to(torch.uint8)
    if flipped:
        pixels = pixels.flip(2)
        boxes = torch.stack([image.width - boxes[:, 2], boxes[:, 1], image.width - boxes[:, 0], boxes[:, 3]], dim=1)
        if masks:
            target["masks"] = target["masks"].flip(2)
    return _Example(pixels, {"boxes": boxes, **target})


# --- asking ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def detect(
    network: nn.Module,
    images: Sequence[AnnotatedImage],
    *,
    device: torch.device,
    threads: int,
    report: Callable[[float], None],
) -> list[Found]:
    """What the detector says of each image, on its own: by falling score."""
    network.eval()
    found: list[Found] = []
    for pixels in _ahead(_pixels, images, threads=threads, ahead=8):
        said: dict[str, Tensor] = network([pixels.to(device)])[0]
        masks = None
        if "masks" in said:
            masks = tuple(encoded(mask.numpy()) for mask in (said["masks"][:, 0] > 0.5).cpu())
        boxes, scores = said["boxes"].cpu().double().numpy(), said["scores"].cpu().double().numpy()
        found.append(Found(boxes, scores, said["labels"].cpu().numpy() - 1, masks))
        report(len(found) / len(images))
    return found


def _pixels(image: AnnotatedImage) -> Tensor:
    """[3, height, width], 0..1."""
    return torch.from_numpy(image.pixels()).permute(2, 0, 1).float() / 255
