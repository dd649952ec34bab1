"""The network of a run: backbone, projector, predictor and moving-average teacher, from images to `Outputs`.

Each view goes through the backbone in its own forward pass, as in VICReg's and SFRIK's official code, so that batch
norm never mixes views. Joining views of one size was measured and gains nothing: 0.9 to 1.1 times the speed
(resnet_tiny, 16 px, 128 images, one CPU core).

Shapes: n = images on this rank, S = height = width of a view in pixels, p = features, q = embedding width.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers import backbones, compiling, dist, masking
from trainers.backbones import Norm
from trainers.config import (
    Backbone,
    MLPConfig,
    OwnBackbone,
    PrototypesConfig,
    ResNetConfig,
    TimmConfig,
    TrialConfig,
    ViTConfig,
)
from trainers.dist import synchronize_batch_norm
from trainers.terms import Head, Outputs, Patches
from trainers.terms.base import full_precision, unit_rows
from trainers.vit import Decoder, build_vit, encode_patches, gather_places, patch_pixels


class Stem(NamedTuple):
    """What comes before the first block of a torchvision network: a convolution, and whether its max-pool stays."""

    kernel: int
    stride: int
    padding: int
    pooled: bool


STEMS = {
    "imagenet": Stem(7, 2, 3, pooled=True),
    "small": Stem(3, 1, 1, pooled=False),
    "small_pooled": Stem(3, 1, 1, pooled=True),
    "small_padded": Stem(3, 1, 2, pooled=False),
}


def build_model(config: TrialConfig, heads: Collection[Head] | None = None) -> Model:
    """The untrained network of `config`, on the CPU, in torch's default dtype.

    Its parameters depend on `config` alone, whatever the process ran before, and the caller's random state is left as
    it was. With `config.model.norm` "batch", batch norm is over the rows of all ranks wherever there is a process
    group. `heads` are those that the terms read, unless they are given; of one's own terms only their class tells.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = Model(config, heads)
    if config.model.norm == "batch":
        synchronize_batch_norm(model)
    return model


def trained_model(config: TrialConfig, state: Mapping[str, Tensor]) -> Model:
    """The network of `config` with the parameters and buffers of a checkpoint, and the heads that these are of: no
    term is loaded.
    """
    model = build_model(config, [head for head in get_args(Head) if any(_is_of(head, name) for name in state)])
    model.load_state_dict(state)
    return model


def _is_of(head: Head, name: str) -> bool:
    return name == head or name.startswith(f"{head}.")


