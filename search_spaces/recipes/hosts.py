"""Recipes of host methods: what others' regularizers are compared with and added to, made of terms.

The tiny ones share data, views, backbone, optimizer and probe with `sfrik_tiny`, so that only the method differs; what
to expect of them has the same baselines. Those for CIFAR-10 follow solo-learn's configurations
(github.com/vturrisi/solo-learn, scripts/pretrain/cifar), whose README gives the accuracies quoted; batch 256, 1000
epochs, 10 of warm-up (the default of solo/methods/base.py), and a padding of 2 in the first convolution are common to
all of them. Theirs trains in float16, warms up from a rate of 3e-5, and starts that convolution by torch's default.
"""

from __future__ import annotations

from typing import Any

from search_spaces.recipes.sfrik import sfrik_tiny
from search_spaces.recipes.views import cifar_view, cifar_views, swav_views
from trainers.changes import with_fields
from trainers.config import (
    DataConfig,
    MLPConfig,
    ModelConfig,
    OptimizerConfig,
    PrototypesConfig,
    ResNetConfig,
    ScheduleConfig,
    TeacherConfig,
    TrialConfig,
    ViewConfig,
)
from trainers.terms import (
    Alignment,
    Covariance,
    CrossCorrelation,
    Dino,
    InfoNCE,
    KernelMMD,
    MomentumContrast,
    Prediction,
    Swav,
    TermConfig,
    Variance,
)
from trainers.terms.kernels import LogRBF

# --- tiny ones on digits ----------------------------------------------------------------------------------------------


def simclr_tiny() -> TrialConfig:
    """SimCLR on scikit-learn's digits with a tiny ResNet, at temperature 0.5.

    Command: `pretune train simclr_tiny`.
    Cost: 8 epochs of 997 images of 16 px; 12 s of one CPU core, probes included.
    Expect: a linear probe on 5 labels per class of 0.894, 0.894, 0.882 for seeds 0, 1, 2 (each ± 0.014); untrained and
    raw pixels as in `sfrik_tiny`. Ours, one run a seed, on a machine of 2 cores shared with other work.
    """
    return _tiny({"info_nce": InfoNCE(temperature=0.5)})


def mocov3_tiny() -> TrialConfig:
    """MoCo v3's loss on scikit-learn's digits with a tiny ResNet; the teacher's momentum starts at 0.9.

    Command: `pretune train mocov3_tiny`.
    Cost: 8 epochs of 997 images of 16 px; 14 s of one CPU core, probes included.
    Expect: a linear probe on 5 labels per class of 0.870, 0.878, 0.890 for seeds 0, 1, 2 (each ± 0.015); untrained and
    raw pixels as in `sfrik_tiny`. Ours, one run a seed, on a machine of 2 cores shared with other work.

    The published momentum of 0.99 is for runs of many thousand steps; this one has 120.
    """
    return _tiny({"momentum_contrast": MomentumContrast(temperature=0.2)}, model=_teacher_and_predictor())


def byol_tiny() -> TrialConfig:
    """BYOL on scikit-learn's digits with a tiny ResNet.

    Command: `pretune train byol_tiny`.
    Cost: 16 epochs of 997 images of 16 px; 28 s of one CPU core, probes included.
    Expect: a linear probe on 5 labels per class of 0.896, 0.888, 0.840 for seeds 0, 1, 2 (each ± 0.015); untrained and
    raw pixels as in `sfrik_tiny`. Ours, one run a seed, on a machine of 2 cores shared with other work.
    """
    return _tiny({"prediction": Prediction(weight=2.0)}, model=_teacher_and_predictor(), epochs=16)


