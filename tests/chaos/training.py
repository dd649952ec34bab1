"""A real sweep from the command line is killed with SIGKILL and resumed: `pretune show --json` must tell the same.

One slot, so that results arrive in one order; on CIFAR-10 images where there are some (a data set that `pretune data`
wrote to data/cifar10, or its source in ../shared/data/cifar10), else on the digits.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from pretune.analysis.verify import timeless
from pretune.core import journal
from pretune.core.records import Epoch
from tests.chaos import clusters
from tests.chaos.counts import Counts
from tests.chaos.driver import ROOT, killed_after

SWEEP = ["sweep", "kernels", "--slots", "1", "--trials", "6", "--epochs", "3", "--name", "real"]
CIFAR = ["--recipe", "sfrik_cifar10", "--subset", "512", "--set", "batch_size=128"]
CIFAR += ["--set", "model.backbone.kind=resnet_tiny", "--set", "model.projector.widths=[256,256]"]
CIFAR += ["--set", "probe.train_images=1000", "--set", "probe.select_images=1000"]


def run(folder: Path, seed: int, count: int) -> Counts:
    counts, rng = Counts(), random.Random(seed)
    options = [*SWEEP, *_data(folder), "--set", f"seed={seed}"]
    for name in ("unkilled", "killed"):
        (folder / name).mkdir()
    assert _start(folder / "unkilled", options).wait(900) == 0, (folder / "unkilled" / "out.txt").read_text()
    killed = folder / "killed"
    for _ in range(count):
        process = _start(killed, ["resume", "real"] if (killed / "sweeps").exists() else options)
        before = _epochs(killed)
        begun = clusters.wait_until(lambda: _epochs(killed) > before or process.poll() is not None, 300.0)  # noqa: B023
        assert begun, "no epoch within 300 s"
        if not killed_after(process, counts, after_s=rng.uniform(0.0, 6.0)):
            break
        session = clusters.session_of(killed / "sweeps" / "real")
        assert session is not None
        counts.must_be_zero("processes left", clusters.wait_for_the_end_of(session))
    counts.must_be_zero("resumes that failed", _start(killed, ["resume", "real"]).wait(900) != 0)
    one, other = (_shown(folder / name) for name in ("unkilled", "killed"))
    counts.add("trials", len(one["trials"]))
    counts.add("trials stopped early", sum(trial["state"] == "PRUNED" for trial in one["trials"]))
    counts.must_be_zero("differences in `show --json`", one != other)
    numbers = [_numbers(folder / name) for name in ("unkilled", "killed")]
    counts.add("numbers compared", len(numbers[0]))
    counts.must_be_zero("numbers of epochs that differ", len(numbers[0].items() ^ numbers[1].items()))
    return counts


def _data(folder: Path) -> list[str]:
    built, source = ROOT / "data" / "cifar10", ROOT.parent / "shared" / "data" / "cifar10"
    if (built / "manifest.json").exists():
        return [*CIFAR, "--data", str(built)]
    if source.exists():
        made = folder / "cifar10"
        command = ["data", "cifar10", "--source", str(source), "--out", str(made)]
        assert _start(folder, command).wait(600) == 0, (folder / "out.txt").read_text()
        return [*CIFAR, "--data", str(made)]
    print("no CIFAR-10 here (pretune data cifar10): on the digits", flush=True)
    return []


def _start(folder: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    with (folder / "out.txt").open("ab") as out:
        command = [sys.executable, "-m", "pretune", *arguments]
        path = os.pathsep.join(map(str, (ROOT, ROOT / "platform")))
        return subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env={**os.environ, "PYTHONPATH": path})


def _records(folder: Path) -> list[Epoch]:
    place = folder / "sweeps" / "real"
    if not (place / journal.FILE).exists():
        return []
    return [record for record in journal.read(place) if isinstance(record, Epoch)]


def _epochs(folder: Path) -> int:
    return len(_records(folder))


def _shown(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "pretune", "show", "real", "--json"]
    shown: dict[str, Any] = json.loads(subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout)
    return shown


def _numbers(folder: Path) -> dict[tuple[int, int, str], str]:
    """Every number of every epoch, times and sizes of processes apart."""
    return {
        (record.number, record.epoch, name): value.hex()
        for record in _records(folder)
        for name, value in timeless(record.metrics).items()
    }
