"""`pretune list`: what is shipped, what packages offer, and a package's fault that hides nothing else."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from pretune.cli.app import app
from pretune.request import inventory
from search_spaces import RECIPES, SPACES
from tests.packages import installed

SOURCE = '''
from trainers.terms import TermConfig

class Scale(TermConfig):
    """The size of embeddings."""

    def __call__(self, outputs):
        return outputs.projections[0].square().mean()
'''


def test_everything_shipped_is_listed_with_a_line_and_the_ways_to_name_ones_own(tmp_path: Path) -> None:
    found = inventory.collect(tmp_path)
    assert [entry["name"] for entry in found["recipes"]] == list(RECIPES)
    assert [entry["name"] for entry in found["spaces"]] == list(SPACES)
    assert {"resnet_tiny", "vit_micro"} <= {entry["name"] for entry in found["backbones"]}
    assert [entry["name"] for entry in found["your own"]] == ["file.py:Name", "module:Name", "timm:NAME"]
    assert all(entry["description"] for entries in found.values() for entry in entries)
    assert "notes" not in found


def test_what_packages_offer_is_listed_and_what_cannot_be_used_is_noted(tmp_path: Path) -> None:
    offered = {
        "pretune.terms": {
            "lab_scale": "inventory_lab:Scale",
            "lab_gone": "inventory_lab:Gone",
            "alignment": "inventory_lab:Scale",
        },
        "pretune.spaces": {"lab_space": "inventory_no_such_module:space"},
    }
    with installed(
        tmp_path, package="the-lab", version="1.2", module="inventory_lab", source=SOURCE, entry_points=offered
    ):
        found = inventory.collect(tmp_path)
        listed = CliRunner().invoke(app, ["list"])
    entry = next(entry for entry in found["terms"] if entry["name"] == "lab_scale")
    assert entry == {"name": "lab_scale", "description": "The size of embeddings.", "package": "the-lab 1.2"}
    assert sum(entry["name"] == "alignment" for entry in found["terms"]) == 1
    notes = {note["name"]: note["description"] for note in found["notes"]}
    assert notes.keys() == {"lab_gone", "alignment", "lab_space"}
    assert "has the name of a shipped one, which is taken; name it as inventory_lab:Scale" in notes["alignment"]
    assert "pretune.terms of the-lab 1.2 cannot be loaded" in notes["lab_gone"]
    assert "has no 'Gone'" in notes["lab_gone"]
    assert "there is no module 'inventory_no_such_module'" in notes["lab_space"]
    assert listed.exit_code == 0
    assert "(from the-lab 1.2)" in listed.stdout
    assert "lab_gone" in listed.stdout
