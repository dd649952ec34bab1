"""A backbone's state out of a file: found under whatever prefix, by whoever's names, or refused in words.

module.encoder_q.layer1.0.conv1.weight      MoCo
teacher.backbone.blocks.0.attn.qkv.weight   DINO
model.backbone.stages.0.conv1.weight        a checkpoint of ours
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from trainers.settings import Backbone, ResNetConfig, ViTConfig
from trainers.vit import sine_positions
from trainers.weights.names import Library, theirs
from trainers.weights.reading import Tensors

Branch = Literal["student", "teacher"]

HEADS = ("fc", "head", "heads", "classifier", "projector", "projection_head", "predictor", "prototypes", "mask_token")
"""First steps of names of what comes after a backbone, or is of pretraining alone, in files of others."""
_AVERAGED = {"teacher", "momentum", "target", "ema", "k"}
"""A prefix with one of these words in it is of a moving average: `teacher.`, `momentum_encoder.`, `encoder_k.`"""
_SHOWN = 3


class Found(NamedTuple):
    """A backbone's state by our names, and what was found on the way."""

    state: dict[str, Tensor]
    prefix: str
    """What stood before all names, as `module.encoder_q.`."""
    dropped: tuple[str, ...]
    """Names of a classifier or another head."""


def match(config: Backbone, network: nn.Module, file: Tensors, *, branch: Branch = "student") -> Found:
    """The state of `network`, which `config` describes, in a file that has it under some prefix.

    Of a trained network and its moving average in one file `branch` says which; where there is one, it is taken.
    ValueError where the file is of another architecture, of images of other channels, of another stem, patch or size,
    lacks something, or has more than a backbone and its heads.
    """
    wanted = network.state_dict()
    names, prefix = _place(config, network, file, branch)
    rest = {name.removeprefix(prefix): tensor for name, tensor in file.tensors.items() if name.startswith(prefix)}
    taken = {ours: rest.pop(known) for ours, known in names.items() if known in rest}
    # The counter of a batch norm, which files of old versions of torch lack, tells nothing in evaluation.
    for ours, tensor in wanted.items():
        if ours not in taken and ours.endswith("num_batches_tracked"):
            taken[ours] = torch.zeros_like(tensor)
    heads = tuple(name for name in rest if _is_head(name))
    missing = [names[ours] for ours in wanted if ours not in taken]
    unexpected = [name for name in rest if name not in heads]
    what = f"{file.path} must hold the weights of {config.kind}"
    if 2 * len(missing) > len(wanted):
        raise ValueError(f"{what}, but is of another architecture{_differences(missing, unexpected, ())}; {_REMEDY}")
    _check_images(config, what, wanted, taken)
    other = [
        f"{names[ours]} has {list(tensor.shape)}, not {list(wanted[ours].shape)}"
        for ours, tensor in taken.items()
        if tensor.shape != wanted[ours].shape
    ]
    if unusable := [names[ours] for ours, tensor in taken.items() if not _is_plain(tensor, like=wanted[ours])]:
        raise ValueError(
            f"{what} as plain numbers, floating point where the network's are, but {_listed(unusable)} "
            f"{'is' if len(unusable) == 1 else 'are'} quantized, complex, sparse or without values; save them as such"
        )
    if missing or unexpected or other:
        raise ValueError(f"{what}, but differs{_differences(missing, unexpected, other)}; {_REMEDY}")
    state = {ours: taken[ours].to(wanted[ours].dtype).contiguous() for ours in wanted}
    _check_values(config, what, state)
    return Found(state, prefix, heads)


_REMEDY = "name the backbone that it is of, or another file"


def _place(config: Backbone, network: nn.Module, file: Tensors, branch: Branch) -> tuple[dict[str, str], str]:
    """By which library's names, and behind which prefix, most of the network is found in the file."""
    best: tuple[tuple[int, bool, int], dict[str, str], str] | None = None
    for library in get_args(Library):
        if library == "torchvision" and not isinstance(config, ResNetConfig | ViTConfig):
            continue
        names = theirs(config, network, library)
        for prefix, count in prefixes(file.tensors, set(names.values())).items():
            key = (count, is_averaged(prefix) == (branch == "teacher"), -len(prefix))
            if best is None or key > best[0]:
                best = key, names, prefix
    if best is None:
        raise ValueError(
            f"{file.path} must hold the weights of {config.kind}, but none of its {len(file.tensors)} tensors has a "
            f"name of one ({_listed(list(file.tensors))}); {_REMEDY}"
        )
    return best[1], best[2]


