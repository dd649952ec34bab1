"""What the sources of recipes have, beside what the recipes have: the table in docs/reference/recipes.md.

A recipe's own settings are read from its config (`settings_of`); its source's stand here, in the same words, and only
where they are known. Each new recipe needs a line in `SOURCES`, and each difference an explanation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

from trainers.config import ResNetConfig, TrialConfig, ViewConfig, ViTConfig


class Settings(NamedTuple):
    """What readers of a table of results compare first. None: not known, or nothing that could be compared."""

    stem: str | None = None
    """Of a residual network its first layers (`ResNetConfig`), of a transformer its patches."""
    resampling: str | None = None
    """Of crops to the views' sizes."""
    initialization: str | None = None
    """How the backbone starts."""
    batch: str | None = None
    """Images of a step, over all workers."""
    epochs: str | None = None
    crops: str | None = None
    """Views: how many, of how many pixels, and of which shares of an image's area."""


class Source(NamedTuple):
    """Where a recipe comes from. `name`: repository or paper, and the file in it; "ours" where nothing is published."""

    name: str
    settings: Settings = Settings()
    differences: str = ""
    """Why ours are others, and what else differs that no column shows."""

    def differing(self, ours: Settings) -> list[str]:
        """Names of the settings in which `ours` are not the source's."""
        pairs = zip(Settings._fields, ours, self.settings, strict=True)
        return [name for name, mine, theirs in pairs if theirs is not None and theirs != mine]


def settings_of(config: TrialConfig) -> Settings:
    """A recipe's own, from its config."""
    backbone = config.model.backbone
    stem: str = backbone.kind
    initialization: str = backbone.kind
    if isinstance(backbone, ResNetConfig):
        stem = backbone.stem_for(max(view.size for view in config.views))
        initialization = "zero residual" if backbone.zero_init_residual else "torchvision"
    elif isinstance(backbone, ViTConfig):
        stem = patches(backbone.patch_size, backbone.head_count)
        initialization = backbone.initialization + (", frozen patches" if backbone.freeze_patches else "")
    return Settings(
        stem=stem,
        resampling=" and ".join(dict.fromkeys(getattr(view, "resampling", "bilinear") for view in config.views)),
        initialization=initialization,
        batch=f"{config.batch_size:,}",
        epochs=f"{config.epochs:,}",
        crops=_crops(config.views),
    )


def patches(side: int, heads: int) -> str:
    """`patches of 16 px, 6 heads`."""
    return f"patches of {side} px, {heads} head" + "s" * (heads > 1)


def crops(*groups: tuple[int, int, float, float]) -> str:
    """`2 x 224 px (0.14 to 1) + 6 x 96 px (0.05 to 0.14)` of (how many, pixels, smallest share, largest share)."""
    return " + ".join(f"{count} x {size} px ({low:g} to {high:g})" for count, size, low, high in groups)


def _crops(views: Sequence[ViewConfig]) -> str:
    alike: Iterable[tuple[tuple[int, tuple[float, float]], Iterable[ViewConfig]]]
    alike = groupby(views, key=lambda view: (view.size, view.crop_scale))
    return crops(*((len(list(group)), size, *scale) for (size, scale), group in alike))


# --- the sources ------------------------------------------------------------------------------------------------------

_ALL_IMAGES = "Theirs trains on all labeled images; here some are kept apart for the search."
_HARNESS = f"Theirs crops after jittering, lowers the rate per epoch and decays vectors too. {_ALL_IMAGES}"
_SOLO = f"Theirs trains in float16 and warms up from a rate of 3e-5. {_ALL_IMAGES}"


def _ours(why: str = "A tiny one for digits: the method is its source's, the sizes are ours.") -> Source:
    return Source("ours", differences=why)


def _whitening(where: str, initialization: str, batch: str, views: int, epochs: int, size: int) -> Source:
    stem = "small" if size == 32 else "small_pooled"
    return Source(
        where,
        Settings(stem, "bicubic", initialization, batch, f"{epochs:,}", crops((views, size, 0.2, 1.0))),
        f"Sub-batches are runs of the global batch. {_HARNESS}",
    )


_cw_rgp = partial(_whitening, "winci-ai/CW-RGP, scripts/base.sh (CW-RGP 4)", "zero residual", "256", 4)
_w_mse = partial(_whitening, "htdt/self-supervised, README.md (W-MSE 2)", "torchvision", "512", 2)


def _msbreg(epochs: int, size: int, stem: str, low: float = 0.2) -> Source:
    return Source(
        "ours in the harness of htdt/self-supervised, README.md (4 samples)",
        Settings(stem, "bicubic", "torchvision", "256", f"{epochs:,}", crops((4, size, low, 1.0))),
        f"Of the paper no setting is known: weights, heads and momentum are ours. {_HARNESS}",
    )


