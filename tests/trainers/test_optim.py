"""Optimizers against references written here, schedules at the steps that matter, gradient norms."""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from trainers.config import OptimizerConfig, ScheduleConfig
from trainers.optim import LARS, build_optimizer, clip_gradients, learning_rate, load_state, set_step


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 4, 5)).double()


def gradients_of(step: int, network: nn.Module) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in network.parameters()]


def take_steps(optimizer: torch.optim.Optimizer, network: nn.Module, rates: list[float]) -> None:
    for step, rate in enumerate(rates):
        for parameter, gradient in zip(network.parameters(), gradients_of(step, network), strict=True):
            parameter.grad = gradient.clone()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()


RATES = [0.3, 0.5, 0.1]


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "lars"])
def test_what_a_gpu_wrote_goes_on_as_this_machine_computes(kind: Any) -> None:
    network, config = small_network(), OptimizerConfig(kind=kind)
    first = build_optimizer(network, config)
    take_steps(first, network, RATES)
    state = first.state_dict()
    written = {**state, "param_groups": [{**group, "fused": True, "foreach": None} for group in state["param_groups"]]}
    second = build_optimizer(network, config)
    load_state(second, state if kind == "lars" else written)
    ours = [(group.get("fused"), group.get("foreach")) for group in first.param_groups]
    assert [(group.get("fused"), group.get("foreach")) for group in second.param_groups] == ours
    take_steps(second, network, RATES)


TRUST = 1.0


@pytest.mark.parametrize("clip_trust", [False, True])
def test_lars_equals_its_formula_one_tensor_at_a_time(clip_trust: bool) -> None:
    network, reference = small_network(), small_network()
    config = OptimizerConfig(
        kind="lars", learning_rate=1.0, momentum=0.8, weight_decay=0.1, trust_coefficient=TRUST, clip_trust=clip_trust
    )
    clipped = []
    take_steps(build_optimizer(network, config), network, RATES)

    velocity = [0.0 for _ in reference.parameters()]
    for step, rate in enumerate(RATES):
        for index, (weight, gradient) in enumerate(
            zip(reference.parameters(), gradients_of(step, reference), strict=True)
        ):
            update: Any = gradient.numpy()
            values: Any = weight.detach().numpy()  # shares memory with the parameter
            if values.ndim > 1:
                update = update + 0.1 * values
                ratio = TRUST * math.sqrt((values**2).sum()) / math.sqrt((update**2).sum())
                clipped.append(ratio > rate)
                update = update * (min(ratio / rate, 1.0) if clip_trust else ratio)
            velocity[index] = 0.8 * velocity[index] + update
            values -= rate * velocity[index]
    for ours, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert not clip_trust or (any(clipped) and not all(clipped))


def test_lars_takes_the_plain_step_where_a_norm_is_zero() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    still = nn.Parameter(torch.ones(2, 2))
    unused = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weight, still, unused], lr=0.5, momentum=0.0)
    weight.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), -0.5))
    torch.testing.assert_close(still.detach(), torch.ones(2, 2))
    torch.testing.assert_close(unused.detach(), torch.ones(2, 2))


