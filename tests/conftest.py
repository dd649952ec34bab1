"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import os
import secrets
from collections.abc import Iterator

import pytest

from tests import object_store
from tests.two_processes import TwoProcesses

TERMINAL = ("LINES", "TERM_PROGRAM", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE")
"""What tells rich and typer how wide and how colorful a terminal is."""


def pytest_configure() -> None:
    # The same screen everywhere, whatever terminal or continuous integration the tests run in.
    for name in TERMINAL:
        os.environ.pop(name, None)
    os.environ["COLUMNS"] = "80"
    # Ray saves the token of a local cluster in the home folder, where the next `ray start` demands it of all its nodes.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    gc.set_threshold(50_000)  # as in a command: a twelfth of the time went into looking for garbage


def pytest_collection_finish() -> None:
    gc.freeze()  # all tests and what they import stay to the end: garbage is looked for elsewhere


@pytest.fixture(scope="session")
def two_processes() -> Iterator[TwoProcesses]:
    """Two warm processes in one gloo group: `two_processes.run(function, *arguments)` gives both ranks' results."""
    pool = TwoProcesses()
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch's: where features have to be the same bit for bit, or many small steps are taken."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def object_store_address() -> Iterator[str]:
    with object_store.server() as address:
        yield address


@pytest.fixture
def bucket(object_store_address: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URI of the test's own on an S3 server."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return object_store.uri(object_store_address, request.node.name.replace("[", "-").replace("]", ""))
