"""Where the tests of commands run: an empty folder with the built-in data set at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers.data import datasets


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `data` with the built-in digits, built once."""
    root = tmp_path_factory.mktemp("front") / "data"
    datasets.ensure_builtin("digits", root)
    return root


@pytest.fixture
def here(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the built-in data set at hand."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(digits)
    return tmp_path
