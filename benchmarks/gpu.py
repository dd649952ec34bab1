"""How busy is a GPU kept? One script for one card and at most eight minutes; it runs on a CPU at toy size, too.

    python -m benchmarks.gpu [--minutes 8] [--toy] [--only PART …] [--folder DIR]      or: make bench-gpu

Each part has a process and a bound of its own and is written to `results.jsonl` in `--folder` as it ends, so that what
was measured survives a machine that goes; in the end all of them are one table. Data sets are made up, of the size and
form of the real ones: raw pixels at 32, JPEG files at about 300.

* `step ROW`: images per second of a training step on views that lie on the device already, and each term's share;
* `compiled ROW`, `graphs ROW`: the same of compiled passes, and of CUDA graphs (GPU only); of some rows;
* `loader ROW`: images per second of the loader alone;
* `real ROW`: images per second of the real loop, with loader, copies and numbers; its ratio to `step` is what is left;
* `waits ROW`: how often a step makes the host wait for the device (GPU only);
* `together`: several processes that step at once, against one alone;
* `packing`: what `--pack auto` chooses: whole trials at once, in turns and under NVIDIA's MPS where it may be used;
* `fused`: several trials in one forward pass, against a step of each in turn (`fused_trials.py`);
* `sweep`: a sweep of 8 short trials: seconds to the first step, in all, and mean use of the card;
* `resume`: `pretune train --verify-resume`.

The last two take Ray. Steps are timed in five windows; printed are median, least and most.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import cost, fused_trials
from benchmarks.bounded import lines_of
from pretune.analysis import gpus, packing
from pretune.core.experiment import Experiment
from pretune.core.packing import in_words as packed_in_words
from pretune.request import request
from search_spaces import RECIPES
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.data import datasets
from trainers.data.loader import Loaders, steps_per_epoch
from trainers.data.manifest import Dataset
from trainers.profiling.step import StepAlone, finish, in_turns, windows
from trainers.train import train

RESULTS = "results.jsonl"
WINDOWS = 5
PACKING_S = 35.0
"""No other number of trials is tried after so long."""


@dataclass(frozen=True)
class Row:
    """A recipe at the batch that one card takes."""

    recipe: str
    changes: dict[str, Any]
    data: str
    """Of `DATA`."""
    compiled: bool = False
    """Whether its compiled passes are timed, which takes longest to begin."""

    def config(self) -> TrialConfig:
        return with_changes(RECIPES[self.recipe](), {"sentinel": None, "epochs": 2, "probe.every": 2, **self.changes})


ROWS = {
    "sfrik-32": Row("sfrik_cifar10", {"precision": "bf16"}, "pixels", compiled=True),
    "sfrik-32-float32": Row("sfrik_cifar10", {}, "pixels"),
    "sfrik-224": Row("sfrik_imagenet", {"batch_size": 128}, "photographs", compiled=True),
    "cw-rgp-32": Row("cw_rgp_cifar10", {"precision": "bf16"}, "pixels"),
    "vit-224": Row("dilemma_mocov3_imagenet", {"batch_size": 256}, "photographs", compiled=True),
}
TOY_ROWS = {
    "sfrik-tiny": Row("sfrik_tiny", {"batch_size": 32}, "pixels", compiled=True),
    "cw-rgp-tiny": Row("cw_rgp_tiny", {"batch_size": 32, "threads": 1}, "pixels"),
}
SWEEP = "kernels --recipe sfrik_tiny --trials 8 --epochs 3 --name sweep --seed 0"
TOY_SWEEP = "kernels --recipe sfrik_tiny --trials 2 --epochs 1 --slots 1 --name sweep --seed 0"
RESUME = "train sfrik_tiny --verify-resume"


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    rows: dict[str, Row]
    images: dict[str, int]
    """Of each of the two data sets."""
    steps: int
    """In a window."""
    together: tuple[int, ...]
    fused: tuple[int, ...]
    sweep: str
    bound_s: float
    """Of a part."""


FULL = Size(ROWS, {"pixels": 40_960, "photographs": 2_560}, 10, (1, 2, 4), (2, 4, 8), SWEEP, 90.0)
TOY = Size(TOY_ROWS, {"pixels": 640, "photographs": 64}, 2, (1, 2), (2,), TOY_SWEEP, 300.0)


def parts(size: Size) -> dict[str, Callable[[Path], dict[str, Any]]]:
    """What is measured, by name, in the order of what is worth most."""
    found: dict[str, Callable[[Path], dict[str, Any]]] = {}
    for name, row in size.rows.items():
        found[f"step {name}"] = partial(step, row, size)
        found[f"real {name}"] = partial(real, row, size)
        found[f"loader {name}"] = partial(loader, row, size)
        found[f"waits {name}"] = partial(waits, row, size)
    for name, row in size.rows.items():
        if row.compiled:
            found[f"compiled {name}"] = partial(compiled, row, "on", size)
            found[f"graphs {name}"] = partial(compiled, row, "cuda_graphs", size)
    first = next(iter(size.rows.values()))
    return found | {
        "sweep": partial(sweep, size),
        "together": partial(together, first, size),
        "packing": partial(packing_auto, first),
        "fused": partial(fused, size),
        "resume": partial(command, RESUME.split()),
    }


def main() -> None:
    """Run the parts that there is time for, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="no part begins or goes on after so many")
    parser.add_argument("--toy", action="store_true", help="at a size that a CPU takes")
    parser.add_argument("--only", nargs="*", metavar="PART", help="parts whose names begin so")
    parser.add_argument("--folder", type=Path, help="of data and results; default: a temporary one")
    asked = parser.parse_args()
    if not asked.toy and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here; --toy runs everything at toy size on the CPU")
    size = TOY if asked.toy else FULL
    end = time.monotonic() + 60 * asked.minutes
    with tempfile.TemporaryDirectory() as temporary:
        folder = (asked.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        make_data(size, folder)
        results = []
        for name in parts(size):
            if asked.only and not name.startswith(tuple(asked.only)):
                continue
            results.append(
                {"part": name} | bounded(name, folder, toy=asked.toy, limit_s=min(size.bound_s, end - time.monotonic()))
            )
            with (folder / RESULTS).open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(f"{time.strftime('%Y-%m-%d')}, {machine()}, torch {torch.__version__}, Python {platform.python_version()}\n")
    print("\n".join(table(results)))
    if any("error" in result for result in results):
        raise SystemExit(1)


def bounded(name: str, folder: Path, *, toy: bool, limit_s: float) -> dict[str, Any]:
    """What a part found, in a process of its own; `left out` or `error` says why it found nothing."""
    if limit_s < 5.0:
        return {"left out": "no time left"}
    program = "import sys; from benchmarks import gpu; gpu.one(sys.argv[1], sys.argv[2], sys.argv[3] == 'toy')"
    command = [sys.executable, "-c", program, name, str(folder), "toy" if toy else "full"]
    try:
        told = list(lines_of(command, limit_s=limit_s))
    except TimeoutError as late:
        return {"left out": str(late)}
    except RuntimeError as error:
        return {"error": str(error)}
    found: dict[str, Any] = json.loads(told[-1])
    return found


def one(name: str, folder: str, toy: bool) -> None:
    """A part, in this process; the last line on the standard output is what it found."""
    found = parts(TOY if toy else FULL)[name](Path(folder))
    print(json.dumps(found))


# --- parts ------------------------------------------------------------------------------------------------------------


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def in_windows(run: Callable[[], None], steps: int, images: int) -> dict[str, Any]:
    """Images per second of `run`, a step of so many images: median, least and most of `WINDOWS` windows."""
    found = windows(run, device(), steps=steps, count=WINDOWS).per(images)
    return {"images_per_s": found.median, "least": found.least, "most": found.most}


def spread(rates: list[float]) -> dict[str, Any]:
    return {"images_per_s": statistics.median(rates), "least": min(rates), "most": max(rates)}


def step(row: Row, size: Size, folder: Path) -> dict[str, Any]:
    """Images per second on views that lie on the device, the share of each term, and the memory it held."""
    work = StepAlone(row.config(), device())
    found = in_windows(work.step, size.steps, row.config().batch_size)
    if torch.cuda.is_available():
        found["gpu_peak_bytes"] = torch.cuda.max_memory_allocated()
    seconds = in_turns({"": work.step, **cost.parts(work)}, size.steps, device())
    whole = seconds.pop("").median
    return found | {"shares": {name: part.median / whole for name, part in seconds.items()}}


def compiled(row: Row, way: str, size: Size, folder: Path) -> dict[str, Any]:
    """As `step` with compiled passes, seconds of the first step, and how often a later one waits for the device."""
    if way == "cuda_graphs" and not torch.cuda.is_available():
        return {"left out": "takes a GPU"}
    config = with_changes(row.config(), {"compile": way})
    work = StepAlone(config, device())
    started = time.perf_counter()
    work.step()
    finish(device())
    begun = time.perf_counter() - started
    found = {"first_step_s": begun, **in_windows(work.step, size.steps, config.batch_size)}
    return found | waits_of(work, size.steps) if torch.cuda.is_available() else found


def real(row: Row, size: Size, folder: Path) -> dict[str, Any]:
    """Images per second of `trainers.train.train` within its first epoch, after its first steps."""
    config, dataset = on_data(row, folder)
    every = max(
        1, steps_per_epoch(dataset, config) // (WINDOWS + 1)
    )  # waiting after each step would hide what overlaps
    marks: list[float] = []

    def progress(epoch: int, step: int) -> None:
        if epoch == 0 and step % every == 0:
            finish(device())
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as run:
        outcome = train(
            config,
            dataset=dataset,
            loaders=Loaders(),
            folder=Path(run),
            report=lambda epoch: False,
            progress=progress,
            device=device(),
        )
    if outcome.state != "stopped":
        raise SystemExit(f"{outcome.state}: {outcome.reason}")
    return rates_of(marks, every * config.batch_size)


def loader(row: Row, size: Size, folder: Path) -> dict[str, Any]:
    """Images per second of the loader alone, on the CPU."""
    config, dataset = on_data(row, folder)
    loaders = Loaders()
    every = max(1, steps_per_epoch(dataset, config) // (WINDOWS + 1))
    for _ in loaders.epoch(dataset, config, epoch=0, rank=0, world_size=1):
        break  # compiled
    batches = enumerate(loaders.epoch(dataset, config, epoch=1, rank=0, world_size=1), start=1)
    marks = [time.perf_counter() for number, _ in batches if number % every == 0]
    return rates_of(marks, every * config.batch_size)


def rates_of(marks: list[float], images: int) -> dict[str, Any]:
    """Of the moments at which so many more images were done."""
    return spread([images / (after - before) for before, after in itertools.pairwise(marks)])


def waits(row: Row, size: Size, folder: Path) -> dict[str, Any]:
    """How often the host waits for the device in a step of the loop, as PyTorch tells it."""
    if not torch.cuda.is_available():
        return {"left out": "takes a GPU"}
    work = StepAlone(row.config(), device())
    for _ in range(3):
        work.step()
    return waits_of(work, size.steps)


def waits_of(work: StepAlone, steps: int) -> dict[str, Any]:
    """How often the host waits for the device in a step, and where; of steps that are warm, on a GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(steps):
            work.step()
    torch.cuda.set_sync_debug_mode("default")
    where = sorted({f"{Path(one.filename).name}:{one.lineno}" for one in told})
    return {"waits_per_step": len(told) / steps, "where": where[:5]}


def together(row: Row, size: Size, folder: Path) -> dict[str, Any]:
    """Images per second of several processes at once, all of them, by how many they are."""
    found = {}
    for count in size.together:
        context = get_context("spawn")
        begin, rates = context.Barrier(count), context.Queue()
        processes = [context.Process(target=_apart, args=(row, size, begin, rates)) for _ in range(count)]
        for process in processes:
            process.start()
        found[str(count)] = sum(rates.get() for _ in processes)
        for process in processes:
            process.join()
    alone = found[str(size.together[0])]
    return {"images_per_s_together": found, "ratio": {count: rate / alone for count, rate in found.items()}}


def _apart(row: Row, size: Size, begin: Any, found: Any) -> None:
    torch.set_num_threads(1)
    work = StepAlone(row.config(), device())
    work.step()
    finish(device())
    begin.wait()
    found.put(in_windows(work.step, size.steps, row.config().batch_size)["images_per_s"])


def packing_auto(row: Row, folder: Path) -> dict[str, Any]:
    """How many trials would share the card, or this machine, and what was measured to tell."""
    config, _ = on_data(row, folder)
    asked = Experiment(name="packing", space="kernels", base=config, trials=64)
    found = packing.measured(
        asked, [config], packing.here(), clock=time.monotonic, tell=lambda words: None, limit_s=PACKING_S
    )
    return {"packing": found.model_dump(mode="json"), "words": f"{packed_in_words(found)} ({found.why})"}


def fused(size: Size, folder: Path) -> dict[str, Any]:
    """How many times as fast trials that differ in scalars are in one forward pass, by network and their number."""
    found = fused_trials.rows(size.fused, device(), runs=WINDOWS)
    return {"times_as_fast": {f"{name}, {count}": statistics.median(times) for name, count, times, _ in found}}


def sweep(size: Size, folder: Path) -> dict[str, Any]:
    """Seconds of a whole sweep, and how much of it the card computed."""
    with use_of_the_card() as used:
        found = command(["sweep", *size.sweep.split()], folder)
    shown = run(["show", "sweep", "--json"], folder)
    trials = json.loads(shown)["trials"]
    return found | {"trials": len(trials), "use_percent": statistics.fmean(used) if used else None}


def command(arguments: list[str], folder: Path) -> dict[str, Any]:
    """Seconds that a command of pretune's takes."""
    started = time.perf_counter()
    run(arguments, folder)
    return {"seconds": time.perf_counter() - started}


def run(arguments: list[str], folder: Path) -> str:
    """What it prints. SystemExit where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "pretune", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"pretune {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


@contextmanager
def use_of_the_card() -> Iterator[list[float]]:
    """Percents of the time that the first GPU computes, looked at twice a second while inside."""
    found: list[float] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            told = gpus.look().get("gpus") or []
            if told and told[0]["percent"] is not None:
                found.append(float(told[0]["percent"]))

    watching = threading.Thread(target=look, daemon=True)
    watching.start()
    try:
        yield found
    finally:
        over.set()
        watching.join(15)


# --- data and table ---------------------------------------------------------------------------------------------------


def make_data(size: Size, folder: Path) -> None:
    """Both data sets, of colors that change smoothly, which a JPEG holds as it does a photograph."""
    rng = np.random.default_rng(0)
    if not (folder / "pixels").is_dir():
        count = size.images["pixels"]
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / "pixels.npz", images=images, labels=np.arange(count) % 10)
        datasets.build("npz", source=[folder / "pixels.npz"], out=folder / "pixels", select_images=count // 8)
    if not (folder / "photographs").is_dir() and any(row.data == "photographs" for row in size.rows.values()):
        count = size.images["photographs"]
        for number in range(count):
            place = folder / "files" / f"class-{number % 10}"
            place.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            coarse.resize((341, 256), Image.Resampling.BICUBIC).save(place / f"{number}.jpg", quality=90)
        datasets.build("images", source=[folder / "files"], out=folder / "photographs", select_images=count // 8)


def on_data(row: Row, folder: Path) -> tuple[TrialConfig, Dataset]:
    return request.with_data(row.config(), str(folder / row.data))


def machine() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"no GPU, {platform.processor() or 'CPU'}"


def table(results: list[dict[str, Any]]) -> list[str]:
    """Markdown: a line a part; a real rate has its ratio to the step's."""
    rates = {result["part"]: result["images_per_s"] for result in results if "images_per_s" in result}
    lines = ["| part | result | |", "|:--|:--|:--|"]
    for result in results:
        name = result["part"]
        kind, _, row = name.partition(" ")
        synthetic = rates.get(f"step {row}") if kind in ("real", "compiled", "graphs") and name in rates else None
        ratio = "" if synthetic is None else f"{rates[name] / synthetic:.2f} of the step alone"
        lines.append(f"| {name} | {in_words(result)} | {ratio} |")
    return lines


def in_words(result: dict[str, Any]) -> str:
    """What a part found, on one line."""
    match result:
        case {"error": why}:
            return f"**failed**: {why}"
        case {"left out": why}:
            return f"– ({why})"
        case {"images_per_s": rate, "least": least, "most": most, **more}:
            shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in more.get("shares", {}).items())
            first = f", first step {more['first_step_s']:.0f} s" if "first_step_s" in more else ""
            first += f", {more['waits_per_step']:.1f} waits a step" if "waits_per_step" in more else ""
            memory = f", {more['gpu_peak_bytes'] / 1e9:.1f} GB" if "gpu_peak_bytes" in more else ""
            return f"{rate:,.0f} images/s ({least:,.0f} to {most:,.0f}){memory}{first}" + (
                f"; {shares}" if shares else ""
            )
        case {"waits_per_step": count, "where": where}:
            return f"{count:.1f} a step" + (f": {', '.join(where)}" if where else "")
        case {"ratio": ratios}:
            return ", ".join(f"{count}: {ratio:.2f} times one" for count, ratio in ratios.items())
        case {"packing": {"tried": tried}, "words": words}:
            rates = ", ".join(
                f"{one['copies']}{' under MPS' if one['mps'] else ''}: {one['images_per_s']:,.0f}" for one in tried
            )
            return f"{words}; images/s {rates}"
        case {"times_as_fast": ratios}:
            return "; ".join(f"{name}: {ratio:.2f} times" for name, ratio in ratios.items())
        case {"seconds": seconds, **more}:
            use = more.get("use_percent")
            return f"{seconds:.0f} s" + (f", card in use {use:.0f} %" if use is not None else "")
    return json.dumps(result)


if __name__ == "__main__":
    main()
