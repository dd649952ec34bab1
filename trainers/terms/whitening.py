"""Whitening losses: views are compared after a transform that rules out collapse. CW-RGP, W-MSE, Shuffled-DBN."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainers.terms.base import SHORTEST, Facts, Outputs, TermConfig, full_precision, unit_rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Whitening(TermConfig):
    """What channel and batch whitening share: sub-batches, random groups of channels, the loss over pairs of views.

    Value: mean over pairs of views and images of the squared distance of unit whitened embeddings, 2 - 2 cos: in
    [0, 4], about 2 for unrelated views. With `normalize=False`, the mean over features too of the squared distance of
    the whitened embeddings themselves. Nothing is detached: the gradient through the whitening matrix is what prevents
    collapse. It is not comparable across settings.

    * `sub_batch_size` (m): images whitened together are runs of m images of the global batch, whose order is random
      already; m must divide the images per worker. So the value does not depend on the number of workers.
    * `group_count` (g): with g > 1 the channels are cut into g equal random blocks, each whitened alone, then put back.
      The partition is a function of (seed, step, repeat, sub-batch of the global batch), and of the view unless
      `share_partition`.
    * `repeats`: how often sub-batches and partitions are drawn in a step; the value is their mean. The first takes the
      runs as they are; each later one orders the images of the global batch anew, from (seed, step, repeat), which
      gathers all embeddings where there are several workers.
    * `factor`: the whitening matrix, see `trainers.terms.whitening_factor`; `newton_steps` is for "newton" only.
    * `arithmetic`: how "zca" and "cholesky" are computed. "reference" by eigenvectors or torch's own triangular solves,
      in float64. "float64" and "float32" by matrix products and Cholesky in that precision, with gradients of their own
      (`trainers.terms.whitening_products`), which a GPU is quick at; blocks too badly conditioned for it go the next
      slower way. Value and gradient are those of "reference" within 1e-7 and 1e-4, not bit for bit; so "reference", by
      which every config without this setting was trained, is the default.
    * `shrinkage` (ε): S <- (1 - ε) S + ε trace(S) / size · I. Keep it at 0 or tiny: it opens a way into collapse, where
      batches whose images differ by less than about sqrt(ε / m) of their mean cost next to nothing.

    Second moments and products with them are float64 whatever the model's precision, and so are factors but for
    `arithmetic="float32"`: with blocks this small it is cheap, and nearly collapsed batches keep their digits.

    Copies of an image, blank and constant ones, leave S singular. Directions in which embeddings vary by no more than
    their own rounding (`resolution`) are left out of whitening (see `whitening_factor`): copies stay copies, and are
    as near in one view as in the other. Wherever embeddings differ by more, it is as if there were no such floor. A
    batch that collapsed exactly, to the last digit, is therefore finite and may cost nothing: the sentinel ends it.

    Sources: Weng et al., "An investigation into whitening loss for self-supervised learning", NeurIPS 2022 (arXiv
    2210.03586) and its official code winci-ai/CW-RGP; differences are named by each class.
    """

    sub_batch_size: int = Field(16, ge=2, le=4096)
    group_count: int = Field(4, ge=1, le=4096)
    share_partition: bool = False
    repeats: int = Field(1, ge=1, le=64)
    factor: Literal["zca", "cholesky", "pca", "newton"] = "zca"
    newton_steps: int = Field(12, ge=1, le=100)
    arithmetic: Literal["reference", "float64", "float32"] = "reference"
    shrinkage: float = Field(0.0, ge=0.0, lt=1.0)
    normalize: bool = True

    @abstractmethod
    def _problem(self, width: int, rows: int, workers: int | None) -> str | None:
        """Why embeddings of `width` in a batch of `rows` over all workers can not be whitened; None if they can.

        `workers` is None where their number is not known yet.
        """

    @abstractmethod
    def _in_runs(self) -> bool:
        """Whether images are whitened in runs of `sub_batch_size`; if not, in one run a rank."""

    @abstractmethod
    def _run_ids(self, runs: int) -> range:
        """What keys the partitions of this rank's runs."""

    @abstractmethod
    def _center(self, runs: Tensor) -> Tensor:
        """[..., m, d] less its means."""

    @abstractmethod
    def _mean_square(self, runs: Tensor) -> Tensor:
        """Of the embeddings that are whitened together, before centering: [..., m, d] -> [...], without gradient."""

    @abstractmethod
    def _whiten(self, blocks: Tensor, noise: Tensor) -> Tensor:
        """[..., m, d / g] -> the same shape, whitened; `noise` [...] is the variance of rounding in a direction."""

    def __call__(self, outputs: Outputs) -> Tensor:
        import torch

        white = self.whitened(outputs)
        rows = unit_rows(white) if self.normalize else white
        view_count, row_count = rows.shape[1], rows[:, 0, ..., 0].numel()
        # Sum over pairs a < b of ||u_a - u_b||² = V · sum over v of ||u_v - center||², as in `Alignment`.
        scatter = (rows - rows.mean(1, keepdim=True)).square().sum() / row_count
        value = 2 / (view_count - 1) * scatter
        if not self.normalize:
            value = value / rows.shape[-1]
        return value.to(torch.promote_types(outputs.projections[0].dtype, torch.float32))

    def whitened(self, outputs: Outputs) -> Tensor:
        """The whitened projections of this rank, float64, [repeats, views, runs, m, d], images in the order of repeats.

        ValueError where views, workers, groups and sub-batches do not fit (which `check` and `check_workers` find
        before a run).
        """
        import torch

        from trainers import dist
        from trainers.terms.permutation import permute_columns

        z = torch.stack(outputs.projections)  # [V, n, d]
        view_count, n, width = z.shape
        if view_count < 2:
            raise ValueError(f"whitened views are compared, at least 2 are needed, but there is {view_count}; add one")
        problem = self._problem(width, n * dist.world_size(), dist.world_size())
        if problem is not None:
            raise ValueError(f"{_kind_of(self)} {problem}")
        with full_precision(z.device):
            runs = self._runs(z.double(), outputs)
            noise = (resolution(z.dtype) ** 2 * self._mean_square(runs)).clamp_min(SHORTEST**2)
            centered = self._center(runs)
            if self.group_count == 1:
                return self._whiten(centered, noise)
            order = self._channel_orders(runs, outputs)
            shape = (*runs.shape[:-1], self.group_count, -1)
            blocks = permute_columns(centered, order).reshape(shape)
            # Inside: [R, V, runs, g, m, d / g].
            white = self._whiten(blocks.transpose(-3, -2), noise[..., None]).transpose(-3, -2)
            return permute_columns(white.flatten(-2), order.argsort(dim=-1))

    def _runs(self, z: Tensor, outputs: Outputs) -> Tensor:
        """Embeddings [V, n, d] as [repeats, V, runs, m, d]."""
        import torch

        from trainers import dist
        from trainers.keyed_random import key_of, keys_of, shuffles

        n, row_count = z.shape[1], z.shape[1] * dist.world_size()
        length = self.sub_batch_size if self._in_runs() else n
        repeated = z.expand(self.repeats, *z.shape)
        if self.repeats > 1 and self._in_runs() and length < row_count:
            key = key_of("whitening, images", outputs.seed, outputs.step)
            images = shuffles(keys_of(key, torch.arange(1, self.repeats, device=z.device)), row_count)
            mine = images[:, dist.row_offset(n) : dist.row_offset(n) + n]
            others = dist.gather_rows(z.transpose(0, 1))[mine].transpose(1, 2)  # [repeats - 1, V, n, d]
            repeated = torch.cat([z[None], others])
        return repeated.reshape(*repeated.shape[:2], -1, length, repeated.shape[-1])

    def _channel_orders(self, runs: Tensor, outputs: Outputs) -> Tensor:
        """The random partition of each run's channels as a permutation, [repeats, V, runs, d]."""
        import torch

        from trainers.keyed_random import key_of, keys_of, shuffles

        repeats, view_count, run_count, _, width = runs.shape
        key = key_of("whitening, channels", outputs.seed, outputs.step)
        keys = keys_of(
            key,
            torch.arange(repeats, device=runs.device)[:, None, None],
            torch.arange(1 if self.share_partition else view_count, device=runs.device)[None, :, None],
            torch.tensor(self._run_ids(run_count), device=runs.device)[None, None, :],
        )
        return shuffles(keys, width).expand(repeats, view_count, run_count, width)

    def _shrink(self, moment: Tensor) -> Tensor:
        if self.shrinkage == 0.0:
            return moment
        import torch

        size = moment.shape[-1]
        level = moment.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        identity = torch.eye(size, dtype=moment.dtype, device=moment.device)
        return (1 - self.shrinkage) * moment + self.shrinkage * level * identity

    def check(self, name: str, facts: Facts) -> None:
        self._check(name, facts, None)

    def check_workers(self, name: str, facts: Facts, workers: int) -> None:
        self._check(name, facts, workers)

    def _check(self, name: str, facts: Facts, workers: int | None) -> None:
        problem = self._problem(facts.width, facts.batch_size, workers)
        if self.arithmetic != "reference" and self.factor not in ("zca", "cholesky"):
            problem = (
                f"has arithmetic={self.arithmetic}, which is for the factors zca and cholesky, but factor is "
                f"{self.factor}; set objective.{name}.arithmetic=reference, or another factor"
            )
        if len(facts.views) < 2:
            problem = f"compares views of one image and needs at least 2, but views has {len(facts.views)}; add a view"
        if problem is not None:
            raise ValueError(f"objective.{name} ({_kind_of(self)}) {problem}")


