"""The parts of a config: data, views, model, optimizer, schedule, probe, sentinel; each frozen and checked by itself.

Every default lives here, once. `trainers.config.TrialConfig` puts them together and checks that they agree; a term of
the objective may read them, and is no part of them. Imports neither torch nor FFCV.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from trainers import usercode
from trainers.init_file import Init
from trainers.upgrade import refuse_old_names
from trainers.usercode import Own

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Resampling = Literal["bilinear", "bicubic"]


class Config(BaseModel):
    """Frozen, unknown keys forbidden, no infinities: what crosses a process is checked each time it lands."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def amount(value: Any, name: str, *, least: int = 1) -> int | str:
    """`value` as a number of images, or as a share of them in percent: 5000, "5000", "10%", "0.5%".

    A share is text, since 1 and 1.0 would be told apart by nobody. ValueError, naming `name`, where it is neither.
    """
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"\d+(\.\d+)?%", text) and 0.0 < float(text[:-1]) <= 100.0:
            return text
        value = int(text) if re.fullmatch(r"\d{1,18}", text) else value
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    raise ValueError(
        f"{name} must be a number of images, at least {least}, or a share of them above 0% and up to 100%, such as "
        f"10%, but is {value!r}; change it"
    )


class DataConfig(Config):
    """Which images. `manifest` is the hash of the data set's manifest; a worker that maps other bytes refuses."""

    path: str = Field("digits", description="folder or URI that has what `pretune data` wrote, or a built-in name")
    manifest: str | None = Field(None, description="sha256 of manifest.json; filled in when a run is requested")
    subset: int | str | None = Field(
        None,
        description="pretrain on this many images of `train`, or on a share of them (`10%`), stratified and seeded by "
        "the data set",
    )
    images: Literal["all", "unlabeled"] = Field(
        "all", description="pretrain on `train` and the unlabeled images, or on these alone (SFRIK on STL-10)"
    )

    @model_validator(mode="after")
    def _a_subset_has_labels(self) -> DataConfig:
        if self.images == "unlabeled" and self.subset is not None:
            raise ValueError(
                f"images must be all with a subset, which is of the labeled images of `train`, but is unlabeled with "
                f"subset={self.subset}; set data.images=all, or leave out the subset"
            )
        return self

    @field_validator("subset", mode="before")
    @classmethod
    def _is_an_amount(cls, value: Any) -> Any:
        return value if value is None else amount(value, "data.subset", least=2)


class OwnOperation(Own, Config):
    """A view operation of one's own, by reference: a function of rendered images and keyed draws
    (`trainers.operations`). Each image undergoes it with `probability`; all other keys are the function's settings.
    """

    model_config = ConfigDict(extra="allow")

    probability: Probability = 1.0

    def check_call(self) -> None:
        """ValueError where there is no such function, or it does not take (images, draws) and the settings."""
        usercode.check_call(self.load(), None, None, settings=self.settings)


class ViewConfig(Config):
    """One augmented view of an image. Operations run in the order of the fields; strengths follow torchvision.

    `crop_scale` is the range of the crop's area as a share of the image, `crop_ratio` of its width over height.
    `resampling` of the crop to the view's size is antialiased: `bilinear` as torchvision's on floats, its default, or
    `bicubic` as Pillow's (`interpolation=3` of published code). Evaluation resizes images as the first view does.
    `brightness`, `contrast`, `saturation` and `hue` are ColorJitter's strengths (hue in turns, at most 0.5), applied
    together with `jitter_probability`. `blur_sigma` is in pixels at the view's size; it is drawn for each image, or
    once for a view's whole global batch (`blur_sigma_per`: SimCLR's authors draw it for each device's batch).
    `solarize_threshold` is a share of full scale. Erasing is torchvision's RandomErasing after normalization: a box
    with a share of the view's area in `erase_scale` and a height over width in `erase_ratio` becomes the data set's
    mean color. `operations` are of one's own, by name; they come last, in their order.
    """

    size: int = Field(32, ge=4, le=1024, description="height and width in pixels")
    crop_scale: tuple[Probability, Probability] = (0.08, 1.0)
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    resampling: Resampling = "bilinear"
    flip_probability: Probability = 0.5
    jitter_probability: Probability = 0.8
    brightness: Annotated[float, Field(ge=0.0, le=1.0)] = 0.4
    contrast: Annotated[float, Field(ge=0.0, le=1.0)] = 0.4
    saturation: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1
    grayscale_probability: Probability = 0.2
    blur_probability: Probability = 0.0
    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)
    blur_sigma_per: Literal["image", "batch"] = "image"
    solarize_probability: Probability = 0.0
    solarize_threshold: Probability = 0.5
    erase_probability: Probability = 0.0
    erase_scale: tuple[Probability, Probability] = (0.02, 0.33)
    erase_ratio: tuple[Positive, Positive] = (0.3, 3.3)
    operations: Mapping[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], OwnOperation] = {}

    @model_validator(mode="before")
    @classmethod
    def _names_are_todays(cls, values: Any) -> Any:
        return refuse_old_names("views.*", values)

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> ViewConfig:
        for name in ("crop_scale", "crop_ratio", "blur_sigma", "erase_scale", "erase_ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be (low, high) with low <= high, but is ({low}, {high}); swap them")
        if self.crop_scale[0] == 0.0:
            raise ValueError("crop_scale must start above 0 (a crop of no area), but starts at 0; use for example 0.08")
        return self


