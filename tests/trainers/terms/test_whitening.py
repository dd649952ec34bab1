"""Channel and batch whitening against loops over their definitions, and the oracles of CW-RGP's notes (1 to 14)."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainers.terms.outputs import outputs_of
from tests.two_processes import TwoProcesses
from trainers import dist
from trainers.config import MLPConfig, ModelConfig, TrialConfig, ViewConfig
from trainers.terms import BatchWhitening, ChannelWhitening, Outputs
from trainers.terms.base import unit_rows
from trainers.terms.whitening import Whitening

EYE = torch.eye


def random_views(count: int, n: int, d: int, *, noise: float = 1.0, seed: int = 0) -> tuple[Tensor, ...]:
    """Views [n, d] of common images, `noise` apart."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return tuple(images + noise * torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(count))


def value_of(term: Whitening, *views: Tensor, step: int = 0) -> float:
    return term(outputs_of(*views, step=step)).item()


def whole(term: Whitening, *views: Tensor, step: int = 0) -> Tensor:
    """Whitened embeddings [V, n, d] of the first repeat."""
    return term.whitened(outputs_of(*views, step=step))[0].flatten(1, 2)


def cut(x: Tensor, dim: int, *sizes: int) -> Tensor:
    """One axis as several."""
    pieces: Tensor = x.unflatten(dim, sizes)  # type: ignore[no-untyped-call]
    return pieces


def white(term: Whitening, view: Tensor) -> Tensor:
    """One view's whitened embeddings [n, d]."""
    return whole(term, view, view)[0]


def mean_cost(white_views: Tensor) -> float:
    """Mean of 2 - 2 cos over pairs of views and images, one by one."""
    costs = [
        2 - 2 * float(a @ b / (a.norm() * b.norm()))
        for first, second in itertools.combinations(white_views, 2)
        for a, b in zip(first, second, strict=True)
    ]
    return sum(costs) / len(costs)


def gaussian_root(moment: Tensor) -> Tensor:
    """S^-1/2 by its singular value decomposition, as the official code has it."""
    u, s, _ = torch.linalg.svd(moment)
    root: Tensor = u @ torch.diag(s.rsqrt()) @ u.T
    return root


def official_channel_whitening(view: Tensor, m: int, blocks: list[list[list[int]]]) -> Tensor:
    """winci-ai/CW-RGP by loops: per sub-batch, center each image over all channels, whiten per block, put back."""
    out = torch.empty_like(view)
    for index, start in enumerate(range(0, len(view), m)):
        x = view[start : start + m]
        x = x - x.mean(1, keepdim=True)
        for channels in blocks[index]:
            block = x[:, channels]
            out[start : start + m, channels] = gaussian_root(block @ block.T / max(len(channels) - 1, 1)) @ block
    return out


def blocks_of(term: Whitening, outputs: Outputs) -> Tensor:
    """The partition that the term draws: [repeats, V, runs, d], cut into g blocks by position."""
    runs = cut(torch.stack(outputs.projections)[None], 2, -1, term.sub_batch_size)
    return term._channel_orders(runs.expand(term.repeats, *runs.shape[1:]), outputs)


# --- the definition ---


@pytest.mark.parametrize("view_count", [2, 4])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shared", [False, True])
def test_channel_whitening_is_the_official_code_by_loops(view_count: int, groups: int, shared: bool) -> None:
    d, m = 32, 4
    term = ChannelWhitening(sub_batch_size=m, group_count=groups, share_partition=shared)
    outputs = outputs_of(*random_views(view_count, 12, d))
    orders = cut(blocks_of(term, outputs)[0], -1, groups, -1).tolist()
    expected = torch.stack(
        [official_channel_whitening(view, m, orders[v]) for v, view in enumerate(outputs.projections)]
    )
    torch.testing.assert_close(whole(term, *outputs.projections), expected, rtol=1e-9, atol=1e-11)
    assert term(outputs).item() == pytest.approx(mean_cost(expected), rel=1e-10)


