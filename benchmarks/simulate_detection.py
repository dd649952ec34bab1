"""Is the interval of average precision over images true? Detectors whose precision on endless images is known are
judged on a few, by the program's own bootstrap, and it is counted how often the interval holds the truth.

Run: python benchmarks/simulate_detection.py [--count N] [--seed S]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from trainers.evaluation.average_precision import Matches, by_class, mean_of
from trainers.evaluation.protocols.detection import scores_of

CLASSES = 3
ENDLESS = 200_000
"""Images that stand for all."""


class Setting(NamedTuple):
    images: int
    found: float
    """The chance that an object is found."""
    wrong: float
    """Detections of nothing for each image and class, in the mean."""


SETTINGS = (Setting(100, 0.7, 0.5), Setting(100, 0.9, 0.1), Setting(500, 0.7, 0.5), Setting(500, 0.4, 1.0))


def drawn(setting: Setting, images: int, generator: np.random.Generator) -> list[Matches]:
    """Of each class the detections, by falling score: right ones have higher scores. Images differ in how hard they
    are, so that detections of one belong together.
    """
    classes = []
    for _ in range(CLASSES):
        objects = generator.poisson(1.0, images)
        ease = generator.beta(4 * setting.found, 4 * (1 - setting.found), images)
        right = generator.binomial(objects, ease)
        wrong = generator.poisson(setting.wrong * 2 * (1 - ease))
        places = np.concatenate([np.repeat(np.arange(images), right), np.repeat(np.arange(images), wrong)])
        true = np.arange(len(places)) < right.sum()
        scores = generator.normal(np.where(true, 1.0, 0.0), 1.0)
        order = np.argsort(-scores)
        classes.append(Matches(places[order], true[None, order], np.zeros((1, len(places)), bool), objects))
    return classes


def rows(count: int, seed: int) -> Iterable[tuple[str, ...]]:
    """What, the wanted share, the seen one, of how many."""
    yield from _rows(count, seed)


def _rows(count: int, seed: int) -> Iterator[tuple[str, ...]]:
    for place, setting in enumerate(SETTINGS):
        generator = np.random.default_rng([seed, place])
        endless = drawn(setting, ENDLESS, generator)
        truth = mean_of(by_class(endless, "area"))
        held = 0
        for _ in range(count):
            matches = drawn(setting, setting.images, generator)
            (score, _) = scores_of({"voc/": [matches]}, setting.images, lambda what, done: None)
            assert score.interval is not None
            held += score.interval[0] <= truth <= score.interval[1]
        what = f"interval of ap50, {setting.images} images, ap50 {truth:.2f}"
        yield what, "95 %", f"{100 * held / count:.1f} %", str(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    for row in rows(asked.count, asked.seed):
        print(" | ".join(row), flush=True)


if __name__ == "__main__":
    main()
