"""Collectives with true adjoints, and batch norm over ranks: two gloo processes against one."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.two_processes import TwoProcesses
from trainers import dist

# --- without a process group ---


def test_everything_is_the_identity_without_a_process_group() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    array = np.arange(6).reshape(3, 2)
    assert (dist.rank(), dist.world_size(), dist.row_offset(3)) == (0, 1, 0)
    for function in (dist.gather_rows, dist.sum_over_ranks, dist.mean_over_ranks, dist.mean_of_values):
        assert function(x) is x
    assert torch.equal(dist.gather_rows_detached(x), x)
    assert not dist.gather_rows_detached(x).requires_grad
    assert dist.all_gather_numpy(array) is array
    assert dist.broadcast_object({"a": 1}) == {"a": 1}
    assert dist.gather_objects("a") == ["a"]
    assert dist.any_rank(True)
    assert not dist.any_rank(False)
    dist.barrier()


# --- collectives on two processes ---


def _linear_loss_gradients(name: str, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """On rank r: collective(x[r]), and the gradient by x[r] of the sum over ranks of sum(weights[rank] * value)."""
    mine = x[dist.rank()].clone().requires_grad_()
    value = getattr(dist, name)(mine)
    (weights[dist.rank()] * value).sum().backward()
    assert mine.grad is not None
    return value.detach(), mine.grad


def test_gathered_rows_come_in_rank_order_and_gradients_return_summed_over_ranks(two_processes: TwoProcesses) -> None:
    x, weights = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 6, 4, dtype=torch.float64)
    for rank, (value, gradient) in enumerate(two_processes.run(_linear_loss_gradients, "gather_rows", x, weights)):
        assert torch.equal(value, x.reshape(6, 4))
        # The adjoint of "copy everybody's rows to everybody" adds up what everybody says about my rows.
        torch.testing.assert_close(gradient, weights.sum(0)[3 * rank : 3 * rank + 3], rtol=1e-14, atol=0)


@pytest.mark.parametrize(("name", "factor"), [("sum_over_ranks", 1.0), ("mean_over_ranks", 0.5)])
def test_sums_over_ranks_are_their_own_adjoint(two_processes: TwoProcesses, name: str, factor: float) -> None:
    x, weights = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    for value, gradient in two_processes.run(_linear_loss_gradients, name, x, weights):
        torch.testing.assert_close(value, factor * x.sum(0), rtol=1e-14, atol=0)
        torch.testing.assert_close(gradient, factor * weights.sum(0), rtol=1e-14, atol=0)


def test_the_gradient_of_a_mean_of_values_is_the_one_of_all_ranks(two_processes: TwoProcesses) -> None:
    x = torch.randn(2, 3, dtype=torch.float64)
    weights = torch.randn(3, dtype=torch.float64).expand(2, 3)  # what all ranks do with it
    for value, gradient in two_processes.run(_linear_loss_gradients, "mean_of_values", x, weights):
        torch.testing.assert_close(value, x.mean(0), rtol=1e-14, atol=0)
        torch.testing.assert_close(gradient, weights[0], rtol=1e-14, atol=0)


def _without_gradient(x: Tensor) -> tuple[Tensor, bool, int]:
    mine = x[dist.rank()].clone().requires_grad_()
    gathered = dist.gather_rows_detached(mine.T)  # not contiguous
    return gathered, gathered.requires_grad, dist.row_offset(3)


def test_detached_gather_carries_no_gradient_and_takes_any_layout(two_processes: TwoProcesses) -> None:
    x = torch.randn(2, 3, 4)
    for rank, (value, requires_grad, offset) in enumerate(two_processes.run(_without_gradient, x)):
        assert torch.equal(value, torch.cat([x[0].T, x[1].T]))
        assert not requires_grad
        assert offset == 3 * rank


def _plain_values() -> dict[str, Any]:
    rank = dist.rank()
    dist.barrier()
    return {
        "from 0": dist.broadcast_object({"who": rank}),
        "from 1": dist.broadcast_object({"who": rank}, source=1),
        "all": dist.gather_objects(("rank", rank)),
        "any": [dist.any_rank(rank == 1), dist.any_rank(False)],
    }


def test_plain_values_are_agreed_by_both_ranks(two_processes: TwoProcesses) -> None:
    for answer in two_processes.run(_plain_values):
        assert answer == {
            "from 0": {"who": 0},
            "from 1": {"who": 1},
            "all": [("rank", 0), ("rank", 1)],
            "any": [True, False],
        }


def _gather_arrays(arrays: list[list[np.ndarray[Any, Any]]]) -> list[np.ndarray[Any, Any]]:
    return [dist.all_gather_numpy(pair[dist.rank()]) for pair in arrays]


def batches_in_order(count: int) -> tuple[list[list[int]], list[int]]:
    own = dist.own_batches(np.arange(count), 4)
    parts = (own[start : start + 4].tolist() for start in range(0, len(own), 4))
    return list(dist.in_order(parts, -(-count // 4))), own.tolist()


@pytest.mark.parametrize("count", [0, 3, 4, 5, 8, 21])
def test_batches_that_ranks_take_in_turn_come_in_order_on_rank_0(two_processes: TwoProcesses, count: int) -> None:
    (found, first), (nothing, second) = two_processes.run(batches_in_order, count)
    assert (
        found == batches_in_order(count)[0] == [list(range(count))[start : start + 4] for start in range(0, count, 4)]
    )
    assert nothing == []
    assert sorted(first + second) == list(range(count))
    assert first == [number for number in range(count) if number // 4 % 2 == 0]


def gradients_of_parts() -> list[Tensor | None]:
    layers = [nn.Linear(3, 2), nn.Linear(3, 2).double(), nn.Linear(3, 2)]
    for layer in layers:
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    rows = torch.arange(6.0).view(2, 3)[dist.rank() :: dist.world_size()]
    (layers[0](rows).square().sum() + layers[1](rows.double()).square().sum()).backward()
    parameters = [layer.weight for layer in layers]
    dist.sum_gradients(parameters)
    return [parameter.grad for parameter in parameters]


def test_gradients_of_each_ranks_part_of_a_loss_add_up_to_those_of_the_loss(two_processes: TwoProcesses) -> None:
    for found in two_processes.run(gradients_of_parts):
        for gradient, wanted in zip(found, gradients_of_parts(), strict=True):
            if wanted is None:
                assert gradient is None
            else:
                torch.testing.assert_close(gradient, wanted)


def test_arrays_of_unequal_length_and_any_type_are_joined_bit_for_bit(two_processes: TwoProcesses) -> None:
    generator = np.random.default_rng(0)
    arrays: list[list[np.ndarray[Any, Any]]] = [
        [generator.standard_normal((3, 2)), generator.standard_normal((5, 2))],
        [np.arange(4), np.arange(0)],
        [np.array([True, False]), np.array([True])],
        [np.full((1, 2, 2), np.nan, np.float32), np.ones((2, 2, 2), np.float32)],
        [np.arange(6).reshape(2, 3).T, np.zeros((1, 2), int)],  # not contiguous
    ]
    for answers in two_processes.run(_gather_arrays, arrays):
        for (first, second), joined in zip(arrays, answers, strict=True):
            assert joined.dtype == first.dtype
            np.testing.assert_array_equal(joined, np.concatenate([first, second]))


def _gather_unlike_arrays() -> list[str]:
    unlike = [
        np.zeros((2, 3 + dist.rank())),
        np.zeros(2, np.float64 if dist.rank() else np.float32),
        np.zeros(()) if dist.rank() else np.zeros(1),
        np.array([None]),
    ]
    messages = []
    for array in unlike:
        try:
            dist.all_gather_numpy(array)
            messages.append("accepted")
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_arrays_that_cannot_be_joined_are_refused_on_every_rank(two_processes: TwoProcesses) -> None:
    for messages in two_processes.run(_gather_unlike_arrays):
        assert all("must agree" in message for message in messages), messages


# --- batch norm ---

SHAPES = {"rows": (8, 3), "signals": (8, 3, 5), "images": (8, 3, 4, 5), "volumes": (4, 3, 2, 3, 2)}


def _norm_for(x: Tensor, **settings: Any) -> nn.Module:
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    norm = kinds[x.ndim](x.shape[1], **settings).to(x.dtype)
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2.0, x.shape[1]))
            norm.bias.copy_(torch.linspace(-1.0, 1.0, x.shape[1]))
    return norm


def _two_training_steps(
    x: Tensor, dy: Tensor, settings: dict[str, Any], channels_last: bool, synchronized: bool = True
) -> dict[str, Tensor]:
    """Output and gradient of this rank's rows, parameters' gradients summed over ranks, buffers, an output in eval."""
    norm = _norm_for(x, **settings)
    norm = dist.synchronize_batch_norm(norm) if synchronized else norm
    n = x.shape[0] // dist.world_size()
    rows = slice(dist.row_offset(n), dist.row_offset(n) + n)
    norm(x[rows].square() + 1)  # a first step, so that running statistics are a mixture
    mine = x[rows].clone(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    mine.requires_grad_()
    y = norm(mine)
    y.backward(dy[rows])
    assert mine.grad is not None
    result = {"y": y.detach(), "dx": mine.grad}
    for name, parameter in norm.named_parameters():
        assert parameter.grad is not None
        result[f"d{name}"] = dist.sum_over_ranks(parameter.grad)
    result |= {name: buffer.clone() for name, buffer in norm.named_buffers()}
    norm.eval()
    result["eval"] = norm(x[rows]).detach()
    return result


def _joined(results: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    first = results[0]
    per_row = {"y", "dx", "eval"}
    for name in first.keys() - per_row:
        assert all(torch.equal(result[name], first[name]) for result in results), f"{name} differs between ranks"
    return {name: torch.cat([r[name] for r in results]) if name in per_row else first[name] for name in first}


@pytest.mark.parametrize(
    ("shape", "settings", "channels_last"),
    [
        *[(shape, {}, False) for shape in SHAPES.values()],
        (SHAPES["images"], {}, True),
        (SHAPES["images"], {"affine": False}, False),
        (SHAPES["rows"], {"momentum": None}, False),
        (SHAPES["rows"], {"track_running_stats": False, "eps": 0.1}, False),
    ],
    ids=[
        "rows",
        "signals",
        "images",
        "volumes",
        "channels last",
        "not affine",
        "plain average",
        "no running statistics",
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["64", "32"])
def test_batch_norm_on_two_processes_equals_torchs_on_one(
    two_processes: TwoProcesses,
    shape: tuple[int, ...],
    settings: dict[str, Any],
    channels_last: bool,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (3 + 2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    dy = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    one = _two_training_steps(x, dy, settings, channels_last, synchronized=False)
    two = _joined(two_processes.run(_two_training_steps, x, dy, settings, channels_last))
    if settings.get("track_running_stats") is False:
        del two["eval"], one["eval"]  # torch then evaluates on each rank's own statistics
    assert two.keys() == one.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=tolerance, atol=tolerance)


def test_batch_norm_that_is_not_synchronized_differs(two_processes: TwoProcesses) -> None:
    x, dy = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    one = _two_training_steps(x, dy, {}, False, synchronized=False)
    results = two_processes.run(_two_training_steps, x, dy, {}, False, synchronized=False)
    assert not torch.allclose(torch.cat([result["y"] for result in results]), one["y"], atol=1e-3)


def _gradient_check() -> bool:
    """Finite differences across ranks: perturb one row of rank 0, look at the sum over ranks of a nonlinear loss."""
    norm = dist.SynchronizedBatchNorm(2).double()
    generator = torch.Generator().manual_seed(dist.rank())
    x = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    weights = torch.randn(3, 2, generator=generator, dtype=torch.float64)

    def loss(rows: Tensor) -> Tensor:
        value: Tensor = (weights * norm(rows).sin()).sum()
        return value

    leaf = x.clone().requires_grad_()
    loss(leaf).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    good = True
    for row in range(3):
        for column in range(2):
            step = torch.zeros_like(x)
            step[row, column] = 1e-5 if dist.rank() == 0 else 0.0
            slope = dist.sum_over_ranks((loss(x + step) - loss(x - step)).detach()) / 2e-5
            expected = dist.broadcast_object(leaf.grad[row, column])
            good = good and bool(torch.isclose(slope, expected, rtol=1e-8, atol=1e-9))
    return good


def test_batch_norms_gradient_crosses_ranks_as_finite_differences_say(two_processes: TwoProcesses) -> None:
    assert two_processes.run(_gradient_check) == [True, True]


def test_batch_norm_on_one_process_is_torchs_bit_for_bit() -> None:
    x, dy = torch.randn(8, 3, 4, 4), torch.randn(8, 3, 4, 4)
    for settings in ({}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}):
        torchs = _two_training_steps(x, dy, settings, channels_last=False, synchronized=False)
        ours = _two_training_steps(x, dy, settings, channels_last=False)
        assert all(torch.equal(torchs[name], ours[name]) for name in torchs)


def test_conversion_keeps_parameters_buffers_keys_and_mode() -> None:
    inner = nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(4)).eval()
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), inner)
    state, parameters = copy.deepcopy(module.state_dict()), dict(module.named_parameters())
    assert dist.synchronize_batch_norm(module) is module
    assert [isinstance(part, dist.SynchronizedBatchNorm) for part in (module[1], inner[0], inner[1])] == [
        True,
        True,
        False,
    ]
    assert module[1].training
    assert not inner[0].training
    assert module.state_dict().keys() == state.keys()
    assert all(torch.equal(module.state_dict()[key], state[key]) for key in state)
    assert all(parameter is parameters[name] for name, parameter in module.named_parameters())
    converted = module[1]
    dist.synchronize_batch_norm(module)
    assert module[1] is converted, "a second conversion changes nothing"


def test_batch_norm_refuses_inputs_it_cannot_normalize() -> None:
    norm = dist.SynchronizedBatchNorm(3)
    with pytest.raises(ValueError, match="needs rows and channels"):
        norm(torch.randn(3))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(torch.randn(1, 3))


def _fail_on_rank_one() -> int:
    if dist.rank() == 1:
        raise ValueError("rank one says no")
    dist.barrier()
    return 1


def test_a_failing_rank_is_named_and_the_pool_starts_afresh(two_processes: TwoProcesses) -> None:
    with pytest.raises(RuntimeError, match=r"failed on rank 1: (.*\n)+.*rank one says no"):
        two_processes.run(_fail_on_rank_one)
    assert len(two_processes.run(_plain_values)) == 2
