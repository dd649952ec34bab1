"""What `kills` does, done to the sweep as a user of Ray Tune would write it: ASHA, OptunaSearch, and `Tuner.restore`
after each kill. It promises nothing: the counts are for comparison.

python -m tests.chaos.plain_tune FOLDER SEED
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.chaos import clusters
from tests.chaos.counts import Counts
from tests.chaos.driver import ROOT, killed_after

TRIALS, EPOCHS, EPOCH_S = 10, 6, 0.25


def train(config: dict[str, Any]) -> None:
    """As Tune's guide has it: a checkpoint with each report, and go on from the one that is there."""
    import math

    from ray import tune

    epoch = 0
    found = tune.get_checkpoint()
    if found is not None:
        with found.as_directory() as place:
            epoch = json.loads((Path(place) / "state.json").read_text())["epoch"]
    trial = tune.get_context().get_trial_id()
    while epoch < EPOCHS:
        with Path(config["log"]).open("a") as log:
            log.write(json.dumps({"trial": trial, "epoch": epoch, "rate": config["rate"]}) + "\n")
        time.sleep(EPOCH_S)
        epoch += 1
        score = (1.0 - abs(math.log10(config["rate"]) + 1.0) / 3.0) * (1.0 - 0.5**epoch)
        with tempfile.TemporaryDirectory() as place:
            (Path(place) / "state.json").write_text(json.dumps({"epoch": epoch}))
            tune.report({"score": score, "epoch": epoch}, checkpoint=tune.Checkpoint.from_directory(place))


def main(folder: Path, seed: int) -> None:
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    session = tempfile.mkdtemp(prefix="plain-", dir="/tmp")
    (folder / "session.txt").write_text(session)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, _temp_dir=session)
    place = folder / "tune" / "sweep"
    if tune.Tuner.can_restore(str(place)):
        tuner = tune.Tuner.restore(str(place), trainable=train, resume_unfinished=True, restart_errored=True)
    else:
        tuner = tune.Tuner(
            train,
            param_space={"rate": tune.loguniform(1e-3, 10.0), "log": str(folder / "ran.jsonl")},
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                num_samples=TRIALS,
                search_alg=OptunaSearch(seed=seed),
                scheduler=ASHAScheduler(time_attr="epoch", max_t=EPOCHS, grace_period=2, reduction_factor=3),
            ),
            run_config=tune.RunConfig(name="sweep", storage_path=str(folder / "tune"), verbose=0),
        )
    found = tuner.fit()
    trials = [found[index] for index in range(len(found))]
    rows = [{"rate": (one.config or {})["rate"], "epochs": (one.metrics or {}).get("epoch", 0)} for one in trials]
    (folder / "result.json").write_text(json.dumps(rows))
    ray.shutdown()
    shutil.rmtree(session, ignore_errors=True)


def run(folder: Path, seed: int, count: int) -> Counts:
    """`count` kills of such a run, and what it lost beside an unkilled one."""
    counts, rng = Counts(), random.Random(seed)
    for name in ("unkilled", "killed"):
        (folder / name).mkdir(parents=True)
    assert _start(folder / "unkilled", seed).wait(600) == 0, (folder / "unkilled" / "driver.txt").read_text()
    killed = folder / "killed"
    for _ in range(count):
        process = _start(killed, seed)
        before = len(_ran(killed))
        _wait_for_more(process, killed, before)
        if not killed_after(process, counts, after_s=rng.uniform(0.0, 2.0)):
            break
        session = (killed / "session.txt").read_text()
        clusters.wait_for_the_end_of(Path(session))
        shutil.rmtree(session, ignore_errors=True)
    last = _start(killed, seed)
    code = last.wait(600)
    counts.add("runs that could not be restored", code != 0)
    if code != 0:
        print((killed / "driver.txt").read_text()[-2000:])
        return counts
    one, other = (json.loads((folder / name / "result.json").read_text()) for name in ("unkilled", "killed"))
    expected = {row["rate"]: row["epochs"] for row in one}
    ran = Counter((row["trial"], row["epoch"]) for row in _ran(killed))
    counts.add("trials asked", TRIALS)
    counts.add("trials in the result", len(other))
    counts.add(
        "trials begun and not in the result", len({row["rate"] for row in _ran(killed)} - {r["rate"] for r in other})
    )
    counts.add(
        "trials with parameters that the unkilled run has not", sum(row["rate"] not in expected for row in other)
    )
    counts.add(
        "trials that ended at another epoch",
        sum(row["rate"] in expected and expected[row["rate"]] != row["epochs"] for row in other),
    )
    counts.add("epochs run again", sum(times - 1 for times in ran.values()))
    return counts


def _start(folder: Path, seed: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "RAY_AIR_NEW_OUTPUT": "0"}
    with (folder / "driver.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.plain_tune", str(folder), str(seed)],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env=environment,
        )


def _wait_for_more(process: subprocess.Popen[bytes], folder: Path, before: int) -> None:
    clusters.wait_until(lambda: len(_ran(folder)) > before or process.poll() is not None, 240.0)


def _ran(folder: Path) -> list[dict[str, Any]]:
    path = folder / "ran.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