def simsiam_tiny() -> TrialConfig:
    """SimSiam on scikit-learn's digits with a tiny ResNet and a bottleneck predictor.

    Command: `pretune train simsiam_tiny`.
    Cost: 16 epochs of 997 images of 16 px; 23 s of one CPU core, probes included.
    Expect: a linear probe on 5 labels per class of 0.776, 0.830, 0.822 for seeds 0, 1, 2 (each ± 0.018); untrained and
    raw pixels as in `sfrik_tiny`. Ours, one run a seed, on a machine of 2 cores shared with other work.

    Above the untrained encoder with each seed, but not above raw pixels: it learns slowest of the methods here.
    """
    model = with_fields(
        sfrik_tiny().model,
        projector=MLPConfig(widths=(128, 64), final_bias=False, final_norm=True),
        predictor=MLPConfig(widths=(32, 64)),
    )
    return _tiny({"prediction": Prediction(distance="negative_cosine")}, model=model, epochs=16)


def dino_tiny() -> TrialConfig:
    """DINO on scikit-learn's digits with a tiny ResNet and 256 prototypes.

    Command: `pretune train dino_tiny`.
    Cost: 8 epochs of 997 images of 16 px; 15 to 16 s of one CPU core in training, with other work beside it.
    Expect: a linear probe on 5 labels per class of 0.764, 0.818, 0.818 for seeds 0, 1, 2 (each ± 0.019); untrained and
    raw pixels as in `sfrik_tiny`: above the untrained encoder, not above raw pixels in every draw, so 120 steps are few
    for prototypes. Ours, one run a seed, on a machine of 2 cores shared with other work.

    Clipping (of each tensor by itself), decay, temperatures and prototypes that stay for an epoch are DINO's; the
    teacher's momentum starts at 0.9, as in `mocov3_tiny`. DINO's head starts with a deviation of 0.02, which is for
    layers of 2048: at 128 the runs had 0.618, 0.746 and 0.782, so that torch's default stays. Two views without crops
    of another size: `dilemma_dino_cifar10` has multi-crop.
    """
    base = sfrik_tiny()
    epoch_steps = 997 // base.batch_size
    return _tiny(
        {"dino": Dino(teacher_temperature=0.04)},
        model=with_fields(
            base.model,
            projector=MLPConfig(widths=(128, 64), activation="gelu"),
            teacher=TeacherConfig(momentum=0.9),
            prototypes=PrototypesConfig(count=256, frozen_steps=epoch_steps),
        ),
        optimizer=OptimizerConfig(
            kind="adamw", learning_rate=2e-3, weight_decay=4e-2, clip_norm=3.0, clip_scope="tensor"
        ),
    )


