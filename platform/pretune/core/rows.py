"""What passes between the conductor and a slot: a `Handout` goes out, `Row`s come back.

Ray Tune stands between the two and carries plain dicts only: a trial's config one way, its results the other, to which
it adds keys of its own and whose nested values it flattens. Each value knows its form as such a dict; `slot.py` and
`tuning.py` turn it at once into the value again, so that nothing else reads a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from trainers.report import Checkpoint

RowOutcome = Literal["running", "complete", "diverged", "collapsed", "out_of_memory", "failed", "disk_full", "no_room"]
"""What became of a trial, as its slot knows it. `disk_full` and `no_room` end the row, not the trial: it can go on."""

_METRICS, _CHECKPOINT = "metrics/", "checkpoint/"


@dataclass(frozen=True)
class Handout:
    """One trial for a free slot."""

    number: int
    config: dict[str, Any]
    """A TrialConfig as JSON values; checked again where it lands."""
    params: dict[str, Any]
    """What was sampled, so that Tune's own files can be read."""
    folder: str
    """Its name below the sweep's `trials`."""
    resume: Checkpoint | None = None
    """Where it goes on from."""
    attempt: int = 0
    """So many slots have taken it before."""

    def to_config(self) -> dict[str, Any]:
        """As the config of a trial of Tune's."""
        return {
            "number": self.number,
            "config": self.config,
            "params": self.params,
            "folder": self.folder,
            "resume": None if self.resume is None else self.resume.model_dump(mode="json"),
            "attempt": self.attempt,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Handout:
        """Back from a trial's config."""
        resume = config["resume"]
        return cls(
            number=config["number"],
            config=config["config"],
            params=config["params"],
            folder=config["folder"],
            resume=None if resume is None else Checkpoint.model_validate(resume),
            attempt=config["attempt"],
        )


@dataclass(frozen=True)
class Row:
    """What a slot tells of its trial: after each epoch, and once more when the trial ends by itself.

    The last row has another outcome than "running" and repeats the last epoch's metrics. The first one after a start
    of the slot's group has the start's seconds as time/group_start_s, and the slot's memory beside its workers as
    memory/slot_bytes.
    """

    number: int
    epoch: int
    """Epochs finished."""
    outcome: RowOutcome = "running"
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Those of the EpochReport."""
    checkpoint: Checkpoint | None = None
    """The newest one."""
    reason: str = ""
    """Why it ended; in a row that follows a failure, the failure's text."""
    traceback: str = ""
    """Of that failure, where there is one."""
    failures: int = 0
    """So far, since this slot took the trial."""
    group_starts: int = 0
    """Of this slot, in all."""

    @property
    def done(self) -> bool:
        """No other row follows."""
        return self.outcome != "running"

    def to_result(self) -> dict[str, Any]:
        """As a result of a trial of Tune's, flat already."""
        checkpoint = {} if self.checkpoint is None else self.checkpoint.model_dump(mode="json")
        return {
            "number": self.number,
            "epoch": self.epoch,
            "outcome": self.outcome,
            "reason": self.reason,
            "traceback": self.traceback,
            "failures": self.failures,
            "group_starts": self.group_starts,
            "done": self.done,
            **{f"{_METRICS}{name}": value for name, value in self.metrics.items()},
            **{f"{_CHECKPOINT}{name}": value for name, value in checkpoint.items()},
        }

    @classmethod
    def from_result(cls, number: int, result: Mapping[str, Any]) -> Row:
        """Back from a result of trial `number`, whatever Tune has added. Until the slot's first row Tune's own result
        says nothing of ours: the trial is running, in no epoch yet.

        ValueError where the outcome is none of those above.
        """
        outcome = result.get("outcome", "running")
        if outcome not in get_args(RowOutcome):
            raise ValueError(
                f"outcome must be one of {', '.join(get_args(RowOutcome))}, but trial {number} has {outcome!r}"
            )
        checkpoint = _below(_CHECKPOINT, result)
        return cls(
            number=number,
            epoch=result.get("epoch", 0),
            outcome=outcome,
            metrics=_below(_METRICS, result),
            checkpoint=Checkpoint.model_validate(checkpoint) if checkpoint else None,
            reason=result.get("reason", ""),
            traceback=result.get("traceback", ""),
            failures=result.get("failures", 0),
            group_starts=result.get("group_starts", 0),
        )


def _below(prefix: str, result: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in result.items() if name.startswith(prefix)}
