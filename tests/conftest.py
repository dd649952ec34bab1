"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.two_processes import TwoProcesses


@pytest.fixture(scope="session")
def two_processes() -> Iterator[TwoProcesses]:
    """Two warm processes in one gloo group: `two_processes.run(function, *arguments)` gives both ranks' results."""
    pool = TwoProcesses()
    yield pool
    pool.close()
