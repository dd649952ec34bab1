"""What a regularizer costs, against what a user would pick instead: VICReg's variance + covariance.

    python benchmarks/terms.py [--batch 256] [--dimensions 512 2048 8192] [--repeats 5] [--threads 1]
                               [--terms brownian ...]

One regularizer alone, forward and backward down to the embeddings of two views, float32. Per method and dimension:
the best time of `--repeats` (the machine may be shared), and the extra memory at its peak: what is allocated beyond
the embeddings and their gradients. On a CPU that is the growth of the process's resident memory to its peak, each case
in a process of its own; on a GPU the allocator's own peak. Printed are ratios VICReg / term: above 1, the term is
cheaper.

Whitening needs settings that fit the batch and the dimension: channel whitening takes sub-batches of 64 (the published
size; less where a group would be narrower) in 4 groups, batch whitening as many groups as keep half as many channels as
images in each. Both include their alignment of the two views, as do cross-correlation, InfoNCE and spectral; the others
do without.

The reference is the official form (facebookresearch/vicreg): per view, hinge of the standard deviation and squared
off-diagonal covariance. Both are one process: nothing is gathered.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from trainers import memory, terms
from trainers.terms.kernels import RBF, Truncated


def channel_whitening(factor: Literal["zca", "cholesky"]) -> Callable[[int, int], terms.TermConfig]:
    return lambda batch, dimension: terms.ChannelWhitening(
        sub_batch_size=min(64, batch, dimension // 8), group_count=4, factor=factor
    )


def batch_whitening(factor: Literal["zca", "cholesky"]) -> Callable[[int, int], terms.TermConfig]:
    return lambda batch, dimension: terms.BatchWhitening(group_count=max(1, 2 * dimension // batch), factor=factor)


TERMS: dict[str, Callable[[int, int], terms.TermConfig]] = {
    "sfrik, degree 3, gram": lambda _, __: terms.KernelMMD(kernel=Truncated(), form="gram"),
    "sfrik, degree 2, auto": lambda _, __: terms.KernelMMD(kernel=Truncated(coefficients=(1.0, 40.0))),
    "rbf, gram": lambda _, __: terms.KernelMMD(kernel=RBF()),
    "singular value, nuclear": lambda _, __: terms.SingularValue(),
    "singular value, frobenius": lambda _, __: terms.SingularValue(form="frobenius"),
    "brownian": lambda _, __: terms.Brownian(),
    "channel whitening, zca": channel_whitening("zca"),
    "channel whitening, cholesky": channel_whitening("cholesky"),
    "batch whitening, zca": batch_whitening("zca"),
    "batch whitening, cholesky": batch_whitening("cholesky"),
    "covariance": lambda _, __: terms.Covariance(),
    "cross-correlation": lambda _, __: terms.CrossCorrelation(),
    "info-nce": lambda _, __: terms.InfoNCE(),
    "spectral": lambda _, __: terms.Spectral(),
}
"""By name: the term's settings for a batch size and a dimension."""

VICREG = "vicreg, variance + covariance"


def vicreg(views: tuple[Tensor, ...]) -> Tensor:
    """Weights 25 and 1, the mean over views, as published for two views."""
    total = torch.zeros((), device=views[0].device)
    for h in views:
        n, q = h.shape
        centered = h - h.mean(0)
        std = (centered.var(0) + 1e-4).sqrt()
        covariance = centered.T @ centered / (n - 1)
        off_diagonal = covariance.flatten()[:-1].view(q - 1, q + 1)[:, 1:]
        total = total + 25 * torch.relu(1 - std).mean() / len(views) + off_diagonal.square().sum() / q
    return total


def loss_of(name: str, batch: int, dimension: int) -> Callable[[tuple[Tensor, ...]], Tensor]:
    if name == VICREG:
        return vicreg
    term = TERMS[name](batch, dimension)

    def loss(views: tuple[Tensor, ...]) -> Tensor:
        return term(
            terms.Outputs(
                features=views,
                projections=views,
                predictions=None,
                targets=None,
                sample_ids=torch.arange(len(views[0]), device=views[0].device),
                seed=0,
                step=0,
            )
        )

    return loss


def measure(name: str, batch: int, dimension: int, repeats: int, threads: int) -> dict[str, float]:
    """Seconds of the best step and extra bytes at the peak of the first."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def step(views: tuple[Tensor, ...]) -> None:
        for view in views:
            view.grad.zero_() if view.grad is not None else None
        loss_of(name, batch, views[0].shape[1])(views).backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize()

    def embeddings(q: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        views = tuple(torch.randn(batch, q, generator=generator).to(device).requires_grad_() for _ in range(2))
        for view in views:
            view.grad = torch.zeros_like(view)
        return views

    step(embeddings(16))  # lazy initialization of libraries is nobody's extra memory
    views = embeddings(dimension)
    memory.reset_peaks(device)
    before = peak_bytes(device)
    step(views)
    extra = peak_bytes(device) - before
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step(views)
        times.append(time.perf_counter() - start)
    return {"seconds": min(times), "bytes": extra}


def peak_bytes(device: torch.device) -> int:
    """Highest memory so far: of the allocator on a GPU, of the process on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory.host_peak_bytes()


def case(name: str, dimension: int, *, batch: int, repeats: int, threads: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    settings = {"--batch": batch, "--repeats": repeats, "--threads": threads}
    typed = [str(word) for setting in settings.items() for word in setting]
    command = [sys.executable, __file__, *typed, "--case", name, str(dimension)]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def rows(dimension: int = 8192, runs: int = 5) -> Iterator[tuple[str, list[float], list[float], str]]:
    """For the table: SFRIK's Gram form against VICReg's, in time and in memory."""
    found: dict[str, list[dict[str, float]]] = {"sfrik, degree 3, gram": [], VICREG: []}
    for _ in range(runs):
        for name, cases in found.items():
            cases.append(case(name, dimension, batch=256, repeats=1, threads=1))
    note = f"{dimension} dimensions, batch 256, 1 thread"
    for name, measured in (("Gram form, time", "seconds"), ("Gram form, memory", "bytes")):
        ours, theirs = ([one[measured] for one in cases] for cases in found.values())
        yield name, ours, theirs, note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--terms", nargs="+", choices=[*TERMS], default=[*TERMS], metavar="NAME", help="of these only")
    parser.add_argument("--case", nargs=2, metavar=("NAME", "DIMENSION"), help="measure one case, print it as JSON")
    arguments = parser.parse_args()
    if arguments.case:
        name, dimension = arguments.case
        print(json.dumps(measure(name, arguments.batch, int(dimension), arguments.repeats, arguments.threads)))
        return
    print(
        f"batch {arguments.batch}, 2 views, forward + backward, {arguments.threads} thread(s); ratios are VICReg / term"
    )
    print(f"{'dimension':>9}  {'term':<30}{'ms':>9}{'extra MB':>10}{'time ratio':>12}{'memory ratio':>14}")
    for dimension in arguments.dimensions:
        reference: dict[str, float] = {}
        for name in (VICREG, *arguments.terms):
            found = case(name, dimension, batch=arguments.batch, repeats=arguments.repeats, threads=arguments.threads)
            reference = reference or found
            times, memories = reference["seconds"] / found["seconds"], reference["bytes"] / max(found["bytes"], 1)
            print(
                f"{dimension:>9}  {name:<30}{1e3 * found['seconds']:>9.2f}{found['bytes'] / 1e6:>10.1f}"
                f"{times:>12.1f}{memories:>14.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
