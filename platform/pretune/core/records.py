"""What a journal's lines say: its records.

Records, in the order in which a trial meets them: `opened` (once, first), `asked`, `started` (each attempt), `epoch`,
`attempt` (a failure that is retried or given up), `condemned` (it would have been stopped), `ended`, `extended` (it is
to train longer); of people `stop` and `enqueued` (requests.py); and of drivers `resumed` and `closed`. Each class below
says what its fields mean.

Paths in a line are relative to the sweep; a record in memory has them where the sweep lies now, and `opened` its
present name and place (place.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from pretune.core.experiment import Experiment
from pretune.core.forecast import Forecast
from pretune.core.packing import Packing
from pretune.core.place import Place
from pretune.core.upgrade import FORMAT, this_version
from trainers.report import Checkpoint

End = Literal["COMPLETE", "PRUNED", "INFEASIBLE", "FAIL"]


class Stored(BaseModel):
    """A value that is written as JSON, here and in files beside a journal, and read back strictly."""

    # "strings": a diverged loss is written as "NaN", which is still JSON, and read back as a number.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class _Record(Stored):
    time: float = 0.0
    """Unix seconds at which it was written; set by `append`."""

    @cached_property
    def unknown(self) -> dict[str, Any]:
        """Keys that this version does not know, by dotted path, of a record that was read."""
        # No field, and no private attribute: to give each record one takes twice as long as to read it.
        return {}


class Opened(_Record):
    """The first line. `format` is of this record and those up to the next `resumed`. `host` holds facts about the
    machine, kept apart: journals compare without them.
    """

    kind: Literal["opened"] = "opened"
    format: int = FORMAT
    experiment: Experiment
    versions: dict[str, str] = {}
    sources: dict[str, str] = {}
    """Hashes of the files that decide what is computed; none in older journals."""
    host: dict[str, str] = {}
    forecast: Forecast | None = None
    """What it was said to take, before it began; none in older journals."""
    packing: Packing | None = None
    """How its trials share a GPU, where that was asked for (`--pack`); the experiment has it already."""


class Asked(_Record):
    """The sampler's proposal. Trial numbers count from 0 without gaps.

    `distributions` are Optuna's, as its own JSON; of a choice `params` have its label (`core.parameters`). `config` is
    None where the space refused the parameters; an `Ended` follows. `duplicate_of` is the first trial with equal
    parameters or an equal config, if any.
    """

    kind: Literal["asked"] = "asked"
    number: int
    params: dict[str, Any]
    distributions: dict[str, str]
    config: dict[str, Any] | None
    duplicate_of: int | None = None
    enqueued: str | None = None
    """The request of the `Enqueued` whose configuration this is; None where the proposer proposed it."""


class Started(_Record):
    """A slot took the trial. `attempt` counts from 0; `epoch` is the number of finished epochs it goes on from."""

    kind: Literal["started"] = "started"
    number: int
    attempt: int
    epoch: int


class Epoch(_Record):
    """One finished epoch's numbers, each epoch of a trial once."""

    kind: Literal["epoch"] = "epoch"
    number: int
    epoch: int
    metrics: dict[str, float]
    checkpoint: Checkpoint | None = None


class Attempt(_Record):
    """A failure that is not the configuration's fault (lost worker, bug, lost slot), the `failures`-th of its trial."""

    kind: Literal["attempt"] = "attempt"
    number: int
    failures: int
    reason: str


class Condemned(_Record):
    """The stopping rule would have stopped the trial after `epoch`, at `rung`, but it lives on to its own end, for an
    audit of the rule.
    """

    kind: Literal["condemned"] = "condemned"
    number: int
    epoch: int
    rung: int
    reason: str


class Ended(_Record):
    """A trial is over. `value` is what Optuna is told for COMPLETE; `rung` is where the stopping rule stopped a PRUNED
    trial, None where something else did.
    `result_of` is the trial of an equal config whose result this is, with its epochs: it was not run again.
    """

    kind: Literal["ended"] = "ended"
    number: int
    state: End
    value: float | None = None
    reason: str = ""
    rung: int | None = None
    result_of: int | None = None


class Extended(_Record):
    """A finished trial is to train longer: on from `checkpoint`, the last before its decay, as `config` says. It comes
    before the trial's next `started`, and another `ended` follows. With `continued` it is one that the hours had ended:
    as if it had been interrupted, it goes on as it was, under the same rules.
    """

    kind: Literal["extended"] = "extended"
    number: int
    config: dict[str, Any]
    checkpoint: Checkpoint
    continued: bool = False


class StopRequested(_Record):
    """Somebody wants trial `number` to end: at its next report where it runs, else at once; an `Ended` follows. By
    `request` whoever asked finds this line.
    """

    kind: Literal["stop"] = "stop"
    request: str
    number: int
    reason: str = ""
    no_driver: bool = False
    """It was written while no driver ran: it and what follows, up to the next `resumed`, takes no time."""


