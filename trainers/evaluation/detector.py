"""torchvision's Faster R-CNN and Mask R-CNN on a subject's residual network: built, trained on annotated images, asked.

Letters: n = images, c = channels, k = detections of an image, W = ranks.
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

from trainers import dist
from trainers.data.annotations import AnnotatedImage, Instance
from trainers.data.annotations.base import encoded
from trainers.data.splits import keyed_ranks
from trainers.evaluation.average_precision import Found
from trainers.evaluation.stages import Stages, stages_of

if TYPE_CHECKING:
    from trainers.evaluation.protocol import Data
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

TRAINING = 0.9
"""How much of the work is training, for a bar."""


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


def detected(
    subject: Subject,
    data: Data,
    *,
    device: torch.device,
    report: Callable[[float], None],
    settings: Settings,
    class_count: int,
    seed: int,
    fit: Sequence[AnnotatedImage],
    scored: Sequence[AnnotatedImage],
) -> list[Found]:
    """What a detector that is built and trained from `seed` says of the scored images, on rank 0. All ranks end with
    the same detector; `together.divided` calls it.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        network = build(subject, settings, class_count).to(device)
        train(
            network,
            fit,
            settings,
            seed=seed,
            device=device,
            threads=data.threads,
            report=lambda done: report(TRAINING * done),
        )
        return detect(
            network,
            scored,
            device=device,
            threads=data.threads,
            report=lambda done: report(TRAINING + (1 - TRAINING) * done),
        )


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
    drawn from torch's global generator. ValueError where the loss is not finite. On W ranks, which divide the batch and
    whose generators are alike, each has its rows of it, and all is as on one rank within rounding.
    """
    moving = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        moving, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    network.train()
    if settings.frozen or settings.norm == "frozen":
        _keep_statistics(network)
    elif dist.world_size() > 1:
        dist.synchronize_batch_norm(network)
    part = _PartOfBatch(network, settings.batch_size // dist.world_size()) if dist.world_size() > 1 else None
    transform: Any = network.transform
    sides = keyed_ranks(settings.steps, f"side/{seed}") % np.uint64(len(settings.sides))
    for step, batch in enumerate(_batches(images, settings, seed=seed, threads=threads)):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, settings)
        transform.min_size = (settings.sides[int(sides[step])],)
        pixels = [example.pixels.to(device) for example in batch]
        targets = [{name: value.to(device) for name, value in example.target.items()} for example in batch]
        losses: dict[str, Tensor] = network(pixels, targets) if part is None else part.losses(pixels, targets)
        total = torch.stack(list(losses.values())).sum()
        if not bool(torch.isfinite(dist.sum_over_ranks(total.detach()))):
            parts = ", ".join(f"{name} {float(value.detach()):g}" for name, value in losses.items())
            raise ValueError(
                f"the detector's loss must be finite, but is not at step {step + 1} of {settings.steps} ({parts}); "
                f"learning_rate is {settings.learning_rate:g}: lower it with --set NAME.learning_rate=…"
            )
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        dist.sum_gradients(moving)
        optimizer.step()
        report((step + 1) / settings.steps)
    if part is not None:
        part.over()
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


class _PartOfBatch:
    """Makes of a rank's rows of a batch what they are within the whole one, though torchvision's detectors look at a
    batch at once: images are padded to its largest, each random draw is the one that one rank would take for that
    image, and each loss, a mean over regions, counts as much as the rank has of them.
    """

    def __init__(self, network: Any, rows: int) -> None:
        self._network = network
        self._rows = rows
        self._before = self._network.rpn.fg_bg_sampler, self._network.roi_heads.fg_bg_sampler
        self._regions, self._heads = (_Sampler(sampler) for sampler in self._before)
        self._network.rpn.fg_bg_sampler, self._network.roi_heads.fg_bg_sampler = self._regions, self._heads
        self._network.transform.max_by_axis = self._largest

    def losses(self, pixels: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Of the detector in training; over ranks they add up to those of the batch."""
        _pass_sizes(dist.row_offset(self._rows))
        found: dict[str, Tensor] = self._network(pixels, targets)
        weights = {
            "loss_objectness": self._regions.share,
            "loss_rpn_box_reg": self._regions.share,
            "loss_classifier": self._heads.share,
            "loss_box_reg": self._heads.share,
            "loss_mask": self._heads.share_of_objects,
        }
        return {name: value * weights[name] for name, value in found.items()}

    def _largest(self, shapes: list[list[int]]) -> list[int]:
        """In the place of the transform's `max_by_axis`, which is called once all images have their size."""
        _pass_sizes(self._rows * dist.world_size() - dist.row_offset(self._rows) - self._rows)
        every = [shape for of_rank in dist.gather_objects(shapes) for shape in of_rank]
        return [max(sides) for sides in zip(*every, strict=True)]

    def over(self) -> None:
        """The detector is as torchvision has it."""
        del self._network.transform.max_by_axis
        self._network.rpn.fg_bg_sampler, self._network.roi_heads.fg_bg_sampler = self._before


