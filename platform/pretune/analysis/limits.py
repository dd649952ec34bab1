"""What limits a training, said in one word and one sentence, with what to do about it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainers.profiling.figures import Figures

LOADER, COMPUTE = "loader-limited", "compute-limited"
WAITING = 0.10
"""From this share of the time on in which a batch is waited for, the loader is what limits."""
LARGE = 0.25
"""From this share of an epoch on, any other part is."""
IDLE = 0.25
"""Below this share of the peak FLOP/s a GPU has room for more at once."""


def word(wait_share: float) -> str:
    """Which of the two limits a training that waits for batches in this share of its time."""
    return LOADER if wait_share >= WAITING else COMPUTE


def in_words(wait_shares: Sequence[float]) -> str | None:
    """`loader-limited, waits 31 %`, of the shares of all trainings that run; None where none is told."""
    told = [share for share in wait_shares if math.isfinite(share)]
    if not told:
        return None
    mean = statistics.fmean(told)
    return f"{word(mean)}, waits {_percent(mean)}"


@dataclass(frozen=True)
class Limit:
    """The part of an epoch that a remedy pays most for."""

    word: str
    """`loader-limited`, `compute-limited`, or what else it is."""
    share: float
    """Of an epoch, probe and checkpoint included."""
    sentence: str
    remedy: str


def limit(found: Figures) -> Limit:
    """Of all that takes more than it should, what takes most of an epoch; the network itself where nothing does."""
    large = [one for one in _avoidable(found) if one.share >= (WAITING if one.word == LOADER else LARGE)]
    return max(large, key=lambda one: one.share, default=None) or _computing(found)


def _avoidable(found: Figures) -> Iterator[Limit]:
    of_epoch = found.steps / found.epoch_s
    """Times the seconds of something in each step: its share of an epoch."""
    gpu = found.gpu_peak_bytes is not None
    yield Limit(
        LOADER,
        found.wait_s.median * of_epoch,
        f"{_percent(found.wait_share)} of a step a batch is waited for; the loader alone gives "
        f"{_rate(found, found.loader_s.median)}, and the model would take {_rate(found, found.synthetic_s.median)}",
        _more_loader(found),
    )
    yield Limit(
        "limited by what is around the step" if gpu else "limited by the cores",
        found.beside_s * of_epoch,
        f"beside waiting, a step of training takes {1.0 + found.beside_s / found.synthetic_s.median:.2f} times what it "
        f"takes alone: {'the host cannot keep up' if gpu else f'loader and step share {found.cores} core(s)'}",
        "larger batches, so that the host has less to do for each image"
        if gpu
        else "fewer workers or trials at once on these cores, or cheaper views",
    )
    whole = found.step.whole.median

    def in_the_step(what: str, seconds: float, told: str, remedy: str) -> Limit:
        share = f"{told} {_percent(seconds / whole)} of the step"
        return Limit(f"limited by {what}", seconds * of_epoch, share, remedy)

    for name, term in found.step.terms.items():
        yield in_the_step(
            "a term",
            term.forward.median + term.backward.median,
            f"the term {name} takes",
            "fewer dimensions or groups for it (`pretune list` and the reference, Terms), or compare without it: "
            f"pretune ablate RECIPE --leave-out objective.{name}",
        )
    yield in_the_step(
        "the optimizer",
        found.step.optimizer.median,
        "the optimizer takes",
        "larger batches, so that it moves the parameters less often",
    )
    if found.step.sentinel is not None:
        less = "let it look less often: sentinel.every"
        yield in_the_step("the sentinel", found.step.sentinel.median, "the sentinel's looks take", less)
    if found.step.collectives is not None:
        yield Limit(
            "limited by communication",
            found.step.collectives * of_epoch,
            f"a collective is under way in {_percent(found.step.collectives / found.real_s.median)} of a step",
            "fewer workers, larger batches, or a faster connection",
        )
    probe_s = found.probe_s.median / found.probe_every
    yield Limit(
        "limited by the probe",
        probe_s / found.epoch_s,
        f"the probe takes {_percent(probe_s / found.epoch_s)} of an epoch",
        "probe less often (probe.every), or on fewer images (probe.train_images, probe.select_images)",
    )
    begin = _percent(found.boundary_s.median / found.epoch_s)
    save_s = found.checkpoint_s.median / found.checkpoint_every
    yield Limit(
        "limited by checkpoints",
        save_s / found.epoch_s,
        f"checkpoints take {_percent(save_s / found.epoch_s)} of an epoch",
        "write them less often (checkpoint_every), or to a faster disk",
    )
    yield Limit(
        "limited by short epochs",
        found.boundary_s.median / found.epoch_s,
        f"an epoch has {found.steps} step(s), and to begin takes {begin} of it",
        "more images, or smaller batches",
    )


def _computing(found: Figures) -> Limit:
    share = found.step.network / found.step.whole.median
    reached = found.flops / found.synthetic_s.median / found.peak
    which = "measured here" if found.published_peak is None else "stated for the card"
    return Limit(
        COMPUTE,
        found.steps * found.synthetic_s.median * share / found.epoch_s,
        f"the network's passes take {_percent(share)} of the step, at {_percent(reached)} of the peak FLOP/s {which}",
        _faster(found, reached),
    )


def _faster(found: Figures, reached: float) -> str:
    first = ["compiled passes where they are faster here (--compile auto)"] if found.compile == "off" else []
    if found.gpu_peak_bytes is None:
        first.append("a GPU")
    elif found.precision == "float32":
        return " and ".join(["precision=bf16, whose products run on tensor cores", *first])
    elif reached < IDLE:
        first += ["larger batches", "or several trials on the card (pretune sweep --pack auto)"]
        return ", ".join(first)
    else:
        first.append("a faster card")
    return f"{', '.join(first)}, a smaller network, or smaller views; nothing else is in the way"


def _more_loader(found: Figures) -> str:
    free = found.cores // found.workers
    cheaper = "cheaper views: smaller, with less blur and jitter"
    if found.threads < free:
        more = f"threads={free}, now {found.threads}; {found.cores} cores for {found.workers} worker(s)"
        return f"more threads for each worker ({more}), or {cheaper}"
    return f"more cores for each worker, or {cheaper}"


def _rate(found: Figures, seconds: float) -> str:
    return f"{found.batch_size / seconds:,.0f} images/s"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
