"""A search and an ablation under the same commands: what each shows, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretune.cli import kinds
from pretune.core import points, results
from pretune.core.experiment import Experiment
from pretune.core.points import FixedPoints
from search_spaces import RECIPES, SPACES
from tests import toys
from tests.pretune.cli.command import pretune
from tests.toys import Executor, begin
from trainers.data import datasets


def run(asked: Experiment) -> Path:
    """The sweep, run to its end on toy slots."""
    conductor = begin(asked.folder, asked, SPACES["kernels"])
    Executor(conductor, slots=1, seed=0).run()
    conductor.close("finished")
    conductor._journal.close()
    return asked.folder


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a search and an ablation, both finished."""
    folder = tmp_path_factory.mktemp("kinds")
    data = datasets.ensure_builtin("digits", folder / "data")
    bound = {"path": str(data.folder), "manifest": data.manifest_hash}
    recipe = RECIPES["sfrik_tiny"]()
    base = recipe.model_copy(update={"data": recipe.data.model_copy(update=bound), "epochs": 6})
    run(toys.experiment(folder, name="search", space="kernels", base=base, trials=3, stopping={"enabled": False}))
    wanted = ({"seed": 0}, {"seed": 0, "epochs": 3}, {"seed": 1}, {"seed": 1, "epochs": 3})
    run(toys.experiment(folder, name="ablation", space="ablation", base=base, points=wanted, trials=4))
    return folder


def test_only_an_ablation_refuses_more_trials_and_offers_none(storage: Path) -> None:
    more = pretune("resume", "ablation", "--trials", "5", "--storage", str(storage))
    assert more.exit_code == 2
    assert "sweep 'ablation' is an ablation of 4 trials, each a level and a seed; leave --trials out" in more.stderr
    done = pretune("resume", "ablation", "--storage", str(storage))
    assert done.exit_code == 2
    assert "sweep 'ablation' has all its 4 trials; train them longer with --epochs 12, or look at it" in done.stderr
    search = pretune("resume", "search", "--storage", str(storage))
    assert search.exit_code == 2
    assert "has all its 3 trials; add some with --trials 11, train them longer with --epochs 12" in search.stderr


def test_each_shows_what_it_found_out(storage: Path) -> None:
    ablation = pretune("show", "ablation", "--storage", str(storage))
    assert "base: epochs=6" in ablation.stdout
    assert "to base" in ablation.stdout
    assert "pretune finalize" not in ablation.stdout
    search = pretune("show", "search", "--storage", str(storage))
    assert "settings, and why it ended early" in search.stdout
    assert "pretune finalize" in search.stdout


def test_the_json_of_an_ablation_has_its_levels_beside_its_trials(storage: Path) -> None:
    def told(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(pretune("show", name, "--json", "--storage", str(storage)).stdout)
        return found

    assert list(told("search")) == ["name", "space", "metric", "best", "trials", "commands"]
    ablation = told("ablation")
    assert list(ablation) == ["name", "space", "metric", "best", "trials", "commands", "ablation"]
    assert [level["settings"] for level in ablation["ablation"]["levels"]] == [{"epochs": 6}, {"epochs": 3}]


def test_the_files_at_its_end_are_those_of_its_kind(storage: Path) -> None:
    ablation, search = results.read(storage / "ablation"), results.read(storage / "search")
    written, left_out = kinds.of(ablation.experiment).write(ablation)
    assert [path.name for path in written[:4]] == ["ablation.md", "ablation.tex", "ablation.csv", "ablation.json"]
    assert [path.name for path in written[4:]] == ([] if left_out else ["ablation.pdf", "ablation.svg"])
    assert all(path.is_file() for path in written)
    results.write_best(search)
    assert kinds.of(search.experiment).write(search) == ([results.best_config_path(storage / "search")], [])


def test_each_goes_on_with_what_it_began_with(storage: Path) -> None:
    ablation, search = results.read(storage / "ablation").experiment, results.read(storage / "search").experiment
    assert kinds.of(search).space(search) is SPACES["kernels"]
    assert isinstance(points.proposer(ablation, kinds.of(ablation).space(ablation)), FixedPoints)


def test_the_tables_of_an_ablation_are_written_anew_on_demand(storage: Path) -> None:
    for path in (storage / "ablation").glob("ablation.*"):
        path.unlink()
    done = pretune("show", "ablation", "--write", "--storage", str(storage))
    assert done.exit_code == 0
    assert f"written to {storage / 'ablation' / 'ablation.tex'}" in done.stdout
    assert (storage / "ablation" / "ablation.csv").is_file()
    refused = pretune("show", "search", "--write", "--storage", str(storage))
    assert refused.exit_code == 2
    assert "--write writes the tables of an ablation, but 'search' is a search" in refused.stderr