def _pass_sizes(count: int) -> None:
    """The draws by which torchvision's transform chooses a size, of so many other images."""
    for _ in range(count):
        torch.empty(1).uniform_(0.0, 1.0)


class _Sampler:
    """torchvision's sampler of regions, for a rank's images among those of a batch."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.share = self.share_of_objects = 0.0
        """Of the regions that were drawn last on all ranks, and of those that are objects, this rank's part."""

    def __call__(self, matched: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Of each image what its regions are (0: ground, 1 and more: an object, else nothing): masks of those drawn."""
        own = [(int((one >= 1).sum()), int((one == 0).sum())) for one in matched]
        objects: list[Tensor] = []
        ground: list[Tensor] = []
        everyone = dist.gather_objects(own)
        for rank, counts in enumerate(everyone):
            for image, count in enumerate(counts):
                if rank == dist.rank():
                    found = self._sampler([matched[image]])
                    objects += found[0]
                    ground += found[1]
                else:  # the draws of an image of another rank
                    for regions in count:
                        torch.randperm(regions, device=matched[0].device)
        drawn = np.array([np.sum([self._drawn(*count) for count in counts], axis=0) for counts in everyone])
        shares = drawn[dist.rank()] / drawn.sum(axis=0).clip(1)
        self.share_of_objects, self.share = float(shares[0]), float(shares[1])
        return objects, ground

    def _drawn(self, objects: int, ground: int) -> tuple[int, int]:
        """(objects, regions) that are drawn of an image with so many."""
        most: int = self._sampler.batch_size_per_image
        objects = min(objects, int(most * self._sampler.positive_fraction))
        return objects, objects + min(ground, most - objects)


class _Example(NamedTuple):
    pixels: Tensor
    """[3, height, width], 0..1."""
    target: dict[str, Tensor]


def _batches(
    images: Sequence[AnnotatedImage], settings: Settings, *, seed: int, threads: int
) -> Iterator[list[_Example]]:
    """This rank's rows of a batch for each step. Images without an object that counts are left out, as torchvision's
    and Detectron's training does.
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
    rows = settings.batch_size // dist.world_size()
    first = dist.row_offset(rows)
    own = (start + row for start in range(0, needed, settings.batch_size) for row in range(first, first + rows))
    for found in _ahead(example, own, threads=threads, ahead=2 * rows):
        batch.append(found)
        if len(batch) == rows:
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
    """What the detector says of each image, on its own: by falling score. Ranks take turns; rank 0 has all."""
    network.eval()
    places = dist.own_batches(np.arange(len(images)), 1)

    def own() -> Iterator[Found]:
        for pixels in _ahead(_pixels, [images[place] for place in places], threads=threads, ahead=8):
            said: dict[str, Tensor] = network([pixels.to(device)])[0]
            masks = None
            if "masks" in said:
                masks = tuple(encoded(mask.numpy()) for mask in (said["masks"][:, 0] > 0.5).cpu())
            boxes, scores = said["boxes"].cpu().double().numpy(), said["scores"].cpu().double().numpy()
            yield Found(boxes, scores, said["labels"].cpu().numpy() - 1, masks)

    found: list[Found] = []
    for one in dist.in_order(own(), len(images)):
        found.append(one)
        report(len(found) / len(images))
    return found


def _pixels(image: AnnotatedImage) -> Tensor:
    """[3, height, width], 0..1."""
    return torch.from_numpy(image.pixels()).permute(2, 0, 1).float() / 255