class Enqueued(_Record):
    """Somebody hands in a configuration to be tried next, one trial more than were asked for. `params` and
    `distributions` are as for `Asked`, and empty where the configuration is no point of the space.
    """

    kind: Literal["enqueued"] = "enqueued"
    request: str
    config: dict[str, Any]
    params: dict[str, Any] = {}
    distributions: dict[str, str] = {}
    no_driver: bool = False
    """As for `StopRequested`."""


class Resumed(_Record):
    """A driver took the sweep up again. `trials` is the number of trials asked for from now on, `max_hours` the hours
    in all, `packing` how trials share a GPU from now on, None where they stay as they were; `format` is as for
    `Opened`.
    """

    kind: Literal["resumed"] = "resumed"
    format: int = FORMAT
    trials: int
    max_hours: float | None = None
    packing: Packing | None = None
    versions: dict[str, str] = {}
    sources: dict[str, str] = {}
    host: dict[str, str] = {}


class Closed(_Record):
    """A driver left the sweep in order. `exhausted`: a finite space has no more points; `out_of_time`: trials are left
    that would not finish in the sweep's hours.
    """

    kind: Literal["closed"] = "closed"
    reason: Literal["finished", "exhausted", "out_of_time", "interrupted", "failed"]
    detail: str = ""


class Unknown(_Record):
    """A record that only a later version understands, with all it says. It is read and never written."""

    kind: str
    content: dict[str, Any]


Known = Annotated[
    Opened
    | Asked
    | Started
    | Epoch
    | Attempt
    | Condemned
    | Ended
    | Extended
    | StopRequested
    | Enqueued
    | Resumed
    | Closed,
    Field(discriminator="kind"),
]
Record = Known | Unknown
KNOWN: TypeAdapter[Known] = TypeAdapter(Known)
KINDS = {
    *("opened", "asked", "started", "epoch", "attempt", "condemned", "ended", "extended"),
    *("stop", "enqueued", "resumed", "closed"),
}


@dataclass(frozen=True)
class Later:
    """What a journal has that this version does not know: a later one wrote it. `version` of pretune wrote in it last;
    `keys` are dotted paths that begin with the kind of their record.
    """

    format: int
    version: str
    kinds: tuple[str, ...]
    keys: tuple[str, ...]

    def notices(self) -> list[str]:
        """What is left out where the journal is shown, a line for each reason."""
        here = f"this version of pretune ({this_version()})"
        lines = []
        if self.format > FORMAT:
            lines.append(
                f"this journal has format {self.format}, written by pretune {self.version}; {here} reads up to format "
                f"{FORMAT} and shows what it understands"
            )
        if self.kinds:
            lines.append(f"this journal has records that {here} does not know: {', '.join(self.kinds)}")
        if self.keys:
            lines.append(f"this journal has keys that {here} does not know: {', '.join(self.keys)}")
        return lines

    def refusal(self) -> str | None:
        """Why this version must not go on with the sweep, and which one can; None where it may: an unknown key that is
        no setting of a trial or of the sweep only informs.
        """
        settings = [key for key in self.keys if key.startswith(_SETTINGS)]
        if self.format <= FORMAT and not self.kinds and not settings:
            return None
        return f"{'; '.join(self.notices())}. To go on with it, use pretune {self.version} or a later one"


_SETTINGS = ("opened.experiment.", "asked.config.", "extended.config.", "enqueued.config.")


def later(records: Iterable[Record]) -> Later | None:
    """What a later version has put into a journal of these records; None where all of it is understood."""
    found = NotUnderstood()
    for record in records:
        found.see(record)
    return found.later()


class NotUnderstood:
    """Collects what a later version has put into a journal, of one record after another."""

    def __init__(self) -> None:
        self._format, self._version = 0, ""
        self._kinds: dict[str, None] = {}
        self._keys: dict[str, None] = {}

    def see(self, record: Record) -> None:
        if isinstance(record, Unknown):
            self._kinds[record.kind] = None
        if record.kind in ("opened", "resumed"):
            said = record.content if isinstance(record, Unknown) else dict(record)
            self._format = said.get("format", self._format)
            self._version = said.get("versions", {}).get("pretune", "unknown")
        if "unknown" in vars(record):  # few have any
            for path in record.unknown:
                self._keys[f"{record.kind}.{path}"] = None

    def later(self) -> Later | None:
        """As the function `later`, of what was seen."""
        if self._format <= FORMAT and not self._kinds and not self._keys:
            return None
        return Later(self._format, self._version, tuple(self._kinds), tuple(self._keys))


def place_of(opened: Opened, found: Place) -> Place:
    """Of a sweep that was `found` there: its remote is that of its first record, where no other one was named."""
    return found if found.remote is not None else Place(found.folder, opened.experiment.remote)


def with_paths(record: Record, change: Callable[[Checkpoint], Checkpoint]) -> Record:
    """`record` with the paths in it changed."""
    if isinstance(record, Epoch | Extended) and record.checkpoint is not None:
        return record.model_copy(update={"checkpoint": change(record.checkpoint)})
    return record
