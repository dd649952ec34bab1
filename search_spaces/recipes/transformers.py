"""Recipes with a vision transformer: masked inputs (DILEMMA, MAE)."""

from __future__ import annotations

from search_spaces.recipes.views import digits_view
from trainers.config import (
    DataConfig,
    DecoderConfig,
    MaskingConfig,
    MLPConfig,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    TrialConfig,
    ViewConfig,
    ViTConfig,
)
from trainers.terms import Alignment, KernelMMD, MismatchDetection, Reconstruction
from trainers.terms.kernels import Truncated


def dilemma_tiny() -> TrialConfig:
    """DILEMMA (arXiv 2204.04788) beside SFRIK's terms, on scikit-learn's digits with a micro transformer.

    Command: `pretune train dilemma_tiny`; without detection `--set objective.mismatch_detection.weight=0`.
    Cost: 16 epochs of 997 images of 16 px; 16 to 21 s of one CPU core in training, on a shared machine.
    Expect: a linear probe on 5 labels per class of 0.664, 0.696, 0.692 for seeds 0, 1, 2, where the same encoder
    untrained has 0.372, 0.478, 0.390. Without detection, as sparse and as mismatched: 0.614, 0.704, 0.642, which three
    seeds do not tell apart. Raw pixels have 0.788, 0.824, 0.840 and are not reached: so few images do not make a
    transformer. Balanced accuracy of detection 0.50 to 0.55: at 16 patches in 240 steps it has barely begun.

    The paper's hosts are MoCo v3, DINO, SimCLR and MAE, not SFRIK; 0.2 and 0.5 are of the range of its authors' code.
    """
    view = digits_view()
    return TrialConfig(
        data=DataConfig(path="digits"),
        views=(view, view),
        model=ModelConfig(
            backbone=ViTConfig(kind="vit_micro", patch_size=4, positions="fixed", position_temperature=100.0),
            projector=MLPConfig(widths=(128, 64), final_bias=False),
            masking=MaskingConfig(drop_ratio=0.5, mismatch_probability=0.2),
        ),
        objective={
            "alignment": Alignment(weight=0.1),
            "mmd": KernelMMD(kernel=Truncated(coefficients=(1.0, 1.0))),
            "mismatch_detection": MismatchDetection(weight=0.1),
        },
        optimizer=OptimizerConfig(kind="adamw", learning_rate=2e-3, weight_decay=5e-2),
        probe=ProbeConfig(labels_per_class=5, neighbors=5, every=4),
        epochs=16,
        batch_size=64,
    )


def mae_tiny() -> TrialConfig:
    """A masked autoencoder (arXiv 2111.06377) on scikit-learn's digits with a micro transformer.

    Command: `pretune train mae_tiny`.
    Cost: 40 epochs of 997 images of 16 px; 23 to 34 s of one CPU core in training, on a shared machine.
    Expect: a linear probe on 5 labels per class of 0.606, 0.616, 0.750 for seeds 0, 1, 2, where the same encoder
    untrained has 0.372, 0.478, 0.390, and raw pixels 0.788, 0.824, 0.840: not reached.

    The features are the class token, as in the paper's linear probe; nothing but the decoder asks anything of it. Half
    of 16 patches are dropped, not three quarters, and plain pixels are predicted: digits have blank patches, whose
    normalization would be of noise. The projector is trained by no term.
    """
    view = ViewConfig(size=16, crop_scale=(0.5, 1.0), flip=0.0, jitter=0.0, grayscale=0.0)
    return TrialConfig(
        data=DataConfig(path="digits"),
        views=(view,),
        model=ModelConfig(
            backbone=ViTConfig(kind="vit_micro", patch_size=4, positions="fixed", position_temperature=100.0),
            projector=MLPConfig(widths=(64,)),
            masking=MaskingConfig(drop_ratio=0.5),
            decoder=DecoderConfig(width=64, depth=1),
        ),
        objective={"reconstruction": Reconstruction(normalize=False)},
        optimizer=OptimizerConfig(kind="adamw", learning_rate=2e-3, beta2=0.95, weight_decay=5e-2),
        probe=ProbeConfig(labels_per_class=5, neighbors=5, every=10),
        epochs=40,
        batch_size=64,
    )


RECIPES = (
    dilemma_tiny,
    mae_tiny,
)
