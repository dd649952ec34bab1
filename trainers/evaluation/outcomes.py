"""What one seed of a protocol that trains gave, kept in a file, so that an interrupted evaluation goes on with the next
seed, and one of more seeds trains the new ones alone.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.evaluation.protocol import digest
from trainers.files import opened_whole

Arrays = dict[str, NDArray[Any]]
BUDGET = 8 * 2**30
"""Bytes of such files; those that nobody has used for longest are removed first."""


def outcome(folder: Path, key: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """What `make` gives, from the file of `key` where it was made before. A file that is damaged is made again."""
    path = folder / f"{digest(key)[:32]}.npz"
    if path.is_file():
        try:
            with path.open("rb") as written, np.load(written, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile):
            path.unlink(missing_ok=True)
        else:
            path.touch()
            return arrays
    arrays = make()
    folder.mkdir(parents=True, exist_ok=True)
    with opened_whole(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    _make_room(folder, path)
    return arrays


def _make_room(folder: Path, newest: Path) -> None:
    files = sorted(folder.glob("*.npz"), key=lambda one: one.stat().st_mtime)
    total = sum(one.stat().st_size for one in files)
    for one in files:
        if total <= BUDGET or one == newest:
            return
        total -= one.stat().st_size
        one.unlink(missing_ok=True)
