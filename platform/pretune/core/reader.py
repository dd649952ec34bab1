"""Makes records of a journal's lines, whatever version wrote them.

What other versions wrote is read as far as it is understood (upgrade.py): an older record is brought up to date, a
later one's unknown keys are set aside, and a record that only a later version understands becomes an `Unknown`.

A large sweep's lines are mostly alike, and a line's checksum says that it is as it was written: an epoch's line is
looked at for the few numbers that a sweep is judged by and left on the disk, and of a trial that was asked what it has
in common with others is known by its text. Whatever looks otherwise gets a closer look.
"""

from __future__ import annotations

import json
import os
import re
import weakref
from collections.abc import Hashable, ItemsView, Iterator, Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.lines import HEAD, Lines
from pretune.core.place import Place
from pretune.core.records import (
    KINDS,
    KNOWN,
    Asked,
    Enqueued,
    Epoch,
    Extended,
    Opened,
    Record,
    Resumed,
    Unknown,
    place_of,
    with_paths,
)
from pretune.core.upgrade import FORMAT, this_version, upgrade
from trainers.config import TrialConfig
from trainers.report import Checkpoint
from trainers.upgrade import drop_unknown, understood

_EPOCHS_SINCE = 2
"""The format since which an epoch's line is as it is now, but for the path in it."""

# An epoch's line, up to its numbers and after them.
_EPOCH = re.compile(rb'\{"time":([-+.e\d]+),"kind":"epoch","number":(\d+),"epoch":(\d+),"metrics":\{')
_OPENING = ord("{")
_CHECKPOINT_KEY = b',"checkpoint":'
_CHECKPOINT = re.compile(rb'%b(null|\{"path":"[^"{}\\]*","sha256":"[^"{}\\]*","epoch":\d+\})\}' % _CHECKPOINT_KEY)

# The line of a trial that was asked, up to its parameters, between them and its config, and after that.
_ASKED = re.compile(rb'\{"time":([-+.e\d]+),"kind":"asked","number":(\d+),"params":')
_DISTRIBUTIONS, _CONFIG, _DUPLICATE = b',"distributions":', b',"config":', b',"duplicate_of":'
_ASKED_END = re.compile(rb'%b(?:null|(\d+)),"enqueued":(?:null|"([^"\\]*)")\}' % _DUPLICATE)

_METRICS = TypeAdapter(dict[str, float])
_TEXTS = TypeAdapter(dict[str, str])
_VALUES = TypeAdapter(dict[str, Any])


class Source:
    """An open journal, from which epochs that stay on the disk are read: where the sweep lies, and the metric that is
    searched for. It is closed with the last epoch that lies in it, or by `close`.
    """

    def __init__(self, handle: int, place: Place, metric: str) -> None:
        """`handle` is a file's, and this one's own from now on."""
        self.place, self.metric = place, metric
        self.key = _key(metric)
        self._handle = handle
        self.close = weakref.finalize(self, os.close, handle)

    def bytes(self, begin: int, count: int) -> bytes:
        if not self.close.alive:
            raise ValueError("the journal is closed")
        return os.pread(self._handle, count, begin)


