"""`pretune watch`: a local page that follows sweeps."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pretune.cli import completion, kinds
from pretune.cli.exits import checking, interrupted
from pretune.cli.options import STORAGE, Storage
from pretune.core.errors import RequestError

if TYPE_CHECKING:
    from pretune.analysis.following import Followed
    from pretune.analysis.watched import Watched

WIDTH = 100
"""Columns of the closing screen on the page."""
LISTED = 10
"""Trials that it lists one by one: all of them are in the page's table."""
KEY_BYTES = 32


def watch_command(
    sweep: Annotated[
        str | None,
        typer.Argument(
            metavar="[SWEEP]",
            help="a sweep's name, folder or URI, also one that has not begun yet; default: all below --storage",
            autocompletion=completion.sweeps,
        ),
    ] = None,
    storage: Storage = STORAGE,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=1,
            max=65535,
            help="listen there, and keep the address from run to run; default: any that is free, and a new address",
        ),
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="open no browser")] = False,
) -> None:
    """Follow sweeps on a page of this machine's own. Nothing in them is changed; Ctrl-C ends the page alone."""
    import asyncio

    from trainers import scratch

    with ExitStack() as until_the_end:
        with checking():
            watched = until_the_end.enter_context(_watched(sweep, storage))
            from pretune.display import watch

            listener = until_the_end.enter_context(watch.listening(port or 0))
        token = secrets.token_urlsafe(24) if port is None else _kept_token(watched.place, port)
        address = watch.address(listener, token)

        def ready() -> None:
            print(address, flush=True)
            _explain(watched, listener.getsockname()[1])
            if not no_open and _has_screen():
                _open(until_the_end.enter_context(scratch.folder()), address)

        try:
            asyncio.run(watch.serve(watched, listener, token, closing_screen, ready))
        except KeyboardInterrupt as error:
            interrupted("the page has ended; sweeps go on", error)


@contextmanager
def _watched(sweep: str | None, storage: str) -> Iterator[Watched]:
    from pretune.analysis import watched
    from pretune.core import journal
    from pretune.core.messages import did_you_mean
    from trainers import storage as storages

    uri = sweep if sweep is not None and storages.is_uri(sweep) else None
    if uri is None and storages.is_uri(storage):
        if sweep is None:
            raise RequestError(f"watch follows all sweeps of a folder, not of {storage}; name one: pretune watch URI")
        uri = storages.join(storage, sweep)
    if uri is not None:
        storages.check_form(uri)
        with watched.remote(uri) as found:
            yield found
        return
    if sweep is None:
        yield watched.Folder(Path(storage).expanduser().absolute())
        return
    folders = [Path(sweep).expanduser(), Path(storage).expanduser() / sweep]
    there = [path for path in folders if (path / journal.FILE).is_file() or (path / journal.LOCK).is_file()]
    folder = (there or folders[-1:])[0]
    if not there:
        known = sorted(path.parent.name for path in Path(storage).expanduser().glob(f"*/{journal.FILE}"))
        names = f" ({did_you_mean(sweep, known)})" if known else ""
        _say(f"note: there is no sweep {sweep!r} in {storage} yet{names}; the page shows it once it begins")
    yield watched.OneSweep(folder.absolute())


def closing_screen(followed: Followed) -> str:
    """What a sweep prints at its end, as far as it can be told without computing anything."""
    from rich.console import Console

    from pretune.analysis import baselines
    from pretune.display import screen, tables

    result = followed.result()
    parts: list[Any] = kinds.of(result.experiment).screen(result, baselines.read(result), limit=LISTED)
    said = StringIO()
    console = Console(file=said, width=WIDTH, color_system=None, legacy_windows=False)
    screen.show(console, *parts, tables.next_commands(result))
    return said.getvalue().strip("\n")


def _kept_token(place: str, port: int) -> str:
    """The same for `place` and `port` each time, so that a page that is open goes on when the server does: made from a
    key that only this user can read, or, where there can be none, a new one.
    """
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "pretune"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = home / "watch.key"
        with suppress(FileExistsError):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(handle, "wb") as new:
                new.write(secrets.token_bytes(KEY_BYTES))
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
            key = file.read(KEY_BYTES) if ours else b""
    except OSError:
        key = b""
    if len(key) != KEY_BYTES:
        return secrets.token_urlsafe(24)
    digest = hashlib.blake2b(f"{port} {place}".encode(), key=key, digest_size=24).digest()
    return base64.urlsafe_b64encode(digest).decode()


def _explain(watched: Watched, port: int) -> None:
    _say(f"following {watched.place}; open the address above in a browser, Ctrl-C ends the page")
    if not _has_screen():
        here = os.uname().nodename
        _say(f"from another machine: ssh -L {port}:127.0.0.1:{port} {here}, then open the same address there")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _has_screen() -> bool:
    """Whether a browser that is opened here is seen by who typed: not over ssh, and not where there is no desktop."""
    far = any(os.environ.get(name) for name in ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY"))
    return not far and any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _open(folder: Path, address: str) -> None:
    """Opens the user's browser on a file that leads to `address`: all users see the arguments of a process, and the
    file is this one's alone.
    """
    page = folder / "watch.html"
    page.touch(mode=0o600)
    page.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={address}">', encoding="utf-8")
    subprocess.Popen(
        [sys.executable, "-m", "webbrowser", page.as_uri()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