INIT = "weights to start from: a file, or an export's folder; the heads start at random"
Stem = Literal["imagenet", "small", "small_pooled", "small_padded"]

SMALL_VIEW = 64
"""Up to this view size in pixels, the stem `auto` is `small`."""


class ResNetConfig(Config):
    """A residual network. `resnet_tiny` (width 16 gives 64 features) is ours, for 16 to 32 px on a CPU; the rest are
    torchvision's.

    `stem`, what comes before the first block, is by name, since papers with the same backbone on the same images differ
    in it: `imagenet` is torchvision's (7x7 convolution of stride 2, 3x3 max-pool of stride 2), `small` a 3x3
    convolution of stride 1 without pooling, as is usual for CIFAR, `small_pooled` the same with torchvision's max-pool
    (W-MSE and CW-RGP on STL-10 and Tiny-ImageNet), `small_padded` is `small` with a padding of 2, so that 32 px become
    34 (solo-learn on CIFAR). `auto` is `small` for views up to 64 px, and `imagenet` above. The stem of `resnet_tiny`
    is always `small`.
    """

    kind: Literal["resnet_tiny", "resnet18", "resnet34", "resnet50"] = "resnet_tiny"
    width: int = Field(
        # With fewer than 7 channels in channels-last memory, torch 2.14.1's oneDNN corrupts the heap on AVX2 machines.
        16,
        ge=8,
        le=256,
        description="channels of the first stage of `resnet_tiny`; the others ignore it",
    )
    zero_init_residual: bool = Field(True, description="start each residual branch at zero (its last norm's scale)")
    stem: Literal[Stem, "auto"] = "auto"
    init: Init | None = Field(None, description=INIT)

    @model_validator(mode="after")
    def _the_tiny_one_has_its_own_stem(self) -> ResNetConfig:
        if self.kind == "resnet_tiny" and self.stem not in ("auto", "small"):
            raise ValueError(
                f"stem must be auto or small with kind resnet_tiny, which has no other, but is {self.stem}; set "
                "model.backbone.stem=auto, or choose another kind"
            )
        return self

    def stem_for(self, view_size: int) -> Stem:
        """The stem by name, where the largest views have this many pixels a side."""
        if self.stem != "auto":
            return self.stem
        return "small" if self.kind == "resnet_tiny" or view_size <= SMALL_VIEW else "imagenet"


