"""Write the golden curves anew: only where a change of numbers is meant, and then in a commit that says why.

    python -m tests.golden [RECIPE ...]

A refactor never needs this. Prints what differs from the file before it is replaced.
"""

from __future__ import annotations

import argparse

from tests.golden import curves


def main() -> None:
    """Run each recipe and replace its file."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"default: {', '.join(curves.NAMES)}")
    for recipe in parser.parse_args().recipes or curves.NAMES:
        before = curves.read(recipe)["epochs"] if curves.path(recipe).exists() else []
        curves.write(recipe)
        changed = curves.differences(before, curves.read(recipe)["epochs"], exact=True) if before else ["new"]
        print(f"{curves.path(recipe)}: {len(changed)} changes", *changed, sep="\n  ")


if __name__ == "__main__":
    main()