def swav_tiny() -> TrialConfig:
    """SwAV on scikit-learn's digits with a tiny ResNet and 64 prototypes.

    Command: `pretune train swav_tiny`.
    Cost: 8 epochs of 997 images of 16 px; 14 to 16 s of one CPU core in training, with other work beside it.
    Expect: a linear probe on 5 labels per class of 0.854, 0.826, 0.868 for seeds 0, 1, 2 (each ± 0.017); untrained and
    raw pixels as in `sfrik_tiny`. Ours, one run a seed, on a machine of 2 cores shared with other work.

    The students' temperature, iterations and prototypes that stay for an epoch are SwAV's. As many prototypes as images
    in a batch, since an equal partition of 64 images into more would leave some without any, and there is no queue. At
    the published 0.05 the codes of so few alike embeddings were uniform and nothing was learned (0.592 with seed 0); at
    0.02 it had 0.806, and with a batch norm behind the projector, which keeps embeddings apart, 0.854.
    """
    base = sfrik_tiny()
    model = with_fields(
        base.model,
        projector=with_fields(base.model.projector, final_norm=True),
        prototypes=PrototypesConfig(count=64, frozen_steps=997 // base.batch_size),
    )
    return _tiny({"swav": Swav(code_temperature=0.02)}, model=model)


def vicreg_tiny() -> TrialConfig:
    """VICReg on scikit-learn's digits with a tiny ResNet, as three terms.

    Command: `pretune train vicreg_tiny`.
    Cost: 8 epochs of 997 images of 16 px; 11 s of one CPU core, probes included.
    Expect: a linear probe on 5 labels per class of 0.902, 0.914, 0.900 for seeds 0, 1, 2 (each ± 0.013); untrained and
    raw pixels as in `sfrik_tiny`. Ours, one run a seed, on a machine of 2 cores shared with other work.

    Weights 25 and 25 of the official code; its 1 for the covariances, which is 2 here as it adds two views, had 0.804
    with seed 0, and 10 has 0.902: with 64 dimensions instead of 8192 there are few covariances a feature.
    """
    return _tiny(
        {
            "invariance": Alignment(weight=25.0, normalize=False),
            "variance": Variance(weight=25.0),
            "covariance": Covariance(weight=10.0),
        }
    )


def barlow_tiny() -> TrialConfig:
    """Barlow Twins on scikit-learn's digits with a tiny ResNet.

    Command: `pretune train barlow_tiny`.
    Cost: 8 epochs of 997 images of 16 px; 11 s of one CPU core, probes included.
    Expect: a linear probe on 5 labels per class of 0.870, 0.870, 0.864 for seeds 0, 1, 2 (each ± 0.015); untrained and
    raw pixels as in `sfrik_tiny`. Ours, one run a seed, on a machine of 2 cores shared with other work.

    The off-diagonal weight is 0.02, as the published 0.0051 is for thousands of dimensions, not for 64.
    """
    return _tiny({"cross_correlation": CrossCorrelation(off_diagonal=0.02)})


def alignment_uniformity_tiny() -> TrialConfig:
    """Alignment and uniformity (Wang and Isola) on scikit-learn's digits with a tiny ResNet.

    Command: `pretune train alignment_uniformity_tiny`.
    Cost: 8 epochs of 997 images of 16 px; 10 s of one CPU core, probes included.
    Expect: a linear probe on 5 labels per class of 0.864, 0.894, 0.892 for seeds 0, 1, 2 (each ± 0.014); untrained and
    raw pixels as in `sfrik_tiny`. Ours, one run a seed, on a machine of 2 cores shared with other work.

    Equal weights, squared distances and gamma 2, the defaults of their code. Uniformity is the log-RBF kernel, over
    pairs of different points.
    """
    return _tiny({"alignment": Alignment(weight=1.0), "uniformity": _uniformity()})


def _tiny(objective: dict[str, TermConfig], **changes: Any) -> TrialConfig:
    """`sfrik_tiny` with another objective, and what that needs."""
    return with_fields(sfrik_tiny(), objective=objective, **changes)


def _teacher_and_predictor() -> ModelConfig:
    """Without the projector's last norm, BYOL had 0.520 after 8 epochs with seed 0: worse than untrained."""
    return with_fields(
        sfrik_tiny().model,
        projector=MLPConfig(widths=(128, 64), final_bias=False, final_norm=True),
        predictor=MLPConfig(widths=(128, 64)),
        teacher=TeacherConfig(momentum=0.9),
    )


def _uniformity() -> KernelMMD:
    """Wang and Isola's uniformity as published, weight 1."""
    return KernelMMD(kernel=LogRBF(gamma=2.0), estimator="u", normalize=False)


# --- CIFAR-10, as solo-learn runs them --------------------------------------------------------------------------------


def simclr_cifar10() -> TrialConfig:
    """SimCLR on CIFAR-10 with a ResNet-18, as solo-learn runs it.

    Command: `pretune data cifar10 --source …`, then `pretune train simclr_cifar10`.
    Cost: 1000 epochs of 45,000 images on a GPU; not timed.
    Expect: 90.74 % top-1 in solo-learn's README, by its own online linear probe after training on all 50,000 images;
    nobody has run this code to its end.

    From their simclr.yaml: temperature 0.2, projector 2048-256 without batch norm, their symmetric views, LARS at 0.4
    with weight decay 1e-4.
    """
    view = cifar_view(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur_probability=0.5)
    return _cifar10(
        {"info_nce": InfoNCE(temperature=0.2)},
        views=(view, view),
        projector=MLPConfig(widths=(2048, 256), hidden_norm=False),
        optimizer=_solo_lars(0.4, weight_decay=1e-4),
    )


def mocov3_cifar10() -> TrialConfig:
    """MoCo v3 on CIFAR-10 with a ResNet-18, as solo-learn runs it.

    Command: `pretune data cifar10 --source …`, then `pretune train mocov3_cifar10`.
    Cost: 1000 epochs of 45,000 images on a GPU; not timed.
    Expect: 93.10 % top-1 in solo-learn's README, by its own online linear probe after training on all 50,000 images;
    nobody has run this code to its end.

    From their mocov3.yaml: temperature 0.2, momentum 0.99 to 1, projector and predictor 4096-256, without scale and
    shift in the projector's last batch norm, their asymmetric views, LARS at 0.3 with weight decay 1e-6.
    """
    return _cifar10(
        {"momentum_contrast": MomentumContrast(temperature=0.2)},
        views=cifar_views(),
        projector=MLPConfig(widths=(4096, 256), final_bias=False, final_norm=True, final_affine=False),
        predictor=MLPConfig(widths=(4096, 256), final_bias=False),
        teacher=TeacherConfig(momentum=0.99, final_momentum=1.0),
        optimizer=_solo_lars(0.3, weight_decay=1e-6),
    )


def byol_cifar10() -> TrialConfig:
    """BYOL on CIFAR-10 with a ResNet-18, as solo-learn runs it.

    Command: `pretune data cifar10 --source …`, then `pretune train byol_cifar10`.
    Cost: 1000 epochs of 45,000 images on a GPU; not timed.
    Expect: 92.58 % top-1 in solo-learn's README, by its own online linear probe after training on all 50,000 images;
    nobody has run this code to its end.

    From their byol.yaml: momentum 0.99 to 1, projector and predictor 4096-256, their asymmetric views, LARS at 1.0 with
    weight decay 1e-5; the two directions' losses are added, hence weight 2.
    """
    return _cifar10(
        {"prediction": Prediction(weight=2.0)},
        views=cifar_views(),
        projector=MLPConfig(widths=(4096, 256)),
        predictor=MLPConfig(widths=(4096, 256)),
        teacher=TeacherConfig(momentum=0.99, final_momentum=1.0),
        optimizer=_solo_lars(1.0, weight_decay=1e-5),
    )


def simsiam_cifar10() -> TrialConfig:
    """SimSiam on CIFAR-10 with a ResNet-18, as solo-learn runs it but for the predictor's rate.

    Command: `pretune data cifar10 --source …`, then `pretune train simsiam_cifar10`.
    Cost: 1000 epochs of 45,000 images on a GPU; not timed.
    Expect: 90.51 % top-1 in solo-learn's README, by its own online linear probe after training on all 50,000 images;
    nobody has run this code to its end.

    From their simsiam.yaml: projector 2048-2048-2048 without scale and shift in its last batch norm, predictor
    512-2048, weaker symmetric views, SGD at 0.5 with weight decay 1e-5. Theirs keeps the predictor's rate constant and
    decays vectors too.
    """
    view = cifar_view(saturation=0.4, blur_probability=0.5)
    return _cifar10(
        {"prediction": Prediction(distance="negative_cosine")},
        views=(view, view),
        projector=MLPConfig(widths=(2048, 2048, 2048), final_bias=False, final_norm=True, final_affine=False),
        predictor=MLPConfig(widths=(512, 2048)),
        optimizer=OptimizerConfig(kind="sgd", learning_rate=0.5, momentum=0.9, weight_decay=1e-5),
    )


def vicreg_cifar10() -> TrialConfig:
    """VICReg on CIFAR-10 with a ResNet-18, as solo-learn runs it.

    Command: `pretune data cifar10 --source …`, then `pretune train vicreg_cifar10`.
    Cost: 1000 epochs of 45,000 images on a GPU; not timed.
    Expect: 92.07 % top-1 in solo-learn's README, by its own online linear probe after training on all 50,000 images;
    nobody has run this code to its end.

    From their vicreg.yaml: weights 25, 25 and 1, where variances and covariances of the two views are added: twice
    that here. Projector 2048-2048-2048, crops from 0.2, solarize 0.1, LARS at 0.3 with weight decay 1e-4.
    """
    view = cifar_view(crop_scale=(0.2, 1.0), solarize_probability=0.1)
    return _cifar10(
        {
            "invariance": Alignment(weight=25.0, normalize=False),
            "variance": Variance(weight=50.0),
            "covariance": Covariance(weight=2.0),
        },
        views=(view, view),
        projector=MLPConfig(widths=(2048, 2048, 2048)),
        optimizer=_solo_lars(0.3, weight_decay=1e-4),
    )


def barlow_cifar10() -> TrialConfig:
    """Barlow Twins on CIFAR-10 with a ResNet-18, as solo-learn runs it.

    Command: `pretune data cifar10 --source …`, then `pretune train barlow_cifar10`.
    Cost: 1000 epochs of 45,000 images on a GPU; not timed.
    Expect: 92.10 % top-1 in solo-learn's README, by its own online linear probe after training on all 50,000 images;
    nobody has run this code to its end.

    From their barlow.yaml: the whole loss times 0.1, off-diagonal weight 0.0051, projector 2048-2048-2048, their
    asymmetric views, LARS at 0.3 with weight decay 1e-4.
    """
    return _cifar10(
        {"cross_correlation": CrossCorrelation(weight=0.1, off_diagonal=0.0051)},
        views=cifar_views(),
        projector=MLPConfig(widths=(2048, 2048, 2048)),
        optimizer=_solo_lars(0.3, weight_decay=1e-4),
    )


def alignment_uniformity_cifar10() -> TrialConfig:
    """Alignment and uniformity on CIFAR-10 with a ResNet-18, in the setting of `simclr_cifar10`.

    Command: `pretune data cifar10 --source …`, then `pretune train alignment_uniformity_cifar10`.
    Cost: 1000 epochs of 45,000 images on a GPU; not timed.
    Expect: no number. Wang and Isola report no ResNet-18 on CIFAR-10, and nobody has run this recipe to its end.

    Ours, not published: solo-learn's SimCLR with its loss replaced by equal weights of alignment (squared distances)
    and uniformity (gamma 2), the defaults of Wang and Isola's code (ssnl/align_uniform).
    """
    base = simclr_cifar10()
    return with_fields(base, objective={"alignment": Alignment(weight=1.0), "uniformity": _uniformity()})


def _cifar10(
    objective: dict[str, TermConfig],
    *,
    views: tuple[ViewConfig, ...],
    projector: MLPConfig,
    optimizer: OptimizerConfig,
    predictor: MLPConfig | None = None,
    teacher: TeacherConfig | None = None,
) -> TrialConfig:
    """What solo-learn's CIFAR configurations share: batch 256, 1000 epochs, 10 of warm-up, then a cosine to 0."""
    epochs = 1000
    return TrialConfig(
        data=DataConfig(path="cifar10"),
        views=views,
        model=ModelConfig(
            backbone=ResNetConfig(kind="resnet18", stem="small_padded", zero_init_residual=False),
            projector=projector,
            predictor=predictor,
            teacher=teacher,
        ),
        objective=objective,
        optimizer=optimizer,
        schedule=ScheduleConfig(kind="cosine", warmup_share=10 / epochs, final_factor=0.0),
        epochs=epochs,
        batch_size=256,
    )


def _solo_lars(learning_rate: float, *, weight_decay: float) -> OptimizerConfig:
    """solo-learn's LARS: trust coefficient 0.02, clipped; batch 256, so that its rate is the base rate."""
    return OptimizerConfig(
        kind="lars",
        learning_rate=learning_rate,
        momentum=0.9,
        weight_decay=weight_decay,
        trust_coefficient=0.02,
        clip_trust=True,
    )


# --- ImageNet ---------------------------------------------------------------------------------------------------------


def swav_imagenet() -> TrialConfig:
    """SwAV on ImageNet with a ResNet-50, two crops of 224 px and six of 96 px, as published.

    Command: `pretune data images --source … --out data/imagenet`, then `pretune train swav_imagenet`.
    Cost: 100 epochs of 1.28 million images and eight views, batch 4096, on 64 GPUs (the authors'); not timed here.
    Expect: 72.1 % top-1 in the authors' README, by their linear evaluation; this code has not been run at that size.

    From scripts/swav_100ep_pretrain.sh (facebookresearch/swav): batch 4096 without a queue, 3,000 prototypes that stay
    for 313 steps, temperature 0.1, ε 0.05, three iterations, projector 2048-128, LARS at 4.8 (trust 1e-3, decay 1e-6),
    10 epochs of warm-up, a cosine to a thousandth, crops of 0.14 to 1 and 0.05 to 0.14. Theirs warms up from 0.3,
    decays and rescales vectors too, sets prototypes to length 1 after each step (here cosines are taken) and trains in
    float16; bf16 here.
    """
    epochs = 100
    return TrialConfig(
        data=DataConfig(path="imagenet"),
        views=swav_views(),
        model=ModelConfig(
            backbone=ResNetConfig(kind="resnet50", stem="imagenet", zero_init_residual=False),
            projector=MLPConfig(widths=(2048, 128)),
            prototypes=PrototypesConfig(count=3000, frozen_steps=313),
        ),
        objective={"swav": Swav(temperature=0.1, code_temperature=0.05, iterations=3, code_views=2)},
        optimizer=OptimizerConfig(
            kind="lars", learning_rate=4.8, momentum=0.9, weight_decay=1e-6, trust_coefficient=1e-3
        ),
        schedule=ScheduleConfig(kind="cosine", warmup_share=10 / epochs, final_factor=0.001),
        epochs=epochs,
        batch_size=4096,
        precision="bf16",
    )


def swav_imagenet_bs256() -> TrialConfig:
    """`swav_imagenet` for four GPUs: batches of 256 and the queue of 3,840 earlier images, as published.

    Command: `pretune data images --source … --out data/imagenet`, then `pretune train swav_imagenet_bs256 --workers 4`.
    Cost: 200 epochs of 1.28 million images and eight views; not timed here.
    Expect: 72.7 % top-1 in the authors' README, by their linear evaluation; this code has not been run at that size.

    From scripts/swav_200ep_bs256_pretrain.sh (facebookresearch/swav): the queue begins in epoch 15 and is used once it
    is full; prototypes stay for 5,005 steps, LARS at 0.6 without warm-up, a cosine to a thousandth. What differs is as
    in `swav_imagenet`.
    """
    base = swav_imagenet()
    steps = 1_281_167 // 256
    prototypes = PrototypesConfig(count=3000, frozen_steps=5005, queue=3840, queue_after=15 * steps)
    return with_fields(
        base,
        model=with_fields(base.model, prototypes=prototypes),
        optimizer=with_fields(base.optimizer, learning_rate=0.6),
        schedule=ScheduleConfig(kind="cosine", warmup_share=0.0, final_factor=0.001),
        epochs=200,
        batch_size=256,
    )


RECIPES = (
    simclr_tiny,
    mocov3_tiny,
    byol_tiny,
    simsiam_tiny,
    dino_tiny,
    swav_tiny,
    vicreg_tiny,
    barlow_tiny,
    alignment_uniformity_tiny,
    simclr_cifar10,
    mocov3_cifar10,
    byol_cifar10,
    simsiam_cifar10,
    vicreg_cifar10,
    barlow_cifar10,
    alignment_uniformity_cifar10,
    swav_imagenet,
    swav_imagenet_bs256,
)
