"""Code by reference: found from anywhere, run once for each version of a file, refused where it is another one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.packages import installed
from trainers import usercode
from trainers.usercode import ChangedError

SOURCE = """
import dataclasses

LOADED = []

@dataclasses.dataclass
class Thing:
    size: int = 3

    class Inner:
        pass

def fails(x):
    return {}[x]
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(SOURCE)
    return tmp_path / "mine.py"


def test_what_is_in_a_file_is_found_with_the_hash_of_the_file(mine: Path) -> None:
    found = usercode.load(f"{mine}:Thing")
    assert found.thing().size == 3
    assert found.sha256 == hashlib.sha256(mine.read_bytes()).hexdigest()
    assert usercode.load(f"{mine}:Thing.Inner").thing is found.thing.Inner
    assert usercode.load(f"{mine}:Thing", sha256=found.sha256) == found


def test_a_file_is_run_once_for_each_version_of_it(mine: Path) -> None:
    first = usercode.load(f"{mine}:LOADED").thing
    assert usercode.load(f"{mine}:LOADED").thing is first
    mine.write_text(SOURCE.replace("size: int = 3", "size: int = 4"))
    assert usercode.load(f"{mine}:LOADED").thing is not first
    assert usercode.load(f"{mine}:Thing").thing().size == 4


def test_two_files_of_one_name_do_not_meet(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_text(SOURCE.replace("size: int = 3", "size: int = 4"))
    assert usercode.load(f"{mine}:Thing").thing().size == 3
    assert usercode.load(f"{tmp_path}/other/mine.py:Thing").thing().size == 4


def test_a_file_that_has_changed_is_refused(mine: Path) -> None:
    known = usercode.load(f"{mine}:Thing").sha256
    mine.write_text(SOURCE + "# and more\n")
    with pytest.raises(ChangedError, match=r"must have sha256 .*, as when this run was requested, .*put the file back"):
        usercode.load(f"{mine}:Thing", sha256=known)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("mine.py:Thing", "must be a whole path here"),
        ("{folder}/none.py:Thing", "there is no file"),
        ("{folder}/mine.py:Thin", "has no 'Thin'; known: Thing, fails; did you mean 'Thing'?"),
        ("{folder}/mine.py:", "must be file.py:Name or module:Name"),
        ("usercode_nowhere:Thing", "there is no module 'usercode_nowhere'"),
    ],
)
def test_what_is_not_there_is_refused_with_a_remedy(mine: Path, reference: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"mine|none|nowhere") as error:
        usercode.load(reference.format(folder=mine.parent))
    assert message in str(error.value)


def test_a_file_that_raises_leaves_nothing_behind(mine: Path) -> None:
    mine.write_text("half = 1\nraise RuntimeError('no luck')\n")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"(?s)cannot be loaded:.*line 2.*no luck") as error:
            usercode.load(f"{mine}:half")
        assert "usercode.py" not in str(error.value), "our own frames are of no use to the user"


def test_only_files_are_anchored(tmp_path: Path) -> None:
    assert usercode.anchored("mine.py:Thing", tmp_path) == f"{tmp_path}/mine.py:Thing"
    assert usercode.anchored("/else/mine.py:Thing", tmp_path) == "/else/mine.py:Thing"
    assert usercode.anchored("timm:resnet18", tmp_path) == "timm:resnet18"


def test_an_object_is_found_again_by_the_reference_to_it(mine: Path) -> None:
    thing = usercode.load(f"{mine}:Thing.Inner").thing
    assert usercode.reference_to(thing) == f"{mine}:Thing.Inner"
    assert usercode.reference_to(json.dumps) == "json:dumps"
    assert usercode.where(thing) == f"Thing.Inner ({mine}:10)"


def test_the_place_of_an_error_is_in_the_users_file(mine: Path) -> None:
    fails = usercode.load(f"{mine}:fails").thing
    with pytest.raises(KeyError) as error:
        fails("x")
    assert usercode.place_of(error.value, fails) == f"line 14 of {mine}, "
    assert usercode.line_of(error.value, fails) == "return {}[x]"
    assert usercode.place_of(error.value, json.dumps) == usercode.line_of(error.value, json.dumps) == ""


def test_settings_that_a_function_does_not_take_are_named_with_those_that_it_does(mine: Path) -> None:
    thing = usercode.load(f"{mine}:Thing").thing
    usercode.check_call(thing, settings={"size": 2})
    with pytest.raises(ValueError, match=r"known settings: size; did you mean 'size'\?"):
        usercode.check_call(thing, settings={"sze": 2})


def test_what_installed_packages_offer_is_found_without_importing_it(tmp_path: Path) -> None:
    offered = {"pretune.terms": {"lab_thing": "usercode_lab:Thing"}, "pretune.spaces": {"lab_space": "usercode_lab:no"}}
    with installed(
        tmp_path,
        package="the-lab",
        version="1.2",
        module="usercode_lab",
        source="raise RuntimeError('imported')",
        entry_points=offered,
    ):
        plugin = usercode.plugins("pretune.terms")["lab_thing"]
        assert plugin == usercode.Plugin("lab_thing", "usercode_lab:Thing", "the-lab", "1.2")
        assert "lab_thing" not in usercode.plugins("pretune.spaces")
        assert usercode.packages_of(["usercode_lab.deep.down", f"{tmp_path}/mine"]) == {"the-lab": "1.2"}
    assert "lab_thing" not in usercode.plugins("pretune.terms")
