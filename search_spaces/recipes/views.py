"""Augmentations that several recipes share, each as its source has it."""

from __future__ import annotations

from typing import Any

from trainers.config import ViewConfig


def digits_view() -> ViewConfig:
    """For scikit-learn's digits, drawn up to 16 px: no flips, as digits have no mirror images, and no color."""
    return ViewConfig(
        size=16, crop_scale=(0.3, 1.0), flip=0.0, brightness=0.4, contrast=0.4, saturation=0.0, hue=0.0, grayscale=0.0
    )


def cifar_view(**changes: Any) -> ViewConfig:
    """solo-learn's view for CIFAR (github.com/vturrisi/solo-learn): 32 px, jitter 0.4, 0.4, 0.2, 0.1 at 0.8, grayscale
    0.2, no blur, no solarize."""
    return ViewConfig(**{"size": 32, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, **changes})


def cifar_views() -> tuple[ViewConfig, ...]:
    """Two of them; the second view is solarized in one of five cases."""
    return cifar_view(), cifar_view(solarize=0.2)
