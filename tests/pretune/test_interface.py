"""`import pretune`: what it shows, what it imports, `pretune.open`, and `pretune.run` with the command's own checks."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import pretune
from pretune import sweep as sweeps
from pretune.cli.app import app
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.journal import Journal
from pretune.core.records import Opened
from pretune.request import lookup
from search_spaces import RECIPES, SPACES, kernels
from tests.imports import imported
from tests.toys import plain
from trainers import storage
from trainers.config import TrialConfig


@pytest.fixture
def here(here: Path) -> Path:
    """A folder to work in, with the built-in data, a sweep that has begun, and a space in a file."""
    known = Experiment(name="known", space="kernels", base=RECIPES["sfrik_tiny"](), storage=str(here / "sweeps"))
    with Journal(known.folder, new=True) as journal:
        journal.append(Opened(experiment=known))
    (here / "interface_space.py").write_text(
        "from search_spaces.kernels import space as kernels\n\n"
        "def space(trial, base):\n    return kernels(trial, base)\n\n"
        "space.default_recipe = 'sfrik_tiny'\n"
    )
    return here


def test_the_package_shows_its_interface_and_nothing_else() -> None:
    assert dir(pretune) == pretune.__all__ == ["Sweep", "__version__", "open", "run"]
    assert all(getattr(pretune, name) is not None for name in pretune.__all__)
    with pytest.raises(AttributeError, match="'Experiment'"):
        pretune.Experiment  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("package", ["pretune", "trainers"])
def test_nothing_heavy_is_imported_with_it(package: str) -> None:
    heavy = "ray torch ffcv numba numpy pandas optuna pydantic rich typer tensorboard"
    assert imported(f"import {package}", heavy) == []


# --- open -------------------------------------------------------------------------------------------------------------


def test_a_sweep_is_opened_by_its_folder_and_by_its_name(here: Path) -> None:
    for found in (
        pretune.open("sweeps/known"),
        pretune.open("known"),
        pretune.open(here / "sweeps" / "known", storage="elsewhere"),
        pretune.open("known", storage=here / "sweeps"),
    ):
        assert isinstance(found, pretune.Sweep)
        assert (found.name, found.folder) == ("known", here / "sweeps" / "known")


def test_a_sweep_is_opened_by_its_uri(here: Path) -> None:
    bucket = (here / "bucket").as_uri()
    lines = (here / "sweeps" / "known" / "journal.jsonl").read_bytes()
    storage.write(storage.join(bucket, "far", "journal", "00000001-00000000.jsonl"), lines)
    assert pretune.open(f"{bucket}/far").experiment == pretune.open("far", storage=bucket).experiment


def test_no_sweep_is_the_commands_refusal(here: Path) -> None:
    refusal = CliRunner().invoke(app, ["show", "knwn"]).stderr
    with pytest.raises(RequestError) as error:
        pretune.open("knwn")
    assert f"error: {error.value}\n" == refusal


# --- what run refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        ("kernel", {"space": "kernel"}),
        ("interface_space.py:spice", {"space": "interface_space.py:spice"}),
        ("kernels --recipe sfrik_tinny", {"recipe": "sfrik_tinny"}),
        ("kernels --set optimizer.learning_rat=1", {"set": {"optimizer.learning_rat": 1}}),
        ("kernels --epochs 3 --set epochs=4", {"epochs": 3, "set": {"epochs": 4}}),
        ("kernels --data nowhere", {"data": Path("nowhere")}),
        ("kernels --subset 100000", {"subset": 100_000}),
        ("kernels --set batch_size=2000", {"set": {"batch_size": 2000}}),
        ("kernels --workers-per-trial 7", {"workers_per_trial": 7}),
        ("kernels --slots 5000", {"slots": 5000}),
        ("kernels --sampler cmaes", {"sampler": "cmaes"}),
        ("kernels --grace 1000", {"grace": 1000}),
        ("kernels --name a/b", {"name": "a/b"}),
        ("kernels --name known", {"name": "known"}),
        ("kernels --storage ftp://host/x", {"storage": "ftp://host/x"}),
    ],
)
def test_a_wrong_request_is_refused_in_the_commands_words(here: Path, typed: str, given: dict[str, Any]) -> None:
    refusal = CliRunner().invoke(app, ["sweep", *typed.split()]).stderr
    with pytest.raises(RequestError) as error:
        pretune.run(**{"space": "kernels", **given})
    assert f"error: {error.value}\n" == refusal
    assert [path.name for path in (here / "sweeps").iterdir()] == ["known"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trials": 0}, "'trials' is 0, but must be at least 1; change it"),
        ({"sampler": "magic"}, "'sampler' is 'magic', but must be 'tpe', 'random', 'grid' or 'cmaes'"),
        ({"set": {"seed": {1, 2}}}, "set must hold what JSON can say, but Object of type set is not JSON serializable"),
        ({"space": lambda trial, base: base}, "SPACE must be found again when the sweep is resumed, but .*<lambda>"),
        ({"space": partial(kernels.space)}, "SPACE must be found again .*; save it to one .* and give 'mine.py:mine'"),
        ({"recipe": lambda: None}, "RECIPE must be found again"),
    ],
)
def test_what_only_python_can_say_wrongly_is_refused_as_well(here: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        pretune.run(**{"space": "kernels", **given})


def test_what_was_typed_into_a_notebook_is_refused_before_its_sweep_could_not_be_resumed() -> None:
    program = (
        "import pretune\n"
        "def mine(trial, base):\n    return base\n"
        "try:\n    pretune.run(mine, 'sfrik_tiny')\nexcept ValueError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "but mine lies in no file that can be imported" in done.stdout
    assert "in a notebook: %%writefile mine.py" in done.stdout
    assert "give 'mine.py:mine'" in done.stdout


# --- objects in the place of names ------------------------------------------------------------------------------------


def test_objects_are_kept_by_the_names_that_find_them_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(here)
    mine = importlib.import_module("interface_space")
    space, recipe = lookup.space_and_recipe(mine.space, None)
    assert (space.name, space.label) == (f"{here}/interface_space.py:space", "space")
    assert lookup.space(space.name).function.__code__.co_filename == f"{here}/interface_space.py"
    assert recipe.name == "sfrik_tiny"
    space, recipe = lookup.space_and_recipe(SPACES["groups"], RECIPES["cw_rgp_tiny"])
    assert (space.name, recipe.name) == ("groups", "cw_rgp_tiny")
    (here / "interface_lab").mkdir()
    (here / "interface_lab" / "ours.py").write_text((here / "interface_space.py").read_text())
    ours = importlib.import_module("interface_lab.ours")
    assert lookup.space_and_recipe(ours.space, None)[0].name == "interface_lab.ours:space"


def test_a_config_is_a_recipe(here: Path) -> None:
    config = RECIPES["sfrik_tiny"]().model_copy(update={"epochs": 3})
    _, recipe = lookup.space_and_recipe("kernels", config)
    assert (recipe.name, recipe.config) == ("", config)


# --- a sweep from a notebook ------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_a_sweep_runs_where_a_notebook_would_run_it_and_comes_back_opened(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweeps, "_warm_slot", lambda experiment, folder, **_: plain(experiment, folder))

    async def cell() -> pretune.Sweep:
        """In a running event loop, and then in a thread that may set no signal handlers."""
        run = partial(pretune.run, "kernels", trials=2, epochs=3, slots=2, name="mine", quiet=True)
        return await asyncio.to_thread(run, set={"optimizer.learning_rate": 0.25})

    found = asyncio.run(cell())
    assert (found.name, found.state) == ("mine", "finished")
    assert found.trials["state"].tolist() == ["COMPLETE"] * 2
    assert found.trials["epochs"].tolist() == [3, 3]
    assert found.best is not None
    assert found.config(0).optimizer.learning_rate == 0.25
    assert pretune.open("mine").best == found.best
    assert (here / "sweeps" / "mine" / "tensorboard").is_dir()
    assert capsys.readouterr().out == ""


def test_a_setting_that_the_space_replaces_is_warned_of(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class BeganError(Exception):
        pass

    def run(experiment: Experiment, **_: Any) -> None:
        assert isinstance(experiment.base, TrialConfig)
        raise BeganError

    monkeypatch.setattr(sweeps, "run", run)
    with pytest.warns(UserWarning, match=r"the space sets objective\.mmd\.weight itself"), pytest.raises(BeganError):
        pretune.run("weights", "sfrik_tiny", set={"objective.mmd.weight": 2.0}, quiet=True)
    with pytest.raises(BeganError):
        pretune.run("kernels", "sfrik_tiny", quiet=True, name="other")
