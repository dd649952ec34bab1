"""Augmentations that several recipes share, each as its source has it."""

from __future__ import annotations

from typing import Any

from trainers.config import ViewConfig


def digits_view() -> ViewConfig:
    """For scikit-learn's digits, drawn up to 16 px: no flips, as digits have no mirror images, and no color. Bilinear,
    whatever the method's source has: what the tiny recipes quote was measured so."""
    return ViewConfig(
        size=16,
        crop_scale=(0.3, 1.0),
        resampling="bilinear",
        flip_probability=0.0,
        brightness=0.4,
        contrast=0.4,
        saturation=0.0,
        hue=0.0,
        grayscale_probability=0.0,
    )


def cifar_view(**changes: Any) -> ViewConfig:
    """solo-learn's view for CIFAR (github.com/vturrisi/solo-learn): 32 px, bicubic (solo/data/pretrain_dataloader.py),
    jitter 0.4, 0.4, 0.2, 0.1 at 0.8, grayscale 0.2, no blur, no solarize."""
    strengths = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
    return ViewConfig(**{"size": 32, "resampling": "bicubic", **strengths, **changes})


def cifar_views() -> tuple[ViewConfig, ...]:
    """Two of them; the second view is solarized in one of five cases."""
    return cifar_view(), cifar_view(solarize_probability=0.2)


def w_mse_view(**changes: Any) -> ViewConfig:
    """W-MSE's view for small data (htdt/self-supervised), which CW-RGP's code shares: crops from 0.2, bicubic
    (datasets/transforms.py), jitter 0.4, 0.4, 0.4, 0.1 at 0.8, grayscale 0.1, no blur, no solarize. Theirs jitters
    before it crops."""
    strengths = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grayscale_probability": 0.1}
    return ViewConfig(**{"crop_scale": (0.2, 1.0), "resampling": "bicubic", **strengths, **changes})


def byol_views(size: int) -> tuple[ViewConfig, ViewConfig]:
    """BYOL's two views for ImageNet (arXiv 2006.07733, appendix B): bicubic, one always blurred, one sometimes blurred
    or solarized."""
    first = ViewConfig(size=size, resampling="bicubic", blur_probability=1.0)
    return first, ViewConfig(size=size, resampling="bicubic", blur_probability=0.1, solarize_probability=0.2)


def swav_views() -> tuple[ViewConfig, ...]:
    """SwAV's crops for ImageNet (facebookresearch/swav): two of 224 px, six of 96 px, all colored alike."""
    strengths: dict[str, Any] = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
    strengths |= {"blur_probability": 0.5, "resampling": "bilinear"}  # torchvision's default, as in its code
    globe = ViewConfig(**{"size": 224, "crop_scale": (0.14, 1.0), **strengths})
    local = ViewConfig(**{"size": 96, "crop_scale": (0.05, 0.14), **strengths})
    return globe, globe, *(local,) * 6
