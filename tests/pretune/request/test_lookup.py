"""Names on the command line: shipped ones, configs, and a user's own code with its own errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretune.core.errors import RequestError
from pretune.request import lookup
from search_spaces import RECIPES, SPACES

GOOD = """
from trainers.config import TrialConfig

def recipe():
    return TrialConfig(objective={"alignment": {}})

def space(trial, base):
    return base

space.default_recipe = "sfrik_tiny"
"""


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_shipped_recipe_is_found_by_name(name: str) -> None:
    assert lookup.recipe(name).config == RECIPES[name]()


@pytest.mark.parametrize("name", sorted(SPACES))
def test_every_shipped_space_is_found_by_name_and_names_its_recipe(name: str) -> None:
    found = lookup.space(name)
    assert found.function is SPACES[name]
    assert found.recipe in RECIPES


def test_a_function_in_a_file_is_found_from_the_folder_one_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    assert list(lookup.recipe("mine.py:recipe").config.objective) == ["alignment"]
    found = lookup.space("mine.py:space")
    assert found.recipe == "sfrik_tiny"
    assert found.label == "space"
    assert found.name == f"{tmp_path / 'mine.py'}:space", "a resume from another folder must find it again"


def test_a_function_in_a_module_of_the_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "front_own_module.py").write_text(GOOD)
    assert lookup.space("front_own_module:space", folder=tmp_path).name == "front_own_module:space"


def test_a_file_may_import_its_neighbor(tmp_path: Path) -> None:
    (tmp_path / "front_neighbor.py").write_text("LENGTH = 7\n")
    (tmp_path / "mine.py").write_text(
        GOOD.replace('"alignment": {}}', '"alignment": {}}, epochs=front_neighbor.LENGTH')
    )
    (tmp_path / "mine.py").write_text("import front_neighbor\n" + (tmp_path / "mine.py").read_text())
    assert lookup.recipe("mine.py:recipe", folder=tmp_path).config.epochs == 7


def test_the_config_of_a_finished_sweep_is_a_recipe(tmp_path: Path) -> None:
    config = RECIPES["sfrik_tiny"]()
    (tmp_path / "best.json").write_text(config.model_dump_json())
    found = lookup.recipe("best.json", folder=tmp_path)
    assert found.config == config
    assert found.label == tmp_path.name, "best.json alone says nothing"


def broken(tmp_path: Path, source: str) -> str:
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(RequestError) as error:
        lookup.recipe("mine.py:recipe", folder=tmp_path)
    return str(error.value)


def test_a_broken_import_in_the_users_file_shows_that_line(tmp_path: Path) -> None:
    message = broken(tmp_path, "import json\nimport front_no_such_thing\n")
    assert f'File "{tmp_path / "mine.py"}", line 2' in message
    assert "import front_no_such_thing" in message
    assert "ModuleNotFoundError" in message
    assert "usercode.py" not in message, "our own frames are of no use to the user"


def test_a_broken_import_in_the_users_module_is_not_called_a_missing_module(tmp_path: Path) -> None:
    (tmp_path / "front_broken_module.py").write_text("import front_no_such_thing\n")
    with pytest.raises(RequestError) as error:
        lookup.recipe("front_broken_module:recipe", folder=tmp_path)
    assert "there is no module" not in str(error.value)
    assert "front_broken_module.py" in str(error.value)
    assert "line 1" in str(error.value)


def test_a_syntax_error_shows_file_and_line(tmp_path: Path) -> None:
    message = broken(tmp_path, "def recipe()\n    return 1\n")
    assert "SyntaxError" in message
    assert "line 1" in message


def test_what_a_recipe_raises_shows_its_line(tmp_path: Path) -> None:
    message = broken(tmp_path, "def recipe():\n    return {}['x']\n")
    assert "KeyError: 'x'" in message
    assert "line 2, in recipe" in message


def test_a_recipe_with_a_wrong_setting_is_explained_in_words(tmp_path: Path) -> None:
    source = "from trainers.config import TrialConfig\ndef recipe():\n    return TrialConfig(objective={}, epoch=3)\n"
    message = broken(tmp_path, source)
    assert "unknown key: 'epoch'" in message
    assert "did you mean 'epochs'?" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sfrik_tny", "did you mean 'sfrik_tiny'?"),
        ("nowhere.py:recipe", "there is no file"),
        ("front_no_module:recipe", "there is no module 'front_no_module'"),
        ("mine.py:recip", "mine.py has no 'recip'; known: recipe, space; did you mean 'recipe'?"),
        ("mine.py:", "must be file.py:Name or module:Name"),
        ("mine.py:space", "space() missing 2 required positional arguments"),
        ("none.json", "there is no such file"),
        ("broken.json", "must be JSON"),
        ("list.json", "must be an object of settings, but is list"),
        ("wrong.json", "unknown key: 'epoch'"),
    ],
)
def test_what_is_no_recipe_is_refused_with_a_remedy(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(GOOD)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "wrong.json").write_text(json.dumps({"objective": {"alignment": {}}, "epoch": 1}))
    with pytest.raises(RequestError) as error:
        lookup.recipe(text, folder=tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kernel", "did you mean 'kernels'?"),
        ("mine.py:recipe", "must take (trial, base)"),
    ],
)
def test_what_is_no_space_is_refused_with_a_remedy(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(GOOD)
    with pytest.raises(RequestError) as error:
        lookup.space(text, folder=tmp_path)
    assert message in str(error.value)
