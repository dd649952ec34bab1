"""Where commands are tried, and what tests of sweeps leave behind in their own process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pretune.core.journal import Journal
from trainers.data import datasets


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `data` with the built-in digits, built once."""
    root = tmp_path_factory.mktemp("built-in") / "data"
    datasets.ensure_builtin("digits", root)
    return root


@pytest.fixture
def here(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the built-in data set at hand."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(data)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A folder with a checkpoint, `epoch-0003.pt`, and the digits that it is of; evaluations are kept beside them."""
    from tests.trainers.test_encoder import trained  # with torch

    folder = tmp_path_factory.mktemp("made")
    trained(folder, datasets.open_dataset(Path(shutil.copytree(data / "digits", folder / "digits"))))
    return folder


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where features, measurements and compiled code are kept for the time of a test."""
    monkeypatch.setenv("PRETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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
