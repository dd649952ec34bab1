"""`pretune watch`: what is refused before anything is listened on, and the address that it prints."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pretune.cli import watch
from pretune.display.watch import listening
from tests.imports import imported
from tests.pretune.cli.command import pretune


def test_a_storage_uri_without_a_sweep_and_a_taken_port_are_refused(tmp_path: Path) -> None:
    refused = pretune("watch", "--storage", "s3://bucket/sweeps")
    assert refused.exit_code == 2
    assert "name one: pretune watch URI" in refused.stderr
    with listening(0) as taken:
        port = str(taken.getsockname()[1])
        refused = pretune("watch", "--storage", str(tmp_path), "--port", port)
    assert refused.exit_code == 2
    assert f"--port {port} cannot be listened on (it is in use)" in refused.stderr
    assert pretune("watch", "s3:///nobucket").exit_code == 2
    assert pretune("watch", "--port", "99999").exit_code == 2


def test_help_of_all_commands_imports_no_server() -> None:
    assert imported("from pretune.cli import app", "aiohttp asyncio ray torch") == []


def test_a_kept_address_is_the_same_for_the_same_place_and_port_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    first = watch._kept_token("/a", 1)
    assert watch._kept_token("/a", 1) == first
    assert len({first, watch._kept_token("/a", 2), watch._kept_token("/b", 1)}) == 3
    key = tmp_path / "state" / "pretune" / "watch.key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o644)
    assert watch._kept_token("/a", 1) != watch._kept_token("/a", 1), "others may have read the key"
    key.unlink()
    key.symlink_to("/dev/zero")
    assert watch._kept_token("/a", 1) != watch._kept_token("/a", 1)
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    assert len(watch._kept_token("/a", 1)) >= 32


def test_a_browser_is_opened_where_it_is_seen_and_the_token_is_in_no_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY"):
        monkeypatch.delenv(name, raising=False)
    assert not watch._has_screen()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert watch._has_screen()
    monkeypatch.setenv("SSH_CONNECTION", "1.2.3.4 5 6.7.8.9 22")
    assert not watch._has_screen()
    started: list[list[str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **how: started.append(command))
    watch._open(tmp_path, "http://127.0.0.1:1/secret/")
    assert not [word for word in started[0] if "secret" in word]
    page = tmp_path / "watch.html"
    assert "url=http://127.0.0.1:1/secret/" in page.read_text()
    assert page.stat().st_mode & 0o777 == 0o600
    assert os.getuid() == page.stat().st_uid