def prefixes(names: Mapping[str, Tensor], known: set[str]) -> Counter[str]:
    """How many of `names` end in a known one, by what stands before that."""
    found: Counter[str] = Counter()
    for name in names:
        steps = name.split(".")
        found.update(".".join([*steps[:depth], ""]) for depth in range(len(steps)) if ".".join(steps[depth:]) in known)
    return found


def is_averaged(prefix: str) -> bool:
    """Whether a network with this prefix is a moving average of another."""
    return not _AVERAGED.isdisjoint(re.split(r"[._]", prefix))


def _is_head(name: str) -> bool:
    step = name.partition(".")[0]
    return step in HEADS or step.startswith("decoder")


def _check_images(config: Backbone, what: str, wanted: Mapping[str, Tensor], taken: Mapping[str, Tensor]) -> None:
    """Channels, stem, patch size and number of patches, each in its own words."""
    first = next((name for name, tensor in wanted.items() if tensor.ndim == 4), None)
    if first is not None and first in taken and taken[first].ndim == 4:
        ours, found = wanted[first].shape, taken[first].shape
        if found[1] != ours[1]:
            raise ValueError(
                f"{what} for images of {ours[1]} channels, but its first convolution takes {found[1]}; weights are "
                "not made to fit: name a file that was trained on RGB images"
            )
        if found[2:] != ours[2:] and isinstance(config, ViTConfig):
            raise ValueError(
                f"{what} with patches of {config.patch_size} pixels, but has patches of {found[2]}; set "
                f"model.backbone.patch_size={found[2]}"
            )
        if found[2:] != ours[2:] and isinstance(config, ResNetConfig):
            stem = "imagenet" if found[2] == 7 else "small, small_pooled or small_padded, whichever it was trained with"
            raise ValueError(
                f"{what} with a stem of {ours[2]}x{ours[3]}, but its stem is a convolution of {found[2]}x{found[3]}; "
                f"set model.backbone.stem={stem}"
            )
    positions = "pos_embed"
    if positions in wanted and positions in taken and taken[positions].shape[1:2] != wanted[positions].shape[1:2]:
        count, needed = taken[positions].shape[1] - 1, wanted[positions].shape[1] - 1
        side = round(count**0.5)
        size = f", of views of {side * config.patch_size} pixels" if isinstance(config, ViTConfig) else ""
        raise ValueError(
            f"{what} with positions of {needed} patches, but has those of {count}{size}; positions are not made to "
            "fit: set the largest views' size to that"
        )


def _is_plain(tensor: Tensor, *, like: Tensor) -> bool:
    """Whether its numbers are there, and mean what those of `like` mean: not what quantized integers stand for."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_complex():
        return False
    return tensor.is_floating_point() == like.is_floating_point()


def _check_values(config: Backbone, what: str, state: Mapping[str, Tensor]) -> None:
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"{what}, but {_listed(broken)} are not finite; name a file of a run that did not diverge")
    if isinstance(config, ViTConfig) and config.positions == "fixed":
        table = state["pos_embed"]
        side = round((table.shape[1] - 1) ** 0.5)
        fixed = sine_positions(side, config.width, config.position_temperature).to(table.dtype)
        if not torch.allclose(table, fixed, atol=1e-4):
            raise ValueError(
                f"{what} with fixed positions, but its positions are others; set model.backbone.positions=learned, or "
                "the position_temperature that it was trained with"
            )


def _differences(missing: Sequence[str], unexpected: Sequence[str], other: Sequence[str]) -> str:
    parts = [
        f"{len(names)} {label} ({_listed(names)})"
        for names, label in ((missing, "missing"), (unexpected, "unexpected"), (other, "of another shape"))
        if names
    ]
    return f": {'; '.join(parts)}" if parts else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join([*names[:_SHOWN], *(["…"] if len(names) > _SHOWN else [])])
