"""How parameters move: optimizers, parameter groups, the learning-rate schedule and the gradient norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from trainers.settings import OptimizerConfig, ScheduleConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer over all parameters of `model` that need a gradient, in two groups.

    Weights (two dimensions and more) come first; biases and norm scales (one dimension) are in a second group without
    weight decay and, for LARS, without trust ratio. The loop sets each group's "lr" before each step.

    On a GPU torch's optimizers are fused, one kernel for all tensors. On a CPU they are as they have always been: fused
    ones round otherwise there.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if config.kind == "lars":
        groups[0]["trust_coefficient"] = config.trust_coefficient
        groups[1]["trust_coefficient"] = None
        return LARS(groups, lr=config.learning_rate, momentum=config.momentum, clip_trust=config.clip_trust)
    if config.kind == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, **_how(parameters))
    adam = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
    return adam(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), **_how(parameters))


def _how(parameters: Iterable[Tensor]) -> dict[str, bool]:
    return {"fused" if all(parameter.is_cuda for parameter in parameters) else "foreach": True}


def load_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Go on from a checkpoint's `state`, computed as here, wherever it was written."""
    how = [{key: group[key] for key in ("fused", "foreach") if key in group} for group in optimizer.param_groups]
    groups = [{**group, **mine} for group, mine in zip(state["param_groups"], how, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})


class LARS(torch.optim.Optimizer):
    """SGD whose step for each weight tensor is scaled to the size of that tensor (You et al. 2017, arXiv 1708.03888).

    For a parameter w with gradient g, decay d, momentum m and trust coefficient t:

        u = g + d w,    u <- u t |w| / |u|  (where both norms are positive),    v <- m v + u,    w <- w - lr v

    which is the form of VICReg's and SFRIK's official code: the rate is applied outside of the momentum. A group whose
    `trust_coefficient` is None is not rescaled. With `clip_trust`, t |w| / |u| is replaced by min(t |w| / (|u| lr), 1):
    a step is never longer than plain SGD's (solo-learn's `clip_lr`). No value is read back from the device.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float | None = 1e-3,
        clip_trust: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "clip_trust": clip_trust,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._step(parameters, group)
        return loss

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        updates = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        if group["trust_coefficient"] is not None:
            sizes = torch.stack(torch._foreach_norm(parameters))
            steps = torch.stack(torch._foreach_norm(updates))
            ratios = group["trust_coefficient"] * sizes / steps
            if group["clip_trust"]:
                ratios = (ratios / group["lr"]).clamp(max=1.0)
            ratios = torch.where((sizes > 0) & (steps > 0), ratios, 1.0)
            torch._foreach_mul_(updates, list(ratios.unbind()))
        for parameter, update in zip(parameters, updates, strict=True):
            if "velocity" not in self.state[parameter]:
                self.state[parameter]["velocity"] = torch.zeros_like(update)
        velocities = [self.state[parameter]["velocity"] for parameter in parameters]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates)
        torch._foreach_add_(parameters, velocities, alpha=-group["lr"])


def learning_rate(peak: float, schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """The rate of optimizer step `step`, counted from 0, of `total_steps`. A pure function: there is no state to save.

    With w warm-up steps the rate is peak (step + 1) / w during warm-up: no step is wasted at rate 0, and step w - 1
    has the peak. The last step of the run has exactly `final_factor` times the peak (but where nothing decays, and
    with "step", whose rate changes at the given shares only).
    """
    warmup = round(schedule.warmup_share * total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.kind == "step":
        return peak * schedule.drop_factor ** sum(step >= round(drop * total_steps) for drop in schedule.drops)
    final = schedule.final_factor * peak
    if schedule.kind == "cosine":
        first, last = warmup, total_steps - 1
    else:
        # The step before the decay is the last constant one, at the full peak.
        first, last = total_steps - round(schedule.decay_share * total_steps) - 1, total_steps - 1
    if step <= first:
        return peak
    return final + (peak - final) * (1.0 + math.cos(math.pi * (step - first) / (last - first))) / 2.0


def set_step(optimizer: torch.optim.Optimizer, config: OptimizerConfig, rate: float, step: int, total: int) -> None:
    """What changes from step to step: the learning rate `rate` and, with a `final_weight_decay` f, the decay of
    weights, f + (d - f) (1 + cos(pi step / total)) / 2 at step `step` of `total`, from 0 (facebookresearch/dino).
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    if config.final_weight_decay is not None:
        weights, final = optimizer.param_groups[0], config.final_weight_decay
        share = (1.0 + math.cos(math.pi * step / total)) / 2.0
        weights["weight_decay"] = final + (config.weight_decay - final) * share


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[Tensor], clip_norm: float | None, scope: Literal["all", "tensor"] = "all"
) -> Tensor:
    """The Euclidean norm of all gradients together, before clipping: a scalar on their device, 0 without any gradient.

    With a `clip_norm`, gradients are scaled in place so that their norm is at most that: all of them by one number, or
    with scope "tensor" each tensor g by min(1, clip_norm / (|g| + 1e-6)), its own norm (facebookresearch/dino). No
    value is read back from the device.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = nn.utils.get_total_norm(gradients)
    if clip_norm is not None and scope == "tensor":
        factors = (clip_norm / (torch.stack(torch._foreach_norm(gradients)) + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, list(factors.unbind()))
    elif clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    return norm