class ViTConfig(Config):
    """timm's vision transformer. The view size must be a multiple of `patch_size`. `vit_micro` is ours, for 16 to 32
    px on a CPU; the rest are DeiT's.

    `positions`: `learned` embeddings, or `fixed` two-dimensional sines and cosines with none for the class token, as in
    MoCo v3 and MAE (`position_temperature` is the longest wavelength over 2 pi, in patches; on small grids 10,000 makes
    neighbors alike). `freeze_patches` leaves the patch projection at its random start (MoCo v3, arXiv 2104.02057,
    section 5). `heads`: of attention; null: as DeiT has it, 64 channels a head (MoCo v3's ViT-S has 12), and 32 in
    `vit_micro`.

    `initialization` is by the name of the authors' code that it is of; d = width, P = patch size, bound = of a uniform
    law around 0:

    `timm`: linear layers normal with deviation 0.02, biases 0; class token with 1e-6; the patch projection as any of
    torch's convolutions, bound sqrt(1 / 3P²).
    `moco_v3`: linear layers Xavier-uniform, with query, key and value as three matrices, biases 0; class token with
    1e-6; patch projection Xavier-uniform by its fans 3P² and d, bound sqrt(6 / (3P² + d)), bias 0.
    `mae`: linear layers Xavier-uniform, query, key and value as one matrix, biases 0; class token 0.02; patch
    projection as a linear layer of 3P² inputs, with a convolution's bias.
    `dino`: as `timm`, with 0.02 for the class token.
    """

    kind: Literal["vit_micro", "vit_tiny", "vit_small", "vit_base"]
    patch_size: int = Field(16, ge=2, le=32)
    embed_dim: int = Field(64, ge=32, le=384, multiple_of=32, description="of `vit_micro`, 32 a head; others ignore it")
    depth: int = Field(4, ge=1, le=12, description="blocks of `vit_micro`; the others ignore it")
    heads: int | None = Field(None, ge=1, le=64)
    initialization: Literal["timm", "moco_v3", "mae", "dino"] = "timm"
    positions: Literal["learned", "fixed"] = "learned"
    position_temperature: Positive = 10_000.0
    freeze_patches: bool = False
    init: Init | None = Field(None, description=INIT)

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> ViTConfig:
        if self.heads is not None and self.width % self.heads:
            raise ValueError(
                f"heads must divide the width of {self.kind}, {self.width}, but is {self.heads}; change it, or leave "
                "it out"
            )
        return self

    @property
    def width(self) -> int:
        """d, channels of a token (Touvron et al. 2021, DeiT, table 1)."""
        return {"vit_tiny": 192, "vit_small": 384, "vit_base": 768}.get(self.kind, self.embed_dim)

    @property
    def block_count(self) -> int:
        """Blocks."""
        return self.depth if self.kind == "vit_micro" else 12

    @property
    def head_count(self) -> int:
        """Heads of attention in each block."""
        return self.heads or self.width // (32 if self.kind == "vit_micro" else 64)


class TimmConfig(Config):
    """A model of timm by name, untrained, that gives one feature vector: `timm:convnext_atto`. `options` go to
    `timm.create_model`, such as `drop_path_rate` (which must be 0: see `trainers.backbones`) or `patch_size`.
    """

    kind: str = Field(pattern=r"^timm:[A-Za-z0-9_.]+$")
    options: Mapping[str, bool | int | float | str | None] = {}
    init: Init | None = Field(None, description=INIT)


class OwnBackbone(Own, Config):
    """A network of one's own, by reference: what makes an `nn.Module` (`trainers.backbones`). All other keys are
    arguments of what makes it.
    """

    model_config = ConfigDict(extra="allow")

    def check_call(self) -> None:
        """ValueError where there is nothing to call, or it does not take the settings."""
        make = self.load()
        usercode.check_call(make, settings=self.settings, **self.asked_for(make, view_size=0, norm=""))

    def asked_for(self, make: Any, **facts: Any) -> dict[str, Any]:
        """Those of the facts that its signature has a parameter for, and that are no settings."""
        return {
            name: fact
            for name, fact in facts.items()
            if name in usercode.parameters(make) and name not in self.settings
        }


def _form(value: Any) -> str:
    """Which of the forms of a backbone this is, by its kind."""
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    if isinstance(kind, str) and kind.startswith("timm:"):
        return "timm"
    return "own" if usercode.is_reference(kind) else "shipped"


ShippedBackbone = Annotated[ResNetConfig | ViTConfig, Field(discriminator="kind")]
Backbone = Annotated[
    Annotated[ShippedBackbone, Tag("shipped")]
    | Annotated[TimmConfig, Tag("timm")]
    | Annotated[OwnBackbone, Tag("own")],
    Discriminator(_form),
]


class MLPConfig(Config):
    """(Linear, norm, activation) for each hidden width, then Linear to the last width, then norm if `final_norm`.

    `final_affine`: whether that last norm has a scale and a shift (MoCo v3's and SimSiam's have none).
    `initialization` of the linear layers: `torch`, its own default, or `dino`, normal with deviation 0.02 and biases 0
    (its head, facebookresearch/dino).
    """

    widths: tuple[Annotated[int, Field(ge=1)], ...] = Field((128, 128), min_length=1)
    final_norm: bool = False
    final_affine: bool = True
    final_bias: bool = True
    hidden_norm: bool = True
    activation: Literal["relu", "gelu"] = "relu"
    initialization: Literal["torch", "dino"] = "torch"


class TeacherConfig(Config):
    """A moving average of backbone, projector and prototypes; the momentum follows a cosine from `momentum` to
    `final_momentum`. It sees all `views`, or the `largest` alone, which must then be the first (DINO's global crops).
    """

    momentum: Annotated[float, Field(ge=0.0, le=1.0)] = 0.996
    final_momentum: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    views: Literal["all", "largest"] = "all"


