"""Singular values: a batch of embeddings should fill all directions equally. MSBReg's global dispersion."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from trainers.terms.base import Facts, Outputs, TermConfig, full_precision, unit_rows

if TYPE_CHECKING:
    from torch import Tensor


Form = Literal["nuclear", "frobenius", "entropy", "spectral", "logdet"]

EPSILON: dict[Form, float] = {"nuclear": 1e-8, "logdet": 1e-4}


class SingularValue(TermConfig):
    """How far the spectrum of a batch's second moment is from flat: 0 flat, larger the fewer directions are used.

    Z = unit embeddings of the global batch, [M, q], C = ZᵀZ / M with eigenvalues λ (they sum to 1), r = min(M, q) of
    them not forced to be 0. Values, and what a batch collapsed to one line (v or -v) costs:

    * "nuclear": mean over j of (sqrt(r λ_j) - 1)² = 2 - 2 ||Z||_* / sqrt(M r); 2 - 2 / sqrt(r). It keeps pushing near
      collapse, where the others' gradients vanish.
    * "frobenius": (r ||C||² - 1) / (r - 1); 1. No eigenvalues are computed: the cheapest form. Like the published
      whitening predecessor; exact collapse is a saddle.
    * "entropy": 1 - H(λ) / log r; 1.
    * "spectral": (r λ_1 - 1) / (r - 1), with λ_1 the largest; 1.
    * "logdet": -mean over j of log(r λ_j + epsilon), a barrier.

    `rows`: "per_view" averages the term over views, "stacked" takes the rows of all views as one batch, "centroid" the
    unit centers of each image's views. `center` subtracts the mean over the batch first; then the λ no longer sum to 1,
    r = min(M - 1, q), and "nuclear", "frobenius" and "entropy" measure the distance of λ from 1 / r in full (entropy:
    sum of λ log(r λ) - λ + 1 / r, over log r), so that a centered collapse costs 1, 1 / (r - 1) and 1 / log r.
    `source`: "prediction" falls back on projections where the model has no predictor. `epsilon` (None: 1e-8, and 1e-4
    for "logdet") is added to λ where a root or logarithm is taken; it bounds the slope at λ = 0.

    The Gram is summed over ranks, [q, q] if q <= M, else [M, M] from gathered rows: O(M q min(M, q)), and O(min³) for
    its eigenvalues except for "frobenius". No singular vectors are differentiated: repeated values do no harm.

    Source: Moon et al., WACV 2023 (arXiv 2207.03552). Confirmed: a function of singular values that spreads embeddings
    and decorrelates dimensions. Inferred: every formula here, the rows, the centering and the weight (start at 0.1).
    """

    kind: Literal["singular_value"] = "singular_value"
    form: Form = "nuclear"
    rows: Literal["per_view", "stacked", "centroid"] = "per_view"
    center: bool = False
    source: Literal["prediction", "projection"] = "prediction"
    epsilon: float | None = Field(None, ge=0.0, le=0.1)

    @model_validator(mode="after")
    def _settings_suit_the_form(self) -> SingularValue:
        if self.epsilon is not None and self.form not in EPSILON:
            raise ValueError(
                f"epsilon is for the forms {sorted(EPSILON)}, but form is {self.form!r} and epsilon {self.epsilon}; "
                "leave it out"
            )
        if self.form == "logdet" and self.epsilon is not None and self.epsilon < 1e-4:
            raise ValueError(
                f"epsilon of form 'logdet' must be at least 1e-4 (its slope at 0 is 1 / epsilon), but is "
                f"{self.epsilon}; raise it"
            )
        if self.form == "spectral" and self.center:
            raise ValueError(
                "form='spectral' with center=True must not be: a collapsed batch has no spread at all and would be its "
                "best value; use center=False, or another form"
            )
        return self

    def __call__(self, outputs: Outputs) -> Tensor:
        import torch

        from trainers import dist

        embeddings = outputs.projections
        if self.source == "prediction" and outputs.predictions is not None:
            embeddings = outputs.predictions
        z = torch.stack([unit_rows(rows) for rows in embeddings])  # [K, n, q]
        if self.rows == "stacked":
            z = z.flatten(0, 1)[None]
        elif self.rows == "centroid":
            z = unit_rows(z.mean(0))[None]
        row_count, q = z.shape[1] * dist.world_size(), z.shape[2]
        rank = min(row_count - self.center, q)
        if rank < 2:
            raise ValueError(
                f"singular_value compares at least 2 directions, but {row_count} rows of {q} dimensions"
                f"{', centered,' if self.center else ''} have {rank}; raise batch_size, or the last of "
                "model.projector.widths"
            )
        if self.center:
            z = z - dist.sum_over_ranks(z.sum(1, keepdim=True)) / row_count
        dtype = z.dtype
        if self.form != "frobenius":
            z = z.double()  # a Gram squares singular values: in float32 those below 3e-4 of the largest would drown
        with full_precision(z.device):
            if q <= row_count:
                gram = dist.sum_over_ranks(z.transpose(1, 2) @ z) / row_count
            else:  # the same eigenvalues but for zeros
                everything = dist.gather_rows(z.transpose(0, 1)).transpose(0, 1)
                gram = everything @ everything.transpose(1, 2) / row_count
            return self._distance_from_flat(gram, rank).mean().to(dtype)

    def check(self, name: str, facts: Facts) -> None:
        width, batch = facts.width, facts.batch_size
        if self.source == "prediction" and facts.model.predictor is not None:
            width = facts.model.predictor.widths[-1]
        if min(width, batch - self.center) < 2:
            raise ValueError(
                f"objective.{name} (singular_value) compares at least 2 directions, but embeddings have {width} "
                f"dimensions and batch_size is {batch}; raise the last width of the projector (or predictor), or "
                "batch_size"
            )

    def _distance_from_flat(self, gram: Tensor, rank: int) -> Tensor:
        """The value of each of the Grams [K, s, s], [K], of which `rank` eigenvalues may differ from 0."""
        import torch

        if self.form == "frobenius":
            # rank · (sum over j of (λ_j - 1 / rank)²), less the share of eigenvalues that are 0 in any case.
            size = gram.shape[-1]
            excess = gram - torch.eye(size, dtype=gram.dtype, device=gram.device) / rank
            total = rank * excess.square().sum((1, 2), dtype=torch.float64) - (size - rank) / rank
            return total / (rank - 1)
        values = eigenvalues(gram)[:, -rank:]
        positive = ~(values <= 0)  # rounding leaves some a little below, with no slope; not ">": a NaN must stay
        epsilon = EPSILON.get(self.form, 0.0) if self.epsilon is None else self.epsilon
        if self.form == "spectral":
            return (rank * values[:, -1] - 1) / (rank - 1)
        if self.form == "entropy":
            # 1 - H / log r; written so that it also measures what is missing from a sum of 1.
            safe = torch.where(positive, values, 1.0)
            products = torch.where(positive, safe * (rank * safe).log(), 0.0)
            return (products - values + 1 / rank).sum(-1) / math.log(rank)
        kept = torch.where(positive, values, 0.0)
        if self.form == "logdet":
            return -(rank * kept + epsilon).log().mean(-1)
        # A where inside the root: its slope at 0 may be infinite, and 0 · inf is not a number.
        roots = torch.where(positive, (rank * (torch.where(positive, values, 1.0) + epsilon)).sqrt(), 0.0)
        return (roots - 1).square().mean(-1)


def eigenvalues(symmetric: Tensor) -> Tensor:
    """Ascending, [..., s]; NaN for a matrix with an entry that is not finite. The gradient is U diag(g) Uᵀ: no gaps."""
    import torch

    finite = symmetric.isfinite().all(-1).all(-1)
    identity = torch.eye(symmetric.shape[-1], dtype=symmetric.dtype, device=symmetric.device)
    found: Tensor = torch.linalg.eigvalsh(torch.where(finite[..., None, None], symmetric, identity))
    return torch.where(finite[..., None], found, torch.nan)
