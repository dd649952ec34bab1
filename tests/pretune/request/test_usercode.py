"""A user's own function: where it is looked for, and that what is wrong in it is shown with its own line."""

from __future__ import annotations

import dataclasses
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretune.core.errors import RequestError
from pretune.request import usercode
from trainers.config import TrialConfig


@pytest.fixture(autouse=True)
def _imports_are_forgotten() -> Iterator[None]:
    """Users' folders go on the import path, and their modules stay loaded: not from one test to the next."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith(("_pretune_user_", "usercode_test_")):
            del sys.modules[name]


def refused(text: str, folder: Path) -> str:
    with pytest.raises(RequestError) as error:
        usercode.load(text, what="SPACE", folder=folder)
    return str(error.value)


def test_a_colon_makes_a_reference_and_a_shipped_name_has_none() -> None:
    assert usercode.is_reference("mine.py:space")
    assert usercode.is_reference("lab.spaces:space")
    assert not usercode.is_reference("kernels")


def test_a_file_lies_in_the_given_folder_wherever_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "mine.py").write_text("def space(): return 'deep'\n")
    monkeypatch.chdir("/")
    assert usercode.load("deep/mine.py:space", what="SPACE", folder=tmp_path)() == "deep"
    assert usercode.load(f"{tmp_path}/deep/mine.py:space", what="SPACE", folder=Path("/"))() == "deep"


def test_the_absolute_name_finds_the_same_function_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("def space(): return 3\n")
    monkeypatch.chdir(tmp_path)
    name = usercode.absolute("mine.py:space", tmp_path)
    assert name == f"{tmp_path / 'mine.py'}:space"
    assert usercode.absolute("./deep/../mine.py:space", tmp_path) == name
    monkeypatch.chdir("/")
    assert usercode.load(name, what="SPACE", folder=Path("/"))() == 3
    assert usercode.absolute("lab.spaces:space", tmp_path) == "lab.spaces:space", "a module is found by its name"


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def space(): return 'before'\n")
    before = usercode.load("mine.py:space", what="SPACE", folder=tmp_path)
    path.write_text("def space(): return 'changed since'\n")
    assert usercode.load("mine.py:space", what="SPACE", folder=tmp_path)() == "changed since"
    assert before() == "before"


def test_two_files_of_one_name_do_not_get_in_each_others_way(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(f"PLACE = {name!r}\ndef space(): return PLACE\n")
    one = usercode.load("one/mine.py:space", what="SPACE", folder=tmp_path)
    other = usercode.load("other/mine.py:space", what="SPACE", folder=tmp_path)
    assert (one(), other()) == ("one", "other")


def test_a_file_may_be_called_like_a_module_of_pythons(tmp_path: Path) -> None:
    import json

    (tmp_path / "json.py").write_text("def space(): return 'mine'\n")
    assert usercode.load("json.py:space", what="SPACE", folder=tmp_path)() == "mine"
    assert sys.modules["json"] is json


def test_dataclasses_and_annotations_of_a_users_file_work_as_in_a_module(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass, field\n"
        "from pydantic import BaseModel\n"
        "@dataclass\n"
        "class Choice:\n"
        "    values: list[int] = field(default_factory=list)\n"
        "class Checked(BaseModel):\n"
        "    choice: Choice\n"
        "def space(): return Checked(choice=Choice([1]))\n"
    )
    made = usercode.load("mine.py:space", what="SPACE", folder=tmp_path)()
    assert dataclasses.asdict(made.choice) == {"values": [1]}
    assert pickle.loads(pickle.dumps(made.choice)) == made.choice


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine.py:", "/mine.py:' must be file.py:Name or module:Name, for example mine.py:Spread"),
        (":space", "must be file.py:Name or module:Name"),
        ("mine.py:spa-ce", "must be file.py:Name or module:Name"),
        (
            "nowhere.py:space",
            "SPACE 'nowhere.py:space': there is no file {folder}/nowhere.py on this machine",
        ),
        ("mine.py:spce", "mine.py has no 'spce'; known: space, other; did you mean 'space'?"),
        ("mine.py:LENGTH", "SPACE 'mine.py:LENGTH' must be a function, but is 7; name a function"),
        ("usercode_test_nowhere:space", "there is no module 'usercode_test_nowhere'; install it, or give file.py:"),
        ("usercode_test_package.deep:space", "there is no module 'usercode_test_package.deep'"),
        ("usercode_test_nowhere.deep:space", "there is no module 'usercode_test_nowhere'"),
    ],
)
def test_what_names_no_function_is_refused_with_a_remedy(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "usercode_test_package").mkdir()
    (tmp_path / "usercode_test_package" / "__init__.py").touch()
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nLENGTH = 7\ndef space(): pass\ndef other(): pass\n"
    )
    assert message.format(folder=tmp_path) in refused(text, tmp_path)


def test_a_module_that_is_missing_inside_a_users_module_is_not_said_to_be_the_users(tmp_path: Path) -> None:
    (tmp_path / "usercode_test_broken.py").write_text("import json\nimport usercode_test_gone\n")
    message = refused("usercode_test_broken:space", tmp_path)
    assert "there is no module" not in message
    assert f'File "{tmp_path / "usercode_test_broken.py"}", line 2' in message
    assert "No module named 'usercode_test_gone'" in message


@pytest.mark.parametrize("place", ["mine.py", "usercode_test_raises"])
def test_what_importing_raises_is_shown_from_the_users_first_line_on(tmp_path: Path, place: str) -> None:
    source = "def deeper():\n    return 1 / 0\n\ndeeper()\n"
    path = tmp_path / (place if place.endswith(".py") else f"{place}.py")
    path.write_text(source)
    first, *lines = refused(f"{place}:space", tmp_path).splitlines()
    name = str(path) if place.endswith(".py") else place
    assert first == f"SPACE '{place}:space': {name} cannot be loaded:"
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1] == f'  File "{path}", line 4, in <module>'
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert not [line for line in lines if "usercode.py" in line or "importlib" in line]


def test_a_call_gives_back_what_the_function_returns() -> None:
    assert usercode.call(lambda a, b: a - b, 5, 3, what="space 'mine'") == 2


def test_what_a_users_function_says_itself_is_passed_on_without_a_traceback() -> None:
    def refuses() -> None:
        raise ValueError("the width must be even, but is 3; double it")

    with pytest.raises(RequestError) as error:
        usercode.call(refuses, what="space 'mine'")
    assert str(error.value) == "space 'mine': the width must be even, but is 3; double it"
    assert isinstance(error.value.__cause__, ValueError)


def test_a_config_that_is_none_is_explained_in_words() -> None:
    with pytest.raises(RequestError) as error:
        usercode.call(
            lambda: TrialConfig.model_validate({"objective": {"alignment": {}}, "epoch": 3}), what="recipe 'm'"
        )
    assert str(error.value).startswith("recipe 'm': unknown key: 'epoch'; known keys: ")
    assert "did you mean 'epochs'?" in str(error.value)


def test_any_other_error_is_shown_with_the_users_own_lines(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def space():\n    try:\n        1 / 0\n    except Exception:\n        return {}['x']\n"
    )
    function = usercode.load("mine.py:space", what="SPACE", folder=tmp_path)
    with pytest.raises(RequestError) as error:
        usercode.call(function, what="space 'mine'")
    first, *shown = str(error.value).splitlines()
    assert first == "space 'mine' failed:"
    assert shown[1] == f'  File "{tmp_path / "mine.py"}", line 5, in space'
    assert shown[-1] == "KeyError: 'x'"
    assert "ZeroDivisionError" not in str(error.value), "what it was handling is not what went wrong"


def test_ctrl_c_in_a_users_function_is_no_request_error() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        usercode.call(interrupted, what="space 'mine'")
