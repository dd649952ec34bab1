"""How many trials fit on a cluster at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.execution import cluster, ray_private
from pretune.execution.cluster import configured_nodes, connected, has_gpus, slots
from pretune.execution.settings import SLOT_MEMORY
from trainers.config import TrialConfig
from trainers.terms import Alignment

BASE = TrialConfig(objective={"alignment": Alignment()}, batch_size=64)


def experiment(**changes: Any) -> Experiment:
    return Experiment(**({"name": "s", "space": "x", "base": BASE, "trials": 100} | changes))


@pytest.mark.parametrize(
    ("changes", "nodes", "expected"),
    [
        ({}, [{"CPU": 2.0}], 2),
        ({"workers_per_trial": 2}, [{"CPU": 4.0}], 2),
        ({"workers_per_trial": 2}, [{"CPU": 5.0}], 2),
        ({"cpus_per_worker": 0.1}, [{"CPU": 0.3}], 3),
        ({"cpus_per_worker": 2.0}, [{"CPU": 3.0}, {"CPU": 3.0}], 2),  # a worker is never split over two nodes
        ({"workers_per_trial": 4}, [{"CPU": 2.0}, {"CPU": 2.0}], 1),  # but a trial is
        ({"gpus_per_worker": 1.0}, [{"CPU": 32.0}, {"CPU": 8.0, "GPU": 4.0}], 4),
        ({"gpus_per_worker": 0.25}, [{"CPU": 32.0, "GPU": 1.0}], 4),
        ({"trials": 3}, [{"CPU": 64.0}], 3),
        ({"slots": 2}, [{"CPU": 64.0}], 2),
    ],
)
def test_slots_are_what_the_nodes_hold(changes: dict[str, Any], nodes: list[dict[str, float]], expected: int) -> None:
    assert slots(experiment(**changes), nodes) == expected


@pytest.mark.parametrize(
    ("changes", "nodes"),
    [
        ({"slots": 3}, [{"CPU": 2.0}]),
        ({"workers_per_trial": 4}, [{"CPU": 2.0}]),
        ({"gpus_per_worker": 1.0}, [{"CPU": 2.0}]),
    ],
)
def test_more_than_fits_is_refused_before_a_slot_would_wait_for_ever(
    changes: dict[str, Any], nodes: list[dict[str, float]]
) -> None:
    with pytest.raises(RequestError, match=r"do not fit: the cluster .* holds \d such workers; lower --slots"):
        slots(experiment(**changes), nodes)


def test_all_slots_fit_into_the_heads_memory() -> None:
    nodes = [{"CPU": 64.0}]
    assert slots(experiment(), nodes, head_bytes=5.5 * SLOT_MEMORY) == 5
    assert slots(experiment(slots=5), nodes, head_bytes=5.5 * SLOT_MEMORY) == 5
    for known in (nodes, None):
        with pytest.raises(RequestError, match=r"6 slots must fit .* at 512 MiB each, .* has 2816 MiB"):
            slots(experiment(slots=6), known, head_bytes=5.5 * SLOT_MEMORY)


def test_an_unknown_maximum_requires_slots() -> None:
    with pytest.raises(RequestError, match="say with --slots how many trials may run at once"):
        slots(experiment(), None)
    assert slots(experiment(slots=7), None) == 7


@pytest.mark.parametrize(("resources", "expected"), [({"CPU": 8.0}, False), ({"CPU": 8.0, "GPU": 2.0}, True)])
def test_a_cluster_has_gpus_if_a_node_has(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, float], expected: bool
) -> None:
    head = {"Alive": True, "Resources": {"CPU": 2.0}}
    gone = {"Alive": False, "Resources": {"CPU": 2.0, "GPU": 8.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [head, {"Alive": True, "Resources": resources}, gone])
    assert has_gpus(None) is expected


CONFIG = """
max_workers: 5
head_node_type: head
available_node_types:
  head: {resources: {CPU: 2}, max_workers: 0}
  small: {resources: {CPU: 4}, min_workers: 0, max_workers: 4}
  large: {resources: {CPU: 16, GPU: 4}, max_workers: 2}