def test_lars_step_does_not_depend_on_the_gradients_scale_for_weights_but_does_for_biases() -> None:
    def moved(scale: float) -> list[Tensor]:
        network = small_network()
        start = [parameter.detach().clone() for parameter in network.parameters()]
        config = OptimizerConfig(kind="lars", learning_rate=1.0, weight_decay=0.0)
        for parameter, gradient in zip(network.parameters(), gradients_of(0, network), strict=True):
            parameter.grad = scale * gradient
        build_optimizer(network, config).step()
        return [parameter.detach() - before for parameter, before in zip(network.parameters(), start, strict=True)]

    for small, large in zip(moved(1.0), moved(10.0), strict=True):
        torch.testing.assert_close(large, small if small.ndim > 1 else 10 * small)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_sgd_and_adamw_equal_torchs_per_tensor_loops_and_spare_vectors_from_decay(kind: Any) -> None:
    network, reference = small_network(), small_network()
    config = OptimizerConfig(kind=kind, learning_rate=1.0, momentum=0.8, beta1=0.7, beta2=0.95, weight_decay=0.1)
    take_steps(build_optimizer(network, config), network, RATES)
    groups = [
        {"params": [p for p in reference.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in reference.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    plain: torch.optim.Optimizer
    if kind == "sgd":
        plain = torch.optim.SGD(groups, lr=1.0, momentum=0.8, nesterov=False, foreach=False)
    else:
        plain = torch.optim.AdamW(groups, lr=1.0, betas=(0.7, 0.95), foreach=False)
    take_steps(plain, reference, RATES)
    for ours, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "lars"])
def test_frozen_parameters_are_not_optimized(kind: Any) -> None:
    network = small_network()
    network[0].requires_grad_(False)
    optimizer = build_optimizer(network, OptimizerConfig(kind=kind))
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in network.parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "lars"])
def test_an_optimizer_goes_on_from_its_saved_state_bit_for_bit(kind: Any) -> None:
    config = OptimizerConfig(kind=kind, momentum=0.8, beta1=0.8)
    straight = small_network()
    take_steps(build_optimizer(straight, config), straight, [0.1, 0.1, 0.1, 0.1])

    begun = small_network()
    first = build_optimizer(begun, config)
    take_steps(first, begun, [0.1, 0.1])
    resumed = small_network()
    second = build_optimizer(resumed, config)
    resumed.load_state_dict(begun.state_dict())
    second.load_state_dict(first.state_dict())
    for step in (2, 3):
        for parameter, gradient in zip(resumed.parameters(), gradients_of(step, resumed), strict=True):
            parameter.grad = gradient
        second.step()
    for group in second.param_groups:
        assert group["lr"] == 0.1
    for ours, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def rates(steps: int, **schedule: Any) -> list[float]:
    return [learning_rate(2.0, ScheduleConfig(**schedule), step, steps) for step in range(steps)]


def test_cosine_warms_up_linearly_peaks_and_ends_at_its_final_factor() -> None:
    values = rates(101, kind="cosine", warmup_share=0.1, final_factor=0.01)
    assert values[:10] == pytest.approx([2.0 * (step + 1) / 10 for step in range(10)])
    assert values[10] == pytest.approx(2.0)
    assert values[55] == pytest.approx((2.0 + 0.02) / 2)  # halfway between steps 10 and 100
    assert values[100] == pytest.approx(0.02)
    assert all(later < earlier for earlier, later in itertools.pairwise(values[10:]))


def test_constant_holds_the_peak_until_a_short_decay() -> None:
    values = rates(100, kind="constant", warmup_share=0.05, decay_share=0.2, final_factor=0.001)
    assert values[0] == pytest.approx(0.4)
    assert values[4:80] == [2.0] * 76
    assert values[80] < 2.0
    assert values[89] == pytest.approx((2.0 + 0.002) / 2)  # halfway between steps 79 and 99
    assert values[99] == pytest.approx(0.002)


def test_step_falls_by_its_factor_at_each_drop_and_nowhere_else() -> None:
    schedule = ScheduleConfig(kind="step", warmup_share=0.1, drops=(0.5, 0.75), drop_factor=0.2)
    rates = [learning_rate(2.0, schedule, step, 40) for step in range(40)]
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert rates[4:20] == [2.0] * 16
    assert rates[20:30] == pytest.approx([0.4] * 10)
    assert rates[30:] == pytest.approx([0.08] * 10)


@pytest.mark.parametrize("changes", [{"drops": (0.9, 0.5)}, {"drops": (0.05,), "warmup_share": 0.1}])
def test_drops_out_of_order_or_within_the_warmup_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="drops must rise and come after the warm-up"):
        ScheduleConfig(kind="step", **changes)