class MaskingConfig(Config):
    """Which patches the student sees, and where it is told they are. Needs a vision transformer. The teacher, and
    every evaluation, see all patches at their places.

    Of L patches K = floor(L (1 - drop_ratio) + 1e-6) are kept, the same number for each image and step, others for each
    image, view and step. Each kept patch then has a probability of `mismatch_probability` of being given the position
    of another one (DILEMMA, arXiv 2204.04788). `donor_rule` says whose:

    `spare_or_cycle`: a dropped patch's; if there are too few, mismatched patches pass theirs on in a circle. No
    position occurs twice, which would give the answer away. Ours; for drop_ratio >= 0.5 equal in law to `tail`.
    `tail`: the authors' released code, the end of the shuffled positions: below 0.5 positions may occur twice, at 0
    nothing is mismatched. `uniform`: any but its own, an ablation in which they often occur twice.

    `views`: of views of several sizes only the `largest` are masked, as local crops are small enough, or `all`.
    """

    drop_ratio: Fraction = 0.5
    mismatch_probability: Probability = 0.0
    donor_rule: Literal["spare_or_cycle", "tail", "uniform"] = "spare_or_cycle"
    views: Literal["largest", "all"] = "largest"

    def kept_count(self, patch_count: int) -> int:
        """K of L patches. The 1e-6 is for ratios that floats can not hold: 100 · (1 - 0.9) is 9.999…"""
        return int(patch_count * (1.0 - self.drop_ratio) + 1e-6)


class PrototypesConfig(Config):
    """The last layer of DINO and SwAV: cosines of projections with `count` learned directions (arXiv 2104.14294:
    65,536; arXiv 2006.09882: 3,000). It is built where a term of kind `dino` or `swav` has a weight.

    For `dino`, the teacher's scores are centered by a moving average of their mean over the global batch, which starts
    at 0 and keeps `center_momentum` each step. Directions do not move in the first `frozen_steps` optimizer steps (one
    epoch there).

    For `swav`, the embeddings of the last `queue` images, of the first `queued_views` views each, are kept from step
    `queue_after` on; once it is full the term sorts them together with the batch.
    """

    count: int = Field(1024, ge=2)
    center_momentum: Fraction = 0.9
    frozen_steps: int = Field(0, ge=0)
    queue: int = Field(0, ge=0, description="images; 0 for none")
    queue_after: int = Field(0, ge=0, description="optimizer steps before the first image is kept")
    queued_views: int = Field(2, ge=1)


class DecoderConfig(Config):
    """A small transformer that predicts the pixels of dropped patches, 32 a head (He et al., arXiv 2111.06377: 512
    wide, 8 blocks). It is built where a term of kind `reconstruction` has a weight."""

    width: int = Field(64, ge=32, le=1024, multiple_of=32)
    depth: int = Field(2, ge=1, le=12, description="blocks")


class ModelConfig(Config):
    """`norm`: `batch` is synchronized over workers (exact under DDP), `batch_per_rank` is not, `layer` needs no
    batch."""

    backbone: Backbone = ResNetConfig()
    projector: MLPConfig = MLPConfig()
    predictor: MLPConfig | None = None
    teacher: TeacherConfig | None = None
    masking: MaskingConfig | None = None
    decoder: DecoderConfig | None = None
    prototypes: PrototypesConfig | None = None
    norm: Literal["batch", "batch_per_rank", "layer"] = "batch"


class OptimizerConfig(Config):
    """`learning_rate` is the peak at this run's batch size, as used (recipes apply the lr x batch / 256 rule
    themselves).

    With `lars`, one-dimensional parameters (biases, norm scales) are excluded from weight decay and from the trust
    ratio; with the others from weight decay. `adam` adds its decay to the gradient, `adamw` shrinks weights by it.
    `clip_trust` bounds LARS' step for a weight tensor, rate times trust ratio, by the rate itself, as solo-learn's
    `clip_lr` does. `momentum` is of `sgd` and `lars`, `beta1` and `beta2` are of `adam` and `adamw`; the others ignore
    them. `clip_norm` bounds the norm of all gradients together, or with `clip_scope=tensor` of each tensor's by itself,
    as DINO's code does. With a `final_weight_decay` the decay goes from `weight_decay` to it along half a cosine over
    the run, by step (DINO: 0.04 to 0.4).
    """

    kind: Literal["sgd", "adam", "adamw", "lars"] = "sgd"
    learning_rate: Positive = 0.05
    momentum: Fraction = 0.9
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    weight_decay: NonNegative = 1e-4
    final_weight_decay: NonNegative | None = None
    trust_coefficient: Positive = 1e-3
    clip_trust: bool = False
    clip_norm: Positive | None = None
    clip_scope: Literal["all", "tensor"] = "all"

    @model_validator(mode="before")
    @classmethod
    def _names_are_todays(cls, values: Any) -> Any:
        return refuse_old_names("optimizer", values)


