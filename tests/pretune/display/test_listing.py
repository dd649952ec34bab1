"""What can be named, as a list for a terminal."""

from __future__ import annotations

from typing import Any

from pretune.display.listing import table
from tests.pretune.display.screen import shown, words


def test_every_entry_has_its_name_its_line_and_what_belongs_to_it() -> None:
    found: dict[str, list[dict[str, Any]]] = {
        "spaces": [{"name": "kernels", "description": "Which kernel?", "recipe": "sfrik_tiny"}],
        "data": [
            {"name": "digits", "description": "built in", "folder": "data/digits"},
            {"name": "npz", "description": "arrays", "folder": None},
        ],
    }
    assert words(table(found)) == [
        ["spaces"],
        ["kernels", "Which", "kernel?", "(recipe", "sfrik_tiny)"],
        ["data"],
        ["digits", "built", "in", "(built:", "data/digits)"],
        ["npz", "arrays"],
    ]


def test_a_long_description_is_folded_beside_its_name_and_brackets_are_no_markup() -> None:
    lines = shown(table({"recipes": [{"name": "mine", "description": "[red] " + "word " * 30}]}), width=40).splitlines()
    assert lines[1].startswith("  mine  [red] word")
    assert all(line.startswith(" " * 8) for line in lines[2:])
    assert max(map(len, lines)) <= 40
