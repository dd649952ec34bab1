"""What one pretraining run is: a frozen, fully checked value that travels as JSON and replays exactly.

Its parts, and nearly all defaults, are in `trainers.settings`. A recipe overrides fields with keyword arguments; a
search space returns a changed copy. Unknown keys are refused and every error says what, the rule, the value and the
remedy, before anything expensive starts. This module imports neither torch nor FFCV, so that a request can be checked
in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from trainers import usercode
from trainers.init_file import InitFile
from trainers.settings import (
    Backbone,
    Config,
    DataConfig,
    DecoderConfig,
    Fraction,
    MaskingConfig,
    MLPConfig,
    ModelConfig,
    NonNegative,
    OptimizerConfig,
    OwnBackbone,
    OwnOperation,
    Positive,
    Probability,
    ProbeConfig,
    PrototypesConfig,
    ResNetConfig,
    ScheduleConfig,
    SentinelConfig,
    TeacherConfig,
    TimmConfig,
    ViewConfig,
    ViTConfig,
)
from trainers.terms import SHIPPED_TERMS, Facts, Head, OwnTerm, Term, TermConfig

__all__ = [
    "Backbone",
    "Config",
    "DataConfig",
    "DecoderConfig",
    "Fraction",
    "MLPConfig",
    "MaskingConfig",
    "ModelConfig",
    "NonNegative",
    "OptimizerConfig",
    "OwnBackbone",
    "OwnOperation",
    "OwnTerm",
    "Positive",
    "Probability",
    "ProbeConfig",
    "PrototypesConfig",
    "ResNetConfig",
    "ScheduleConfig",
    "SentinelConfig",
    "TeacherConfig",
    "TermName",
    "TimmConfig",
    "TrialConfig",
    "ViTConfig",
    "ViewConfig",
]

TermName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
"""A term's name is a step of a dotted path and the end of a metric's name: lower case, no dots, no slashes."""


MOST_EPOCHS = 1_000_000
"""Beyond this it is a slip of the hand: published runs have a thousand."""


class TrialConfig(Config):
    """One pretraining run. `batch_size` is global: W workers divide it. `seed` keys every random draw of the run."""

    data: DataConfig = DataConfig()
    views: tuple[ViewConfig, ...] = Field((ViewConfig(), ViewConfig()), min_length=1, max_length=16)
    model: ModelConfig = ModelConfig()
    objective: Mapping[TermName, Term] = Field(min_length=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    probe: ProbeConfig = ProbeConfig()
    sentinel: SentinelConfig | None = SentinelConfig()
    epochs: int = Field(10, ge=1, le=MOST_EPOCHS)
    batch_size: int = Field(256, ge=2)
    accumulate: int = Field(
        1,
        ge=1,
        description="parts of each worker's batch that go through the network one by one, for memory: terms are exact "
        "over the whole batch all the same, at the cost of a second forward pass",
    )
    accumulate_batch_norm: Literal["exact", "per_part"] = Field(
        "exact",
        description="with accumulate above 1: exact refuses networks with batch norm; per_part lets it normalize each "
        "part by itself, over all workers, which is another network than that of the whole batch",
    )
    seed: int = Field(0, ge=0, lt=2**31)
    precision: Literal["float32", "bf16"] = Field(
        "float32", description="bf16 is autocast; on a GPU, or a CPU that has it"
    )
    compile: Literal["off", "on", "cuda_graphs"] = Field(
        "off",
        description="on: the network's passes of training are compiled (torch.compile), which takes a C++ compiler; "
        "cuda_graphs: and are replayed as CUDA graphs, on a GPU; float sums depend on it",
    )
    deterministic: bool = Field(False, description="on a GPU: deterministic kernels, at some cost; a CPU run always is")
    threads: int = Field(
        1, ge=1, le=4096, description="torch and loader threads of each worker; float sums depend on it"
    )
    checkpoint_every: int = Field(1, ge=1, description="epochs")
    checkpoint_every_steps: int | None = Field(None, ge=1, description="optimizer steps; within epochs as well")

    @model_validator(mode="before")
    @classmethod
    def _kinds_are_found(cls, values: Any) -> Any:
        """`objective={"alignment": {"weight": 1}}` means kind "alignment": a term's name defaults to its kind, and
        back. The name that an installed package gave its term becomes the reference behind it, and so does an instance
        of a class of one's own.
        """
        if isinstance(values, dict) and isinstance(values.get("objective"), Mapping):
            values = {**values, "objective": {name: _found(name, term) for name, term in values["objective"].items()}}
        return values

    @model_validator(mode="after")
    def _fields_agree(self) -> TrialConfig:
        backbone = self.model.backbone
        if isinstance(backbone, ViTConfig):
            for index, view in enumerate(self.views):
                if view.size % backbone.patch_size:
                    raise ValueError(
                        f"views.{index}.size must be a multiple of model.backbone.patch_size={backbone.patch_size}, "
                        f"but is {view.size}; change one of them"
                    )
        if self.teacher_views != tuple(range(len(self.teacher_views))):
            raise ValueError(
                "with model.teacher.views='largest' the largest views must come first, but they are at places "
                f"{self.teacher_views} of views; order them, or set model.teacher.views=all"
            )
        if self.model.masking is not None:
            self._check_masking(self.model.masking)
        if self.checkpoint_every_steps is not None and self.checkpoint_every != 1:
            raise ValueError(
                "checkpoint_every_steps needs a checkpoint at the end of each epoch, but checkpoint_every is "
                f"{self.checkpoint_every}; set it to 1, or checkpoint_every_steps to null"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size must be a multiple of accumulate={self.accumulate}, but is {self.batch_size}; change one "
                "of them"
            )
        if self.accumulate > 1 and self.compile == "cuda_graphs":
            raise ValueError(
                f"accumulate={self.accumulate} saves memory, and compile=cuda_graphs holds that of all parts at once; "
                "set compile=on, or accumulate=1"
            )
        prototypes = self.model.prototypes
        if self.accumulate > 1 and prototypes is not None and prototypes.queue:
            raise ValueError(
                f"accumulate={self.accumulate} goes through the batch in parts, and model.prototypes.queue="
                f"{prototypes.queue} keeps whole batches; set accumulate=1, or model.prototypes.queue=0 and the batch "
                "that the queue stands for"
            )
        if self.accumulate > 1 and self.accumulate_batch_norm == "exact" and (where := self.batch_norm_place):
            raise ValueError(
                f"accumulate={self.accumulate} is exact without batch norm only, whose statistics would be those of a "
                f"part of the batch, but {where}; set model.norm=layer, or accept them with "
                "accumulate_batch_norm=per_part"
            )
        if "total" in self.objective:
            raise ValueError("objective.total: a term may not be named 'total', which is the sum; choose another name")
        if not any(term.weight > 0.0 for term in self.objective.values()):
            raise ValueError(
                "objective must have at least one term of positive weight, but the weights of "
                f"{sorted(self.objective)} are all 0; raise objective.<name>.weight of one of them"
            )
        for name, term in self.objective.items():
            if term.weight > 0.0:  # weight 0 equals the term being absent
                term.check(name, self.facts)
        return self

    def check_workers(self, workers: int) -> None:
        """ValueError where so many workers cannot share the global batch, or cannot compute a term."""
        if self.batch_size % workers:
            raise ValueError(
                f"batch_size must be a multiple of the {workers} workers, but is {self.batch_size}; change one of "
                f"them, for example --set batch_size={self.batch_size // workers * workers or workers}"
            )
        if self.batch_size // workers % self.accumulate:
            raise ValueError(
                f"accumulate must divide the batch of a worker, which is {self.batch_size // workers} ({workers} "
                f"workers), but is {self.accumulate}; change batch_size or accumulate"
            )
        for name, term in self.objective.items():
            if term.weight > 0.0:
                term.check_workers(name, self.facts, workers)

    @property
    def own_parts(self) -> dict[str, OwnTerm | OwnBackbone | OwnOperation]:
        """What this config names by reference, by its path."""
        parts: dict[str, OwnTerm | OwnBackbone | OwnOperation] = {}
        for index, view in enumerate(self.views):
            parts |= {f"views.{index}.operations.{name}": part for name, part in view.operations.items()}
        if isinstance(self.model.backbone, OwnBackbone):
            parts["model.backbone"] = self.model.backbone
        for name, term in self.objective.items():
            if isinstance(term, OwnTerm):
                parts[f"objective.{name}"] = term
        return parts

    @property
    def init(self) -> InitFile | None:
        """The weights that the backbone starts from; None where they are drawn at random."""
        backbone = self.model.backbone
        return None if isinstance(backbone, OwnBackbone) else backbone.init

    @property
    def init_is_there(self) -> bool:
        """Whether weights to start from, if there are any, lie where they did, unchanged."""
        try:
            self.check_init_file()
        except ValueError:
            return False
        return True

    def check_init_file(self) -> None:
        """ValueError where weights to start from are gone, ChangedError where they are others."""
        if self.init is not None:
            with usercode.named("model.backbone", key="init"):
                self.init.completed()

    def with_init(self, init: InitFile | None) -> TrialConfig:
        """A copy whose backbone starts from these weights, as they are given; None: at random."""
        if self.init == init:
            return self
        backbone = self.model.backbone.model_copy(update={"init": init})
        return self.model_copy(update={"model": self.model.model_copy(update={"backbone": backbone})})

    def completed(self, folder: Path | None = None) -> TrialConfig:
        """A copy whose own parts, and weights to start from, are found from anywhere, relative files lying in `folder`,
        each with its file's hash.

        ValueError where one is missing or cannot be imported, ChangedError where its hash is another one already.
        """
        parts, init = self.own_parts, self.init
        if not parts and init is None:
            return self
        values = self.model_dump(mode="json")
        if init is not None:
            with usercode.named("model.backbone", key="init"):
                values["model"]["backbone"]["init"] = init.completed(folder).model_dump(mode="json")
        for path, part in parts.items():
            with usercode.named(path):
                complete = part.completed(folder)
            holder: Any = values
            for key in path.split("."):
                holder = holder[int(key)] if isinstance(holder, list) else holder[key]
            holder |= {"kind": complete.kind, "source_sha256": complete.source_sha256}
        return TrialConfig.model_validate(values)

    def check_own(self, workers: int = 1) -> None:
        """Load what this config names by reference, and check it as shipped parts are when a config is made.

        Apart from that, since a config is also read to be shown, long after its files are gone. ValueError (or
        ChangedError, SettingsError) names the part's path. Imports torch only if the code itself does.
        """
        for path, part in self.own_parts.items():
            if isinstance(part, OwnTerm):
                if part.weight == 0.0:  # equals the term being absent
                    continue
                with usercode.named(path):
                    loaded = part.loaded
                name = path.removeprefix("objective.")
                loaded.check(name, self.facts)
                loaded.check_workers(name, self.facts, workers)
                self.facts.require_heads(name, loaded.reads_heads)
            else:
                with usercode.named(path):
                    part.check_call()

    def heads(self) -> frozenset[Head]:
        """What the model has because terms of positive weight read it. Loads those that are one's own: raises as
        `check_own`.
        """
        found: set[Head] = set()
        for name, term in self.objective.items():
            if term.weight > 0.0:
                with usercode.named(f"objective.{name}"):
                    found |= term.loaded.reads_heads
        return frozenset(found)

    @property
    def batch_norm_place(self) -> str:
        """Which part of the model has batch norm, as far as the config alone tells; empty where it tells of none."""
        model = self.model
        if model.norm == "layer":
            return ""
        if isinstance(model.backbone, ResNetConfig):
            return f"model.backbone.kind={model.backbone.kind} has it"
        heads = {"projector": model.projector, "predictor": model.predictor}
        for name, head in heads.items():
            if head is not None and (head.final_norm or (head.hidden_norm and len(head.widths) > 1)):
                return f"model.{name} has it"
        return ""

    def _check_masking(self, masking: MaskingConfig) -> None:
        backbone = self.model.backbone
        if not isinstance(backbone, ViTConfig):
            raise ValueError(
                "model.masking drops patches and needs a vision transformer, but model.backbone.kind is "
                f"{backbone.kind}; set model.backbone.kind=vit_tiny, or model.masking=null"
            )
        for index, patch_count in self.masked_patch_counts.items():
            if masking.kept_count(patch_count) < 1:
                raise ValueError(
                    "model.masking.drop_ratio must leave at least one patch of each view, but "
                    f"{masking.drop_ratio} leaves none of the {patch_count} of views.{index}; lower it"
                )

    @property
    def facts(self) -> Facts:
        """What the terms may know of this run."""
        return Facts(self.views, self.model, self.batch_size, self.masked_patch_counts)

    @property
    def teacher_views(self) -> tuple[int, ...]:
        """Places in `views` of those that the teacher sees; none without a teacher."""
        if self.model.teacher is None:
            return ()
        largest = max(view.size for view in self.views)
        everything = self.model.teacher.views == "all"
        return tuple(index for index, view in enumerate(self.views) if everything or view.size == largest)

    @property
    def masked_patch_counts(self) -> dict[int, int]:
        """The views that the student sees masked: place in `views` -> number of patches of the whole view."""
        backbone, masking = self.model.backbone, self.model.masking
        if masking is None or not isinstance(backbone, ViTConfig):
            return {}
        largest = max(view.size for view in self.views)
        return {
            index: (view.size // backbone.patch_size) ** 2
            for index, view in enumerate(self.views)
            if masking.views == "all" or view.size == largest
        }


def is_own_instance(term: object) -> bool:
    """Whether it is of a class of one's own, derived from `TermConfig` or from a shipped term."""
    return isinstance(term, TermConfig) and not isinstance(term, OwnTerm) and type(term) not in SHIPPED_TERMS