def _solo_learn(file: str, low: float = 0.08, more: str = "") -> Source:
    return Source(
        f"vturrisi/solo-learn, scripts/pretrain/cifar/{file}.yaml",
        Settings("small_padded", "bicubic", "torchvision", "256", "1,000", crops((2, 32, low, 1.0))),
        f"{more}{_SOLO}",
    )


def _sfrik(section: str, settings: Settings, more: str = "", all_images: str = _ALL_IMAGES) -> Source:
    return Source(
        f"valeoai/sfrik, README.md ({section})", settings, f"{more}bf16 for their float16. {all_images}".strip()
    )


_FIFTH = "A drawn 20 % of each class for their first 260 images. "
_SFRIK_VIEWS = crops((2, 224, 0.08, 1.0))
_SWAV_CROPS = crops((2, 224, 0.14, 1.0), (6, 96, 0.05, 0.14))
_DINO_CROPS = crops((2, 224, 0.4, 1.0), (8, 96, 0.05, 0.4))
_DILEMMA = "The paper's settings beside this host are not known: "
_VIT_S, _VIT_B = patches(16, 6), patches(16, 12)

SOURCES: dict[str, Source] = {
    # SFRIK
    "sfrik_tiny": _ours(),
    "sfrik_cifar10": Source(
        "ours after valeoai/sfrik, README.md (STL10)",
        differences="The authors have none for CIFAR-10: batch, width and first layers are ours, for 32 px.",
    ),
    "sfrik_stl10": _sfrik(
        "STL10",
        Settings("imagenet", "bicubic", "zero residual", "2,048", "100", crops((2, 64, 0.08, 1.0))),
        all_images="",
    ),
    "sfrik_imagenet20": _sfrik(
        "20% subset of ImageNet",
        Settings("imagenet", "bicubic", "zero residual", "2,048", "100", _SFRIK_VIEWS),
        _FIFTH,
    ),
    "sfrik_imagenet20_swav_crops": _sfrik(
        "multicrop, SwAV", Settings("imagenet", "bilinear", "zero residual", "2,048", "100", _SWAV_CROPS), _FIFTH
    ),
    "sfrik_imagenet20_obow_crops": _sfrik(
        "multicrop, OBoW",
        Settings(
            "imagenet",
            "bilinear",
            "zero residual",
            "2,048",
            "100",
            "center of 224 px of 256 + 2 x 160 px (0.08 to 0.6) + 5 patches of 96 px of one crop (0.6 to 1) of 256",
        ),
        "Views are crops of one area each, drawn and colored one by one: there is no center crop and no patches of one "
        f"crop, so areas are matched. {_FIFTH}",
    ),
    "sfrik_imagenet": _sfrik(
        "ResNet50", Settings("imagenet", "bicubic", "zero residual", "2,048", "200", _SFRIK_VIEWS)
    ),
    # MSBReg
    "msbreg_tiny": _ours(),
    "msbreg_cifar10": _msbreg(1000, 32, "small"),
    "msbreg_cifar100": _msbreg(1000, 32, "small"),
    "msbreg_stl10": _msbreg(2000, 64, "small_pooled"),
    "msbreg_tiny_imagenet": _msbreg(1000, 64, "small_pooled"),
    "msbreg_imagenet100": _msbreg(240, 224, "imagenet", 0.08),
    "msbreg_imagenet": Source(
        "ours in the setting of BYOL, arXiv 2006.07733, appendix",
        Settings("imagenet", "bicubic", None, "4,096", "100", crops((2, 224, 0.08, 1.0))),
        f"Four views, BYOL's two twice. Of the paper no setting is known: weights are ours. {_ALL_IMAGES}",
    ),
    # whitening
    "cw_rgp_tiny": _ours(),
    "cw_rgp_cifar10": _cw_rgp(1000, 32),
    "cw_rgp_cifar100": _cw_rgp(1000, 32),
    "cw_rgp_stl10": _cw_rgp(2000, 64),
    "cw_rgp_tiny_imagenet": _cw_rgp(1000, 64),
    "cw_rgp_imagenet": Source(
        "winci-ai/CW-RGP, scripts/ImageNet.sh",
        Settings("imagenet", "bilinear", "zero residual", "512", "100", crops((4, 224, 0.2, 1.0))),
        "Their optional covariance term is left out. bf16 for float32. Theirs lowers the rate per epoch and decays "
        f"vectors too. {_ALL_IMAGES}",
    ),
    "w_mse_tiny": _ours(),
    "w_mse_cifar10": _w_mse(1000, 32),
    "w_mse_cifar100": _w_mse(1000, 32),
    "w_mse_stl10": _w_mse(2000, 64),
    "w_mse_tiny_imagenet": _w_mse(1000, 64),
    # DILEMMA and transformers
    "dilemma_tiny": _ours(),
    "dilemma_mocov3_tiny": _ours(),
    "dilemma_simclr_tiny": _ours(),
    "dilemma_dino_tiny": _ours(),
    "dilemma_mae_tiny": _ours(),
    "mae_tiny": _ours(),
    "dilemma_mocov3_cifar10": _ours("MoCo v3's transformer recipe at 32 px with solo-learn's views."),
    "dilemma_simclr_cifar10": _ours("As `dilemma_mocov3_cifar10`, with SimCLR's loss."),
    "dilemma_dino_cifar10": _ours("As `dilemma_mocov3_cifar10`, with DINO's loss, head and crops."),
    "dilemma_mae_cifar10": _ours("`mae_cifar10` and detection."),
    "dilemma_mocov3_tiny_imagenet": _ours("As `dilemma_mocov3_cifar10`, at 64 px."),
    "dilemma_mocov3_stl10": _ours("As `dilemma_mocov3_cifar10`, at 96 px."),
    "dilemma_mocov3_imagenet": Source(
        "Separius/DILEMMA, README.md and vits.py",
        Settings(_VIT_S, "bilinear", None, "1,024", "300", crops((2, 224, 0.08, 1.0))),
        "Their code can not be run as published and lost MoCo v3's fixed positions, initialization and frozen patches, "
        f"which are kept here. bf16 for their float16; theirs decays vectors too. {_ALL_IMAGES}",
    ),
    "dilemma_simclr_imagenet": Source(
        "ours; host and data of arXiv 2204.04788",
        differences=f"{_DILEMMA}`dilemma_mocov3_imagenet` with SimCLR's loss, head and views.",
    ),
    "dilemma_dino_imagenet": Source(
        "ours; host and data of arXiv 2204.04788",
        differences=f"{_DILEMMA}`dino_imagenet` with the sparsity and weight of `dilemma_mocov3_imagenet`.",
    ),
    "dilemma_mae_imagenet": Source(
        "ours; host of arXiv 2204.04788",
        differences=f"{_DILEMMA}`mae_imagenet` with mismatch probability 0.2 and weight 1. Theirs compares on "
        "ImageNet-100.",
    ),
    "mae_cifar10": Source(
        "vturrisi/solo-learn, scripts/pretrain/cifar/mae.yaml",
        Settings(patches(4, 12), "bicubic", "mae", "256", "1,000", crops((1, 32, 0.08, 1.0))),
        _SOLO,
    ),
    "mae_imagenet": Source(
        "facebookresearch/mae, PRETRAIN.md",
        Settings(_VIT_B, "bicubic", "mae", "4,096", "800", crops((1, 224, 0.2, 1.0))),
        f"bf16 for their float16. {_ALL_IMAGES}",
    ),
    "mocov3_vit_imagenet": Source(
        "facebookresearch/moco-v3, CONFIG.md (ViT-Small, 4-node)",
        Settings(patches(16, 12), "bilinear", "moco_v3, frozen patches", "4,096", "300", crops((2, 224, 0.08, 1.0))),
        f"bf16 for their float16; theirs decays vectors too. {_ALL_IMAGES}",
    ),
    "dino_imagenet": Source(
        "facebookresearch/dino, README.md (vanilla)",
        Settings(_VIT_S, "bicubic", "dino", "512", "100", _DINO_CROPS),
        "Without stochastic depth (0.1 there), whose draws could not be resumed; bf16 for their float16. "
        f"{_ALL_IMAGES}",
    ),
    # hosts
    "simclr_tiny": _ours(),
    "mocov3_tiny": _ours(),
    "byol_tiny": _ours(),
    "simsiam_tiny": _ours(),
    "dino_tiny": _ours(),
    "swav_tiny": _ours(),
    "vicreg_tiny": _ours(),
    "barlow_tiny": _ours(),
    "alignment_uniformity_tiny": _ours(),
    "simclr_cifar10": _solo_learn("simclr"),
    "mocov3_cifar10": _solo_learn("mocov3"),
    "byol_cifar10": _solo_learn("byol"),
    "simsiam_cifar10": _solo_learn(
        "simsiam", more="Theirs keeps the predictor's rate constant and decays vectors too. "
    ),
    "vicreg_cifar10": _solo_learn("vicreg", 0.2),
    "barlow_cifar10": _solo_learn("barlow"),
    "alignment_uniformity_cifar10": _ours("`simclr_cifar10` with the loss of ssnl/align_uniform at its defaults."),
    "swav_imagenet": Source(
        "facebookresearch/swav, scripts/swav_100ep_pretrain.sh",
        Settings("imagenet", "bilinear", "torchvision", "4,096", "100", _SWAV_CROPS),
        "Theirs warms up from a rate of 0.3, decays and rescales vectors too, and normalizes prototypes at each step; "
        f"bf16 for their float16. {_ALL_IMAGES}",
    ),
    "swav_imagenet_bs256": Source(
        "facebookresearch/swav, scripts/swav_200ep_bs256_pretrain.sh",
        Settings("imagenet", "bilinear", "torchvision", "256", "200", _SWAV_CROPS),
        "Theirs decays and rescales vectors too, and normalizes prototypes at each step; "
        f"bf16 for their float16. {_ALL_IMAGES}",
    ),
}
