"""What other versions wrote, on the command line: shown as far as it is understood, gone on with where all of it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretune.core import journal
from pretune.request import lookup
from search_spaces import RECIPES
from tests.pretune.cli.command import pretune
from tests.pretune.core.test_upgrade import NEWER, lines_of, old, write


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sweep of a later format, one of today's with an unknown setting, and one with an unknown fact."""
    monkeypatch.chdir(tmp_path)
    storage = tmp_path / "sweeps"
    for name in ("format", "setting", "fact"):
        lines: list[dict[str, Any]] = lines_of(storage)
        lines[0]["experiment"]["name"] = name
        lines[0]["versions"]["pretune"] = "0.9"
        if name == "format":
            lines[0]["format"] = NEWER
            lines.insert(2, {"kind": "note"})
        elif name == "setting":
            lines[1]["config"]["mixup"] = 0.1
        else:
            lines[3]["learning_rate"] = 0.1
        write(storage / name, lines)
    return storage


@pytest.mark.parametrize(
    ("name", "notices"),
    [
        ("format", (f"has format {NEWER}, written by pretune 0.9", "does not know: note")),
        ("setting", ("does not know: asked.config.mixup",)),
        ("fact", ("does not know: epoch.learning_rate",)),
    ],
)
def test_what_a_later_version_wrote_is_shown_and_what_is_left_out_is_named(
    name: str, notices: tuple[str, ...], later: Path
) -> None:
    shown = pretune("show", name)
    assert shown.exit_code == 0, shown.output
    assert "COMPLETE" in shown.stdout
    for notice in notices:
        assert f"note: this journal has {notice}" in words(shown.stdout) or notice in words(shown.stdout)
    found = json.loads(pretune("show", name, "--json").stdout)
    assert found["trials"][0]["value"] == 0.5
    assert len(found["notices"]) == len(notices)
    assert {sweep["name"] for sweep in json.loads(pretune("show", "--json").stdout)} == {"format", "setting", "fact"}


@pytest.mark.parametrize("command", ["resume", "resume --trials 9", "finalize", "replay"])
@pytest.mark.parametrize("name", ["format", "setting"])
def test_a_later_sweep_is_not_gone_on_with_and_the_version_that_is_needed_is_said(
    name: str, command: str, later: Path
) -> None:
    first, *options = command.split()
    before = (later / name / journal.FILE).read_bytes()
    refused = pretune(first, name, *options, *(["0"] if first == "replay" else []))
    assert refused.exit_code == 2, refused.output
    assert "To go on with it, use pretune 0.9 or a later one" in words(refused.stderr)
    assert (later / name / journal.FILE).read_bytes() == before
    assert sorted(path.name for path in (later / name).iterdir()) == [journal.FILE]


def test_a_key_that_only_informs_is_no_reason_to_refuse(later: Path) -> None:
    refused = pretune("finalize", "fact")
    assert "the checkpoint of trial 0 /0003.pt is gone" in words(refused.stderr)


def test_a_config_that_an_older_version_wrote_is_a_recipe(tmp_path: Path) -> None:
    config = RECIPES["dilemma_mocov3_tiny"]()
    path = tmp_path / "best.json"
    path.write_text(json.dumps(old(config.model_dump(mode="json"))))
    assert '"flip": ' in path.read_text()
    assert lookup.recipe(str(path)).config == config