def as_reference(name: str, term: TermConfig) -> OwnTerm:
    """A term of a class of one's own as a config holds it: the reference to its class, and its settings.

    LostError where the class has no place at which another process would find it, or the instance is more than that.
    """
    label, settings = usercode.where(type(term)), type(term).model_fields
    if foreign := [key for key in vars(term) if key not in settings]:
        raise usercode.LostError(
            f"objective.{name} is a {label} with {', '.join(foreign)} set on it, which would not arrive where the "
            "trial runs; make a field of it"
        )
    values = term.model_dump(mode="json", exclude={"kind"}, warnings=False, fallback=usercode.plain)
    try:
        own = OwnTerm.model_validate({**values, "kind": usercode.reference_to(type(term))})
        arrived = type(term).model_validate(values)
    except ValueError as error:
        raise usercode.LostError(f"objective.{name} is a {label}, which would not arrive: {error}") from error
    changed = [
        key for key in settings if key != "kind" and not usercode.alike(getattr(term, key), getattr(arrived, key))
    ]
    if changed or not usercode.alike(term.__pydantic_private__, arrived.__pydantic_private__):
        raise usercode.LostError(
            f"objective.{name} is a {label} whose {', '.join(changed) or 'private state'} JSON cannot say; use fields "
            "of numbers, text, lists and objects of such"
        )
    return own


def _found(name: Any, term: Any) -> Any:
    """A term of an objective with its kind: a shipped one, or a reference."""
    if isinstance(term, TermConfig):
        return as_reference(name, term) if is_own_instance(term) else term
    if not isinstance(term, Mapping):
        return term
    kind = term.get("kind", name)
    shipped = {kind for shipped in SHIPPED_TERMS for kind in get_args(shipped.model_fields["kind"].annotation)}
    if isinstance(kind, str) and not usercode.is_reference(kind) and kind not in shipped:
        plugin = usercode.plugins("pretune.terms").get(kind)
        kind = kind if plugin is None else plugin.reference
    return {**term, "kind": kind}