@pytest.mark.parametrize("over", ["batch", "sub_batch", "device"])
@pytest.mark.parametrize("factor", ["zca", "cholesky"])
def test_batch_whitening_gives_channels_variance_one_and_no_correlation(over: Any, factor: Any) -> None:
    term = BatchWhitening(over=over, sub_batch_size=16, group_count=1, factor=factor)
    views = random_views(3, 32, 5)
    run = 16 if over == "sub_batch" else 32
    expected = []
    for view in views:
        for start in range(0, 32, run):
            x = view[start : start + run] - view[start : start + run].mean(0)
            moment = x.T @ x / (run - 1)
            phi = gaussian_root(moment) if factor == "zca" else torch.linalg.inv(torch.linalg.cholesky(moment))
            torch.testing.assert_close(phi @ moment @ phi.T, EYE(5, dtype=torch.float64))
            expected.append(x @ phi.T)
    stacked = cut(torch.cat(expected), 0, 3, 32)
    torch.testing.assert_close(whole(term, *views), stacked, rtol=1e-9, atol=1e-11)
    assert value_of(term, *views) == pytest.approx(mean_cost(stacked), rel=1e-10)
    raw = sum((a - b).square().mean() for a, b in itertools.combinations(stacked, 2)) / 3
    assert value_of(term.model_copy(update={"normalize": False}), *views) == pytest.approx(float(raw), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("factor", ["zca", "cholesky", "pca"])
def test_images_of_a_sub_batch_become_orthogonal_in_each_block(factor: Any, dtype: torch.dtype) -> None:
    """Oracle 1: Y Yᵀ = (d / g - 1) I a block, so whole rows have squared length d - g: 60 for d = 64, g = 4."""
    term = ChannelWhitening(sub_batch_size=8, group_count=4, factor=factor)
    views = tuple(view.to(dtype) for view in random_views(2, 16, 64))
    outputs = outputs_of(*views)
    for rows, order in zip(term.whitened(outputs).flatten(0, 2), blocks_of(term, outputs).flatten(0, 2), strict=True):
        for channels in cut(order, 0, 4, -1):
            gram = rows[:, channels] @ rows[:, channels].T
            torch.testing.assert_close(gram, 15 * EYE(8, dtype=torch.float64), rtol=0, atol=1e-11)
        torch.testing.assert_close(rows @ rows.T, 60 * EYE(8, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 4])
def test_zca_is_the_polar_factor_of_the_centered_block(groups: int) -> None:
    """Oracle 3."""
    d, m = 64, 8
    term = ChannelWhitening(sub_batch_size=m, group_count=groups)
    (view,) = random_views(1, m, d)
    orders = cut(blocks_of(term, outputs_of(view, view))[0, 0, 0], 0, groups, -1)
    found, centered = white(term, view), view - view.mean(1, keepdim=True)
    for channels in orders:
        u, _, v = torch.linalg.svd(centered[:, channels], full_matrices=False)
        torch.testing.assert_close(found[:, channels], math.sqrt(d / groups - 1) * u @ v, rtol=1e-9, atol=1e-10)


# --- partitions and repeats ---


def test_partitions_differ_by_view_run_repeat_and_step_and_are_shared_among_views_if_asked() -> None:
    outputs = outputs_of(*random_views(3, 16, 64))
    term = ChannelWhitening(sub_batch_size=4, repeats=2)
    orders = torch.cat([blocks_of(term, outputs._replace(step=step)).flatten(0, 2) for step in range(2)])
    assert len({tuple(order) for order in orders.tolist()}) == len(orders) == 2 * 2 * 3 * 4
    shared = blocks_of(term.model_copy(update={"share_partition": True}), outputs)
    assert torch.equal(shared[:, :1].expand_as(shared), shared)
    assert len({tuple(order) for order in shared[:, 0].flatten(0, 1).tolist()}) == 2 * 4
    assert torch.equal(orders.sort(-1).values, torch.arange(64).expand_as(orders))


def test_repeats_average_over_new_sub_batches_and_partitions() -> None:
    views = random_views(2, 16, 32)
    term = ChannelWhitening(sub_batch_size=4, group_count=2, repeats=3)
    whitened = term.whitened(outputs_of(*views))
    assert whitened.shape == (3, 2, 4, 4, 32)
    costs = [mean_cost(whitened[r].flatten(1, 2)) for r in range(3)]
    assert value_of(term, *views) == pytest.approx(sum(costs) / 3, rel=1e-10)
    once = term.model_copy(update={"repeats": 1})
    assert costs[0] == pytest.approx(value_of(once, *views), rel=1e-12)
    # Which run an image is in, read off the one that its change reaches: 4 images each, the same in both views.
    runs = torch.empty(2, 3, 16, dtype=torch.long)
    for v, image in itertools.product(range(2), range(16)):
        changed = [view.clone() for view in views]
        changed[v][image, 0] += 1
        reached = (term.whitened(outputs_of(*changed)) - whitened).abs().amax((-1, -2)) > 1e-9  # [repeats, views, runs]
        assert reached.sum(-1).tolist() == [[1 - v, v]] * 3
        runs[v, :, image] = reached[:, v].long().argmax(-1)
    assert torch.equal(runs[0], runs[1])
    assert runs[0, 0].tolist() == [image // 4 for image in range(16)]
    assert torch.equal(torch.stack([torch.bincount(one) for one in runs[0]]), torch.full((3, 4), 4))
    assert not torch.equal(runs[0, 1], runs[0, 0])
    assert not torch.equal(runs[0, 1], runs[0, 2])
    single = ChannelWhitening(sub_batch_size=4, group_count=1, repeats=3)  # no partition: only sub-batches differ
    grouped = single.whitened(outputs_of(*views))
    assert len({round(mean_cost(grouped[r].flatten(1, 2)), 9) for r in range(3)}) == 3


def test_repeats_of_one_run_change_partitions_alone() -> None:
    views = random_views(2, 8, 64)
    single = ChannelWhitening(sub_batch_size=8, group_count=1)
    assert value_of(single.model_copy(update={"repeats": 3}), *views) == pytest.approx(value_of(single, *views))
    grouped = ChannelWhitening(sub_batch_size=8, group_count=4)
    assert value_of(grouped.model_copy(update={"repeats": 3}), *views) != pytest.approx(value_of(grouped, *views))


def test_equal_views_cost_nothing_unless_their_partitions_differ() -> None:
    """Oracle 9; the notes' 0.21 at d = 512, m = 64, g = 4."""
    (view,) = random_views(1, 64, 512)
    settings: dict[str, Any] = {"sub_batch_size": 64, "group_count": 4}
    assert value_of(ChannelWhitening(**settings), view, view) == pytest.approx(0.21, abs=0.02)
    assert value_of(ChannelWhitening(**settings, share_partition=True), view, view) == pytest.approx(0, abs=1e-20)
    assert value_of(ChannelWhitening(sub_batch_size=64, group_count=1), view, view) == pytest.approx(0, abs=1e-20)


# --- invariances ---

CHANNEL = ChannelWhitening(sub_batch_size=8, group_count=4)
PLAIN = ChannelWhitening(sub_batch_size=8, group_count=1)


def test_scale_sign_and_a_constant_of_each_image_do_not_matter_to_channel_whitening() -> None:
    """Oracle 5."""
    (view,) = random_views(1, 16, 64)
    expected = white(CHANNEL, view)
    torch.testing.assert_close(white(CHANNEL, 7 * view), expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(white(CHANNEL, -view), -expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(white(CHANNEL, view + torch.arange(16.0)[:, None]), expected, rtol=1e-9, atol=1e-10)
    scales = torch.linspace(0.5, 2, 16, dtype=torch.float64)[:, None]
    assert (white(CHANNEL, view + torch.arange(64.0)) - expected).abs().max() > 0.1
    assert (white(CHANNEL, scales * view) - expected).abs().max() > 0.1
    cholesky = CHANNEL.model_copy(update={"factor": "cholesky"})
    torch.testing.assert_close(white(cholesky, scales * view), white(cholesky, view), rtol=1e-9, atol=1e-10)
    batch = BatchWhitening(group_count=1, factor="cholesky")
    (narrow,) = random_views(1, 16, 5)
    channel_scales = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(white(batch, narrow * channel_scales), white(batch, narrow), rtol=1e-9, atol=1e-10)


def test_the_order_of_images_matters_to_cholesky_and_pca_only() -> None:
    """Oracle 6."""
    (view,) = random_views(1, 8, 64)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(white(PLAIN, view[order]), white(PLAIN, view)[order], rtol=1e-9, atol=1e-10)
    for factor in ("cholesky", "pca"):
        term = PLAIN.model_copy(update={"factor": factor})
        assert (white(term, view[order]) - white(term, view)[order]).abs().max() > 0.1


def test_rotations_that_keep_the_mean_matter_only_with_groups() -> None:
    """Oracle 6: d = 64, a rotation of channels that fixes the ones vector."""
    d, views = 64, random_views(2, 8, 64)
    basis = torch.linalg.qr(torch.cat([torch.ones(d, 1, dtype=torch.float64), EYE(d, dtype=torch.float64)[:, 1:]], 1))[
        0
    ]
    turn = EYE(d, dtype=torch.float64)
    turn[1:, 1:] = torch.linalg.qr(
        torch.randn(d - 1, d - 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )[0]
    rotation = basis @ turn @ basis.T
    turned = tuple(view @ rotation for view in views)
    assert value_of(PLAIN, *turned) == pytest.approx(value_of(PLAIN, *views), rel=1e-10)
    assert value_of(CHANNEL, *turned) != pytest.approx(value_of(CHANNEL, *views), rel=1e-3)
    wide = random_views(2, 32, 6)
    any_rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[
        0
    ]
    batch = BatchWhitening(group_count=1)
    assert value_of(batch, *(view @ any_rotation for view in wide)) == pytest.approx(value_of(batch, *wide), rel=1e-9)


def test_without_groups_the_order_of_channels_does_not_matter() -> None:
    """Oracle 4: nothing is drawn at g = 1, so Cholesky's order of channels is the same in all views."""
    views = random_views(2, 8, 64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    shuffled = value_of(PLAIN, *(view[:, order] for view in views))
    assert shuffled == pytest.approx(value_of(PLAIN, *views), rel=1e-10)
    assert value_of(PLAIN, *views, step=5) == value_of(PLAIN, *views)
    batch = BatchWhitening(group_count=1, factor="cholesky", share_partition=False)
    (narrow,) = random_views(1, 32, 8)
    assert value_of(batch, narrow, narrow) == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("factor", ["zca", "cholesky"])
def test_channels_that_are_shuffled_and_put_back_change_cholesky_alone(factor: Any) -> None:
    """Oracle 4, its second half, on channels that are correlated: Cholesky's first one keeps its direction."""
    term = BatchWhitening(group_count=1, factor=factor)
    (view,) = random_views(1, 32, 8)
    view = view + 2.0 * view.mean(1, keepdim=True)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    put_back = white(term, view[:, order])[:, order.argsort()]
    cost = mean_cost(torch.stack([white(term, view), put_back]))
    if factor == "zca":
        assert cost == pytest.approx(0.0, abs=1e-12)
    else:
        assert 0.2 < cost < 2.0


def test_cholesky_is_causal() -> None:
    """Oracle 7: image j changes the outputs of images from j on."""
    term = PLAIN.model_copy(update={"factor": "cholesky"})
    (view,) = random_views(1, 8, 64)
    changed = view.clone()
    changed[3] += torch.randn(64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moved = (white(term, changed) - white(term, view)).abs().amax(1) > 1e-9
    assert moved.tolist() == [False] * 3 + [True] * 5


def test_the_sample_gram_of_a_whitened_batch_does_not_depend_on_the_factor_or_a_mixing_of_channels() -> None:
    """Oracle 2."""
    (view,) = random_views(1, 32, 6)
    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grams = [
        white(BatchWhitening(group_count=1, factor=factor), rows)
        @ white(BatchWhitening(group_count=1, factor=factor), rows).T
        for factor in ("zca", "cholesky", "pca")
        for rows in (view, view @ mixing)
    ]
    for gram in grams[1:]:
        torch.testing.assert_close(gram, grams[0], rtol=1e-8, atol=1e-9)


def test_an_embedding_needs_full_rank_and_not_a_flat_spectrum_to_be_a_minimum() -> None:
    """Oracle 8: what whitens to a given whitened target; another factor's set does not."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    spd, lower = a @ a.T + EYE(6, dtype=torch.float64), torch.linalg.cholesky(a @ a.T + EYE(6, dtype=torch.float64))
    terms = {factor: BatchWhitening(group_count=1, factor=factor) for factor in ("zca", "cholesky")}
    target = white(terms["zca"], random_views(1, 32, 6)[0])  # rows are images: Z₁ = S Ẑ₂ is target @ S
    for factor, mixing in (("zca", spd), ("cholesky", lower)):
        torch.testing.assert_close(white(terms[factor], target @ mixing.T), target, rtol=1e-10, atol=1e-11)
    assert (white(terms["zca"], target @ lower.T) - target).abs().max() > 0.1
    assert (white(terms["cholesky"], target @ spd.T) - target).abs().max() > 0.1
    spectrum = torch.tensor([9.0, 7, 5, 3, 2, 1], dtype=torch.float64)
    turned = (target * spectrum) @ torch.linalg.qr(a)[0].T
    found = white(BatchWhitening(group_count=1, factor="pca"), turned)
    torch.testing.assert_close(found * (found * target).sum(0).sign(), target, rtol=1e-9, atol=1e-10)

    channel_target = white(PLAIN, random_views(1, 8, 64)[0])
    b = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    mixed = (b @ b.T + EYE(8, dtype=torch.float64)) @ channel_target
    torch.testing.assert_close(white(PLAIN, mixed), channel_target, rtol=1e-10, atol=1e-10)


# --- the loss ---


def test_normalizing_a_channel_whitened_loss_only_rescales_it() -> None:
    """Oracle 9: nMSE = MSE · d / (d - g), as all rows have squared length d - g."""
    views = random_views(3, 16, 64)
    raw = value_of(CHANNEL.model_copy(update={"normalize": False}), *views)
    assert value_of(CHANNEL, *views) == pytest.approx(raw * 64 / 60, rel=1e-10)


def test_unrelated_views_cost_two_and_the_order_of_views_does_not_matter_without_groups() -> None:
    first, second = random_views(1, 64, 512)[0], random_views(1, 64, 512, seed=1)[0]
    term = ChannelWhitening(sub_batch_size=64, group_count=4)
    assert value_of(term, first, second) == pytest.approx(2, abs=0.05)
    views = random_views(3, 16, 64)
    assert value_of(PLAIN, *views) == pytest.approx(value_of(PLAIN, *views[::-1]), rel=1e-12)


def test_the_loss_has_the_gradient_of_two_one_sided_losses() -> None:
    """Oracle 12: of ||a - sg b||² + ||sg a - b||², which is twice its value."""
    views = tuple(view.requires_grad_() for view in random_views(2, 16, 64))
    value = CHANNEL(outputs_of(*views))
    a, b = unit_rows(CHANNEL.whitened(outputs_of(*views))[0].flatten(1, 2))
    sided = (a - b.detach()).square().sum(1).mean() + (a.detach() - b).square().sum(1).mean()
    assert sided.item() == pytest.approx(2 * value.item(), rel=1e-12)
    for found, expected in zip(torch.autograd.grad(value, views), torch.autograd.grad(sided, views), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)


def test_cosine_sum_over_views_equals_the_mean_over_pairs() -> None:
    """The notes' closed form: mean cosine of pairs = (||sum of u||² - V) / (V (V - 1))."""
    views = random_views(4, 16, 64)
    u = unit_rows(whole(CHANNEL, *views))
    cosine = (u.sum(0).square().sum(1) - 4) / 12
    assert value_of(CHANNEL, *views) == pytest.approx((2 - 2 * cosine).mean().item(), rel=1e-10)


# --- gradients ---


@pytest.mark.parametrize("factor", ["zca", "cholesky", "pca", "newton"])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_whole_channel_whitening_has_an_exact_gradient(factor: Any, groups: int) -> None:
    """Oracle 11."""
    term = ChannelWhitening(sub_batch_size=3, group_count=groups, factor=factor, newton_steps=5, repeats=2)
    views = tuple(view.requires_grad_() for view in random_views(2, 6, 12))
    assert torch.autograd.gradcheck(lambda *z: term(outputs_of(*z)), views, eps=1e-6, atol=1e-8, rtol=1e-5)


def test_gradients_are_finite_where_all_eigenvalues_are_equal() -> None:
    centered = EYE(8, 64, dtype=torch.float64) - EYE(8, 64, dtype=torch.float64).roll(8, 1)  # orthogonal, of mean 0
    near = centered + 1e-9 * random_views(1, 8, 64)[0]
    for factor in ("zca", "cholesky", "pca"):
        leaf = centered.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(PLAIN.model_copy(update={"factor": factor})(outputs_of(leaf, near)), leaf)
        assert gradient.isfinite().all()


# --- collapse ---


FACTORS: tuple[Any, ...] = ("zca", "cholesky", "pca", "newton")
GAP_FREE = pytest.mark.parametrize("factor", ["zca", "cholesky"])
PRODUCTS = pytest.mark.parametrize(("arithmetic", "tolerance"), [("float32", 1e-4), ("float64", 1e-7)])
WHITENINGS = pytest.mark.parametrize(
    "term",
    [
        ChannelWhitening(sub_batch_size=16, group_count=2),
        ChannelWhitening(sub_batch_size=16, group_count=1, normalize=False),
        BatchWhitening(group_count=8),
        BatchWhitening(group_count=16, over="sub_batch", sub_batch_size=16, normalize=False, repeats=2),
        BatchWhitening(group_count=8, over="device", share_partition=False),
    ],
    ids=["channel", "channel, raw", "batch", "sub-batch, raw", "device"],
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["32", "64", "bf16"])
@pytest.mark.parametrize("factor", FACTORS)
@WHITENINGS
def test_copies_and_blank_rows_leave_value_and_gradient_finite_and_bounded(
    term: Whitening, factor: Any, dtype: torch.dtype
) -> None:
    """0 to 90 % of the images are copies of one, or blank, in both views or in one; a gradient is of the size of one
    without copies, whose rows are of length sqrt(64)."""
    term = term.model_copy(update={"factor": factor})
    first, second = (view.to(dtype) for view in random_views(2, 32, 64))
    for share in (0.0, 0.1, 0.5, 0.9):
        count = round(share * 32)
        for copy in (first[:1], torch.zeros_like(first[:1]), torch.ones_like(first[:1])):
            left = torch.cat([copy.expand(count, 64), first[count:]]).requires_grad_()
            for other in (torch.cat([copy.expand(count, 64), second[count:]]), second):
                value = term(outputs_of(left, other))
                assert value.isfinite(), (share, copy[0, :2])
                (gradient,) = torch.autograd.grad(value, left)
                assert gradient.isfinite().all()
                assert gradient.norm() < 1e3, (share, copy[0, :2], float(gradient.norm()))


def value_and_gradient(term: Whitening, *views: Tensor) -> tuple[float, Tensor]:
    """With respect to all views, [V, n, d]."""
    leaf = torch.stack(views).requires_grad_()
    value = term(outputs_of(*leaf))
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.item(), gradient.double()


@PRODUCTS
@GAP_FREE
@WHITENINGS
def test_products_are_the_reference_on_sound_batches_and_on_those_with_copies(
    term: Whitening, factor: Any, arithmetic: Any, tolerance: float
) -> None:
    """0 to 90 % of the images are copies of one in both views."""
    by_products = term.model_copy(update={"factor": factor, "arithmetic": arithmetic})
    reference = term.model_copy(update={"factor": factor})
    for dtype in (torch.float32, torch.float64):
        first, second = (view.to(dtype) for view in random_views(2, 32, 64))
        for share in (0.0, 0.1, 0.5, 0.9):
            count = round(share * 32)
            views = [torch.cat([view[:1].expand(count, 64), view[count:]]) for view in (first, second)]
            (value, gradient), (expected, slope) = (value_and_gradient(way, *views) for way in (by_products, reference))
            assert value == pytest.approx(expected, rel=tolerance, abs=1e-12), (dtype, share)
            # A gradient of float32 is rounded once more.
            rounding = 1e-6 if dtype == torch.float32 else 0.0
            assert (gradient - slope).norm() <= (tolerance + rounding) * slope.norm() + 1e-12, (dtype, share)


@pytest.mark.parametrize("arithmetic", ["float32", "float64"])
@GAP_FREE
@WHITENINGS
def test_products_are_finite_on_constant_batches_and_not_on_one_with_a_hole(
    term: Whitening, factor: Any, arithmetic: Any
) -> None:
    term = term.model_copy(update={"factor": factor, "arithmetic": arithmetic})
    sound = random_views(1, 32, 64)[0].float()
    for bad in (sound[:1].expand(32, 64), torch.full_like(sound, 0.3), torch.zeros_like(sound), 1e25 * sound):
        value, gradient = value_and_gradient(term, bad, sound)
        assert math.isfinite(value)
        assert gradient.isfinite().all()
    broken = sound.clone()
    broken[3, 5] = torch.nan
    assert math.isnan(value_of(term, broken, sound))


@pytest.mark.parametrize("factor", ["pca", "newton"])
def test_arithmetic_without_eigenvectors_is_refused_for_the_factors_that_have_no_use_for_it(factor: Any) -> None:
    term = ChannelWhitening(factor=factor, arithmetic="float32")
    model = ModelConfig(projector=MLPConfig(widths=(64,)))
    said = (
        rf"objective.spread \(channel_whitening\) has arithmetic=float32, which is for the factors zca and cholesky, "
        rf"but factor is {factor}; set objective.spread.arithmetic=reference, or another factor"
    )
    with pytest.raises(ValueError, match=said):
        TrialConfig(objective={"spread": term}, model=model)
    assert TrialConfig(objective={"spread": term.model_copy(update={"arithmetic": "reference"})}, model=model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", FACTORS)
@WHITENINGS
def test_a_constant_batch_is_finite_and_one_with_a_hole_is_not(
    term: Whitening, factor: Any, dtype: torch.dtype
) -> None:
    term = term.model_copy(update={"factor": factor})
    sound = random_views(1, 32, 64)[0].to(dtype)
    for bad in (sound[:1].expand(32, 64), torch.full_like(sound, 0.3), torch.zeros_like(sound), 1e25 * sound):
        assert math.isfinite(value_of(term, bad, sound))
        assert math.isfinite(value_of(term, bad, bad))
    broken = sound.clone()
    broken[3, 5] = torch.nan
    assert math.isnan(value_of(term, broken, sound))
    assert math.isnan(value_of(term, broken, broken))


@pytest.mark.parametrize("factor", FACTORS)
def test_embeddings_that_differ_by_more_than_rounding_are_whitened_as_if_there_were_no_floor(factor: Any) -> None:
    """Notes: without shrinkage nearly constant embeddings cost about 2 at any noise; in float32 down to its digits."""
    (mean,) = random_views(1, 1, 128)
    generator = torch.Generator().manual_seed(0)
    term = ChannelWhitening(sub_batch_size=16, group_count=2, factor=factor, newton_steps=100)
    for dtype, scales in ((torch.float64, (1.0, 1e-3, 1e-5)), (torch.float32, (1.0, 1e-3, 3e-5))):
        for scale in scales:
            views = [mean + scale * torch.randn(32, 128, generator=generator, dtype=torch.float64) for _ in range(2)]
            assert 1.8 < value_of(term, *(view.to(dtype) for view in views)) < 2.2, (dtype, scale)


def test_shrinkage_opens_the_way_into_collapse() -> None:
    """Notes, d = 512, m = 64, g = 4, ε = 1e-3: noise of 1e-2 costs 1.70, 1e-3 costs 0.12, none costs nothing."""
    term = ChannelWhitening(sub_batch_size=64, group_count=4, share_partition=True, shrinkage=1e-3)
    (mean,) = random_views(1, 1, 512)
    mean = mean / mean.std()
    collapsed = mean.expand(64, 512)
    assert value_of(term, collapsed, collapsed) == pytest.approx(0, abs=1e-20)
    generator = torch.Generator().manual_seed(0)

    def unrelated(scale: float) -> tuple[Tensor, ...]:
        return tuple(mean + scale * torch.randn(64, 512, generator=generator, dtype=torch.float64) for _ in range(2))

    costs = [value_of(term, *unrelated(scale)) for scale in (1e-2, 1e-3)]
    assert costs == pytest.approx([1.70, 0.12], rel=0.1)
    honest = term.model_copy(update={"shrinkage": 0.0})
    assert [value_of(honest, *unrelated(scale)) for scale in (1.0, 1e-2, 1e-4)] == pytest.approx([2.0] * 3, abs=0.05)


def test_shrinkage_is_relative_to_the_trace() -> None:
    term = CHANNEL.model_copy(update={"shrinkage": 0.1})
    views = random_views(2, 16, 64)
    assert value_of(term, *views) == pytest.approx(value_of(term, *(100 * view for view in views)), rel=1e-10)
    assert value_of(term, *views) != pytest.approx(value_of(CHANNEL, *views), rel=1e-4)
    block = random_views(1, 4, 16)[0]
    x = block - block.mean(1, keepdim=True)
    moment = x @ x.T / 15
    shrunk = 0.9 * moment + 0.1 * moment.trace() / 4 * EYE(4, dtype=torch.float64)
    plain = ChannelWhitening(sub_batch_size=4, group_count=1, shrinkage=0.1)
    torch.testing.assert_close(white(plain, block), gaussian_root(shrunk) @ x, rtol=1e-9, atol=1e-10)


# --- ranks ---


def _share(term: Whitening, views: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    n = len(views[0]) // dist.world_size()
    mine = [view[dist.row_offset(n) : dist.row_offset(n) + n].clone().requires_grad_() for view in views]
    value = dist.mean_of_values(term(outputs_of(*mine)))
    value.backward()  # type: ignore[no-untyped-call]
    return value.detach(), [leaf.grad / dist.world_size() for leaf in mine if leaf.grad is not None]


@pytest.mark.parametrize(
    "term",
    [
        CHANNEL,
        CHANNEL.model_copy(update={"repeats": 3}),
        PLAIN.model_copy(update={"factor": "cholesky", "repeats": 2}),
        BatchWhitening(group_count=8),
        BatchWhitening(group_count=16, over="sub_batch", sub_batch_size=8, repeats=2, share_partition=False),
        CHANNEL.model_copy(update={"arithmetic": "float32"}),
        BatchWhitening(group_count=8, arithmetic="float64"),
    ],
    ids=["channel", "repeats", "cholesky", "batch", "sub-batch", "float32", "float64"],
)
def test_two_processes_equal_one(two_processes: TwoProcesses, term: Whitening) -> None:
    """Oracle 13; batch norm is in the contract test of all terms."""
    views = random_views(2, 16, 64)
    expected, gradients = _share(term, views)
    answers = two_processes.run(_share, term, views)
    for value, _ in answers:
        assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    for v, gradient in enumerate(gradients):
        both = torch.cat([shares[v] for _, shares in answers])
        torch.testing.assert_close(both, gradient, rtol=1e-9, atol=1e-13)


def test_per_device_whitening_is_the_mean_of_the_workers_own_losses(two_processes: TwoProcesses) -> None:
    views = random_views(2, 32, 8)
    term = BatchWhitening(over="device", group_count=1)
    halves = [tuple(view[half] for view in views) for half in (slice(16), slice(16, None))]
    expected = sum(value_of(term, *half) for half in halves) / 2
    for value, _ in two_processes.run(_share, term, views):
        assert value.item() == pytest.approx(expected, rel=1e-12)
    assert expected != pytest.approx(value_of(term, *views), rel=1e-3), "another loss than one worker's"


def _refused(term: Whitening, views: tuple[Tensor, ...]) -> str:
    try:
        _share(term, views)
    except ValueError as error:
        return str(error)
    return "accepted"


def test_a_run_that_would_cross_workers_is_refused(two_processes: TwoProcesses) -> None:
    term = ChannelWhitening(sub_batch_size=16, group_count=1)
    for message in two_processes.run(_refused, term, random_views(2, 16, 64)):
        assert "sub_batch_size must divide batch_size per worker (2 workers), but is 16 and batch_size is 16" in message


# --- precision ---


def test_half_precision_and_autocast_do_not_reach_the_term() -> None:
    views = random_views(2, 16, 64)
    for term in (CHANNEL, BatchWhitening(group_count=8)):
        exact = value_of(term, *views)
        single = term(outputs_of(*(view.float() for view in views)))
        assert single.dtype == torch.float32
        assert single.item() == pytest.approx(exact, rel=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(term(outputs_of(*(view.float() for view in views))), single)


# --- configs ---


def config(term: Whitening, width: int, **changes: Any) -> TrialConfig:
    return TrialConfig(model=ModelConfig(projector=MLPConfig(widths=(16, width))), objective={"w": term}, **changes)


@pytest.mark.parametrize(
    ("term", "width", "changes", "message"),
    [
        (
            ChannelWhitening(),
            130,
            {},
            r"group_count must divide the last of .*widths, but is 4 and that is 130; change",
        ),
        (ChannelWhitening(), 128, {"batch_size": 40}, "sub_batch_size must divide batch_size, but is 16 and .* is 40"),
        (ChannelWhitening(sub_batch_size=64), 128, {}, "at most the width of a group of channels.*group_count=4.*128"),
        (PLAIN, 8, {}, "at most one less than the embedding's width"),
        (ChannelWhitening(), 128, {"views": (ViewConfig(),)}, "at least 2, but views has 1; add a view"),
        (BatchWhitening(), 130, {}, "group_count must divide"),
        (
            BatchWhitening(group_count=1),
            256,
            {},
            r"256 channels of a group uncorrelated over 256 images \(over='batch'\)",
        ),
        (BatchWhitening(over="sub_batch"), 64, {}, r"16 channels .* over 16 images .*raise group_count"),
        (BatchWhitening(over="sub_batch"), 32, {"batch_size": 24}, "sub_batch_size must divide batch_size"),
    ],
)
def test_what_can_not_be_whitened_is_refused_before_a_run(
    term: Whitening, width: int, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"objective\.w \({term.kind}\) .*{message}"):  # type: ignore[attr-defined]
        config(term, width, **changes)


def test_the_limits_themselves_are_feasible() -> None:
    for term, width in ((PLAIN, 9), (CHANNEL, 32), (BatchWhitening(group_count=1), 15)):
        config(term, width, batch_size=16)
        assert 0 <= value_of(term, *random_views(2, 16, width)) <= 4
    for term in (ChannelWhitening(), BatchWhitening()):  # the defaults suit the default model
        TrialConfig(objective={"w": term})


def test_outputs_that_do_not_fit_are_refused_as_well() -> None:
    with pytest.raises(ValueError, match="channel_whitening cuts the batch into runs"):
        value_of(CHANNEL, *random_views(2, 12, 64))
    with pytest.raises(ValueError, match="channel_whitening makes sub_batch_size=8"):
        value_of(CHANNEL, *random_views(2, 16, 16))
    with pytest.raises(ValueError, match="at least 2 are needed"):
        value_of(CHANNEL, *random_views(1, 16, 64))
