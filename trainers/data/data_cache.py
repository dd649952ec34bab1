"""Data that lies elsewhere (s3://, gs://, file:///): each machine fetches it once, and its processes map that copy.

Copies lie in `$PRETUNE_CACHE/data`, by default `~/.cache/pretune/data`, each under the hash of its manifest. One
process fetches under a lock while the others wait. What is fetched is checked against the manifest's sha256 as it
arrives, what is there already by its sizes and quick hashes; a file that does not fit is fetched again. Where the disk
has no room, copies that nobody has opened for longest are removed first. (A process that maps one keeps its pages.)
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from trainers import storage
from trainers.data.lock import HeldError, held
from trainers.data.manifest import (
    MANIFEST_FILE,
    SEARCH_FILE,
    SEARCH_LABELS,
    Dataset,
    open_dataset,
    parse_manifest,
    quick_hash,
)
from trainers.files import opened_whole, write_whole

logger = logging.getLogger(__name__)

SEARCH_FILES = (SEARCH_FILE, SEARCH_LABELS)
"""What a search reads: the report split stays where it is."""
WAIT_S = 3600.0
"""For another process of this machine that fetches the same data."""
SPARE_BYTES = 256 * 2**20
"""Left free beside a copy: logs and checkpoints need room, too."""


def cache() -> Path:
    """Where copies lie. The environment says where, never what."""
    root = os.environ.get("PRETUNE_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "pretune") / "data"


def open_anywhere(place: str, *, expected_hash: str | None = None, files: Sequence[str] = SEARCH_FILES) -> Dataset:
    """The data set at `place`: a folder, mapped where it lies, or a URI, of which this machine's copy is made or found.

    Of a URI's copy only `files` need be there. Raises ValueError as `open_dataset`, and where the disk has no room for
    the copy, or what arrives is not what the manifest says; OSError where the storage fails.
    """
    if not storage.is_uri(place):
        return open_dataset(place, expected_hash=expected_hash)
    folder = None if expected_hash is None else cache() / expected_hash
    if folder is None or _missing(folder, files):
        text = _manifest(place, expected_hash)
        folder = cache() / hashlib.sha256(text).hexdigest()
        try:
            with held(folder, wait_s=WAIT_S):
                _fetch(place, folder, text, files)
        except HeldError as error:
            raise ValueError(
                f"{folder}: another process of this machine fetches {place}, since more than {WAIT_S:g} s; end it, "
                "or set PRETUNE_CACHE to another folder"
            ) from error
    os.utime(folder)  # used now: see `_make_room`
    return open_dataset(folder, expected_hash=expected_hash, files=files)


def _manifest(place: str, expected_hash: str | None) -> bytes:
    try:
        text = storage.read(storage.join(place, MANIFEST_FILE))
    except FileNotFoundError as error:
        raise ValueError(
            f"{place}: a data set has a {MANIFEST_FILE}, but there is none; copy a folder that `pretune data` wrote "
            "there, or check the URI"
        ) from error
    found = hashlib.sha256(text).hexdigest()
    if expected_hash not in (None, found):
        raise ValueError(
            f"{place}: the run was made for the data set {str(expected_hash)[:12]}, but this one is {found[:12]}; "
            "name the place of the original data, or start a new run"
        )
    return text


def _fetch(place: str, folder: Path, text: bytes, files: Sequence[str]) -> None:
    """Bring what `folder` lacks of `files`, each aside and renamed."""
    manifest = parse_manifest(text, place)
    folder.mkdir(exist_ok=True)
    write_whole(folder / MANIFEST_FILE, text)
    missing = _missing(folder, files)
    _make_room(folder, sum(manifest.files[name].bytes for name in missing))
    for name in missing:
        logger.info("fetching %s of %s", name, place)
        with opened_whole(folder / name) as file:
            found = storage.download(storage.join(place, name), file)
            if found != manifest.files[name].sha256:
                raise ValueError(
                    f"{place}: {name} must have sha256 {manifest.files[name].sha256[:12]}, but has {found[:12]}: it is "
                    "not what `pretune data` wrote; copy the folder there again"
                )


def _missing(folder: Path, files: Sequence[str]) -> list[str]:
    """Which of `files` are not in the copy, or are not what its manifest says."""
    try:
        manifest = parse_manifest((folder / MANIFEST_FILE).read_bytes(), folder)
    except (OSError, ValueError):
        return list(files)
    return [name for name in files if not _fits(folder / name, manifest.files[name].quick)]


def _fits(path: Path, quick: str) -> bool:
    if path.is_file() and quick_hash(path) == quick:
        return True
    if path.exists():
        logger.warning("%s is damaged and is fetched again", path)
    return False


def _make_room(folder: Path, needed: int) -> None:
    """Remove the copies that were not opened for longest until `needed` bytes fit. ValueError where they never do."""
    others = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]
    for path in sorted(others, key=lambda path: path.stat().st_mtime):
        if shutil.disk_usage(folder).free >= needed + SPARE_BYTES:
            return
        logger.warning("removing %s, which was not used for longest, to make room", path)
        shutil.rmtree(path, ignore_errors=True)
    free = shutil.disk_usage(folder).free
    if needed and free < needed + SPARE_BYTES:
        raise ValueError(
            f"{folder.parent}: a copy of the data needs {needed / 1e6:,.0f} MB and {SPARE_BYTES / 1e6:,.0f} MB to "
            f"spare, but {free / 1e6:,.0f} MB are free; make room, or set PRETUNE_CACHE to a folder on another disk"
        )
