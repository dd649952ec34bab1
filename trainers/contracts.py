"""What every term, backbone and view operation must do, tried on small random inputs.

`check_parts` is quick and comes before a run with parts of one's own, or of timm: it raises a ValueError that names
class, file and line. `TermTrial`, `BackboneTrial` and `OperationTrial` are the whole contract of one part, for
`pretune check`, which also has them compute in fresh processes and in two at once (`pretune.analysis.contract`).

Letters: N = rows of the global batch, n = on this rank, W = ranks, V = views, q = embedding width, p = features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from trainers import dist, masking, usercode
from trainers.config import OwnBackbone, TimmConfig, TrialConfig, ViTConfig
from trainers.keyed_random import Draws, keys_of
from trainers.model import build_backbone
from trainers.objective import Objective, form_complaint
from trainers.operations import check_kept
from trainers.terms import (
    Alignment,
    Outputs,
    OwnTerm,
    Patches,
    TermConfig,
)

ROWS = 16
"""N: enough for statistics over a batch, and even, so that two ranks can share it."""
WIDEST = 256
"""Embeddings are made no wider than this, whatever the projector."""
STEPS, INTERRUPTED_AFTER = 4, 2
"""Steps of training in all, and after how many of them one process ends and another goes on."""
NEEDS = {
    "predictions": "model.predictor",
    "targets": "model.teacher",
    "patches": "model.masking and a vision transformer",
    "mismatch_logits": "model.masking and a term of kind mismatch_detection",
    "pixels": "model.masking, model.decoder and a term of kind reconstruction",
    "reconstruction": "model.masking, model.decoder and a term of kind reconstruction",
    "scores": "model.prototypes and a term of kind dino or swav",
    "queued_scores": "model.prototypes with a queue and a term of kind swav",
    "target_scores": "model.teacher, model.prototypes and a term of kind dino",
    "center": "model.teacher, model.prototypes and a term of kind dino",
}
"""What of `Outputs` is there only with these settings."""


def everything() -> TrialConfig:
    """A run whose outputs hold all that a model can make."""
    values = {
        "views": [{"size": 16}] * 3,
        "model": {
            "backbone": {"kind": "vit_micro", "patch_size": 4},
            "projector": {"widths": [8]},
            "predictor": {"widths": [8]},
            "teacher": {},
            "masking": {"mismatch_probability": 0.3},
            "decoder": {},
            "prototypes": {"count": 7, "queue": ROWS},
        },
        "objective": {"dino": {}, "mismatch_detection": {}, "reconstruction": {}},
        "batch_size": ROWS,
    }
    return TrialConfig.model_validate(values)


class BrokenError(ValueError):
    """A part does not do what it must."""


Contract = tuple[str, Callable[[], str]]
"""What must hold, in a few words, and what tries it: it returns how well, or raises BrokenError."""


class Trial(Protocol):
    """One part, and what it must do."""

    def basic(self) -> list[Contract]:
        """What must hold before the rest has a meaning, in this order."""

    def further(self) -> list[Contract]:
        """What can be tried in one process, each by itself."""

    def share(self) -> dict[str, Tensor]:
        """What this rank computes of one global batch. Keys that begin with `rows/` are of its own rows, [n, ...];
        others are the same on all ranks."""

    def steps(self, start: int, stop: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Go on from the `state` after `start` steps (empty at 0) to that after `stop`."""

    @property
    def tolerance(self) -> float:
        """The largest relative difference between two workers and one."""


# ---- before a run ----------------------------------------------------------------------------------------------------


def check_parts(config: TrialConfig) -> None:
    """The basic contracts of each part of `config` that is one's own, and of a model of timm, for this run's views,
    widths and outputs. ValueError names the part, its class, file and line.
    """
    for path, part in config.own_parts.items():
        if isinstance(part, OwnTerm):
            if part.weight > 0.0:
                _check(path, TermTrial(part.loaded, config, torch.float32))
        elif not isinstance(part, OwnBackbone):
            view = config.views[int(path.split(".")[1])]
            _check(path, OperationTrial(part.load(), part.settings, view.size))
    if isinstance(config.model.backbone, OwnBackbone | TimmConfig):
        _check("model.backbone", BackboneTrial(config, torch.float32, rows=4))


