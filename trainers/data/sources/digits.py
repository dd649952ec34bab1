"""scikit-learn's handwritten digits: 1,797 gray images of 8x8 pixels in 10 classes, built in, no download."""

from __future__ import annotations

import numpy as np
from PIL import Image

from trainers.data.sources.base import ArrayImages, Part, Source

SIZE = 16


def load() -> Source:
    """Enlarged to 16x16 RGB (bicubic), so that crops and small convolutions have something to see. No test part of
    its own.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    gray = np.round(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)
    enlarged = [Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB") for image in gray]
    images = ArrayImages(np.stack([np.asarray(image) for image in enlarged]), "scikit-learn's digits")
    labels = np.asarray(bunch.target).astype(np.int64)
    names = tuple(str(digit) for digit in range(10))
    return Source("scikit-learn's digits, enlarged to 16x16", names, Part(images, labels), None)