class ChannelWhitening(Whitening):
    """CW-RGP: the m embeddings of a sub-batch are made orthogonal, within random groups of channels.

    Each embedding is centered over all its d channels (not per block). For a block X [m, d / g] of a sub-batch:
    S = X Xᵀ / (d / g - 1) and Y = S^-1/2 X, so Y Yᵀ = (d / g - 1) I. Sub-batches can be small, which lets small batches
    whiten wide embeddings: d / g >= m (d - 1 >= m without groups), better d / g >= 2 m. Published: m = 64, d = 512,
    g = 4 for CIFAR and STL-10; m = 128, d = 1024, g = 2 for Tiny-ImageNet and ImageNet.

    `share_partition=False` is the official code's: with g > 1 even two equal views then cost something. It draws
    sub-batches from the images of one worker; here they are runs of the global batch, so that the value is the same on
    any number of workers. Its shrinkage is absolute, ours relative to the trace; both default to 0.
    """

    kind: Literal["channel_whitening"] = "channel_whitening"

    def _problem(self, width: int, rows: int, workers: int | None) -> str | None:
        g, m = self.group_count, self.sub_batch_size
        if width % g:
            return _indivisible(g, width)
        if rows % (m * (workers or 1)):
            return _ragged(m, rows, workers)
        if (width - 1 if g == 1 else width // g) < m:
            rule = "one less than the embedding's width" if g == 1 else "the width of a group of channels"
            return (
                f"makes sub_batch_size={m} embeddings orthogonal in each group, so that must be at most {rule}, but "
                f"group_count={g} and the last of model.projector.widths is {width}; lower group_count or "
                "sub_batch_size, or widen the projector"
            )
        return None

    def _in_runs(self) -> bool:
        return True

    def _run_ids(self, runs: int) -> range:
        from trainers import dist

        return range(dist.row_offset(runs), dist.row_offset(runs) + runs)

    def _center(self, runs: Tensor) -> Tensor:
        return runs - runs.mean(-1, keepdim=True)

    def _mean_square(self, runs: Tensor) -> Tensor:
        return runs.detach().square().mean((-2, -1))

    def _whiten(self, blocks: Tensor, noise: Tensor) -> Tensor:
        from trainers.terms.whitening_factor import whiten

        moment = blocks @ blocks.mT / max(blocks.shape[-1] - 1, 1)
        return whiten(blocks, self._shrink(moment), self.factor, self.newton_steps, noise, self.arithmetic)


class BatchWhitening(Whitening):
    """W-MSE and Shuffled-DBN: each channel gets variance 1, and no correlation with others of its group.

    Embeddings X [m, d / g] of a group of channels, centered over the images: S = Xᵀ X / (m - 1), Y = X Φᵀ, so Yᵀ Y =
    (m - 1) I. Needs more images than channels in a group: m - 1 >= d / g, better m >= 2 d / g.

    `over` says which images are whitened together: "batch", all of the global batch, its moments summed over workers;
    "sub_batch", runs of `sub_batch_size` images (W-MSE: m = 2 d, g = 1, factor "cholesky"); "device", all images of
    one worker, as published code does without synchronization. The first two are the same on any number of workers;
    "device" is not, by definition. `sub_batch_size` is read by "sub_batch" alone.

    `share_partition` defaults to True: Cholesky and PCA depend on the order of channels, which then is the same in all
    views (with g = 1 there is no reordering at all).
    """

    kind: Literal["batch_whitening"] = "batch_whitening"
    over: Literal["batch", "sub_batch", "device"] = "batch"
    share_partition: bool = True

    def _problem(self, width: int, rows: int, workers: int | None) -> str | None:
        g, m = self.group_count, self.sub_batch_size
        if width % g:
            return _indivisible(g, width)
        if self.over == "sub_batch" and rows % (m * (workers or 1)):
            return _ragged(m, rows, workers)
        together = {"batch": rows, "sub_batch": m, "device": rows // (workers or 1)}[self.over]
        if together - 1 < width // g:
            return (
                f"makes the {width // g} channels of a group uncorrelated over {together} images (over={self.over!r}), "
                f"which must be at least one more than channels, but the last of model.projector.widths is {width} and "
                f"group_count={g}; raise group_count, batch_size or sub_batch_size, or narrow the projector"
            )
        return None

    def _in_runs(self) -> bool:
        return self.over == "sub_batch"

    def _run_ids(self, runs: int) -> range:
        from trainers import dist

        first = 0 if self.over == "batch" else dist.row_offset(runs)
        return range(first, first + runs)

    def _center(self, runs: Tensor) -> Tensor:
        from trainers import dist

        mean = runs.mean(-2, keepdim=True)
        return runs - (dist.mean_over_ranks(mean) if self.over == "batch" else mean)

    def _mean_square(self, runs: Tensor) -> Tensor:
        from trainers import dist

        mean = runs.detach().square().mean((-2, -1))
        return dist.mean_over_ranks(mean) if self.over == "batch" else mean

    def _whiten(self, blocks: Tensor, noise: Tensor) -> Tensor:
        from trainers import dist
        from trainers.terms.whitening_factor import whiten

        channels = blocks.mT  # [..., d / g, m]
        moment, count = channels @ blocks, blocks.shape[-2]
        if self.over == "batch":
            moment, count = dist.sum_over_ranks(moment), count * dist.world_size()
        return whiten(
            channels, self._shrink(moment / (count - 1)), self.factor, self.newton_steps, noise, self.arithmetic
        ).mT


def resolution(dtype: torch.dtype) -> float:
    """The size of rounding in embeddings of this dtype, relative to them.

    A few units in the last place, as a network's sums leave it; narrower than float32 only the result is rounded, as
    autocast adds up in float32.
    """
    import torch

    summed = torch.promote_types(dtype, torch.float32)
    return max(8 * torch.finfo(summed).eps, torch.finfo(dtype).eps / 2)


def _kind_of(term: TermConfig) -> str:
    """The name by which configs choose this class of term."""
    return str(type(term).model_fields["kind"].default)


def _indivisible(group_count: int, width: int) -> str:
    return (
        f"cuts channels into equal groups, so group_count must divide the last of model.projector.widths, but is "
        f"{group_count} and that is {width}; change one of them"
    )


def _ragged(sub_batch_size: int, rows: int, workers: int | None) -> str:
    where = "" if workers in (None, 1) else f" per worker ({workers} workers)"
    return (
        f"cuts the batch into runs, so sub_batch_size must divide batch_size{where}, but is {sub_batch_size} and "
        f"batch_size is {rows}; change one of them"
    )
