"""`pretune train RECIPE --verify-resume`: does a run that is killed and goes on equal one that was never killed?

Not believed but tried, on the user's own recipe and data: one run from start to end, another whose processes kill
themselves (SIGKILL) within its first and within its second epoch and that goes on each time from the newest checkpoint.
All tensors of both final checkpoints and all numbers of all reports are compared bit for bit, times apart.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from pretune.core.errors import RequestError
from pretune.execution import family, launch
from pretune.request import overrides
from trainers.config import TrialConfig
from trainers.report import Checkpoint, EpochReport, Outcome

if TYPE_CHECKING:
    from pretune.execution.worker import Given

EPOCHS = 2
STEPS = 8
"""Of each epoch, where the data has so many: enough to be killed between two checkpoints."""
EVERY_STEPS = 3
WRITTEN_S = 60.0
"""What a checkpoint may take to be written."""


@dataclass(frozen=True)
class Kill:
    """A training that kills its own process, on every rank, once so many optimizer steps are done."""

    step: int

    def __call__(self) -> _Killed:
        return _Killed(self.step)


class _Killed:
    """What `launch` makes in each process: trains as always until that step."""

    def __init__(self, step: int) -> None:
        from pretune.execution.worker import WarmTrainer

        self._train = WarmTrainer()
        self._step = step

    def __call__(self, config: TrialConfig, **given: Unpack[Given]) -> Outcome:
        progress = given["progress"]

        def until(epoch: int, step: int) -> None:
            progress(epoch, step)
            if step == self._step:
                # A thread writes it beside these steps, which may be shorter: the kill is to cost some, not all.
                before = step - 1
                _wait_for(given["folder"] / "checkpoints", epoch, before - before % EVERY_STEPS)
                os.kill(os.getpid(), signal.SIGKILL)

        given["progress"] = until
        return self._train(config, **given)


def _wait_for(checkpoints: Path, epoch: int, step: int) -> None:
    """Until the checkpoint of `step` is whole. RuntimeError after `WRITTEN_S`."""
    from trainers import checkpoint

    until = time.monotonic() + WRITTEN_S
    while True:
        newest = checkpoint.newest_within(checkpoints, epoch=epoch)
        if newest is not None and f"-step-{step:07d}" in newest.path:
            return
        if time.monotonic() > until:
            raise RuntimeError(
                f"the checkpoint of step {step} must be in {checkpoints} within {WRITTEN_S:g} s, but is not"
            )
        time.sleep(0.01)


@dataclass(frozen=True)
class Verdict:
    """What was compared. `difference` is empty where everything was equal, else the first thing that was not."""

    tensors: int
    numbers: int
    difference: str = ""


def shortened(config: TrialConfig, images: int) -> TrialConfig:
    """The recipe in two epochs of at most eight steps, with checkpoints within them, of the `images` that it trains on.

    RequestError if there are too few for as many steps as it takes.
    """
    subset = min(images, STEPS * config.batch_size)
    needed = (EVERY_STEPS + 3) * config.batch_size
    if subset < needed:
        raise RequestError(
            f"--verify-resume kills a run between two checkpoints of an epoch, so there must be at least {needed} "
            f"images at batch_size={config.batch_size}, but there are {subset}; use more, or lower it with "
            f"--set batch_size={max(2, subset // (EVERY_STEPS + 3))}"
        )
    changes = {
        "epochs": EPOCHS,
        "data.subset": subset,
        "probe.every": 1,
        "checkpoint_every": 1,
        "checkpoint_every_steps": EVERY_STEPS,
    }
    return overrides.apply(config, changes)


def run(config: TrialConfig, folder: Path, *, steps: int, workers: int, tell: Callable[[str], None]) -> Verdict:
    """Both runs of `config` (see `shortened`), `steps` to an epoch, below `folder`; `tell` hears what happens.

    Raises family.WorkerFailedError where a run fails by itself, RuntimeError where it ends otherwise than complete.
    """
    tell(f"one run of {EPOCHS} epochs of {steps} steps, {workers} worker(s), never interrupted")
    straight: list[EpochReport] = []
    _complete(_launch(config, folder / "straight", workers, None, straight))

    broken: list[EpochReport] = []
    # Each between a checkpoint and the next: the last steps before a kill are lost and done again.
    kills = [EVERY_STEPS + 2, steps + EVERY_STEPS + 2]
    for kill in kills:
        newest = broken[-1].checkpoint if broken else None
        try:
            _launch(config, folder / "broken", workers, newest, broken, make_train=Kill(kill))
        except family.WorkerFailedError as error:
            if f"died with exit code -{signal.SIGKILL.value}" not in str(error):
                raise
            within = sorted(path.name for path in (folder / "broken" / "checkpoints").glob("*-step-*.pt"))
            tell(f"another one: killed after step {kill}, in epoch {kill // steps + 1}; goes on from {within[-1]}")
        else:
            raise RuntimeError(f"the run was to be killed at step {kill}, but ended by itself")
    newest = broken[-1].checkpoint if broken else None
    _complete(_launch(config, folder / "broken", workers, newest, broken))
    return compare(straight, broken)


def compare(straight: Sequence[EpochReport], broken: Sequence[EpochReport]) -> Verdict:
    """All numbers of all reports, and all of the last checkpoints, bit for bit; times apart."""
    from trainers import checkpoint

    pairs: list[tuple[str, Any, Any]] = []
    for one, other in zip(straight, broken, strict=False):
        pairs += _paired(f"epoch {one.epoch}: ", timeless(one.metrics), timeless(other.metrics))
    states = []
    for reports in (straight, broken):
        last = reports[-1].checkpoint
        assert last is not None  # the end of the last epoch is always saved
        state = checkpoint.load(last)
        state["counters"] = {name: value for name, value in state["counters"].items() if "seconds" not in name}
        states.append({name: state[name] for name in ("counters", "model", "optimizer")})
    pairs += _paired("", *(dict(_leaves("", state)) for state in states))

    tensors = sum(hasattr(one, "untyped_storage") for _, one, _ in pairs)
    if [report.epoch for report in straight] != [report.epoch for report in broken]:
        epochs = [[report.epoch for report in reports] for reports in (straight, broken)]
        return Verdict(tensors, len(pairs) - tensors, f"epochs reported: {epochs[0]} and {epochs[1]}")
    for name, one, other in pairs:
        if not _equal(one, other):
            return Verdict(tensors, len(pairs) - tensors, f"{name}: {_shown(one)} and {_shown(other)}")
    return Verdict(tensors, len(pairs) - tensors)


MACHINE = ("time/", "memory/", "budget/seconds")
"""How names of metrics begin that depend on the machine."""


def timeless(metrics: Mapping[str, float]) -> dict[str, float]:
    """What two equal runs share: all but what clocks and processes say."""
    return {name: value for name, value in metrics.items() if not name.startswith(MACHINE)}


# --- parts ------------------------------------------------------------------------------------------------------------


def _launch(
    config: TrialConfig,
    folder: Path,
    workers: int,
    resume: Checkpoint | None,
    reports: list[EpochReport],
    *,
    make_train: Callable[[], Any] | None = None,
) -> Outcome:
    def report(epoch_report: EpochReport) -> bool:
        reports.append(epoch_report)
        return True

    return launch.run(
        config, folder=folder, workers=workers, resume=resume, report=report, make_train=make_train, apart=True
    )


def _complete(outcome: Outcome) -> None:
    if outcome.state != "complete":
        raise RuntimeError(f"the run {outcome.state} after epoch {outcome.epochs}: {outcome.reason}")


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Nested containers as dotted names and what they end in."""
    if isinstance(value, Mapping):
        items: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        yield prefix, value
        return
    for key, item in items:
        yield from _leaves(f"{prefix}.{key}" if prefix else str(key), item)


def _paired(prefix: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """By name; None where one of them has none of that name."""
    return [(f"{prefix}{name}", one.get(name), other.get(name)) for name in dict.fromkeys([*one, *other])]


def _equal(one: Any, other: Any) -> bool:
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return same and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()
    if isinstance(one, float) and isinstance(other, float):
        return one.hex() == other.hex()
    return type(one) is type(other) and one == other


def _shown(value: Any) -> str:
    import torch

    if isinstance(value, torch.Tensor):
        return f"a tensor of {list(value.shape)} with sum {value.double().sum().item()!r}"
    return repr(value)
