"""`--compile auto`: which networks of a sweep's trials are compiled, and what was measured of them before it began.

It is part of the sweep's first record. Trials of one network (`shape.network`) have the same `compile`, whoever
proposes them and however often the sweep goes on; a network that was not measured is not compiled.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pretune.core import shape as shapes
from trainers.config import TrialConfig
from trainers.profiling.compiled import Compiled, Way


class Network(BaseModel):
    """One network: a config of it, in words what tells it from the others, and which `compile` its trials have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: TrialConfig
    words: str
    share: float = Field(description="of the trials, as far as was seen beforehand")
    compile: Way
    found: Compiled | None = Field(None, description="seconds of its steps; none where it could not be measured")
    problem: str = Field("", description="why it could not be measured")


class Fastest(BaseModel):
    """What was found for all of them. `left_out` networks were seen beside these and not measured, for the reason
    `why`; whatever was not seen is none of these either.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    networks: tuple[Network, ...] = ()
    left_out: int = 0
    why: str = ""

    @cached_property
    def _ways(self) -> dict[str, Way]:
        # By what this version takes for a network: a later one may know more settings, which these have as well.
        return {shapes.network(one.config).key: one.compile for one in self.networks}

    def applied(self, config: TrialConfig) -> TrialConfig:
        """`config` with the `compile` of its network. One that asks to be compiled by itself stays as it is."""
        if config.compile != "off":
            return config
        return config.model_copy(update={"compile": self._ways.get(shapes.network(config).key, "off")})

    def as_json(self) -> dict[str, Any]:
        """What was found, without the configs."""
        return self.model_dump(mode="json", exclude={"networks": {"__all__": {"config"}}})


def in_words(found: Fastest) -> str:
    """`compile of networks: on for 2, off for 1, off for 3 that were not measured`; of all alike `compile: on`."""
    counted = Counter[str](one.compile for one in found.networks)
    if len(counted) == 1 and not found.left_out:
        return f"compile: {next(iter(counted))}"
    parts = [f"{way} for {count}" for way, count in counted.items()]
    parts += [f"off for {found.left_out} that were not measured"] if found.left_out else []
    return f"compile of networks: {', '.join(parts)}" if parts else "compile: off"


def step_in_words(found: Compiled) -> str:
    """`a step takes 12 ms as it is, 9 ms with compile=on (the first one 4 s)`."""
    plain = f"a step takes {1e3 * found.step_s['off']:.3g} ms as it is"
    others = (
        f"{1e3 * found.step_s[way]:.3g} ms with compile={way} (the first one {found.begin_s[way]:.0f} s)"
        for way in found.step_s
        if way != "off"
    )
    return ", ".join([plain, *others])
