"""What a profile measures, as values. Readable without torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict

STAGES = ("start-up", "training", "loader alone", "model alone", "parts of the step", "trace")
"""What is measured, in order."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(_Value):
    """Of several measurements of the same thing."""

    median: float
    least: float
    most: float
    count: int
    """How many there were."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(median=statistics.median(values), least=min(values), most=max(values), count=len(values))

    def times(self, factor: float) -> Spread:
        return Spread(median=factor * self.median, least=factor * self.least, most=factor * self.most, count=self.count)

    def per(self, amount: float) -> Spread:
        """`amount` over each: of seconds that so much took, a rate."""
        return Spread(median=amount / self.median, least=amount / self.most, most=amount / self.least, count=self.count)


class TermCost(_Value):
    """Seconds of one term of the objective in a step, on outputs that are there: down to them and no further."""

    forward: Spread
    backward: Spread


class StepCost(_Value):
    """A step on views that lie on the device already, and its parts, each alone; seconds."""

    whole: Spread
    """Of a step that is waited for, as are its parts: on a GPU more than of many in a row."""
    terms: Mapping[str, TermCost]
    optimizer: Spread
    """Moving the parameters, and the teacher where there is one."""
    sentinel: Spread | None
    """One look, shared among the steps between two; None where there is none."""
    collectives: float | None
    """A step's seconds in which a collective was under way, waiting for other workers and what is computed meanwhile
    included; None with one worker.
    """

    @property
    def network(self) -> float:
        """What is left of the step: forward and backward through the network, clipping, the terms' own numbers."""
        parts = [self.optimizer, *([] if self.sentinel is None else [self.sentinel])]
        parts += [part for term in self.terms.values() for part in (term.forward, term.backward)]
        return max(0.0, self.whole.median - sum(part.median for part in parts))


class Figures(_Value):
    """All of a profile. Rates are those of all workers together, a part's seconds those of the slowest worker."""

    device: str
    """`cpu`, or the card's name."""
    cores: int
    """Of this machine, that its processes may use."""
    workers: int
    threads: int
    precision: str
    compile: str = "off"
    batch_size: int
    views: int
    images: int
    """To pretrain on."""
    steps: int
    """In an epoch of these."""
    epochs: int

    loader_s: Spread
    """Seconds for a batch from the loader alone, in the midst of an epoch."""
    first_batch_s: Spread
    """Seconds to an epoch's first batch."""
    synthetic_s: Spread
    """Seconds of a step on views that lie on the device, many in a row."""
    real_s: Spread
    """Seconds of a step of real training, in the midst of an epoch."""
    wait_s: Spread
    """Of `real_s`, in which the next batch was waited for."""
    step: StepCost

    boundary_s: Spread
    """Seconds that an epoch takes beside its steps, before probe and checkpoint: mostly its first batch."""
    probe_s: Spread
    """Seconds of an epoch's probes and health, in proportion to `probed_share`."""
    probed_share: float
    """Of the images that a probe sees, the share that was measured."""
    full_probe_s: float
    """Seconds that the last epoch's full probes take beside these."""
    probe_every: int
    checkpoint_s: Spread
    """Seconds until a checkpoint is written and the epoch told of."""
    checkpoint_every: int
    checkpoint_bytes: float
    startup_s: Mapping[str, float]
    """From the start of the process to the end of the first step, by part, in order."""

    host_peak_bytes: float
    gpu_peak_bytes: float | None
    flops: float
    """Floating-point operations of a step in matrix products, convolutions and attention, all workers together."""
    measured_peak: float
    """FLOP/s of a large matrix product in `precision` here, all workers at once."""
    published_peak: float | None
    """FLOP/s that the card's maker states for `precision` without sparsity, all workers' cards; None where unknown."""

    def rate(self, seconds: Spread) -> Spread:
        """Images per second, of seconds for a batch."""
        return seconds.per(self.batch_size)

    @property
    def wait_share(self) -> float:
        """Of real training in the midst of an epoch, the share in which a batch was waited for."""
        return min(1.0, self.wait_s.median / self.real_s.median)

    @property
    def unsteadiness(self) -> float:
        """How many times as long as in the fastest window loader, step or training took in the slowest."""
        return max(one.most / one.least for one in (self.loader_s, self.synthetic_s, self.real_s))

    @property
    def beside_s(self) -> float:
        """What a step of real training takes beside its waiting and what it takes on views that are there: numbers that
        are kept, and whatever loader and step take from each other.
        """
        return max(0.0, self.real_s.median - self.wait_s.median - self.synthetic_s.median)

    @property
    def epoch_s(self) -> float:
        """Of an epoch of the recipe's, as it would be on these images: steps, boundary, its share of probe and
        checkpoint.
        """
        return (
            self.steps * self.real_s.median
            + self.boundary_s.median
            + self.probe_s.median / self.probe_every
            + self.checkpoint_s.median / self.checkpoint_every
        )

    @property
    def peak(self) -> float:
        """FLOP/s that achieved ones are set against: published ones where they are known."""
        return self.measured_peak if self.published_peak is None else self.published_peak