class StoredEpoch(Mapping[str, float]):
    """An `Epoch` that stays on the disk: it is the mapping of its own `metrics`, read when a number is asked for. Only
    the searched metric, which makes curves and decisions, is at hand.

    Of a large sweep nearly all lines are epochs, and who shows it needs the last of each trial.
    """

    __slots__ = ("_begin", "_checkpoint", "_count", "_source", "_value", "epoch", "number", "time")

    kind: ClassVar[Literal["epoch"]] = "epoch"

    def __init__(
        self,
        source: Source,
        time: float,
        number: int,
        epoch: int,
        value: float | None,
        begin: int,
        count: int,
        checkpoint: int,
    ) -> None:
        """`value` is that of the searched metric, None where it was not measured. The bytes of `metrics` begin at
        `begin` and are `count`, those of its checkpoint, which follow, are `checkpoint`, 0 where it has none.
        """
        self._source, self.time, self.number, self.epoch = source, time, number, epoch
        self._value, self._begin, self._count, self._checkpoint = value, begin, count, checkpoint

    @property
    def metrics(self) -> Mapping[str, float]:
        return self

    @property
    def has_checkpoint(self) -> bool:
        return self._checkpoint > 0

    def read_checkpoint(self) -> Checkpoint:
        """Of one that has a checkpoint."""
        assert self.has_checkpoint
        return self._checkpoint_of(
            self._source.bytes(self._begin + self._count + len(_CHECKPOINT_KEY), self._checkpoint)
        )

    def read_metrics(self) -> dict[str, float]:
        return _METRICS.validate_json(self._source.bytes(self._begin, self._count))

    def read_both(self) -> tuple[dict[str, float], Checkpoint]:
        """The metrics and the checkpoint, of one that has both, in one go."""
        assert self.has_checkpoint
        begin = self._count + len(_CHECKPOINT_KEY)
        found = self._source.bytes(self._begin, begin + self._checkpoint)
        return _METRICS.validate_json(found[: self._count]), self._checkpoint_of(found[begin:])

    def _checkpoint_of(self, text: bytes) -> Checkpoint:
        found = from_json(text)
        return Checkpoint(path=self._source.place.path(found["path"]), sha256=found["sha256"], epoch=found["epoch"])

    def whole(self) -> Epoch:
        """The same, all of it in memory."""
        return Epoch.model_construct(
            time=self.time,
            number=self.number,
            epoch=self.epoch,
            metrics=self.read_metrics(),
            checkpoint=self.read_checkpoint() if self.has_checkpoint else None,
        )

    def __getitem__(self, name: str) -> float:
        if name == self._source.metric:
            if self._value is None:
                raise KeyError(name)
            return self._value
        metrics = self._source.bytes(self._begin, self._count)
        found = _number_in(metrics, _key(name), 0, len(metrics))
        return self.read_metrics()[name] if found is None else found

    def items(self) -> ItemsView[str, float]:
        return self.read_metrics().items()  # read once, and not once for each

    def __iter__(self) -> Iterator[str]:
        return iter(self.read_metrics())

    def __len__(self) -> int:
        return len(self.read_metrics())


@lru_cache(maxsize=1024)
def _key(metric: str) -> bytes:
    """A metric's name as it stands in an epoch's line."""
    return json.dumps(metric, ensure_ascii=False).encode() + b":"


def _number_in(body: bytes, key: bytes, begin: int, end: int) -> float | None:
    """The number under `key` in the metrics that lie from `begin` to `end`; None where a first look does not find it.
    ValueError where it is none.
    """
    # Within a name a quotation mark has a backslash before it.
    found = body.find(key, begin, end)
    if found <= begin or body[found - 1] not in b"{,":
        return None
    found += len(key)
    comma = body.find(b",", found, end)
    text = body[found : comma if comma >= 0 else end - 1]
    return float(text[1:-1] if text.startswith(b'"') else text)


def _value_in(body: bytes, source: Source, begin: int, end: int) -> float | None:
    """The searched metric in the metrics of an epoch's line, which lie from `begin` to `end`, where `_number_in` has
    not found it; None where it was not measured. ValueError where they are no numbers.
    """
    if body.find(b"\\", begin, end) < 0 and body.find(source.key[:-1], begin, end) < 0:
        return None
    return _METRICS.validate_json(body[begin:end]).get(source.metric)


def records(lines: Lines, reader: Reader) -> Iterator[Any]:
    """What `lines` say. RequestError as for `read`."""
    path, begin = lines.path, lines.size
    for body in lines:
        if lines.count == 1:
            _check_first(path, json.loads(body))
        try:
            epoch = reader.stored(begin + HEAD, body)
            yield reader.read(body) if epoch is None else epoch
        except ValidationError as error:
            raise RequestError(
                f"{path}: line {lines.count}, of format {reader.format}, was written by pretune {reader.version} "
                f"and is not understood: {error}; use that version (this is {this_version()})"
            ) from error
        begin = lines.size