class ScheduleConfig(Config):
    """Learning rate over the run, by optimizer step.

    `constant`: linear warm-up, constant, then a short cosine decay over the last `decay_share` of the run; trials
    stopped early then compare like with like, so sweeps default to it. `cosine`: linear warm-up, then a cosine over
    the rest. Both end at `final_factor` times the peak. `step`: linear warm-up, constant, and times `drop_factor` from
    each of `drops` on (W-MSE and CW-RGP: 50 and 25 epochs before the end). `warmup_share` and `drops` are shares of the
    run's steps.
    """

    kind: Literal["constant", "cosine", "step"] = "constant"
    warmup_share: Fraction = 0.05
    decay_share: Fraction = 0.2
    final_factor: Probability = 0.001
    drops: tuple[Fraction, ...] = (0.95, 0.975)
    drop_factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2

    @model_validator(mode="after")
    def _shares_fit(self) -> ScheduleConfig:
        if self.kind == "constant" and self.warmup_share + self.decay_share > 1.0:
            raise ValueError(
                "warmup_share + decay_share must be at most 1, "
                f"but is {self.warmup_share} + {self.decay_share}; lower one of them"
            )
        if list(self.drops) != sorted(self.drops) or (
            self.kind == "step" and not all(drop > self.warmup_share for drop in self.drops)
        ):
            raise ValueError(
                f"drops must rise and come after the warm-up (warmup_share={self.warmup_share}), but are {self.drops}; "
                "order them, or shorten the warm-up"
            )
        return self

    def last_epoch_before_decay(self, epochs: int) -> int:
        """The last of `epochs` none of whose steps belongs to the final decay, at most `epochs` - 1 (at the end nothing
        is left to save).

        With `constant` that is (1 - decay_share) of the run, with `step` the share of the first drop. A `cosine` falls
        from the warm-up on, so nothing lies before its decay; trials of equal length still compare like with like at
        equal epochs, which is all that is claimed for it.
        """
        if self.kind == "cosine":
            return epochs - 1
        share = 1.0 - self.decay_share if self.kind == "constant" else min(self.drops, default=1.0)
        # The tolerance keeps (1 - 0.2) x 10, which is 8.0 on paper, from becoming 7.
        return min(epochs - 1, math.floor(share * epochs + 1e-9))


ProbeProtocol = Literal["knn5", "knn20", "knn200", "linear_lbfgs"]
"""What can be measured at each probe (`trainers.evaluation.quick`)."""


class ProbeConfig(Config):
    """How frozen features are judged: kNN and a linear probe fitted on part of `train`, scored on `select`.

    `every` is in epochs. `labels_per_class`, if given, replaces `train_images` by that many images of each class,
    drawn once per trial seed. `regularization` is the linear probe's L2 strength: it minimizes mean cross-entropy +
    regularization / 2 * |W|^2 on standardized features. It is fixed, never tuned, so that trials compare. `protocols`
    are measured beside it, as the metrics `eval/<name>`; a search for one of these sets it.
    """

    every: int = Field(1, ge=1)
    train_images: int = Field(10_000, ge=2)
    select_images: int = Field(5_000, ge=2)
    labels_per_class: int | None = Field(None, ge=1)
    regularization: Positive = 1e-3
    neighbors: int = Field(20, ge=1)
    temperature: Positive = 0.07
    protocols: tuple[ProbeProtocol, ...] = ()


class SentinelConfig(Config):
    """When a trial counts as collapsed, so that it ends within an epoch: a look at a batch's embeddings each `every`
    optimizer steps, and the end after `patience` looks in a row that find fault (see `trainers.sentinel`).

    The thresholds lie below what healthy tiny runs showed: of 54 (18 recipes, 3 seeds) none was ended. Spread and scale
    lie far below, the rank's with little room for SimSiam (benchmarks/README.md, "Sentinel"). A loss behind a batch
    norm (BYOL without predictor) keeps its spread and loses directions slowly, so that it may be found late or never.
    None looks at nothing.
    """

    every: int = Field(20, ge=1)
    patience: int = Field(3, ge=1)
    min_spread: NonNegative = 0.1
    min_scale: NonNegative = 0.02
    min_rank_share: Fraction = 0.1
    min_information: NonNegative = 0.05
