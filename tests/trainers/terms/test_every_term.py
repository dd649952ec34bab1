"""What every term must do, run over the shipped terms: a new term is covered the moment it is listed there.

Each term is tried with its default settings on outputs that hold everything a model can make, or with those of `SMALL`
where the defaults need more rows or dimensions than these tests have. Settings that deserve the same checks are added
to `MORE`.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.imports import imported
from tests.two_processes import TwoProcesses
from trainers import dist
from trainers.objective import Objective
from trainers.terms import (
    SHIPPED_TERMS,
    Alignment,
    BatchWhitening,
    Brownian,
    ChannelWhitening,
    CrossCorrelation,
    InfoNCE,
    KernelMMD,
    MomentumContrast,
    MultiviewCentroid,
    Outputs,
    Patches,
    Prediction,
    SingularValue,
    Spectral,
    Swav,
    Term,
    TermConfig,
    Variance,
)
from trainers.terms.kernels import AnyKernel, Kernel, Logarithm, Riesz, Truncated

CLASSES: tuple[type[TermConfig], ...] = SHIPPED_TERMS
SINGULAR = (Riesz(), Logarithm())
KERNELS: tuple[Kernel, ...] = tuple(
    kernel() for kernel in get_args(get_args(AnyKernel)[0]) if kernel not in map(type, SINGULAR)
)
SMALL: dict[type[TermConfig], dict[str, Any]] = {
    ChannelWhitening: {"sub_batch_size": 2, "group_count": 2},
    BatchWhitening: {"group_count": 2},
    Variance: {"target": 3.0},
}
MORE: list[TermConfig] = [
    *(KernelMMD(kernel=kernel, estimator="u", normalize=False) for kernel in (*KERNELS, *SINGULAR)),
    *(KernelMMD(kernel=kernel, form="gram") for kernel in KERNELS),
    KernelMMD(kernel=Truncated(coefficients=(1.0, 2.0)), form="feature"),
    MultiviewCentroid(reading="v2c", normalize=False),
    MultiviewCentroid(reading="v2c", view_split="all"),
    MultiviewCentroid(reading="pairs"),
    *(SingularValue(form=form) for form in ("frobenius", "entropy", "spectral", "logdet")),
    SingularValue(rows="stacked", source="projection"),
    SingularValue(rows="centroid", center=True),
    Brownian(share="view", norm="gaussian"),
    Brownian(share="batch", source="projection"),
    ChannelWhitening(sub_batch_size=2, group_count=1, factor="cholesky", shrinkage=1e-3),
    ChannelWhitening(sub_batch_size=2, group_count=2, factor="newton", repeats=2, share_partition=True),
    BatchWhitening(group_count=2, over="sub_batch", sub_batch_size=8, factor="cholesky", repeats=2),
    BatchWhitening(group_count=2, factor="cholesky", normalize=False, shrinkage=1e-3),
    BatchWhitening(group_count=2, factor="newton", share_partition=False),
    ChannelWhitening(sub_batch_size=2, group_count=2, arithmetic="float64"),
    BatchWhitening(group_count=2, arithmetic="float64"),
    BatchWhitening(group_count=2, over="sub_batch", sub_batch_size=8, factor="cholesky", arithmetic="float64"),
    KernelMMD(global_views=2),
    Alignment(normalize=False),
    Alignment(global_views=1),
    Alignment(global_views=2, normalize=False),
    CrossCorrelation(off_diagonal=1.0),
    InfoNCE(temperature=1.0),
    MomentumContrast(official_scale=False),
    Prediction(distance="negative_cosine"),
    Spectral(squared_radius=10.0),
]
TERMS: list[TermConfig] = [*(term(**SMALL.get(term, {})) for term in CLASSES), *MORE]
EVERY_CLASS = pytest.mark.parametrize("term_class", CLASSES, ids=lambda term: term.__name__)
EVERY_TERM = pytest.mark.parametrize("term", TERMS, ids=repr)

IMAGES, INPUTS, FEATURES, WIDTH, VIEWS = 16, 6, 10, 8, 3
PROTOTYPES = 7
KEPT, DROPPED, TOKEN, PIXELS = 4, 2, 3, 5
MASKED = 2
"""The first views are masked."""


def patches_of(view: int, tokens: Tensor, logits: Tensor, drawn: Tensor, sample_ids: Tensor) -> Patches:
    """A masked view with these tokens [n, KEPT, TOKEN], logits [n, KEPT] and drawn pixels [n, DROPPED, PIXELS],
    mismatched here and there."""
    kept = (sample_ids[:, None] + torch.arange(KEPT)) % 9
    wrong = (sample_ids[:, None] + view + torch.arange(KEPT)) % 3 == 0
    dropped = (kept[:, -1:] + 1 + torch.arange(DROPPED)) % 9
    pixels = (sample_ids[:, None, None] + 3 * torch.arange(DROPPED)[:, None] + torch.arange(PIXELS) ** 2).sin()
    told = torch.where(wrong, kept + 1, kept)
    return Patches(view, tokens, kept, told, dropped, logits, pixels.to(drawn.dtype), drawn)


class Network(nn.Module):
    """A small model with everything a term may ask for: batch norm, projector, predictor, teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(INPUTS, FEATURES), nn.BatchNorm1d(FEATURES), nn.Tanh())
        self.projector = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH))
        self.predictor = nn.Linear(WIDTH, WIDTH)
        self.teacher = nn.Linear(INPUTS, WIDTH).requires_grad_(False)
        self.tokens = nn.Linear(INPUTS, KEPT * TOKEN)
        self.mismatch_head = nn.Linear(TOKEN, 1)
        self.prototypes = nn.Linear(WIDTH, PROTOTYPES)
        self.decoder = nn.Linear(KEPT * TOKEN, DROPPED * PIXELS)

    def forward(self, views: tuple[Tensor, ...], sample_ids: Tensor) -> Outputs:
        features = tuple(self.backbone(view) for view in views)
        projections = tuple(self.projector(rows) for rows in features)
        tokens = [self.tokens(view).unflatten(1, (KEPT, TOKEN)) for view in views[:MASKED]]
        patches = tuple(
            patches_of(
                view,
                seen,
                self.mismatch_head(seen).squeeze(2),
                self.decoder(seen.flatten(1)).view(-1, DROPPED, PIXELS),
                sample_ids,
            )
            for view, seen in enumerate(tokens)
        )
        return Outputs(
            features=features,
            projections=projections,
            predictions=tuple(self.predictor(rows) for rows in projections),
            targets=tuple(self.teacher(view) for view in views),
            sample_ids=sample_ids,
            seed=3,
            step=7,
            patches=patches,
            scores=tuple(self.prototypes(rows) for rows in projections),
            target_scores=tuple(self.prototypes(self.teacher(view)).detach() for view in views[:MASKED]),
            center=torch.linspace(-0.1, 0.1, PROTOTYPES).to(projections[0].dtype),
        )