def _check(path: str, trial: Trial) -> None:
    for _, contract in trial.basic():
        try:
            contract()
        except BrokenError as error:
            raise ValueError(f"{path}: {error}") from error


# ---- terms -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TermTrial:
    """A term, on outputs as a run of this `config` makes them."""

    term: TermConfig
    config: TrialConfig
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-10

    def basic(self) -> list[Contract]:
        return [
            ("one number", self.is_one_number),
            ("finite", self.is_finite),
            ("differentiable", self.is_differentiable),
        ]

    def further(self) -> list[Contract]:
        return [("weight 0 equals absence", self.is_absent_at_zero), ("no hidden state", self.repeats_itself)]

    def is_one_number(self) -> str:
        value = self._value(self._outputs())
        if complaint := form_complaint(value):
            raise self._broken(complaint)
        return f"{value.item():.4g}, {str(value.dtype).removeprefix('torch.')}"

    def is_finite(self) -> str:
        value = self._value(self._outputs())
        if not value.isfinite():
            raise self._broken(
                f"must return a finite number on {self._rows} random rows, but returned {value.item()}; look for a "
                "logarithm, a root or a division of zero"
            )
        return f"on {self._rows} random rows"

    def is_differentiable(self) -> str:
        outputs = self._outputs()
        value = self._value(outputs)
        leaves = _leaves(outputs)
        gradients: Mapping[str, Tensor | None] = {}
        if value.requires_grad:
            found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
            gradients = {name: gradient for name, gradient in zip(leaves, found, strict=True) if gradient is not None}
        if not gradients:
            raise self._broken(
                "must depend on features, projections or predictions, differentiably, but no gradient reaches them; "
                "look for detach(), item(), no_grad() or argmax"
            )
        for name, gradient in gradients.items():
            if gradient is not None and not gradient.isfinite().all():
                raise self._broken(
                    f"must have a finite gradient, but that by {name} is not; look for the root or norm of zero"
                )
        return f"by {', '.join(dict.fromkeys(name.partition('.')[0] for name in gradients))}"

    def is_absent_at_zero(self) -> str:
        outputs = self._outputs()
        alone, parts = Objective({"other": Alignment()})(outputs)
        off = self.term.model_copy(update={"weight": 0.0})
        total, with_it = Objective({"other": Alignment(), "mine": off})(outputs)
        if not torch.equal(alone, total) or parts.keys() != with_it.keys():
            raise self._broken("must not count at weight 0, but changes the total; leave `weight` to TermConfig")
        return "it is not computed"

    def repeats_itself(self) -> str:
        first = _same_random_state(self._broken, lambda: self._value(self._outputs()).detach())
        self._value(self._outputs(seed=1))
        again = self._value(self._outputs()).detach()
        if not torch.equal(first, again):
            raise self._broken(
                f"must give the same value for the same outputs, but gave {float(first):.6g}, and {float(again):.6g} "
                "after others; keep nothing between calls"
            )
        return "the same value again, also after other inputs"

    def share(self) -> dict[str, Tensor]:
        n = self._rows // dist.world_size()
        outputs = _leafed(_part(self._outputs(), slice(dist.row_offset(n), dist.row_offset(n) + n)))
        value = dist.mean_of_values(self.term(outputs))
        leaves = _leaves(outputs)
        gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        with torch.no_grad():
            metrics = {f"metric {name}": number for name, number in self.term.metrics(outputs).items()}
        # A rank ends with W times its share of the gradient (see `trainers.dist`).
        rows = {
            f"rows/gradient by {name}": (torch.zeros_like(leaf) if gradient is None else gradient) / dist.world_size()
            for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
        }
        return {"value": value.detach(), **metrics, **rows}

    def steps(self, start: int, stop: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradient descent on factors of each feature, projection and so on."""
        for step in range(start, stop):
            outputs = self._outputs(seed=step)._replace(step=step)
            state = state or {name: torch.ones(leaf.shape[1:]).to(leaf) for name, leaf in _leaves(outputs).items()}
            factors = {name: factor.clone().requires_grad_() for name, factor in state.items()}
            value = dist.mean_of_values(self.term(_scaled(outputs, factors)))
            found = torch.autograd.grad(value, list(factors.values()), allow_unused=True)
            state = {
                name: factor if gradient is None else factor - 0.1 * gradient
                for (name, factor), gradient in zip(state.items(), found, strict=True)
            }
        return state

    @property
    def _rows(self) -> int:
        return min(ROWS, self.config.batch_size)

    def _outputs(self, seed: int = 0) -> Outputs:
        return made_outputs(self.config, rows=self._rows, seed=seed, dtype=self.dtype)

    def _value(self, outputs: Outputs) -> Tensor:
        try:
            return self.term(outputs)
        except Exception as error:  # whatever its formula raises
            raise self._broken(_explained(error, type(self.term), outputs)) from error

    def _broken(self, complaint: str) -> BrokenError:
        return BrokenError(f"{usercode.where(type(self.term))} {complaint}")


def made_outputs(config: TrialConfig, *, rows: int, seed: int, dtype: torch.dtype) -> Outputs:
    """Random outputs of the form that a model of `config` makes, with leaves that ask for a gradient."""
    generator = torch.Generator().manual_seed(seed)
    q, view_count = min(WIDEST, config.model.projector.widths[-1]), len(config.views)

    def drawn(count: int, *shape: int, grad: bool = True) -> tuple[Tensor, ...]:
        """For each of `count` views: alike for the views of an image, as embeddings are."""
        shared = torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
        noise = [torch.randn(rows, *shape, generator=generator, dtype=torch.float64) for _ in range(count)]
        return tuple((shared + 0.5 * own).to(dtype).requires_grad_(grad) for own in noise)

    sample_ids = torch.arange(rows) + 100
    seen = len(config.teacher_views)
    heads = config.heads()
    centered = "center" in heads
    prototypes = config.model.prototypes if centered or "prototypes" in heads else None
    return Outputs(
        features=drawn(view_count, 64),
        projections=drawn(view_count, q),
        predictions=drawn(view_count, q) if config.model.predictor is not None else None,
        targets=drawn(seen, q, grad=False) if seen else None,
        sample_ids=sample_ids,
        seed=config.seed,
        step=7,
        patches=tuple(
            _made_patches(config, view, patch_count, sample_ids, seed, drawn)
            for view, patch_count in config.masked_patch_counts.items()
        ),
        scores=drawn(view_count, prototypes.count) if prototypes else None,
        queued_scores=drawn(prototypes.queued_views, prototypes.count, grad=False)
        if prototypes and prototypes.queue
        else None,
        target_scores=drawn(seen, prototypes.count, grad=False) if prototypes and centered else None,
        center=torch.zeros(prototypes.count, dtype=dtype) if prototypes and centered else None,
    )


def _made_patches(
    config: TrialConfig, view: int, patch_count: int, sample_ids: Tensor, seed: int, drawn: Callable[..., Any]
) -> Patches:
    assert config.model.masking is not None
    assert isinstance(config.model.backbone, ViTConfig)
    mask = masking.draw(config.model.masking, sample_ids, patch_count=patch_count, seed=seed, step=7, view=view)
    kept, dropped = mask.kept.shape[1], mask.dropped.shape[1]
    pixels = 3 * config.model.backbone.patch_size**2
    patches = Patches(view, drawn(1, kept, 32)[0], mask.kept, mask.told, mask.dropped)
    heads = config.heads()
    if "mismatch_head" in heads:
        patches = patches._replace(mismatch_logits=drawn(1, kept)[0])
    if "decoder" in heads:
        patches = patches._replace(
            pixels=drawn(1, dropped, pixels, grad=False)[0], reconstruction=drawn(1, dropped, pixels)[0]
        )
    return patches


def _mapped(outputs: Outputs, change: Callable[[str, Tensor], Tensor]) -> Outputs:
    """Outputs whose tensors of rows are changed, each by its name: `projections.0`."""
    whole: dict[str, Any] = {}
    for field in ("features", "projections", "predictions", "targets", "scores", "queued_scores", "target_scores"):
        views = getattr(outputs, field)
        if views is not None:
            whole[field] = tuple(change(f"{field}.{place}", view) for place, view in enumerate(views))
    for place, seen in enumerate(outputs.patches):
        rows: dict[str, Any] = {name: value for name, value in seen._asdict().items() if isinstance(value, Tensor)}
        changed = {name: change(f"patches.{place}.{name}", value) for name, value in rows.items()}
        whole["patches"] = (*whole.get("patches", ()), Patches(**{**seen._asdict(), **changed}))
    return outputs._replace(**whole, sample_ids=change("sample_ids", outputs.sample_ids))


def _leaves(outputs: Outputs) -> dict[str, Tensor]:
    """What asks for a gradient, by name."""
    found: dict[str, Tensor] = {}

    def look(name: str, rows: Tensor) -> Tensor:
        if rows.requires_grad:
            found[name] = rows
        return rows

    _mapped(outputs, look)
    return found


def _part(outputs: Outputs, rows: slice) -> Outputs:
    return _mapped(outputs, lambda name, whole: whole[rows])


def _leafed(outputs: Outputs) -> Outputs:
    return _mapped(outputs, lambda name, rows: rows.detach().clone().requires_grad_() if rows.requires_grad else rows)


def _scaled(outputs: Outputs, factors: Mapping[str, Tensor]) -> Outputs:
    return _mapped(outputs, lambda name, rows: rows.detach() * factors[name] if name in factors else rows)


def _explained(error: Exception, term: type[TermConfig], outputs: Outputs) -> str:
    """What a formula raised, where, and which outputs on that line this run does not have."""
    line = usercode.line_of(error, term)
    have = {**outputs._asdict(), **(outputs.patches[0]._asdict() if outputs.patches else {})}
    absent = [name for name in NEEDS if name in line and have.get(name) in (None, ())]
    text = f"raised {type(error).__name__}: {error} ({usercode.place_of(error, term)}{line!r})"
    if absent:
        needs = "; ".join(f"outputs have {name} only with {NEEDS[name]}" for name in absent)
        return f"{text}; {needs}"
    if isinstance(error, AttributeError) and isinstance(error.obj, Outputs | Patches):
        fields = type(error.obj)._fields
        return f"{text}; known: {', '.join(fields)}{usercode.guess(error.name or '', fields)}"
    return f"{text}; correct it"


# ---- backbones -------------------------------------------------------------------------------------------------------


@dataclass
class BackboneTrial:
    """The backbone of `config`, at the sizes of its views, with batch norm over the rows of all ranks where `norm` says
    so."""

    config: TrialConfig
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-10
    rows: int = ROWS
    """N: a few where the network may be large and an answer is waited for."""

    def basic(self) -> list[Contract]:
        return [
            ("one feature vector", self.has_features),
            ("finite", self.is_finite),
            ("differentiable", self.is_differentiable),
            ("no draws", self.draws_nothing),
        ]

    def further(self) -> list[Contract]:
        return [
            ("a row by itself", self.keeps_rows_apart),
            ("no hidden state", self.repeats_itself),
            ("a teacher's copy", self.can_be_copied),
        ]

    def has_features(self) -> str:
        try:
            network, width = self._first
        except ValueError as error:
            raise BrokenError(str(error).removeprefix("model.backbone: ")) from error
        count = sum(parameter.numel() for parameter in network.parameters())
        return f"{width} features, {count:,} parameters"

    def is_finite(self) -> str:
        if not self._features(self._first[0], self._images()).isfinite().all():
            raise self._broken("must give finite features of random images, but does not; look at its first parameters")
        return f"on {self.rows} random images"

    def is_differentiable(self) -> str:
        network, _ = self._first
        self._loss(network, self._images()).backward()  # type: ignore[no-untyped-call]
        reached = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        if not reached:
            raise self._broken("must have parameters that a gradient reaches, but has none; look for detach()")
        if not all(gradient.isfinite().all() for gradient in reached):
            raise self._broken("must have a finite gradient, but has not; look at its first parameters")
        return f"{len(reached)} of {len(list(network.parameters()))} parameters are reached"

    def draws_nothing(self) -> str:
        network, _ = self._first
        _same_random_state(self._broken, lambda: self._features(network, self._images()))
        return "in training mode, torch's random state stays as it was"

    def keeps_rows_apart(self) -> str:
        network, _ = self._built()
        network.eval()
        with torch.no_grad():
            together, alone = network(self._images()), torch.cat([network(one[None]) for one in self._images()])
        error = _relative(alone, together)
        if error > self.tolerance:
            raise self._broken(
                "must compute the features of an image from it alone in evaluation mode, but they differ by "
                f"{error:.1e} from those in a batch"
            )
        return f"in evaluation mode, {error:.1e} from those in a batch"

    def repeats_itself(self) -> str:
        network, _ = self._built()
        state = copy.deepcopy(network.state_dict())
        first = self._features(network, self._images())
        self._features(network, self._images(seed=1))
        network.load_state_dict(state)
        if not torch.equal(first, self._features(network, self._images())):
            raise self._broken(
                "must give the same features for the same images and state_dict, but does not; keep state in "
                "parameters and buffers alone"
            )
        return "the same features again from the same state_dict"

    def can_be_copied(self) -> str:
        try:
            copy.deepcopy(self._built()[0])
        except Exception as error:  # whatever its own code raises
            raise self._broken(f"must be copied to be a teacher, but raised {type(error).__name__}: {error}") from error
        return "copy.deepcopy works"

    def share(self) -> dict[str, Tensor]:
        n = self.rows // dist.world_size()
        network, _ = self._built()
        images = self._images()[dist.row_offset(n) : dist.row_offset(n) + n]
        features = network(images)
        loss = self._loss_of(features)
        names, parameters = zip(*network.named_parameters(), strict=True)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients = {
            f"gradient by {name}": dist.mean_over_ranks(torch.zeros_like(parameter) if gradient is None else gradient)
            for name, parameter, gradient in zip(names, parameters, found, strict=True)
        }
        return {"value": loss.detach(), "rows/features": features.detach(), **gradients}

    def steps(self, start: int, stop: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        network, _ = self._built()
        network.load_state_dict(state or network.state_dict())
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.0)
        for step in range(start, stop):
            optimizer.zero_grad()
            self._loss(network, self._images(seed=step)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return copy.deepcopy(network.state_dict())

    @cached_property
    def _first(self) -> tuple[nn.Module, int]:
        """One for all basic contracts: a large network takes seconds to make."""
        return self._built()

    def _built(self) -> tuple[nn.Module, int]:
        sizes = sorted({view.size for view in self.config.views}, reverse=True)
        norm = self.config.model.norm
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.config.seed)
            network, width = build_backbone(self.config.model.backbone, sizes, norm)
        if norm == "batch":
            network = dist.synchronize_batch_norm(network)
        return network.to(self.dtype).train(), width

    def _images(self, seed: int = 0) -> Tensor:
        size = max(view.size for view in self.config.views)
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.rows, 3, size, size, generator=generator).to(self.dtype)

    def _features(self, network: nn.Module, images: Tensor) -> Tensor:
        with torch.no_grad():
            features: Tensor = network(images)
        return features

    def _loss(self, network: nn.Module, images: Tensor) -> Tensor:
        return self._loss_of(network(images))

    def _loss_of(self, features: Tensor) -> Tensor:
        """The mean squared distance to fixed rows, over the global batch."""
        generator = torch.Generator().manual_seed(2)
        n = len(features)
        wanted = torch.randn(n * dist.world_size(), features.shape[1], generator=generator).to(features)
        return dist.mean_over_ranks((features - wanted[dist.row_offset(n) : dist.row_offset(n) + n]).square().mean())

    def _broken(self, complaint: str) -> BrokenError:
        backbone = self.config.model.backbone
        label = usercode.where(backbone.load()) if isinstance(backbone, OwnBackbone) else backbone.kind
        return BrokenError(f"{label} {complaint}")


# ---- view operations -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OperationTrial:
    """A view operation, on images of `size` pixels."""

    function: Callable[..., Tensor]
    settings: Mapping[str, Any]
    size: int = 32
    tolerance: float = 1e-5

    def basic(self) -> list[Contract]:
        return [
            ("images like the given ones", self.keeps_the_form),
            ("keyed draws alone", self.draws_by_key),
            ("a row by itself", self.keeps_rows_apart),
        ]

    def further(self) -> list[Contract]:
        return [("no hidden state", self.repeats_itself)]

    def keeps_the_form(self) -> str:
        given = self._images()
        images = given.clone(memory_format=torch.preserve_format)
        result = self._applied(images)
        if not result.isfinite().all():
            raise self._broken("must return finite images, but does not; look for a division or a root of zero")
        if not torch.equal(images, given):
            raise self._broken("must leave the images that it is given as they are, but changes them; clone them first")
        return f"{list(result.shape)}, {str(result.dtype).removeprefix('torch.')}, finite"

    def draws_by_key(self) -> str:
        first = _same_random_state(self._broken, lambda: self._applied(self._images()))
        if not torch.equal(first, self._applied(self._images())):
            raise self._broken("must give the same images for equal draws, but does not; draw from `draws` alone")
        changes = not torch.equal(first, self._applied(self._images(), epoch=1))
        return "equal draws, equal images" + (" (and others in another epoch)" if changes else "; it draws nothing")

    def keeps_rows_apart(self) -> str:
        images = self._images()
        together = self._applied(images)
        alone = torch.cat([self._applied(images[row : row + 1], first=row) for row in range(ROWS)])
        error = _relative(alone, together)
        if error > self.tolerance:
            raise self._broken(
                f"must change an image by its own pixels and draws alone, but in a batch it differs by {error:.1e}; "
                "use no statistics over the batch, and draw one row for each image"
            )
        return f"{error:.1e} from the same in a batch"

    def repeats_itself(self) -> str:
        first = self._applied(self._images())
        self._applied(self._images(seed=1), epoch=1)
        if not torch.equal(first, self._applied(self._images())):
            raise self._broken("must give the same images after others, but does not; keep nothing between calls")
        return "the same images again, also after others"

    def share(self) -> dict[str, Tensor]:
        n = ROWS // dist.world_size()
        first = dist.row_offset(n)
        return {"rows/images": self._applied(self._images()[first : first + n], first=first)}

    def steps(self, start: int, stop: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        for step in range(start, stop):
            state = {"images": self._applied(self._images(seed=step), epoch=step)}
        return state

    def _images(self, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(ROWS, 3, self.size, self.size, generator=generator)
        return images.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def _applied(self, images: Tensor, *, first: int = 0, epoch: int = 0) -> Tensor:
        """With the draws of samples `first`, `first` + 1, ..."""
        draws = Draws(keys_of(5, epoch, torch.arange(first, first + len(images))))
        try:
            result = self.function(images, draws, **self.settings)
        except Exception as error:  # whatever its code raises
            place, line = (find(error, self.function) for find in (usercode.place_of, usercode.line_of))
            raise self._broken(f"raised {type(error).__name__}: {error} ({place}{line!r}); correct it") from error
        try:
            check_kept(result, images, self.function)
        except ValueError as error:
            raise BrokenError(str(error)) from error
        return result

    def _broken(self, complaint: str) -> BrokenError:
        return BrokenError(f"{usercode.where(self.function)} {complaint}")


# ---- what they share -------------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """The largest between two sets of numbers, and where."""

    error: float
    name: str


def differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[Difference]:
    """For each name, the difference relative to the largest number of its kind (gradients by what begins alike)."""
    for name, numbers in expected.items():
        kind = name.partition(" by ")[0]
        size = max(float(other.abs().max()) for key, other in expected.items() if key.partition(" by ")[0] == kind)
        yield Difference(float((found[name] - numbers).abs().max()) / max(size, 1e-30), name)


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-30)


def _same_random_state(broken: Callable[[str], BrokenError], compute: Callable[[], Tensor]) -> Tensor:
    before = torch.random.get_rng_state()
    result = compute()
    if not torch.equal(before, torch.random.get_rng_state()):
        raise broken(
            "must draw nothing from torch's random state, as a run that is resumed, or has other workers, would draw "
            "otherwise, but does; use keyed draws (trainers.keyed_random), and set dropout and drop path to 0"
        )
    return result