"""


def test_the_configured_maximum_counts_nodes_that_are_not_there_yet() -> None:
    nodes = configured_nodes(yaml.safe_load(CONFIG))
    assert nodes is not None
    # Five workers at most: two large ones and three of the four small ones.
    assert sorted(node["CPU"] for node in nodes) == [2, 4, 4, 4, 16, 16]
    assert slots(experiment(gpus_per_worker=1.0, workers_per_trial=2), nodes) == 4


def test_a_node_type_that_does_not_say_what_it_offers_leaves_the_maximum_unknown() -> None:
    config = yaml.safe_load(CONFIG)
    del config["available_node_types"]["small"]["resources"]
    assert configured_nodes(config) is None


@pytest.mark.parametrize(
    "said",
    [
        "The current node timed out during startup. This could happen because ...",
        "Failed to start GCS.  Last 0 lines of error files: ... InvalidAuthToken: ...",
    ],
    ids=["late", "its port is taken"],
)
def test_a_local_cluster_that_does_not_start_for_a_passing_reason_is_started_again(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own bound is short for a machine that does other work, its choice of a port can cross that of another Ray;
    what the first try left is ended.
    """
    folders: list[Path] = []
    children: list[subprocess.Popen[bytes]] = []

    def init(*, _temp_dir: str, **options: Any) -> None:
        folders.append(Path(_temp_dir))
        if len(folders) == 1:
            command = [sys.executable, "-c", "import time; time.sleep(60)", _temp_dir]
            children.append(subprocess.Popen(command))
            raise Exception(said)

    monkeypatch.setattr(ray, "init", init)
    with connected(None, cpus=1, logs=tmp_path):
        assert len(folders) == 2
        assert children[0].wait(10) == -signal.SIGKILL
        assert not folders[0].parent.exists()
        assert folders[1].parent.exists()
    assert not folders[1].parent.exists()


def test_a_session_is_private_and_only_what_its_owner_made_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copied sweep may hold the name of a folder in which the session of the first one still runs."""
    other = Path(tempfile.mkdtemp(prefix="pretune-", dir="/tmp"))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "ray-session.txt").write_text(str(other))
    folders: list[Path] = []

    def init(*, _temp_dir: str, **options: Any) -> None:
        folders.append(Path(_temp_dir))
        logs = folders[0] / "session_2026" / "logs"
        logs.mkdir(parents=True)
        (logs / "raylet.out").write_text("said")
        (logs / "raylet.out").chmod(0o666)
        logs.chmod(0o777)

    monkeypatch.setattr(ray, "init", init)
    mask = os.umask(0o077)
    try:
        with connected(None, cpus=1, logs=tmp_path / "logs") as private:
            assert private == folders[0].parent
            assert private.stat().st_mode & 0o777 == 0o700
        assert other.is_dir()
        assert not private.exists()
        copy = tmp_path / "logs" / "ray" / "raylet.out"
        assert copy.read_text() == "said"
        assert (copy.stat().st_mode & 0o777, copy.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    finally:
        os.umask(mask)
        other.rmdir()


def test_workers_start_where_the_path_of_python_has_a_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray hands that path to a shell as it is."""
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "init", lambda **options: given.append(options))
    monkeypatch.setattr(sys, "executable", "/home/some body/it's/.venv/bin/python")
    with connected(None, cpus=1, logs=tmp_path):
        pass
    command = given[0]["runtime_env"]["py_executable"]
    seen = subprocess.run(["bash", "-c", f"printf '%s\\n' {command} -m pretune"], capture_output=True, text=True)
    assert seen.stdout.splitlines() == [sys.executable, "-m", "pretune"]


def test_a_local_clusters_token_is_no_wish_for_the_next_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray switches tokens on by writing into the environment; a cluster without one that is joined later must not be
    asked for it.
    """
    seen: list[str | None] = []

    def init(**options: Any) -> None:
        seen.append(os.environ.get("RAY_AUTH_MODE"))
        os.environ["RAY_AUTH_MODE"] = "token"

    monkeypatch.setattr(ray, "init", init)
    for mode in (None, "disabled"):
        monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
        if mode is not None:
            monkeypatch.setenv("RAY_AUTH_MODE", mode)
        for _ in range(2):
            with connected(None, cpus=1, logs=tmp_path):
                pass
            if mode is None:
                assert "RAY_AUTH_MODE" not in os.environ
    assert seen[:2] == [None, None]
    assert seen[2] == "disabled", "what the user has set wins"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (None, False),
        ({}, False),  # of a cluster that has just started
        ({"autoscaler_report": None}, False),
        ({"autoscaler_report": {"active_nodes": {"node_" + "0f" * 28: 1}}}, False),
        ({"autoscaler_report": {"active_nodes": {"head": 1, "gpu_worker": 2}}}, True),
    ],
)
def test_a_cluster_autoscales_if_its_status_names_types_of_nodes(
    monkeypatch: pytest.MonkeyPatch, status: Any, expected: bool
) -> None:
    written = None if status is None else json.dumps(status).encode()
    monkeypatch.setattr(ray_private, "autoscaler_status", lambda: written)
    assert cluster._autoscales() is expected
