"""Which trials of a sweep have equal configs: seed, data and the hashes of one's own parts are in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pretune.core.history import TrialHistory

SHARED_PARTS = 64
"""Parts of configs that are remembered at most; a config has some fifteen."""

_in_order = json.JSONEncoder(sort_keys=True).encode
"""JSON whose keys are in order, so that equal values have equal texts."""


class Keys:
    """Keys that are equal for equal configs, in any process.

    A journal gives its trials one object for what they have in common, most of each config: it is looked at once.
    """

    def __init__(self) -> None:
        self._texts: dict[int, tuple[Any, str]] = {}
        """Of parts that were met before, by identity; an object that is held here keeps its identity."""

    def of(self, config: dict[str, Any]) -> bytes:
        text = ", ".join(f"{name}: {self._text(config[name])}" for name in sorted(config))
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def _text(self, part: Any) -> str:
        if type(part) is int:  # most that are no objects are
            return str(part)
        known = self._texts.get(id(part))
        if known is not None:
            return known[1]
        if not isinstance(part, dict | list):
            return json.dumps(part)
        text = _in_order(part)
        if len(self._texts) < SHARED_PARTS:
            self._texts[id(part)] = part, text
        return text


class Alike:
    """The trials of a sweep by config, but for those that have been made longer."""

    def __init__(self) -> None:
        self._key = Keys()
        self._keys: dict[int, bytes] = {}
        self._numbers: dict[bytes, list[int]] = {}
        """In their order."""
        self._last: tuple[dict[str, Any], bytes] | None = None
        """Who asks whether a config is new adds it next."""

    def add(self, number: int, config: dict[str, Any]) -> None:
        """The next trial."""
        self._keys[number] = self._key_of(config)
        self._numbers.setdefault(self._keys[number], []).append(number)

    def remove(self, number: int) -> None:
        """Its epochs are those of another schedule than its config says; once is enough."""
        if number in self._keys:
            self._numbers[self._keys.pop(number)].remove(number)

    def first(self, config: dict[str, Any]) -> int | None:
        """The first trial of this config."""
        self._last = config, self._key.of(config)
        return next(iter(self._numbers.get(self._last[1], ())), None)

    def _key_of(self, config: dict[str, Any]) -> bytes:
        last, self._last = self._last, None
        if last is not None and len(last[0]) == len(config) and all(config.get(one) is last[0][one] for one in last[0]):
            return last[1]
        return self._key.of(config)

    def before(self, number: int) -> Sequence[int]:
        """The earlier trials of the same config."""
        return [other for other in self._numbers.get(self._keys.get(number, b""), ()) if other < number]

    def hash_of(self, trial: TrialHistory) -> str:
        """The key of a trial's config, as text."""
        known = self._keys.get(trial.number)
        return (self._key.of(trial.config or {}) if known is None else known).hex()
