"""What compiling the network gives: a recipe's step as it is, compiled, and as CUDA graphs, one after the other.

Decided is for a whole run: what is gained at each step has to outweigh what the first steps take to compile. No torch
is imported before something is measured.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from trainers.config import TrialConfig

if TYPE_CHECKING:
    import torch

Way = Literal["off", "on", "cuda_graphs"]

LEAST_GAIN = 1.05
"""Times faster that a step has to be, or it might be noise."""
WINDOWS, WINDOW_S, MOST_STEPS = 3, 1.0, 100
"""How often, about how long, and how many steps at most a way is timed at once."""


class Compiled(BaseModel):
    """Seconds on one machine, by `TrialConfig.compile`. A way that could not be compiled is missing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step_s: Mapping[Way, float]
    begin_s: Mapping[Way, float]
    """Of the first step, with whatever was found in the cache on the disk."""

    def fastest(self, steps: int) -> Way:
        """The way in which a run of so many steps takes least; "off" where none gains anything to speak of."""

        def seconds(way: Way) -> float:
            return self.begin_s[way] + steps * self.step_s[way]

        worth = [way for way in self.step_s if self.step_s["off"] / self.step_s[way] >= LEAST_GAIN]
        best: Way = min(worth, key=seconds) if worth else "off"
        return best if seconds(best) < seconds("off") else "off"


def ways(config: TrialConfig, device: torch.device) -> tuple[Way, ...]:
    """Those that `device` can run `config` in, the first one without compiling anything."""
    graphs = device.type == "cuda" and config.accumulate == 1
    return ("off", "on", "cuda_graphs") if graphs else ("off", "on")


def measure(config: TrialConfig, device: torch.device, tell: Callable[[], object]) -> Compiled:
    """Times the steps of `config` on this process, or on all ranks of the process group at once, which must all call
    this. `tell` hears of each step.

    Plain steps are timed before and after the others, and their faster half counts: a machine that got busy does not
    speak for compiling.
    """
    import torch

    from trainers.compiling import CompilationError

    step_s: dict[Way, float] = {}
    begin_s: dict[Way, float] = {}
    for way in (*ways(config, device), "off"):
        try:
            begun, each = _timed(config.model_copy(update={"compile": way}), device, tell)
        except CompilationError:  # on all ranks alike
            continue
        finally:
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
        begin_s[way] = min(begun, begin_s.get(way, begun))
        step_s[way] = min(each, step_s.get(way, each))
    return Compiled(step_s=step_s, begin_s=begin_s)


def _timed(config: TrialConfig, device: torch.device, tell: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the first step and of a later one, of the slowest rank."""
    from trainers import dist
    from trainers.profiling.step import WARM_UP, StepAlone, finish, slowest, windows
    from trainers.train import configure_torch

    configure_torch(config, device)
    work = StepAlone(config, device)

    def step() -> None:
        work.step()
        tell()

    started = time.perf_counter()
    step()
    finish(device)
    begun = time.perf_counter() - started
    for _ in range(WARM_UP):
        step()
    finish(device)
    started = time.perf_counter()
    step()
    finish(device)
    about = dist.broadcast_object(time.perf_counter() - started)
    count = min(MOST_STEPS, max(1, round(WINDOW_S / max(1e-6, about))))
    each = windows(step, device, steps=count, count=WINDOWS)
    return slowest([begun])[0], each.median