class Reader:
    """Makes records of lines, one after another, whatever version wrote them; knows who wrote the last one."""

    def __init__(self, place: Place, file: BinaryIO | None = None) -> None:
        """`file` is where the lines are, if epochs are to stay there as far as they can."""
        self.place = place
        self.format = 0
        self.version = "unknown"
        self._file = file
        self._source: Source | None = None
        self._space = ""
        self._base: dict[str, Any] = {}
        self._common = _Common({})
        self._understood: set[Hashable] = set()
        """Parts of configs without an unknown key, by their names and what keys they have."""
        self._distributions: dict[bytes, dict[str, str]] = {}
        """By how they stand in a line: most trials have the same."""
        self._texts: dict[str, str] = {}

    def close(self) -> None:
        """Epochs that stayed on the disk can no longer be read."""
        if self._source is not None:
            self._source.close()

    def stored(self, begin: int, body: bytes) -> StoredEpoch | None:
        """An epoch's line that needs no closer look, its record at `begin` in the file."""
        source = self._source
        if source is None or not _EPOCHS_SINCE <= self.format <= FORMAT:
            return None
        head = _EPOCH.match(body)
        if head is None:
            return None
        metrics = head.end()
        end = body.find(b"}", metrics)
        tail = _CHECKPOINT.fullmatch(body, end + 1)
        if tail is None or body.find(b"{", metrics, end) >= 0:
            return None
        first, last = tail.span(1)
        time, number, epoch = head.groups()
        try:
            value = _number_in(body, source.key, metrics - 1, end + 1)
            return StoredEpoch(
                source,
                float(time),
                int(number),
                int(epoch),
                _value_in(body, source, metrics - 1, end + 1) if value is None else value,
                begin + metrics - 1,
                end - metrics + 2,
                0 if body[first] != _OPENING else last - first,
            )
        except ValueError:  # no number
            return None

    def read(self, body: bytes) -> Record:
        """The next line's record. ValidationError where it is not understood, and the sweep not without it."""
        try:
            record: Record | None = self._asked(body)
        except ValueError:
            record = None
        if record is not None:
            return record
        record = self._todays(body)
        if record is None:
            record = with_paths(self._another(json.loads(body)), self.place.absolute)
        if isinstance(record, Opened):
            self.place = place_of(record, self.place)
            record = record.model_copy(update={"experiment": record.experiment.at(self.place)})
            self._begin(record.experiment)
        elif isinstance(record, Asked | Extended | Enqueued) and record.config is not None:
            record.unknown.update(self._share(record.config))
        if isinstance(record, Asked | Enqueued):
            # A distribution's text is that of all trials.
            for name, text in record.distributions.items():
                record.distributions[name] = self._texts.setdefault(text, text)
        return record

    def _begin(self, experiment: Experiment) -> None:
        self._base = experiment.base.model_dump(mode="json")
        self._common = _Common(self._base)
        if self._file is not None:
            self._source = Source(os.dup(self._file.fileno()), self.place, experiment.metric)

    def _todays(self, body: bytes) -> Record | None:
        """The record of a line of today's format, None where it needs a closer look. Most lines need none."""
        if self.format != FORMAT:
            return None
        try:
            record = KNOWN.validate_json(body)
        except ValidationError:
            return None
        return None if isinstance(record, Opened | Resumed) else with_paths(record, self.place.absolute)

    def _asked(self, body: bytes) -> Asked | None:
        """The record of a line of today's format about a trial that was asked, None where it needs a closer look. What
        it has in common with others, nearly all of it, is known by its text.

        ValueError: no JSON; a closer look says where.
        """
        # In a string a quotation mark has a backslash before it, so that each of these is a key. Where it is one of an
        # inner object, what lies before it is no JSON.
        if self.format != FORMAT or (head := _ASKED.match(body)) is None:
            return None
        params = body.find(_DISTRIBUTIONS, head.end())
        begin = params + len(_DISTRIBUTIONS)
        end = body.find(_CONFIG, begin)
        found = self._common.config(body, end + len(_CONFIG)) if 0 < params < end else None
        if found is None:
            return None
        config, shapes, position = found
        tail = _ASKED_END.fullmatch(body, position)
        if tail is None or not self._understood.issuperset(shapes):
            return None
        distributions = self._distributions.get(body[begin:end])
        if distributions is None:
            distributions = self._distributions[body[begin:end]] = _TEXTS.validate_json(body[begin:end])
        duplicate_of, enqueued = tail.groups()
        return Asked.model_construct(
            time=float(head[1]),
            number=int(head[2]),
            params=_VALUES.validate_json(body[head.end() : params]),
            distributions=distributions,
            config=config,
            duplicate_of=None if duplicate_of is None else int(duplicate_of),
            enqueued=None if enqueued is None else enqueued.decode(),
        )

    def _share(self, config: dict[str, Any]) -> dict[str, Any]:
        """Keys of a trial's config that this version does not know. What is as in the sweep's base is made the very
        same object: it is most of each config.
        """
        shapes: list[Hashable] = []
        for name, part in config.items():
            if name in self._base and part == self._base[name]:
                config[name] = self._base[name]
            else:
                shapes.append((name, _shape(part)))
        if self._understood.issuperset(shapes):
            return {}
        unknown = _unknown_settings(config)
        if not unknown:
            self._understood.update(shapes)
        return unknown

    def _another(self, values: dict[str, Any]) -> Record:
        kind = values.get("kind")
        if kind in ("opened", "resumed"):
            self.format = values.get("format", self.format)
            self.version = values.get("versions", {}).get("pretune", "unknown")
            self._space = values["experiment"]["space"] if kind == "opened" else self._space
        elif kind not in KINDS:
            return _set_aside(values)
        try:
            upgraded = upgrade(values, written_in=self.format, space=self._space)
            record, unknown = understood(KNOWN.validate_python, upgraded)
        except ValidationError:
            if self.format <= FORMAT or kind == "opened":
                raise
            return _set_aside(values)
        record.unknown.update(unknown)
        return record


