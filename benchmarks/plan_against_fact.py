"""What `pretune plan` says of a sweep, against what the sweep then takes: real sweeps on the built-in digits.

    python benchmarks/plan_against_fact.py [--only NAME …] [--folder DIR] [--keep-measurements]

Each sweep is planned by the command as a user types it, then run by the command with the same arguments; both are read
back as JSON. Errors are of the forecast, as a share of the fact; memory is of one worker. Run it on a quiet machine: a
plan measures what the machine does at that moment. Measurements of earlier runs are not used unless they are kept, so
that every plan measures; a sweep does not learn from the one before it either, as each has shapes of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SWEEPS = {
    "sfrik": "kernels --recipe sfrik_tiny --trials 6 --epochs 4 --slots 1",
    "sfrik-large-batch": "kernels --recipe sfrik_tiny --trials 6 --epochs 6 --slots 2 --set batch_size=256",
    "cw-rgp": "groups --recipe cw_rgp_tiny --trials 6 --epochs 4 --slots 2",
    "dilemma": "masking --recipe dilemma_mocov3_tiny --trials 6 --epochs 4 --slots 1",
    "msbreg": "msbreg --recipe msbreg_tiny --trials 6 --epochs 5 --slots 2 --set batch_size=64",
    "families": "regularizers --recipe sfrik_tiny --trials 10 --epochs 6 --slots 2",
    "two-workers": "kernels --recipe sfrik_tiny --trials 4 --epochs 4 --slots 1 --workers-per-trial 2",
    "no-stopping": "weights --recipe sfrik_tiny --trials 5 --epochs 4 --slots 1 --no-stopping",
}
WANTED = {"time": 0.25, "memory of a worker": 0.15}
"""Median relative errors at most."""


def main() -> None:
    """Print a row for each sweep and cost, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(SWEEPS), metavar="NAME", default=list(SWEEPS))
    parser.add_argument("--folder", type=Path, help="where data, sweeps and measurements lie; default: a temporary one")
    parser.add_argument("--keep-measurements", action="store_true", help="use those of an earlier run in --folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if not arguments.keep_measurements:
            shutil.rmtree(folder / "cache" / "measured", ignore_errors=True)
        errors: dict[str, list[float]] = {}
        print("| sweep | cost | forecast | fact | error |")
        print("|:--|:--|--:|--:|--:|")
        for name in arguments.only:
            for cost, line in against(name, SWEEPS[name].split(), folder).items():
                error = line["forecast"] / line["fact"] - 1.0 if line["fact"] else None
                if error is not None:
                    errors.setdefault(cost, []).append(abs(error))
                shown = "–" if error is None else f"{100 * error:+.0f} %"
                print(f"| {name} | {cost} | {line['forecast']:.4g} | {line['fact'] or 0:.4g} | {shown} |", flush=True)
    for cost, found in errors.items():
        wanted = f", wanted {100 * WANTED[cost]:.0f} %" if cost in WANTED else ""
        print(f"median error of {cost} over {len(found)} sweeps: {100 * statistics.median(found):.0f} %{wanted}")


def against(name: str, arguments: list[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Plans and runs one sweep; each cost with its forecast and fact, as `pretune show NAME --json` has them."""
    common = [*arguments, "--gpus-per-worker", "0", "--name", name, "--storage", "sweeps"]
    shutil.rmtree(folder / "sweeps" / name, ignore_errors=True)
    told = pretune(folder, "plan", *common, "--json")
    problems = [shape["problem"] for shape in told["shapes"] if shape["problem"]]
    if problems:
        print(f"note: {name}: {'; '.join(problems)}", file=sys.stderr)
    pretune(folder, "sweep", *common, parsed=False)
    found: dict[str, Any] = pretune(folder, "show", name, "--storage", "sweeps", "--json")["forecast"]
    return {cost: line for cost, line in found.items() if isinstance(line, dict) and line["forecast"] is not None}


def pretune(folder: Path, *arguments: str, parsed: bool = True) -> Any:
    """What the command prints, as JSON if `parsed`."""
    environment = os.environ | {"PRETUNE_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "pretune", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout) if parsed else done.stdout


if __name__ == "__main__":
    main()
