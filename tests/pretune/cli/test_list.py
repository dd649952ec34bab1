"""`pretune list`: everything that can be named."""

from __future__ import annotations

import json
from pathlib import Path

from search_spaces import RECIPES, SPACES
from tests.pretune.cli.command import pretune
from trainers.data import datasets


def test_list_names_recipes_spaces_terms_and_data(here: Path) -> None:
    found = json.loads(pretune("list", "--json").stdout)
    assert {entry["name"] for entry in found["recipes"]} == set(RECIPES)
    assert {entry["name"] for entry in found["spaces"]} == set(SPACES)
    assert {"alignment", "mmd"} <= {entry["name"] for entry in found["terms"]}
    assert {entry["name"] for entry in found["data"]} >= set(datasets.kinds())
    assert all(entry["description"] for entries in found.values() for entry in entries)
    text = pretune("list").stdout
    assert all(name in text for name in (*RECIPES, *SPACES, "mmd", "cifar10"))