class _Part(NamedTuple):
    """A part of the base as it stands in a line: how it begins there, all of it, and what follows it. To the text
    belongs the comma or the brace after it: a number may go on otherwise.
    """

    name: str
    begin: bytes
    text: bytes
    value: Any
    next: bytes


class _Common:
    """What the trials' configs have in common with the sweep's base, as it stands in their lines: most of each."""

    def __init__(self, base: Mapping[str, Any]) -> None:
        begins = [to_json(name) + b":" for name in base]
        nexts = [*(b"," + begin for begin in begins[1:]), b"}" + _DUPLICATE]
        self._parts = [
            _Part(name, begin, begin + to_json(value, inf_nan_mode="strings") + following[:1], value, following)
            for (name, value), begin, following in zip(base.items(), begins, nexts, strict=False)
        ]
        self._varied: set[str] = set()
        """The parts in which a trial was seen to differ."""
        self._steps = self._planned()

    def config(self, body: bytes, position: int) -> tuple[dict[str, Any] | None, list[Hashable], int] | None:
        """The config that begins at `position` in a line, the shapes of its own parts, and where it ends; None where it
        needs a closer look. What is as in the base is the very same object. ValueError: no JSON.
        """
        if body.startswith(b"null", position):
            return None, [], position + len(b"null")
        config: dict[str, Any] = {}
        shapes: list[Hashable] = []
        position += len(b"{")
        for same, values, part in self._steps:
            if body.startswith(same, position):
                config.update(values)
                position += len(same)
            elif part is None:
                self._vary(body, position, values)
                return None
            elif body.startswith(part.begin, position):
                begin, end = position + len(part.begin), body.find(part.next, position)
                config[part.name] = own = from_json(body[begin:end])
                shapes.append((part.name, _shape(own)))
                position = end + 1
            else:
                return None
        return config, shapes, position

    def _vary(self, body: bytes, position: int, run: Mapping[str, Any]) -> None:
        """Notes the first part of `run`, which begins at `position`, that is not as in the base."""
        for part in self._parts:
            if part.name in run:
                if not body.startswith(part.text, position):
                    self._varied.add(part.name)
                    break
                position += len(part.text)
        self._steps = self._planned()

    def _planned(self) -> list[tuple[bytes, dict[str, Any], _Part | None]]:
        """The parts in their order, text and values: those between two that vary are looked for at once."""
        steps: list[tuple[bytes, dict[str, Any], _Part | None]] = []
        for part in self._parts:
            if part.name in self._varied:
                steps.append((part.text, {part.name: part.value}, part))
            elif steps and steps[-1][2] is None:
                text, values, _ = steps[-1]
                steps[-1] = text + part.text, values | {part.name: part.value}, None
            else:
                steps.append((part.text, {part.name: part.value}, None))
        return steps


def _set_aside(values: dict[str, Any]) -> Unknown:
    return Unknown(time=values.get("time", 0.0), kind=str(values.get("kind")), content=values)


def _unknown_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Keys of a trial's config that this version does not know; they stay in it."""
    try:
        TrialConfig.model_validate(config)
    except ValidationError as error:
        return {f"config.{path}": value for path, value in drop_unknown(deepcopy(config), error).items()}
    return {}


def _shape(part: Any) -> Hashable:
    """What decides which keys of a part of a config are known: its keys, and of which kind the objects in it are."""
    if isinstance(part, dict):
        return tuple((name, value if name == "kind" else _shape(value)) for name, value in part.items())
    return tuple(map(_shape, part)) if isinstance(part, list) else part is None


def _check_first(path: Path, first: Any) -> None:
    if not isinstance(first, dict):
        raise RequestError(f"{path} must begin with a record, but begins with {first!r}; restore the file from a copy")
    format = first.get("format")
    if first.get("kind") != "opened" or not isinstance(format, int) or format < 1:
        raise RequestError(
            f"{path} must begin with a record `opened` of format 1 to {FORMAT}, but begins with "
            f"{first.get('kind')!r} of format {format!r}; restore the file from a copy"
        )
