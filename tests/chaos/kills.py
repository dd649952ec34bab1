"""`kill -9` of drivers with real warm slots; `plain_tune` does the same to a run as Ray Tune's guide has it.

Half of the kills hit a sweep of one slot on a local cluster, which dies with its driver: its results must equal an
unkilled sweep's. The other half hit a sweep of two slots of two workers on a cluster that outlives it, on which nothing
may be left. In both, a conductor must decide the same again under the order of arrival that the journal recorded.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from pretune.core import journal, results
from pretune.core.records import Ended, Epoch, Opened, Started
from tests.chaos import clusters, driver
from tests.chaos.counts import Counts
from tests.toys import begin, decisions, epochs_run, follow, space

EPOCH_S = 0.25
START_S = 240.0


def run(folder: Path, seed: int, count: int) -> Counts:
    counts, rng = Counts(), random.Random(seed)
    _local(counts, folder / "local", rng, (count + 1) // 2)
    if count > 1:
        _standing(counts, folder / "standing", rng, count // 2)
    return counts


def _local(counts: Counts, folder: Path, rng: random.Random, kills: int) -> None:
    settings = {"trials": 10, "slots": 1, "seed": rng.randrange(1000)}
    unkilled = driver.start(folder / "unkilled", settings, epoch_s=EPOCH_S, cpus=1)
    assert unkilled.wait(600) == 0, (folder / "unkilled.driver.txt").read_text()
    killed = folder / "killed"
    for _ in range(kills):
        process = driver.start(killed, settings, epoch_s=EPOCH_S, cpus=1)
        _kill_in_the_middle(process, killed, rng)
        counts.add("drivers killed, local cluster")
        session = clusters.session_of(killed)
        assert session is not None
        counts.must_be_zero("processes left", clusters.wait_for_the_end_of(session))
    assert driver.start(killed, settings, epoch_s=EPOCH_S, cpus=1).wait(600) == 0
    counts.must_be_zero("temporary folders left", clusters.session_of(killed) is not None)
    _compare(counts, killed)
    one, other = (results.read(folder / name).to_json()["trials"] for name in ("unkilled", "killed"))
    counts.must_be_zero(
        "trials that differ from the unkilled sweep", sum(a != b for a, b in zip(one, other, strict=True))
    )


def _standing(counts: Counts, folder: Path, rng: random.Random, kills: int) -> None:
    settings = {"trials": 24, "slots": 2, "workers_per_trial": 2, "seed": rng.randrange(1000)}
    killed = folder / "killed"
    with clusters.cluster(head_cpus=4) as nodes:
        for _ in range(kills):
            process = driver.start(killed, settings, epoch_s=EPOCH_S, address=nodes.address)
            _kill_in_the_middle(process, killed, rng)
            counts.add("drivers killed, standing cluster")
        assert driver.start(killed, settings, epoch_s=EPOCH_S, address=nodes.address).wait(600) == 0
        clusters.wait_until(lambda: not clusters.live_actors() and not clusters.live_placement_groups(), 60.0)
        counts.must_be_zero("actors left", len(clusters.live_actors()))
        counts.must_be_zero("placement groups left", clusters.live_placement_groups())
        counts.must_be_zero("CPUs not given back", clusters.cpus_taken())
    _compare(counts, killed)


def _kill_in_the_middle(process: subprocess.Popen[bytes], folder: Path, rng: random.Random) -> None:
    """SIGKILL at a random moment, once trials run and before they end."""
    before = len(journal.read(folder)) if (folder / journal.FILE).exists() else 0

    def epochs_told() -> int:
        return sum(isinstance(record, Epoch) for record in journal.read(folder)[before:]) if _readable(folder) else 0

    assert clusters.wait_until(lambda: epochs_told() > 0 or process.poll() is not None, START_S), "no trial has begun"
    time.sleep(rng.uniform(0.0, 2.0))
    assert process.poll() is None, "the sweep was over before it was killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


def _readable(folder: Path) -> bool:
    path = folder / journal.FILE
    return path.exists() and path.stat().st_size > 0


def _compare(counts: Counts, folder: Path) -> None:
    """What must hold of any sweep, however often its driver died."""
    records = journal.read(folder)
    result = results.read(folder)
    ended: dict[int, int] = {}
    for position, record in enumerate(records):
        if isinstance(record, Ended):
            ended[record.number] = position
    counts.add("trials", len(result.trials))
    counts.must_be_zero("trials lost", result.asked - len(ended))
    counts.must_be_zero(
        "finished trials started again",
        sum(isinstance(r, Started) and ended.get(r.number, len(records)) < at for at, r in enumerate(records)),
    )
    told = sum(isinstance(record, Epoch) for record in records)
    ran = sum(len(epochs) for epochs in epochs_run(folder).values())
    counts.add("epochs told", told)
    counts.add("epochs begun again", ran - len({(n, e) for n, epochs in epochs_run(folder).items() for e in epochs}))
    replayed = folder.with_name("replayed")
    opened = records[0]
    assert isinstance(opened, Opened)
    kept = [record for record in records if record.kind in ("opened", "asked", "epoch", "ended")]
    conductor = begin(replayed, opened.experiment, space)
    follow(conductor, kept)
    counts.must_be_zero(
        "decisions that differ under the recorded order of arrival",
        sum(a != b for a, b in zip(map(_decision, decisions(replayed)), map(_decision, kept), strict=True)),
    )


def _decision(record: Any) -> dict[str, Any]:
    """A record without the time and what only the machine knows."""
    told: dict[str, Any] = record.model_dump(exclude={"time", "versions", "host", "checkpoint", "metrics"})
    return told
