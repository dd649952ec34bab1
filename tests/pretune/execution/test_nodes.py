"""Two Ray nodes with separate caches: each fetches the data once, replaces what is damaged, names a full disk."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tests.chaos.clusters import RAY_FOLDER, cluster
from trainers import storage
from trainers.data import data_cache
from trainers.data.datasets import ensure_builtin
from trainers.data.manifest import SEARCH_FILE, Dataset

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

# Tasks cannot import a test module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

NODES = ("first", "second")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Names of two nodes -> their ids; each has a cache of its own."""
    folder = tmp_path_factory.mktemp("caches")
    before = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    try:
        with cluster(head_cpus=0) as running:
            for name in NODES:
                cache = {"PRETUNE_CACHE": str(folder / name)}
                running.add_node(num_cpus=2, resources={name: 1}, env_vars=cache, object_store_memory=100 * 2**20)
            found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
            yield {name: node["NodeID"] for node in found for name in NODES if name in node["Resources"]}
    finally:
        shutil.rmtree(RAY_FOLDER, ignore_errors=True)
        os.environ.pop("RAY_AUTH_MODE")
        if before is not None:
            os.environ["RAY_AUTH_MODE"] = before


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ensure_builtin("digits", tmp_path_factory.mktemp("data"))


def fetch(place: str, manifest: str, free: int | None) -> tuple[str, list[str]]:
    """On a node: the copy's folder, and what was downloaded for it."""
    names: list[str] = []
    real = storage.download

    def download(uri: str, file: Any, **options: Any) -> str:
        names.append(storage.name_of(uri))
        return real(uri, file, **options)

    usage = shutil.disk_usage
    storage.download = download
    if free is not None:
        shutil.disk_usage = lambda path: SimpleNamespace(free=free)  # type: ignore[assignment, return-value]
    try:
        return str(data_cache.open_anywhere(place, expected_hash=manifest).folder), names
    finally:
        storage.download, shutil.disk_usage = real, usage


def on(node: str, *arguments: Any) -> Any:
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(fetch).options(num_cpus=1, max_retries=0, scheduling_strategy=where).remote(*arguments)


def test_each_node_has_one_copy_that_is_kept_whole(nodes: dict[str, str], source: Dataset) -> None:
    place, manifest = source.folder.as_uri(), source.manifest_hash
    with pytest.raises(ValueError, match=r"first/data: a copy of the data needs .* but 1 MB are free; make room"):
        ray.get(on(nodes["first"], place, manifest, 1_000_000), timeout=60)
    # Two workers of each node ask at once.
    calls = {name: [on(nodes[name], place, manifest, None) for _ in range(2)] for name in NODES}
    found = {name: ray.get(answers, timeout=60) for name, answers in calls.items()}
    for name, answers in found.items():
        (folder,) = {folder for folder, _ in answers}
        assert Path(folder).parent.parent.name == name
        assert sorted(file for _, files in answers for file in files) == sorted(data_cache.SEARCH_FILES)
    copy = Path(found["second"][0][0]) / SEARCH_FILE
    content = copy.read_bytes()
    copy.write_bytes(b"x" + content[1:])
    assert ray.get(on(nodes["second"], place, manifest, None), timeout=60)[1] == [SEARCH_FILE]
    assert ray.get(on(nodes["first"], place, manifest, None), timeout=60)[1] == []
    assert copy.read_bytes() == content
