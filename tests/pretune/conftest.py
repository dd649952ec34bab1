"""What tests of sweeps leave behind in their own process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pretune.core.journal import Journal


@pytest.fixture(autouse=True)
def _journals_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A driver that is killed leaves its journal open. The process of the test that plays it lives on: closed here."""
    left: list[Journal] = []
    init = Journal.__init__

    def opened(journal: Journal, *arguments: Any, **settings: Any) -> None:
        init(journal, *arguments, **settings)
        left.append(journal)

    monkeypatch.setattr(Journal, "__init__", opened)
    yield
    for journal in left:
        journal.close()