def test_adam_adds_its_decay_to_the_gradient_and_adamw_does_not() -> None:
    """At a gradient of zero Adam still takes a whole step, adamw shrinks by rate x decay."""
    for kind, expected in (("adam", 1.0 - 0.1), ("adamw", 1.0 - 0.1 * 0.5)):
        model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        nn.init.ones_(model.weight)
        model.weight.grad = torch.zeros_like(model.weight)
        config = OptimizerConfig.model_validate({"kind": kind, "learning_rate": 0.1, "weight_decay": 0.5})
        build_optimizer(model, config).step()
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)


def test_runs_of_different_length_share_the_constant_part() -> None:
    short, long = rates(100, warmup_share=0.0), rates(1000, warmup_share=0.0)
    assert short[:80] == long[:80]


@pytest.mark.parametrize("kind", ["constant", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.5, 0.5), (0.0, 1.0), (0.9, 0.1)])
def test_the_shortest_runs_have_positive_rates_up_to_the_peak(
    kind: Any, steps: int, shares: tuple[float, float]
) -> None:
    if shares[1] == 1.0:
        shares = (0.0, 0.99)
    for rate in rates(steps, kind=kind, warmup_share=shares[0], decay_share=shares[1]):
        assert 0.0 < rate <= 2.0


def test_the_gradient_norm_is_over_all_parameters_and_clipping_bounds_it() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(3))]
    parameters[0].grad = torch.tensor([3.0, 0.0])
    parameters[1].grad = torch.tensor([[0.0, 4.0], [0.0, 0.0]])
    assert float(clip_gradients(parameters, None)) == pytest.approx(5.0)
    assert float(clip_gradients(parameters, 10.0)) == pytest.approx(5.0)
    assert float(parameters[0].grad[0]) == pytest.approx(3.0)
    assert float(clip_gradients(parameters, 2.5)) == pytest.approx(5.0)
    assert float(parameters[0].grad[0]) == pytest.approx(1.5, rel=1e-5)
    assert float(clip_gradients(parameters, None)) == pytest.approx(2.5, rel=1e-5)
    assert float(clip_gradients([nn.Parameter(torch.zeros(3))], 1.0)) == 0.0


def test_each_tensor_can_be_clipped_by_its_own_norm() -> None:
    """As DINO's `clip_gradients` does, worked out by hand: tensors below the bound stay bit for bit."""
    gradients = [torch.tensor([3.0, 4.0]), torch.tensor([[0.0, 0.6], [0.8, 0.0]]), torch.zeros(3)]
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    assert float(clip_gradients(parameters, 2.0, "tensor")) == pytest.approx(math.sqrt(26.0))
    expected = [gradients[0] * (2.0 / (5.0 + 1e-6)), gradients[1], gradients[2]]
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=0.0)
    assert torch.equal(cast(Tensor, parameters[1].grad), gradients[1])
    assert float(clip_gradients(parameters, None, "tensor")) == pytest.approx(math.sqrt(5.0), rel=1e-5)


def test_the_decay_of_weights_can_rise_along_half_a_cosine_and_vectors_stay_without() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    config = OptimizerConfig(kind="adamw", learning_rate=0.1, weight_decay=0.04, final_weight_decay=0.4)
    optimizer = build_optimizer(model, config)
    seen = []
    for step in (0, 25, 50, 100):
        set_step(optimizer, config, 0.1, step, 100)
        weights, vectors = optimizer.param_groups
        assert vectors["weight_decay"] == 0.0
        seen.append(weights["weight_decay"])
    quarter = 0.4 - 0.36 * (1 + math.cos(math.pi / 4)) / 2
    assert seen == pytest.approx([0.04, quarter, 0.22, 0.4])
    steady = config.model_copy(update={"final_weight_decay": None})
    optimizer = build_optimizer(model, steady)
    set_step(optimizer, steady, 0.2, 50, 100)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.2, 0.04), (0.2, 0.0)]
