"""What decides what a trial costs, apart from how long it is: its shape. Two configs of one shape take the same time
for a step and the same memory, so one of them is measured for both.

A shape is a config without its seed, length and schedule, in which of each number with a fraction only counts whether
it is 0: learning rates, weights and strengths of augmentation change what is computed, not how much. Counts, widths,
sizes and kinds stay as they are, terms of weight 0 are absent, and of masking counts how many patches are kept.

Of a shape its network is what the passes through the network cost: whether it pays to compile them is found for each.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from trainers.config import OwnBackbone, TrialConfig
from trainers.terms import OwnTerm

_NO_COST = (
    "seed",
    "epochs",
    "schedule",
    "checkpoint_every",
    "checkpoint_every_steps",
    "data",
    "sentinel",
    "deterministic",
)
"""Fields of a config that say how long it runs, on which images, and how it is watched."""
_OF_NETWORK = re.compile(
    r"model\..+|views\.(#|\d+\.size)|batch_size|accumulate|accumulate_batch_norm|precision|threads"
)
"""Facts of a shape that are of its network and of the views that go through it."""
MOST_WORDS = 4
"""Differences that are named."""


@dataclass(frozen=True)
class Shape:
    """`facts` are what counts, by dotted path, as JSON has it. `work` is a number that grows with each size in it: it
    orders shapes, and says how much more of two alike is computed; it is no time."""

    facts: tuple[tuple[str, Any], ...]
    work: float
    rows: float
    """Numbers that a step holds of each layer, up to a factor: images x pixels or kept patches x views."""

    @property
    def batch_size(self) -> int:
        return int(dict(self.facts)["batch_size"])

    @cached_property
    def key(self) -> str:
        """The same for the same facts, in each process."""
        return hashlib.sha256(json.dumps(self.facts).encode()).hexdigest()

    def differences(self, other: Shape) -> dict[str, tuple[Any, Any]]:
        """Paths under which the two differ, with both values; None where one has none."""
        mine, its = dict(self.facts), dict(other.facts)
        return {
            path: (mine.get(path), its.get(path))
            for path in dict.fromkeys([*mine, *its])
            if mine.get(path) != its.get(path)
        }

    def distance(self, other: Shape) -> float:
        """0 for equal ones. Sizes count by how often one doubles into the other, anything else as 1."""
        return sum(_apart(mine, its) for mine, its in self.differences(other).values())


def of(config: TrialConfig) -> Shape:
    """The shape of `config`."""
    values = config.model_dump(mode="json", exclude=set(_NO_COST))
    values["objective"] = {name: term for name, term in values["objective"].items() if term.get("weight", 1.0) != 0.0}
    values["data"] = {"path": config.data.path, "manifest": config.data.manifest}
    if not isinstance(config.model.backbone, OwnBackbone):  # where it starts from costs nothing
        del values["model"]["backbone"]["init"]
    masking = config.model.masking
    kept = config.masked_patch_counts
    if masking is not None:
        del values["model"]["masking"]["drop_ratio"]
        values["model"]["masking"]["kept_patches"] = [masking.kept_count(count) for count in kept.values()]
    views = sum(
        view.size**2 * (masking.kept_count(kept[index]) / kept[index] if masking is not None and index in kept else 1.0)
        for index, view in enumerate(config.views)
    )
    facts = tuple(sorted(_leaves("", values)))
    sizes = math.prod(1.0 + value for path, value in facts if path.startswith("model.") and _is_size(value))
    rows = config.batch_size * views
    return Shape(facts, work=rows * sizes, rows=rows / config.accumulate)


def network(config: TrialConfig) -> Shape:
    """The shape of the network of `config` alone: what its terms, optimizer and probes take is left out, but the heads
    that terms read are there. Terms of one's own are told apart by their references, so that nobody's code is run.
    """
    whole = of(config)
    read: set[str] = set()
    for term in config.objective.values():
        if term.weight > 0.0:
            read |= {term.kind} if isinstance(term, OwnTerm) else term.reads_heads
    facts = [fact for fact in whole.facts if _OF_NETWORK.fullmatch(fact[0])]
    facts += [("deterministic", config.deterministic), ("heads", " + ".join(sorted(read)))]
    return replace(whole, facts=tuple(sorted(facts)))


def chosen(shapes: Sequence[Shape], *, count: int) -> list[Shape]:
    """At most `count` of `shapes` (one for each draw) that stand for all: the most common, the largest and the smallest
    by their work, then again and again the one that is farthest from those. In this order.
    """
    common = [shape for shape, _ in Counter(shapes).most_common()]
    if not common:
        return []
    by_work = sorted(common, key=lambda shape: shape.work)
    found = list(dict.fromkeys([common[0], by_work[-1], by_work[0]]))[:count]
    gaps = {shape: min(shape.distance(other) for other in found) for shape in common if shape not in found}
    while gaps and len(found) < count:
        farthest = max(gaps, key=lambda shape: gaps[shape])
        found.append(farthest)
        del gaps[farthest]
        gaps = {shape: min(gap, shape.distance(farthest)) for shape, gap in gaps.items()}
    return found


def nearest(shape: Shape, measured: Iterable[Shape]) -> Shape | None:
    """The one of `measured` that is most like `shape`; None where there is none."""
    return min(measured, key=shape.distance, default=None)


def in_words(shape: Shape, others: Sequence[Shape]) -> str:
    """What tells `shape` from `others`: `alignment + mmd, mmd.kernel=rbf, projector.widths.1=64`."""
    differing = {path for other in others for path in shape.differences(other)}
    facts = dict(shape.facts)
    terms = [path.split(".")[1] for path in facts if re.fullmatch(r"objective\.\w+\.kind", path)]
    parts = [" + ".join(terms)] if any(re.fullmatch(r"objective\.\w+\.kind", path) for path in differing) else []
    flags: list[str] = []
    for path in sorted(differing & facts.keys(), key=lambda path: (not path.endswith(".kind"), path)):
        name, value = re.sub(r"^(objective|model)\.|\.kind$", "", path), facts[path]
        if path.endswith(".#") and path != "views.#":
            if not _is_size(facts.get(f"{path[:-1]}0")):  # or its numbers tell it apart
                parts.append(f"{value} {path.split('.')[-2]}")
        elif isinstance(value, bool):
            flags.append(name if value else f"no {name}")
        elif name != value and not path.endswith("sha256"):
            parts.append(f"{name.removesuffix('.#')}={value or 'none'}")
    return ", ".join((parts or flags)[:MOST_WORDS]) or f"batch_size={shape.batch_size}"


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _apart(mine: Any, its: Any) -> float:
    if _is_size(mine) and _is_size(its):
        return abs(math.log2((1.0 + abs(mine)) / (1.0 + abs(its))))
    return 1.0


def _leaves(path: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{path}.{key}" if path else str(key), item)
    elif isinstance(value, list | tuple):
        yield f"{path}.#", len(value)
        for index, item in enumerate(value):
            yield from _leaves(f"{path}.{index}", item)
    elif isinstance(value, float):
        yield path, value != 0.0
    elif value is not None:
        yield path, value
