"""Are the intervals, error rates and rankings true that the program tells? Each part simulates studies whose truth is
known, has them judged by the program's own code, and counts.

* ablation: verdicts of studies in which nothing does anything, with and without looking again; intervals; power;
* audit: the interval of how often early stopping would have ended a winner;
* optimism: the interval of the optimism gap, over numbers of trials, sizes of `select` and spreads of the truth;
* importance: which parameters matter, of functions of which that is known;
* label_free: the interval of a rank correlation;
* detection: the interval of average precision over images;
* compare: whether a difference between two sweeps or trials is more than noise;
* evaluate: the intervals of `pretune eval`.

Run: python benchmarks/simulations.py [PART ...] [--count N] [--seed S]
"""

from __future__ import annotations

import argparse
import importlib
import time

PARTS = {
    "ablation": 2000,
    "audit": 2000,
    "optimism": 1000,
    "importance": 200,
    "label_free": 2000,
    "detection": 300,
    "compare": 1000,
    "evaluate": 2000,
}
"""Studies of each setting."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all, if none is named")
    parser.add_argument("--count", type=int, help=f"studies of each setting; {PARTS}, if not given")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"PART must be one of {', '.join(PARTS)}, but is {', '.join(sorted(unknown))}")
    print("| part | what | wanted | seen | of |")
    print("|:--|:--|--:|--:|--:|", flush=True)
    for part in asked.parts or PARTS:
        start = time.monotonic()
        for row in importlib.import_module(f"simulate_{part}").rows(asked.count or PARTS[part], asked.seed):
            print(f"| {part} | {' | '.join(cell.strip() for cell in row)} |", flush=True)
        print(f"| {part} | seconds | | {time.monotonic() - start:.0f} | |", flush=True)


if __name__ == "__main__":
    main()
