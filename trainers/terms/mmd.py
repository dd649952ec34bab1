"""Kernel MMD: how far a batch of embeddings is from uniform on the unit sphere. SFRIK's regularizer, and its kin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from trainers.terms.base import Facts, Outputs, TermConfig, full_precision, unit_rows
from trainers.terms.kernels import AnyKernel, Kernel, Truncated

if TYPE_CHECKING:
    from torch import Tensor


BLOCK_ELEMENTS = 1 << 22
"""Gram entries held at once: 16 MB in float32. Larger Grams are computed by blocks of rows."""


class KernelMMD(TermConfig):
    """Squared maximum mean discrepancy between a view's unit embeddings and the uniform law, averaged over views.

    Views are never mixed. With N rows z_i = L2-normalized projections of one view over the global batch, and φ, b_0
    of the kernel: V = (1/N²) sum over all i, j of φ(z_i·z_j) - b_0, at least 0 and φ(1) - b_0 for a collapsed batch
    (estimator "v", SFRIK's); U is the same mean over i ≠ j, about 0 for independent uniform points (estimator "u").
    On unit rows they differ by an affine map: U = (N V - φ(1) + b_0) / (N - 1).

    `normalize` divides by φ(1) - b_0: a collapsed batch costs 1 whatever the kernel, so weights of different kernels
    compare (the README's λ_mmd = 1 with coefficients (1, 40, 40) is weight 81 here, or weight 1 and an alignment
    weight divided by 81). Kernel `rbf_log`: log of the mean of φ (Wang and Isola); normalized, 1 - log(mean) /
    log(b_0): again 1 collapsed, 0 uniform.

    Kernels `riesz` and `log` are infinite for a point with itself: they need estimator "u" and `normalize=False`. They,
    and a sharp `rbf_log`, are computed in float64.

    `global_views`: the mean is over that many of the first views only, such as the large ones of a multi-crop recipe;
    None: over all views (SFRIK's official `reg_small`).

    `form`: "gram" costs O(N² q) over all ranks, "feature" O(N q²) for kernels of degree 2 at most; "auto" takes the
    cheaper. With fewer rows than dimensions V has a floor above 0: N points cannot have an isotropic second moment
    then.

    Source: Zheng et al., "Self-supervised learning with rotation-invariant kernels", ICLR 2023 (arXiv 2208.00789).
    """

    kind: Literal["mmd"] = "mmd"
    kernel: AnyKernel = Truncated()
    normalize: bool = True
    estimator: Literal["v", "u"] = "v"
    form: Literal["auto", "gram", "feature"] = "auto"
    global_views: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _form_suits_the_kernel(self) -> KernelMMD:
        if self.form == "feature" and self.kernel.low_degrees(3) is None:
            raise ValueError(
                f"form='feature' needs a kernel of degree 2 at most (linear, quadratic, or truncated with one or two "
                f"coefficients), but kernel is {self.kernel!r}; use form='auto'"
            )
        if self.kernel.singular and (self.estimator == "v" or self.normalize):
            raise ValueError(
                f"kernel {self.kernel!r} is infinite for a point with itself and needs estimator='u' and "
                f"normalize=False, but estimator is {self.estimator!r} and normalize is {self.normalize}; set both"
            )
        return self

    def __call__(self, outputs: Outputs) -> Tensor:
        import torch

        from trainers import dist

        views = outputs.projections[: self.global_views]
        dtype = torch.promote_types(views[0].dtype, torch.float32)
        if self.kernel.delicate:
            views = tuple(view.double() for view in views)
        rows = torch.stack([unit_rows(view) for view in views])  # [V, n, q]
        row_count, q = rows.shape[1] * dist.world_size(), rows.shape[2]
        if q < 2 or row_count < (2 if self.estimator == "u" else 1):
            raise ValueError(
                f"an MMD needs at least 2 dimensions, estimator 'u' at least 2 rows, but has {row_count} rows of {q}; "
                "raise the last of model.projector.widths, or batch_size"
            )
        degrees = self.kernel.low_degrees(q)
        mean = self.kernel.mean(q)
        collapsed = self.kernel.peak(q) - mean
        with full_precision(rows.device):
            if self.kernel.delicate and self.estimator == "u":
                of_pairs = pair_sums(rows, self.kernel) / (row_count * (row_count - 1))
                value = of_pairs - mean
            else:
                if degrees is None or self.form == "gram" or (self.form == "auto" and q >= row_count):
                    value = gram_form(rows, self.kernel)
                else:
                    value = feature_form(rows, *degrees)
                if self.estimator == "u":
                    value = (row_count * value - collapsed) / (row_count - 1)
                of_pairs = value + mean
        if self.kernel.logarithmic:
            logarithm = dist.mean_over_ranks(of_pairs).log()  # never a mean of logs over ranks
            value = 1 - logarithm / torch.log(value.new_tensor(mean)) if self.normalize else logarithm
        elif self.normalize:
            value = value / collapsed
        return value.mean().to(dtype)

    def check(self, name: str, facts: Facts) -> None:
        width = facts.width
        if width < 2:
            raise ValueError(
                f"objective.{name} (mmd) spreads embeddings over a sphere and needs at least 2 dimensions, "
                f"but the last of model.projector.widths is {width}; raise it"
            )
        if self.global_views is not None and self.global_views > len(facts.views):
            raise ValueError(
                f"objective.{name}.global_views must be at most the number of views, {len(facts.views)}, "
                f"but is {self.global_views}; lower it"
            )
        if self.kernel.singular:
            try:
                self.kernel.mean(width)
            except ValueError as error:
                raise ValueError(f"objective.{name}.kernel: {error}") from error


def gram_form(rows: Tensor, kernel: Kernel) -> Tensor:
    """V of each view, [V] in float64, the mean over ranks of what each returns of its unit rows [V, n, q]: any kernel
    that is finite at t = 1.
    """
    from trainers import dist

    row_count, q = rows.shape[1] * dist.world_size(), rows.shape[2]
    return (pair_sums(rows, kernel) + row_count * kernel.peak(q)) / row_count**2 - kernel.mean(q)


def pair_sums(rows: Tensor, kernel: Kernel) -> Tensor:
    """Sum of φ(z_i·z_j) over i ≠ j of each view, [V] in float64, the mean over the W ranks of what each returns of its
    unit rows [V, n, q]: any kernel.

    Rank r sums φ over its own rows i and everybody's rows j, so no pair is computed twice, and returns W times that;
    the gradient with respect to its own rows, 2 sum over j of φ'(z_i·z_j) z_j (the 2 because each row is once an i and
    once a j), needs nothing from other ranks. It is found together with the value, block by block, so that memory is
    O(block · N), not O(N²). Pairs i = j are left out: on unit rows they are the constant φ(1), without a gradient.
    """
    import torch

    from trainers import dist

    view_count, n, q = rows.shape
    row_count, first = n * dist.world_size(), dist.row_offset(n)
    everything = dist.gather_rows_detached(rows.transpose(0, 1)).transpose(0, 1)  # [V, N, q], in one collective
    with_gradient = torch.is_grad_enabled() and rows.requires_grad
    block_size = max(1, BLOCK_ELEMENTS // row_count)
    shares = []
    for view in range(view_count):
        mine, all_rows = rows[view], everything[view]
        share = torch.zeros((), dtype=torch.float64, device=rows.device)
        gradient = []
        for start in range(0, n, block_size):
            t = mine[start : start + block_size].detach() @ all_rows.T
            with torch.enable_grad():
                values = kernel.values(t.requires_grad_(with_gradient), q)
            if with_gradient:
                (slope,) = torch.autograd.grad(values.sum(), t)
                slope = slope.contiguous()  # where φ is linear, autograd returns one number expanded to all pairs
                slope.diagonal(first + start).zero_()
                gradient.append((slope @ all_rows).mul_(2))
            values = values.detach()
            values.diagonal(first + start).zero_()
            share = share + values.sum(dtype=torch.float64)
        shares.append(_with_gradient(share, mine, torch.cat(gradient)) if with_gradient else share)
    return dist.world_size() * torch.stack(shares)


def feature_form(rows: Tensor, first_degree: float, second_degree: float) -> Tensor:
    """V of each view, [V] in float64, from unit rows [V, n, q] of this rank: for φ = b_0 + b_1 P_1 + b_2 P_2.

    With μ = mean of z and C = mean of z zᵀ over the global batch: V = b_1 ||μ||² + b_2 q / (q - 1) ||C - I/q||², and
    its gradient with respect to z_i is (2 / N) (b_1 μ + 2 b_2 q / (q - 1) (C - I/q) z_i). One collective of q (q + 1)
    numbers a view.
    """
    import torch

    from trainers import dist

    n, q = rows.shape[1:]
    row_count, second = n * dist.world_size(), second_degree * q / (q - 1)
    fixed = rows.detach()
    moments = torch.cat([fixed.sum(1, keepdim=True), fixed.transpose(1, 2) @ fixed], dim=1) / row_count  # [V, 1 + q, q]
    moments = dist.sum_over_ranks(moments)
    mean, excess = moments[:, :1], moments[:, 1:] - torch.eye(q, dtype=rows.dtype, device=rows.device) / q
    value = first_degree * mean.square().sum((1, 2), dtype=torch.float64)
    value = value + second * excess.square().sum((1, 2), dtype=torch.float64)
    if not (torch.is_grad_enabled() and rows.requires_grad):
        return value
    gradient = 2 / row_count * (first_degree * mean + 2 * second * (fixed @ excess))
    # Each rank's rows have a W-th of what the mean of the ranks' values depends on.
    gradient = dist.world_size() * gradient
    return torch.stack([_with_gradient(v, z, g) for v, z, g in zip(value, rows, gradient, strict=True)])


def _with_gradient(value: Tensor, rows: Tensor, gradient: Tensor) -> Tensor:
    """`value`, a constant, with `gradient` as its derivative by `rows`."""
    tangent = (rows * gradient).sum()
    return value + (tangent - tangent.detach())
