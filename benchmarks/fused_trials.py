"""Does it pay to fuse trials that differ only in scalars: one forward and backward pass for all, by torch.func's `vmap`
over their stacked parameters, against a step of each in turn?

    python -m benchmarks.fused_trials [--device cuda] [--copies 2 4 8] [--runs 7]

K trials see the same batch of two views and have a learning rate and a loss weight each. A step of one is backbone,
projector, alignment and a weighted uniformity, backward and SGD with momentum, in PyTorch's own (multi-tensor) form.
The fused step does the same for all K at once and gives the same parameters (tests/benchmarks/test_fused_trials.py).
Batch norm takes each trial's own batch statistics and keeps no running ones, on both sides: `vmap` cannot change a
buffer that it did not stack. Both sides' runs take turns; a ratio is of one pair, K steps in turn over one fused step.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, replace_all_batch_norm_modules_, stack_module_state, vmap

from search_spaces import RECIPES
from trainers.changes import with_changes
from trainers.model import build_model
from trainers.profiling.step import times_in_turns

MOMENTUM = 0.9
TEMPERATURE = 2.0


@dataclass(frozen=True)
class Case:
    """A network, a batch, and the images' size."""

    network: Callable[[int], nn.Module]
    batch: int
    size: int


def resnet_tiny(size: int) -> nn.Module:
    """Backbone and projector of `sfrik_tiny`."""
    model = build_model(with_changes(RECIPES["sfrik_tiny"](), {"views.*.size": size}))
    return nn.Sequential(model.backbone, model.projector)


def mlp(size: int) -> nn.Module:
    """Three layers on pixels, with batch norm between."""
    widths = (3 * size * size, 256, 256, 64)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers[:-2])


CASES = {
    "resnet_tiny, 16 px": Case(resnet_tiny, 64, 16),
    "resnet_tiny, 32 px": Case(resnet_tiny, 64, 32),
    "MLP, 16 px": Case(mlp, 64, 16),
}


def loss(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Views attract, images of a view repel each other by a Gaussian kernel (Wang and Isola, 2020); [n, d] each."""
    first, second = nn.functional.normalize(first, dim=1), nn.functional.normalize(second, dim=1)
    spread = sum(torch.exp(TEMPERATURE * (rows @ rows.T - 1.0)).mean() for rows in (first, second))
    return (first - second).square().sum(dim=1).mean() + weight * spread


class Trials:
    """K trials from the same start, stepped in turn or all at once."""

    def __init__(self, case: Case, copies: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        bare = [replace_all_batch_norm_modules_(case.network(case.size)) for _ in range(copies)]
        self.networks = [network.to(device, dtype) for network in bare]
        for network in self.networks:
            network.load_state_dict(self.networks[0].state_dict())
        # Channels last is what our loop has, and quicker here; the fused step is quicker without.
        shape = (case.batch, 3, case.size, case.size)
        self._views = [torch.randn(shape, device=device, dtype=dtype) for _ in range(2)]
        self._last = [view.to(memory_format=torch.channels_last) for view in self._views]
        self.weights = torch.linspace(0.5, 2.0, copies, device=device, dtype=dtype)
        self.rates = torch.logspace(-3, -1, copies, device=device, dtype=dtype)
        self.stacked, _ = stack_module_state(self.networks)
        self._momenta = {name: torch.zeros_like(value) for name, value in self.stacked.items()}
        for network in self.networks:
            network.to(memory_format=torch.channels_last)
        self._optimizers = [
            torch.optim.SGD(network.parameters(), lr=float(rate), momentum=MOMENTUM)
            for network, rate in zip(self.networks, self.rates, strict=True)
        ]
        network = self.networks[0]

        def one(parameters: dict[str, Tensor], weight: Tensor, first: Tensor, second: Tensor) -> Tensor:
            projections = [functional_call(network, parameters, (view,)) for view in (first, second)]
            return loss(projections[0], projections[1], weight)

        self._gradients = vmap(grad_and_value(one), in_dims=(0, 0, None, None))

    def in_turn(self) -> None:
        """A step of each."""
        for network, optimizer, weight in zip(self.networks, self._optimizers, self.weights, strict=True):
            optimizer.zero_grad(set_to_none=True)
            loss(network(self._last[0]), network(self._last[1]), weight).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def fused(self) -> None:
        """A step of all."""
        gradients, _ = self._gradients(self.stacked, self.weights, *self._views)
        with torch.no_grad():
            values, momenta = list(self.stacked.values()), list(self._momenta.values())
            torch._foreach_mul_(momenta, MOMENTUM)
            torch._foreach_add_(momenta, [gradients[name] for name in self.stacked])
            moves = [
                self.rates.view(-1, *[1] * (value.dim() - 1)) * move
                for value, move in zip(values, momenta, strict=True)
            ]
            torch._foreach_sub_(values, moves)


def ratios(case: Case, copies: int, device: torch.device, *, runs: int) -> tuple[list[float], float]:
    """Of each pair of runs, how many times as fast the fused step is; and the seconds of one trial's step in turn."""
    trials = Trials(case, copies, device)
    times = times_in_turns({"in turn": trials.in_turn, "fused": trials.fused}, runs, device)
    found = [turn / fused for turn, fused in zip(times["in turn"], times["fused"], strict=True)]
    return found, statistics.median(times["in turn"]) / copies


def rows(copies: Sequence[int], device: torch.device, *, runs: int) -> Iterator[tuple[str, int, list[float], float]]:
    """Case, K, and what `ratios` finds."""
    for name, case in CASES.items():
        for count in copies:
            yield name, count, *ratios(case, count, device, runs=runs)


def main() -> None:
    """Print a line for each case and K."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--copies", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print("| network | trials | a trial's step alone | fused: times as fast, median (least to most) |")
    print("|:--|--:|--:|:--|")
    for name, count, found, seconds in rows(asked.copies, torch.device(asked.device), runs=asked.runs):
        spread = f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
        print(f"| {name} | {count} | {1e3 * seconds:.1f} ms | {spread} |", flush=True)


if __name__ == "__main__":
    main()