def train_step(terms: list[TermConfig], dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Value and parameter gradients of each term alone, on this rank's share of one global batch, through DDP."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 1, INPUTS, generator=generator, dtype=torch.float64)
    views = images + 0.5 * torch.randn(IMAGES, VIEWS, INPUTS, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = dist.synchronize_batch_norm(Network().double()).to(dtype)
    model = DistributedDataParallel(network, find_unused_parameters=True) if dist.world_size() > 1 else network
    n = IMAGES // dist.world_size()
    rows = slice(dist.row_offset(n), dist.row_offset(n) + n)
    results = []
    for term in terms:
        network.zero_grad()
        outputs = model(tuple(views[rows, v].to(dtype) for v in range(VIEWS)), torch.arange(IMAGES)[rows])
        total, parts = Objective({"only": term})(outputs)
        total.backward()  # type: ignore[no-untyped-call]
        # Where no gradient came, DDP leaves zeros from an earlier term, and one process nothing.
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in network.named_parameters()
        }
        results.append({"total": total.detach(), "part": parts["only"], **gradients, **metrics_of(term, outputs)})
    return results


def metrics_of(term: TermConfig, outputs: Outputs) -> dict[str, Tensor]:
    return {f"metric/{name}": value for name, value in Objective({"only": term}).metrics(outputs).items()}


def distance(results: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Relative to the whole: the largest of value's and gradient's errors."""
    numbers = [name for name in expected if name == "part" or name.startswith("metric/")]
    gradients = [name for name in expected if name != "total" and name not in numbers]
    difference = sum(float((results[name] - expected[name]).double().square().sum()) for name in gradients)
    size = sum(float(expected[name].double().square().sum()) for name in gradients)
    values = [abs(float(results[name] - expected[name])) / abs(float(expected[name])) for name in numbers]
    return max(*values, math.sqrt(difference / size))


@pytest.fixture(scope="module")
def of_one_process() -> list[dict[str, Tensor]]:
    """In float64, also where two compute in float32: one process in float32 is as far from it as two are."""
    return train_step(TERMS, torch.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["64", "32"])
def test_two_processes_equal_one_in_value_and_in_each_parameters_gradient(
    two_processes: TwoProcesses, of_one_process: list[dict[str, Tensor]], dtype: torch.dtype, tolerance: float
) -> None:
    for rank, results in enumerate(two_processes.run(train_step, TERMS, dtype)):
        for term, result, reference in zip(TERMS, results, of_one_process, strict=True):
            assert result.keys() == reference.keys()
            error = distance(result, reference)
            assert error < tolerance, f"{term!r} on rank {rank}: {error}"


def random_outputs(n: int = 8, q: int = 6, dtype: torch.dtype = torch.float64) -> Outputs:
    generator = torch.Generator().manual_seed(0)

    def rows(width: int, requires_grad: bool = True) -> tuple[Tensor, ...]:
        drawn = [torch.randn(n, width, generator=generator, dtype=torch.float64).to(dtype) for _ in range(VIEWS)]
        return tuple(view.requires_grad_(requires_grad) for view in drawn)

    sample_ids = torch.arange(100, 100 + n)
    features, projections, predictions, targets = rows(3), rows(q), rows(q), rows(q, requires_grad=False)
    tokens, logits, drawn = rows(KEPT * TOKEN), rows(KEPT), rows(DROPPED * PIXELS)
    return Outputs(
        features=features,
        projections=projections,
        predictions=predictions,
        targets=targets,
        sample_ids=sample_ids,
        seed=3,
        step=7,
        patches=tuple(
            patches_of(
                view, tokens[view].view(n, KEPT, TOKEN), logits[view], drawn[view].view(n, DROPPED, PIXELS), sample_ids
            )
            for view in range(MASKED)
        ),
        scores=rows(PROTOTYPES),
        target_scores=rows(PROTOTYPES, requires_grad=False)[:MASKED],
        center=torch.linspace(-0.1, 0.1, PROTOTYPES).to(dtype),
    )


def leaves(outputs: Outputs) -> list[Tensor]:
    logits = [seen.mismatch_logits for seen in outputs.patches if seen.mismatch_logits is not None]
    drawn = [seen.reconstruction for seen in outputs.patches if seen.reconstruction is not None]
    return [
        *outputs.features,
        *outputs.projections,
        *(outputs.predictions or ()),
        *logits,
        *drawn,
        *(outputs.scores or ()),
    ]


@pytest.mark.parametrize("term", [term for term in TERMS if not isinstance(term, Swav)], ids=repr)
def test_a_terms_gradient_equals_finite_differences(term: TermConfig) -> None:
    """But SwAV's, whose codes move with the scores and have no gradient: tests/trainers/terms/test_swav.py."""
    outputs = random_outputs()
    given = leaves(outputs)

    def value(*flat: Tensor) -> Tensor:
        features, projections, predictions = (flat[VIEWS * i : VIEWS * i + VIEWS] for i in range(3))
        patches = tuple(
            seen._replace(mismatch_logits=flat[3 * VIEWS + i], reconstruction=flat[3 * VIEWS + MASKED + i])
            for i, seen in enumerate(outputs.patches)
        )
        outputs_here = outputs._replace(
            features=features,
            projections=projections,
            predictions=predictions,
            patches=patches,
            scores=flat[-VIEWS:],
        )
        return term(outputs_here)

    found = torch.autograd.grad(value(*given), given, allow_unused=True)
    reached = [index for index, gradient in enumerate(found) if gradient is not None]

    def of_reached(*moved: Tensor) -> Tensor:
        flat = list(given)
        for index, leaf in zip(reached, moved, strict=True):
            flat[index] = leaf
        return value(*flat)

    assert torch.autograd.gradcheck(of_reached, [given[i] for i in reached], eps=1e-6, atol=1e-8, rtol=1e-6)
    moved = [leaf if i in reached else leaf + torch.randn_like(leaf) for i, leaf in enumerate(given)]
    assert torch.equal(value(*moved), value(*given)), "what gets no gradient must not matter"


@EVERY_TERM
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_value_is_one_finite_number_of_float32_at_least(term: TermConfig, dtype: torch.dtype) -> None:
    outputs = random_outputs(dtype=dtype)
    value = term(outputs)
    assert value.shape == ()
    assert value.isfinite()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    found = [
        gradient for gradient in torch.autograd.grad(value, leaves(outputs), allow_unused=True) if gradient is not None
    ]
    assert found, "a term that moves nothing"
    assert all(gradient.isfinite().all() for gradient in found)


@EVERY_TERM
def test_a_terms_metrics_are_single_finite_numbers_under_its_name(term: TermConfig) -> None:
    objective = Objective({"mine": term, "off": term.model_copy(update={"weight": 0.0})})
    metrics = objective.metrics(random_outputs())
    assert all(name.startswith("mine/") for name in metrics)
    for value in metrics.values():
        assert value.shape == ()
        assert value.isfinite()
        assert not value.requires_grad


@EVERY_TERM
def test_a_term_draws_nothing_from_the_global_generator_and_repeats_itself(term: TermConfig) -> None:
    state = torch.random.get_rng_state()
    first, second = term(random_outputs()), term(random_outputs())
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), state)


@EVERY_CLASS
def test_a_term_has_a_kind_a_weight_and_a_docstring_and_survives_json(term_class: type[TermConfig]) -> None:
    term = term_class()
    adapter: TypeAdapter[TermConfig] = TypeAdapter(Term)
    assert adapter.validate_json(adapter.dump_json(term)) == term
    assert adapter.validate_python({"kind": term.kind}) == term  # type: ignore[attr-defined]
    assert term.weight == 1.0
    assert term_class.__doc__
    with pytest.raises(ValueError, match="weight"):
        term_class(weight=-1.0)
    with pytest.raises(ValueError, match="wieght"):
        term_class.model_validate({"wieght": 1.0})


def test_kinds_are_unique() -> None:
    kinds: list[Any] = [term_class.model_fields["kind"].default for term_class in CLASSES]
    assert len(set(kinds)) == len(kinds)


def test_configs_import_neither_torch_nor_scipy_nor_numpy() -> None:
    assert imported("import trainers.config", "torch scipy numpy ffcv") == []
