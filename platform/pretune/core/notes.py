"""What people say of a sweep: notes and tags, beside its journal and of no weight for what it decides.

Each note is a file of its own below `notes/`, written whole, so that any number of people add some at once and none is
lost; with a storage URI a copy lies in the storage. Tags follow from the notes, in their order.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pretune.core.errors import RequestError
from trainers import storage
from trainers.files import write_whole

FOLDER = "notes"
LONGEST = 10_000
"""Characters of a note."""
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=-]{0,49}")


class Note(BaseModel):
    """One note. `tags` are put on the sweep by it, `untagged` taken off."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    time: float
    """Unix seconds."""
    text: str = ""
    tags: tuple[str, ...] = ()
    untagged: tuple[str, ...] = ()


def checked(text: str, tags: Sequence[str] = (), untagged: Sequence[str] = ()) -> Note:
    """A note of now. RequestError where it says nothing, is too long, or a tag is no word."""
    # What would move a terminal's cursor is no text.
    text = "".join(sign for sign in text.strip() if sign.isprintable() or sign in "\n\t")
    if not text and not tags and not untagged:
        raise RequestError("a note must say something: give a text, --tag or --untag")
    if len(text) > LONGEST:
        raise RequestError(f"a note must have at most {LONGEST:,} characters, but has {len(text):,}; shorten it")
    for tag in (*tags, *untagged):
        if not _TAG.fullmatch(tag):
            raise RequestError(
                f"--tag must be a word of at most 50 letters, digits and ._:=-, but is {tag!r}; change it"
            )
    return Note(time=time.time(), text=text, tags=tuple(tags), untagged=tuple(untagged))


def add(folder: Path, note: Note, *, remote: str | None = None) -> None:
    """Adds `note` to the sweep in `folder`, and in its storage where it has one. OSError where that cannot be."""
    name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
    content = note.model_dump_json() + "\n"
    if remote is not None:
        storage.write(storage.join(remote, FOLDER, name), content.encode())
    (folder / FOLDER).mkdir(exist_ok=True)
    write_whole(folder / FOLDER / name, content)


def read(folder: Path) -> list[Note]:
    """The notes on the sweep in `folder`, oldest first. What is no note is left out: nothing depends on it."""
    found: list[Note] = []
    with suppress(OSError):
        for path in sorted((folder / FOLDER).glob("*.json")):
            with suppress(OSError, ValidationError):
                found.append(Note.model_validate_json(path.read_bytes()))
    return found


def fetch(remote: str, folder: Path) -> None:
    """Brings the notes in `folder` up to those in `remote`. OSError where the storage cannot be read."""
    place = storage.join(remote, FOLDER)
    for name in storage.names(place):
        path = folder / FOLDER / name
        if name.endswith(".json") and not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_whole(path, storage.read(storage.join(place, name)))


def tags(notes: Iterable[Note]) -> list[str]:
    """The tags that are on a sweep with these notes, in the order in which they were put there."""
    found: dict[str, None] = {}
    for note in notes:
        found.update(dict.fromkeys(note.tags))
        for tag in note.untagged:
            found.pop(tag, None)
    return list(found)
