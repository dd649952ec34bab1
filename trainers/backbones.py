"""Networks that are not ours: timm's, by name, and one's own, by reference.

What makes one's own is a class or a function. It is called with the settings that the config gives it, all by name, and
with `view_size` (the largest view's, in pixels) and `norm` (`model.norm`) where it has parameters of these names:

    class Net(nn.Module):
        def __init__(self, width: int = 32) -> None: ...
        def forward(self, images: Tensor) -> Tensor: ...  # [n, 3, S, S] -> [n, p]

It must take each of the run's view sizes, and keep all of its state in parameters and buffers, as a checkpoint holds no
more. It draws nothing at random in its forward pass: dropout and drop path would differ in a run that is resumed, or
that has other workers. Its initial parameters are drawn from torch's global generator, which is seeded before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainers import usercode
from trainers.settings import OwnBackbone, TimmConfig

Norm = Literal["batch", "batch_per_rank", "layer"]

PATH = "model.backbone"


def from_timm(config: TimmConfig, view_sizes: Sequence[int], norm: Norm) -> tuple[nn.Module, int]:
    """timm's model without its classifier, untrained: [n, 3, S, S] -> [n, p], and p. `view_sizes` are the S in pixels,
    the largest first.

    ValueError where timm has no such model, it does not take the options or the views, gives no feature vector, or
    cannot be trained here (see `_checked`).
    """
    import timm  # here: it takes a second to import

    name = config.kind.removeprefix("timm:")
    if not timm.is_model(name):
        near = usercode.guess(name, timm.list_models())
        raise ValueError(
            f"{PATH}.kind: timm {timm.__version__} has no model {name!r}{near or '; see timm.list_models()'}"
        )
    options = timm_options(config, view_sizes)
    if elsewhere := sorted(options.keys() & {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"}):
        raise ValueError(
            f"{PATH}.options must not name weights, but has {', '.join(elsewhere)}; a run starts from a file by "
            f"{PATH}.init"
        )
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0, **options)
    except Exception as error:  # whatever its own code raises on sizes and options
        raise ValueError(
            f"{PATH}: {config.kind} cannot be made for views of {_listed(view_sizes)} pixels with options {options} "
            f"({type(error).__name__}: {error}); change model.backbone.options or the views' sizes, or choose another"
        ) from error
    _split_activations(network)
    return _checked(network, config.kind, view_sizes, norm)


def timm_options(config: TimmConfig, view_sizes: Sequence[int]) -> dict[str, Any]:
    """What `timm.create_model` is given beside the name, for views of these sizes, the largest first."""
    import timm

    options: dict[str, Any] = dict(config.options)
    if getattr(timm.get_pretrained_cfg(config.kind.removeprefix("timm:")), "fixed_input_size", False):
        options.setdefault("img_size", view_sizes[0])
        if len(view_sizes) > 1:
            options.setdefault("dynamic_img_size", True)
    return options


def own(config: OwnBackbone, view_sizes: Sequence[int], norm: Norm) -> tuple[nn.Module, int]:
    """One's own network, and p. Arguments and errors as of `from_timm`; ChangedError where its file has changed."""
    with usercode.named(PATH):
        config.check_call()
        make = config.load()
    label = usercode.where(make)
    try:
        network = make(**config.settings, **config.asked_for(make, view_size=view_sizes[0], norm=norm))
    except Exception as error:  # whatever its own code raises on its settings
        place = usercode.place_of(error, make)
        raise ValueError(
            f"{PATH}: {label} cannot be made ({place}{type(error).__name__}: {error}); correct it, or its settings"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{PATH}: {label} must make a torch.nn.Module, but made {type(network).__name__}; return one")
    return _checked(network, label, view_sizes, norm)


def _checked(network: nn.Module, label: str, view_sizes: Sequence[int], norm: Norm) -> tuple[nn.Module, int]:
    """The network and its p, seen on a few images of each size."""
    if norm == "layer":
        for name, module in network.named_modules():
            if isinstance(module, _BatchNorm):
                raise ValueError(
                    f"{PATH}: with model.norm=layer no layer may need a batch, but {label} has a batch norm, {name}; "
                    "set model.norm=batch, or choose a network without"
                )
    was_training = network.training
    network.eval()
    widths = []
    for size in view_sizes:
        images = torch.linspace(-1.0, 1.0, 2 * 3 * size * size).view(2, 3, size, size).to(_dtype(network))
        try:
            with torch.no_grad():
                features = network(images)
        except Exception as error:  # whatever its own code raises on images of this size
            place = usercode.place_of(error, type(network))
            raise ValueError(
                f"{PATH}: {label} cannot take images of {size} x {size} pixels ({place}"
                f"{type(error).__name__}: {error}); change the views' sizes, its settings, or the network"
            ) from error
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
            raise ValueError(
                f"{PATH}: {label} must give one feature vector for each image, [2, p] of [2, 3, {size}, {size}], but "
                f"gave {shape}; take for example the mean over pixels"
            )
        widths.append(features.shape[1])
    if len(set(widths)) > 1:
        raise ValueError(
            f"{PATH}: {label} must give features of one width, but gave {widths} for views of {_listed(view_sizes)} "
            "pixels; take the mean over pixels, or make the views of one size"
        )
    network.train(was_training)
    return network, widths[0]


def _split_activations(network: nn.Module) -> None:
    """timm's batch norms that also drop and activate become three modules, the first of which can be synchronized."""
    from timm.layers.norm_act import BatchNormAct2d

    for name, child in network.named_children():
        if type(child) is not BatchNormAct2d:
            _split_activations(child)
            continue
        norm = nn.BatchNorm2d(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
        norm.load_state_dict(
            {key: value for key, value in child.state_dict().items() if key in norm.state_dict()}, strict=True
        )
        setattr(network, name, nn.Sequential(OrderedDict(norm=norm, drop=child.drop, act=child.act)))


def _dtype(network: nn.Module) -> torch.dtype:
    return next((parameter.dtype for parameter in network.parameters()), torch.get_default_dtype())


def _listed(sizes: Sequence[int]) -> str:
    return " and ".join(str(size) for size in sizes)
