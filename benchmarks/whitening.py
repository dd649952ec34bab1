"""What whitening costs by eigenvectors and by matrix products. Its share of a step: `cost.py`.

    python benchmarks/whitening.py [--threads 1] [--runs 5] [--conditions 100]

The term alone, forward and backward down to the embeddings, at the sizes of the recipes: CW-RGP (batch 256, four views
of 512 dimensions, sub-batches of 64, four groups; ZCA) and W-MSE (batch 512, two views of 64 dimensions, runs of 128;
Cholesky). Embeddings have eigenvalues evenly apart in logarithm, up to `--conditions` apart: 100 is what a batch has at
the start, thousands are what training makes of it, and beyond about 5,000 "float32" is done in float64. `copies`: every
fourth image is a copy, so that no block has a factor but by eigenvectors. Each row is `reference` over the other, the
smallest and the largest of `--runs` pairs of runs taken in turn, each the best of three steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from trainers.terms import BatchWhitening, ChannelWhitening, Outputs
from trainers.terms.whitening import Whitening

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES: dict[str, tuple[Whitening, int, int, int]] = {
    "cw-rgp": (ChannelWhitening(sub_batch_size=64, group_count=4), 4, 256, 512),
    "w-mse": (BatchWhitening(over="sub_batch", sub_batch_size=128, group_count=1, factor="cholesky"), 2, 512, 64),
}
"""By name: the term as its recipe has it, number of views, images, dimensions."""


def embeddings(views: int, count: int, width: int, condition: float, *, copies: bool = False) -> list[Tensor]:
    """Views [n, d] of common images, whose second moment has that condition number."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -0.5 * torch.log10(torch.tensor(condition)).item(), width)
    images = torch.randn(count, width, generator=generator)
    found = [images + torch.randn(count, width, generator=generator) for _ in range(views)]
    if copies:
        for view in found:
            view[::4] = view[:1]
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    return [((view * scales) @ turn).to(DEVICE).requires_grad_() for view in found]


def outputs_of(views: list[Tensor]) -> Outputs:
    """As a model would make them."""
    return Outputs(
        features=tuple(views),
        projections=tuple(views),
        predictions=None,
        targets=None,
        sample_ids=torch.arange(len(views[0]), device=DEVICE),
        seed=0,
        step=0,
    )


def best(step: Callable[[], object], times: int = 3) -> float:
    """Seconds of the quickest of so many."""
    taken = []
    for _ in range(times):
        _wait()
        start = time.perf_counter()
        step()
        _wait()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def pairs(
    name: str, arithmetic: str, runs: int, condition: float, *, copies: bool = False
) -> tuple[list[float], list[float]]:
    """Seconds of the reference and of `arithmetic`, in runs that take turns."""
    term, view_count, count, width = CASES[name]
    outputs = outputs_of(embeddings(view_count, count, width, condition, copies=copies))
    ways = [term, term.model_copy(update={"arithmetic": arithmetic})]

    def step(way: Whitening) -> None:
        torch.autograd.grad(way(outputs), outputs.projections)

    for way in ways:
        step(way)
    taken = [[best(lambda way=way: step(way)) for way in ways] for _ in range(runs)]  # type: ignore[misc]
    return [first for first, _ in taken], [second for _, second in taken]


def rows() -> Iterator[tuple[str, list[float], list[float], str]]:
    """For the table: float32 against the reference, on embeddings as a batch has them at the start."""
    torch.set_num_threads(1)
    for name in CASES:
        reference, seconds = pairs(name, "float32", 7, 100.0)
        yield name, seconds, reference, "1 thread"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--conditions", type=float, nargs="+", default=[100.0, 3000.0, 1e5])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| term | embeddings | arithmetic | ms | reference / this, min to max |")
    print("|:--|:--|:--|--:|:--|")
    for name in CASES:
        cases = [(f"condition {condition:g}", condition, False) for condition in arguments.conditions]
        for words, condition, copies in [*cases, ("copies", arguments.conditions[0], True)]:
            for arithmetic in ("float64", "float32"):
                reference, seconds = pairs(name, arithmetic, arguments.runs, condition, copies=copies)
                ratios = [first / second for first, second in zip(reference, seconds, strict=True)]
                print(
                    f"| {name} | {words} | {arithmetic} | {1e3 * min(seconds):.1f} "
                    f"| {min(ratios):.2f} to {max(ratios):.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