class Model(nn.Module):
    """What one trial trains. Parameters of `teacher` never need a gradient; everything else does.

    In training each part is called through `call`, which may compile it (`trainers.compiling`).
    """

    def __init__(self, config: TrialConfig, heads: Collection[Head] | None = None) -> None:
        super().__init__()
        self.call: compiling.Call = compiling.plainly
        heads = config.heads() if heads is None else heads
        norm = config.model.norm
        view_sizes = sorted({view.size for view in config.views}, reverse=True)
        view_size = view_sizes[0]
        self.backbone, self.feature_count = build_backbone(config.model.backbone, view_sizes, norm)
        self.projector = _build_mlp(self.feature_count, config.model.projector, norm)
        self.embedding_count = config.model.projector.widths[-1]
        self.predictor: nn.Module | None = None
        if config.model.predictor is not None:
            self.predictor = _build_mlp(self.embedding_count, config.model.predictor, norm)
        self.prototypes: Prototypes | None = None
        self.register_buffer("center", None)
        self.center: Tensor | None
        self._center_momentum = 0.0
        if config.model.prototypes is not None and not {"prototypes", "center"}.isdisjoint(heads):
            self.prototypes = Prototypes(config.model.prototypes, self.embedding_count)
            if "center" in heads:
                self._center_momentum = config.model.prototypes.center_momentum
                self.center = torch.zeros(config.model.prototypes.count)
        self.register_buffer("queue", None)
        self.queue: Tensor | None
        self._prototypes_config = config.model.prototypes
        if self._prototypes_config is not None and self._prototypes_config.queue and "prototypes" in heads:
            queued = min(self._prototypes_config.queued_views, len(config.views))
            self.queue = torch.zeros(queued, self._prototypes_config.queue, self.embedding_count)
        self.teacher: nn.ModuleDict | None = None
        self._teacher_config, self._teacher_views = config.model.teacher, config.teacher_views
        if config.model.teacher is not None:
            self.teacher = nn.ModuleDict(copy.deepcopy(self._branch())).requires_grad_(False)
        self._backbone_config, self._masking = config.model.backbone, config.model.masking
        self._masked_views = config.masked_patch_counts
        # What only one term reads comes last, so that everything else starts the same with and without it.
        self.decoder: Decoder | None = None
        if "decoder" in heads:
            self.decoder = _build_decoder(config, self.feature_count, view_size)
        self.mismatch_head: nn.Linear | None = None
        if "mismatch_head" in heads:
            self.mismatch_head = nn.Linear(self.feature_count, 1)

    def forward(
        self, views: tuple[Tensor, ...], sample_ids: Tensor, seed: int, step: int, with_targets: bool = True
    ) -> Outputs:
        """One training pass: views each [n, 3, S, S], sample_ids [n] int64.

        With masking the student sees a part of each masked view, in evaluation mode too. The teacher sees all of it,
        as `encode` and `embed` do; and nothing without `with_targets`, for a pass whose targets are known.
        """
        call = self.call if self.training else compiling.plainly
        features: tuple[Tensor, ...] = ()
        patches: tuple[Patches, ...] = ()
        for place, view in enumerate(views):
            if place in self._masked_views:
                class_token, seen = self._encode_masked(call, view, place, sample_ids, seed, step)
                features, patches = (*features, class_token), (*patches, seen)
            else:
                features = (*features, call(self.backbone, view))
        projections = tuple(call(self.projector, rows) for rows in features)
        predictions = None if self.predictor is None else tuple(call(self.predictor, rows) for rows in projections)
        targets = target_scores = scores = queued_scores = center = None
        if self.teacher is not None and with_targets:
            with torch.no_grad():
                seen_views = (views[place] for place in self._teacher_views if place < len(views))
                rows_of = (call(self.teacher["projector"], call(self.teacher["backbone"], view)) for view in seen_views)
                targets = tuple(self._wide(rows) for rows in rows_of)
        if self.prototypes is not None:
            scores = tuple(self.prototypes(rows, step) for rows in projections)
            queued_scores = self._queued(self.prototypes, projections, step)
        if self.center is not None and self.teacher is not None and targets is not None:
            with torch.no_grad():
                target_scores = tuple(self.teacher["prototypes"](rows, step) for rows in targets)
                center = self.center.clone()
                if self.training:
                    self.move_center(target_scores)
        return Outputs(
            features=tuple(self._wide(rows) for rows in features),
            projections=tuple(self._wide(rows) for rows in projections),
            predictions=None if predictions is None else tuple(self._wide(rows) for rows in predictions),
            targets=targets,
            sample_ids=sample_ids,
            seed=seed,
            step=step,
            patches=patches,
            scores=scores,
            queued_scores=queued_scores,
            target_scores=target_scores,
            center=center,
        )

    def encode(self, images: Tensor) -> Tensor:
        """Frozen features, [n, 3, S, S] -> [n, p]. Call it after `eval()` and without gradient."""
        return self._wide(self._encode(images))

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and projections of the same images, [n, 3, S, S] -> [n, p] and [n, q]. Call it as `encode`."""
        features = self._encode(images)
        return self._wide(features), self._wide(self.projector(features))

    @torch.no_grad()
    def move_center(self, target_scores: Sequence[Tensor]) -> None:
        """Move the center, where there is one, towards the mean of a batch's scores [n, M] of each view that the
        teacher sees.
        """
        if self.center is not None:
            mean = dist.mean_over_ranks(torch.stack(list(target_scores)).mean((0, 1)))
            self.center.lerp_(mean.to(self.center.dtype), 1.0 - self._center_momentum)

    @torch.no_grad()
    def update_teacher(self, step: int, total_steps: int) -> None:
        """Move the teacher towards the student after optimizer step `step` of `total_steps`; nothing without a teacher.

        teacher <- m teacher + (1 - m) student, with m from `teacher_momentum`. Batch norm's running statistics are
        copied.
        """
        if self.teacher is None or self._teacher_config is None:
            return
        student = nn.ModuleDict(self._branch())
        start, final = self._teacher_config.momentum, self._teacher_config.final_momentum
        momentum = teacher_momentum(start, final, step, total_steps)
        torch._foreach_lerp_(list(self.teacher.parameters()), list(student.parameters()), 1.0 - momentum)
        for ours, theirs in zip(self.teacher.buffers(), student.buffers(), strict=True):
            ours.copy_(theirs)

    def _branch(self) -> OrderedDict[str, nn.Module]:
        """What the teacher is an average of, by name."""
        branch: OrderedDict[str, nn.Module] = OrderedDict(backbone=self.backbone, projector=self.projector)
        if self.prototypes is not None:
            branch["prototypes"] = self.prototypes
        return branch

    @torch.no_grad()
    def _queued(self, prototypes: Prototypes, projections: tuple[Tensor, ...], step: int) -> tuple[Tensor, ...] | None:
        """The scores of this rank's part of the queue as it was before this batch, which then joins it at its front.

        All ranks hold the whole queue, so that it means the same on another number of them.
        """
        queue, settings = self.queue, self._prototypes_config
        if queue is None or settings is None:
            return None
        batch, length = dist.world_size() * len(projections[0]), queue.shape[1]
        found = None
        if max(0, step - settings.queue_after) * batch >= length:
            part = length // dist.world_size()
            start = dist.row_offset(part)
            found = tuple(prototypes(rows, step) for rows in queue[:, start : start + part])
        if self.training and step >= settings.queue_after:
            new = torch.stack([dist.gather_rows_detached(unit_rows(rows)) for rows in projections[: len(queue)]])
            queue.copy_(torch.cat((new.to(queue.dtype), queue), dim=1)[:, :length])
        return found

    def _encode(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.backbone(images))

    def _encode_masked(
        self, call: compiling.Call, images: Tensor, view: int, sample_ids: Tensor, seed: int, step: int
    ) -> tuple[Tensor, Patches]:
        """The class token [n, p] of view number `view`, and its patch tokens."""
        if self._masking is None or not isinstance(self._backbone_config, ViTConfig):
            raise ValueError("only views of a vision transformer with model.masking can be masked; set both")
        patch_size = self._backbone_config.patch_size
        patch_count = (images.shape[2] // patch_size) ** 2
        mask = masking.draw(self._masking, sample_ids, patch_count=patch_count, seed=seed, step=step, view=view)
        class_token, tokens = call(encode_patches, self.backbone, images, mask)
        patches = Patches(view, self._wide(tokens), mask.kept, mask.told, mask.dropped)
        if self.mismatch_head is not None:
            patches = patches._replace(mismatch_logits=self._wide(self.mismatch_head(tokens).squeeze(2)))
        if self.decoder is not None:
            patches = patches._replace(
                pixels=gather_places(patch_pixels(images, patch_size), mask.dropped),
                reconstruction=self._wide(call(self.decoder, class_token, tokens, mask)),
            )
        return class_token, patches

    def _wide(self, rows: Tensor) -> Tensor:
        """Leave autocast: losses and probes are computed in the dtype of the parameters."""
        return rows.to(next(self.parameters()).dtype)


def teacher_momentum(start: float, final: float, step: int, total_steps: int) -> float:
    """m(k) = final - (final - start) (cos(pi k / K) + 1) / 2 at step k of K, from 0 (BYOL, arXiv 2006.07733)."""
    return final - (final - start) * (math.cos(math.pi * step / total_steps) + 1.0) / 2.0


# --- backbones -------------------------------------------------------------------------------------------------------


def build_backbone(config: Backbone, view_sizes: Sequence[int], norm: Norm) -> tuple[nn.Module, int]:
    """A network [n, 3, S, S] -> [n, p], and p. `view_sizes` are the S in pixels, the largest first."""
    view_size = view_sizes[0]
    if isinstance(config, TimmConfig):
        return backbones.from_timm(config, view_sizes, norm)
    if isinstance(config, OwnBackbone):
        return backbones.own(config, view_sizes, norm)
    if isinstance(config, ViTConfig):
        return build_vit(config, view_size)
    if config.kind == "resnet_tiny":
        return TinyResNet(config.width, _norm_2d(norm), zero_init_residual=config.zero_init_residual), 4 * config.width
    return _torchvision_resnet(config, view_size, norm)


class TinyResNet(nn.Module):
    """A residual network for 16 to 32 px: 3x3 stem, then 1, 1 and 3 blocks of w, 2w and 4w channels.

    Basic blocks as in He et al. 2016 (arXiv 1512.03385, figure 5, left); shortcuts that change shape are 1x1
    convolutions. Stages cost the same per block, so most blocks are spent in the last, which holds most parameters.
    Features are means over pixels. With w = 16: 225,360 parameters and 5.5 million multiplications for an image of 16
    px.
    """

    def __init__(self, width: int, norm: Callable[[int], nn.Module], *, zero_init_residual: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), norm(width), nn.ReLU(inplace=True))
        self.stages = nn.Sequential(
            BasicBlock(width, width, 1, norm),
            BasicBlock(width, 2 * width, 2, norm),
            BasicBlock(2 * width, 4 * width, 2, norm),
            BasicBlock(4 * width, 4 * width, 1, norm),
            BasicBlock(4 * width, 4 * width, 1, norm),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            for block in self.stages:
                nn.init.zeros_(cast(Tensor, cast(BasicBlock, block).norm2.weight))

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.stages(self.stem(images))).mean(dim=(2, 3))


class BasicBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        residual = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        return functional.relu(self.shortcut(x) + self.norm2(self.conv2(residual)), inplace=True)


def _torchvision_resnet(config: ResNetConfig, view_size: int, norm: Norm) -> tuple[nn.Module, int]:
    # Here, as it takes a second to import and the tiny network does without.
    import torchvision  # type: ignore[import-untyped]

    network = getattr(torchvision.models, config.kind)(
        weights=None, zero_init_residual=config.zero_init_residual, norm_layer=_norm_2d(norm)
    )
    feature_count: int = network.fc.in_features
    network.fc = nn.Identity()
    name = config.stem_for(view_size)
    if name != "imagenet":  # which is torchvision's own
        stem = STEMS[name]
        network.conv1 = nn.Conv2d(3, 64, stem.kernel, stem.stride, stem.padding, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        if not stem.pooled:
            network.maxpool = nn.Identity()
    return network, feature_count


def _build_decoder(config: TrialConfig, feature_count: int, view_size: int) -> Decoder:
    backbone, decoder = config.model.backbone, config.model.decoder
    if decoder is None or not isinstance(backbone, ViTConfig):
        raise ValueError("a decoder needs model.decoder and a vision transformer; set both")
    side = view_size // backbone.patch_size
    return Decoder(decoder, inputs=feature_count, patch_size=backbone.patch_size, side=side)


# --- heads and norms -------------------------------------------------------------------------------------------------


def _build_mlp(inputs: int, config: MLPConfig, norm: Norm) -> nn.Sequential:
    """[n, inputs] -> [n, widths[-1]]. No bias in a hidden layer where batch norm would subtract it again."""
    layers: list[nn.Module] = []
    *hidden, last = config.widths
    for width in hidden:
        layers.append(nn.Linear(inputs, width, bias=not config.hidden_norm or norm == "layer"))
        if config.hidden_norm:
            layers.append(_norm_1d(width, norm))
        layers.append(nn.GELU() if config.activation == "gelu" else nn.ReLU(inplace=True))
        inputs = width
    layers.append(nn.Linear(inputs, last, bias=config.final_bias))
    if config.final_norm:
        layers.append(_norm_1d(last, norm, affine=config.final_affine))
    if config.initialization == "dino":
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


class Prototypes(nn.Module):
    """Cosines of rows with learned directions: the normalized bottleneck of DINO and SwAV and their last layer, whose
    weight norm has the fixed gain 1."""

    def __init__(self, config: PrototypesConfig, width: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(nn.Linear(width, config.count, bias=False).weight.detach())
        self._frozen_steps = config.frozen_steps

    def forward(self, rows: Tensor, step: int) -> Tensor:
        """[n, q] -> [n, M], in float32 or wider; `step` = optimizer steps done."""
        directions: Tensor = self.directions
        if step < self._frozen_steps:  # a gradient of zeros, as DDP waits for one
            directions = directions.detach() + 0.0 * directions
        with full_precision(rows.device):
            return unit_rows(rows) @ unit_rows(directions).T


def _norm_1d(width: int, norm: Norm, *, affine: bool = True) -> nn.Module:
    return nn.LayerNorm(width, elementwise_affine=affine) if norm == "layer" else nn.BatchNorm1d(width, affine=affine)


def _norm_2d(norm: Norm) -> Callable[[int], nn.Module]:
    """Over images' channels. Without batch statistics: one group of all channels and pixels of one image."""
    return partial(nn.GroupNorm, 1) if norm == "layer" else nn.BatchNorm2d
