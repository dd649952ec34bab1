"""A request as a whole: what a sweep and an ablation are checked for, and what comes of it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pretune.core import journal, results
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.points import unvaried
from pretune.core.records import Opened
from pretune.request import lookup, overrides, request
from search_spaces import SPACES
from tests import toys
from tests.toys import Executor, begin
from trainers.changes import value_at
from trainers.config import TrialConfig
from trainers.data import datasets
from trainers.evaluation.protocols.knn import Knn


@pytest.fixture
def digits(data: Path) -> Path:
    return data / "digits"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def search(digits: Path, *, data: bool = True, **options: Any) -> Experiment:
    space, recipe = lookup.space_and_recipe("kernels", None)
    base = request.configure(recipe, epochs=4, seed=3)
    return request.checked(space, recipe, base, name="s", data=str(digits) if data else None, **options)


def ablation(digits: Path, *points: dict[str, Any]) -> Experiment:
    recipe = lookup.recipe("sfrik_tiny")
    space = lookup.FoundSpace("ablation", "ablate-sfrik_tiny", unvaried, None, None)
    base = request.configure(recipe)
    return request.checked(
        space,
        recipe,
        base,
        name="s",
        data=str(digits),
        points=points,
        trials=len(points),
        stopping_enabled=False,
    )


def test_what_is_searched_for_is_measured_at_each_probe_and_nothing_else_is(digits: Path) -> None:
    assert search(digits).base.probe.protocols == ()
    asked = search(digits, metric=["eval/knn20", "probe/linear", "eval/linear_lbfgs"])
    assert asked.base.probe.protocols == ("knn20", "linear_lbfgs")
    assert [objective.maximize for objective in asked.objectives] == [True] * 3


@pytest.mark.parametrize(
    ("asked", "grace_epochs", "factor"),
    [({}, 2, 2.0), ({"stopping": "hyperband"}, 2, 2.0), ({"stopping_reduction_factor": 4.0}, 2, 4.0)],
)
def test_a_new_sweep_has_rungs_from_an_eighth_of_the_epochs_and_a_stored_one_its_own(
    digits: Path, asked: dict[str, Any], grace_epochs: int, factor: float
) -> None:
    found = search(digits, **asked)
    found = found.model_copy(update={"base": found.base.model_copy(update={"epochs": 16})})
    assert (found.grace_epochs, found.stopping.reduction_factor) == (grace_epochs, factor)
    stored = found.model_dump(mode="json")
    del stored["stopping"]["grace_share"]  # as before it was a setting: a fifth
    assert Experiment.model_validate(stored).grace_epochs == 4


@pytest.fixture(scope="module")
def unlabeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unlabeled")
    pixels = np.random.default_rng(0).integers(0, 256, (2000, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "all.npz", images=pixels)
    return datasets.build("npz", unlabeled=folder / "all.npz", out=folder / "data").folder


@pytest.mark.parametrize("metric", [None, "probe/linear", "probe/full_knn"])
def test_what_takes_labels_is_not_searched_for_on_images_that_have_none(unlabeled: Path, metric: str | None) -> None:
    with pytest.raises(RequestError) as error:
        search(unlabeled, metric=metric)
    said = str(error.value)
    assert f"takes no labels, as the images of {unlabeled} have none, but is {metric or 'probe/linear'!r}" in said
    assert "reports loss/total, health/features/effective_rank" in said
    assert "--direction" in said
    assert "probe/" not in said.partition("a trial on them reports")[2]
    with pytest.raises(RequestError, match="takes no labels"):
        ablation(unlabeled, {"threads": 1})


def test_on_images_of_one_class_no_probe_is_searched_for_and_none_is_evaluated(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "cat"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
    for number, one in enumerate(pixels):
        Image.fromarray(one).save(folder / f"{number:03d}.png")
    found = datasets.build("images", source=[tmp_path / "in"], layout="classes", out=tmp_path / "data")
    with pytest.raises(RequestError, match="are all of one class, so that every probe is right, but is 'probe/linear'"):
        search(found.folder)
    assert search(found.folder, metric="health/embedding/effective_rank").objectives
    with pytest.raises(ValueError, match=r"protocol .knn. needs two classes or more, .* are of one"):
        Knn().check(found)


def test_what_takes_no_labels_is_searched_for_on_images_that_have_none(unlabeled: Path) -> None:
    assert search(unlabeled, metric="health/embedding/effective_rank").maximize
    assert not search(unlabeled, metric="loss/total").maximize


@pytest.mark.parametrize(
    ("metric", "direction", "maximize"),
    [
        (None, None, True),
        ("probe/knn", None, True),
        ("loss/total", None, False),
        ("loss/mmd", None, False),
        ("loss/total", "maximize", True),
        ("probe/linear", "minimize", False),
    ],
)
def test_a_loss_is_minimized_unless_the_direction_is_given(
    digits: Path, metric: str | None, direction: str | None, maximize: bool
) -> None:
    assert search(digits, metric=metric, direction=direction).maximize == maximize


def test_looking_at_what_the_space_varies_changes_nothing_in_the_base(digits: Path) -> None:
    def in_place(trial: Any, base: Any) -> Any:
        vars(base.objective["alignment"])["weight"] *= trial.suggest_categorical("factor", [2.0, (3.0,)[0]])
        return base

    base = search(digits).base
    before = base.model_dump_json()
    varied = request.varied_by_the_space(in_place, base, ["objective.alignment.weight=0.1"])
    assert varied == ["objective.alignment.weight"]
    assert base.model_dump_json() == before


def test_what_is_ready_to_run_names_its_data_by_their_bytes(digits: Path) -> None:
    asked = search(digits, trials=5, metric=None, storage="here")
    assert asked.base.data.path == str(digits.resolve())
    assert asked.base.data.manifest == datasets.open_dataset(digits).manifest_hash
    # As it was typed, beside where it was found.
    assert asked.data == str(digits)
    assert (asked.space, asked.recipe, asked.trials, asked.metric) == ("kernels", "sfrik_tiny", 5, "probe/linear")
    assert asked.folder == Path("here/s").absolute()
    assert (asked.seed, asked.base.seed, asked.base.epochs) == (3, 3, 4)
    assert Experiment.model_validate(asked.model_dump()) == asked


def test_a_space_says_what_its_trials_are_stopped_by_unless_the_request_does(digits: Path) -> None:
    space, recipe = lookup.space_and_recipe("regularizers", None)
    base = request.configure(recipe)
    assert space.budget is not None
    assert request.checked(space, recipe, base, name="s", data=str(digits)).budget == space.budget
    assert request.checked(space, recipe, base, name="s", data=str(digits), budget="epochs").budget == "epochs"
    assert search(digits).budget == "epochs"


def test_an_epoch_has_so_many_views_as_its_whole_batches_have(digits: Path) -> None:
    base = request.configure(lookup.recipe("sfrik_tiny"), subset=200)
    _, dataset = request.with_data(base, str(digits))
    config = base.model_copy(update={"batch_size": 64, "views": base.views[:1] * 3})
    assert request.views_per_epoch(config, dataset=dataset) == 3 * 64 * 3


def test_every_point_of_an_ablation_must_fit_the_data(digits: Path) -> None:
    asked = ablation(digits, {"seed": 0}, {"seed": 0, "batch_size": 64})
    assert asked.points == ({"seed": 0}, {"seed": 0, "batch_size": 64})
    assert not asked.stopping.enabled
    with pytest.raises(RequestError, match="batch_size must be at most the 997 images"):
        ablation(digits, {"seed": 0}, {"seed": 0, "batch_size": 2000})


def test_a_machine_of_ones_own_is_asked_for_no_more_than_it_has(digits: Path) -> None:
    with pytest.raises(RequestError, match=r"5000 slot\(s\) of 1 worker"):
        search(digits, slots=5000)
    assert search(digits, slots=5000, local=False).slots == 5000


def test_what_is_wrong_with_the_space_is_said_before_data_are_looked_for(digits: Path) -> None:
    with pytest.raises(RequestError, match="--sampler tpe"):
        search(digits, data=False, sampler="grid")
    assert not Path("data").exists()


def test_a_batch_that_the_workers_cannot_share_is_refused_with_the_recipe() -> None:
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 7 workers"):
        request.configure(lookup.recipe("sfrik_tiny"), workers=7)


def test_a_space_without_a_recipe_of_its_own_wants_one_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def space(trial, base):\n    return base\n")
    with pytest.raises(RequestError, match=r"space 'mine.py:space' names no recipe of its own; give one with --recipe"):
        lookup.space_and_recipe("mine.py:space", None)
    space, recipe = lookup.space_and_recipe("mine.py:space", "sfrik_tiny")
    assert (space.label, recipe.name) == ("space", "sfrik_tiny")


# ---- the recipe with options -----------------------------------------------------------------------------------------


def test_options_and_set_change_the_recipe_and_nothing_else() -> None:
    recipe = lookup.recipe("sfrik_tiny")
    assert request.configure(recipe) == recipe.config
    changed = request.configure(recipe, subset=100, epochs=3, seed=7, every_steps=5, assignments=["threads=2"])
    assert (changed.data.subset, changed.epochs, changed.seed) == (100, 3, 7)
    assert (changed.checkpoint_every_steps, changed.threads) == (5, 2)
    assert request.configure(recipe, subset="100").data.subset == 100
    assert request.configure(recipe, subset="12.5%").data.subset == "12.5%"
    for wrong in ("0%", "101%", "0.2", "1", "many", "-5%", "1e1%"):
        with pytest.raises(RequestError, match=r"data\.subset must be a number of images, at least 2, or a share"):
            request.configure(recipe, subset=wrong)
    paths = ["data.subset", "epochs", "seed", "checkpoint_every_steps", "threads"]
    before = {path: value_at(recipe.config, path) for path in paths}
    assert overrides.apply(changed, before) == recipe.config


@pytest.mark.parametrize(
    ("option", "path", "said"),
    [
        ({"subset": 9}, "data.subset", "--subset 9 and --set data.subset=4 say the same thing twice; keep one"),
        ({"epochs": 9}, "epochs", "--epochs 9 and --set epochs=4 say the same thing twice; keep one"),
        ({"seed": 4}, "seed", "--seed 4 and --set seed=4 say the same thing twice; keep one"),
    ],
)
def test_an_option_and_a_set_of_the_same_thing_are_refused(option: dict[str, Any], path: str, said: str) -> None:
    with pytest.raises(RequestError) as error:
        request.configure(lookup.recipe("sfrik_tiny"), assignments=[f"{path}=4"], **option)
    assert str(error.value) == said


# ---- data ------------------------------------------------------------------------------------------------------------


def test_data_are_a_folder_a_name_below_the_root_or_built_in(digits: Path) -> None:
    found = request.open_data(str(digits))
    assert request.open_data("digits", root=digits.parent) == found
    shutil.copytree(digits, "mine/copy")
    assert request.open_data("copy", root=Path("mine")).manifest_hash == found.manifest_hash
    with pytest.raises(ValueError, match="this one is"):
        request.open_data(str(digits), expected_hash="0" * 64)


@pytest.mark.parametrize(
    ("text", "command"),
    [("cifar10", "pretune data cifar10 --source …"), ("flowers", "pretune data KIND --source … --out flowers")],
)
def test_data_that_are_nowhere_are_refused_with_the_command_that_builds_them(text: str, command: str) -> None:
    with pytest.raises(RequestError) as error:
        request.open_data(text)
    assert str(error.value) == (
        f"data {text!r} must be a folder that `pretune data` wrote, or 'digits', but is neither; run: {command}"
    )


def test_a_config_is_bound_to_the_data_it_names_unless_others_are_asked_for(digits: Path) -> None:
    base = request.configure(lookup.recipe("sfrik_tiny"))
    bound, dataset = request.with_data(base, str(digits))
    assert (bound.data.path, bound.data.manifest) == (str(digits.resolve()), dataset.manifest_hash)
    assert bound.model_copy(update={"data": base.data}) == base
    again, _ = request.with_data(bound, None)
    assert again == bound
    other = bound.model_copy(update={"data": bound.data.model_copy(update={"manifest": "0" * 64})})
    with pytest.raises(ValueError, match="made for the data set 000000000000"):
        request.with_data(other, None)
    assert request.with_data(other, str(digits))[0] == bound, "other data were asked for, so they may be others"


def test_labels_that_the_smallest_class_does_not_have_are_refused(digits: Path) -> None:
    base = request.configure(lookup.recipe("sfrik_tiny"), assignments=["probe.labels_per_class=500"])
    fewest = min(datasets.open_dataset(digits).manifest.class_counts["train"])
    with pytest.raises(RequestError) as error:
        request.with_data(base, str(digits))
    assert str(error.value) == (
        f"probe.labels_per_class must be at most {fewest}, the images of the smallest class in `train`, but is 500; "
        f"lower it with --set probe.labels_per_class={fewest}"
    )
    fewer = request.configure(lookup.recipe("sfrik_tiny"), assignments=[f"probe.labels_per_class={fewest}"])
    assert request.with_data(fewer, str(digits))[0].probe.labels_per_class == fewest


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "-x", "a b", "ü", "x" * 101])
def test_a_sweeps_name_is_one_folders_name(digits: Path, name: str) -> None:
    space, recipe = lookup.space_and_recipe("kernels", None)
    with pytest.raises(RequestError, match=r"--name must be a folder name of letters, digits, .*; change it"):
        request.experiment(space, recipe, recipe.config, name=name, options={})
    assert request.experiment(space, recipe, recipe.config, name="a.B_c-1", options={}).name == "a.B_c-1"


def test_a_sweep_without_a_name_is_called_by_space_and_time_and_never_like_another(tmp_path: Path) -> None:
    first = request.new_name("kernels", tmp_path)
    assert re.fullmatch(r"kernels-\d{8}-\d{6}", first)
    (tmp_path / first).mkdir()
    second = request.new_name("kernels", tmp_path)
    assert second != first, "within the same second, too"


def test_a_name_that_is_taken_is_refused(digits: Path) -> None:
    asked = search(digits, storage="here")
    begin(asked.folder, asked, SPACES["kernels"])
    with pytest.raises(RequestError, match=r"a sweep named 's' exists in .*here; choose another --name, or go on with"):
        search(digits, storage="here")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"trials": 0}, "'trials' is 0, but must be at least 1; change it"),
        ({"stopping_grace": 0}, "'stopping.grace' is 0, but must be greater than 0; change it"),
        ({"trails": 5}, "unknown key: 'trails'"),
    ],
)
def test_an_option_that_no_sweep_has_is_refused_in_words(option: dict[str, int], said: str) -> None:
    space, recipe = lookup.space_and_recipe("kernels", None)
    with pytest.raises(RequestError) as error:
        request.experiment(space, recipe, recipe.config, name="s", options=option)
    assert said in str(error.value)


# ---- sweeps that are there -------------------------------------------------------------------------------------------


def stored(name: str, *, ended: bool = True) -> Experiment:
    """A sweep below ./sweeps, run to its end on toy slots if asked for."""
    asked = toys.experiment(Path("sweeps"), name=name, trials=2, stopping={"enabled": False})
    conductor = begin(asked.folder, asked, toys.space)
    if ended:
        Executor(conductor, slots=1, seed=0).run()
        conductor.close("finished")
        results.write_best(results.read(asked.folder))
    return asked


def test_a_sweep_is_found_by_its_folder_or_by_its_name() -> None:
    asked = stored("known", ended=False)
    assert request.sweep_folder("known", Path("sweeps")) == asked.folder
    assert request.sweep_folder("sweeps/known", Path("elsewhere")) == asked.folder
    assert request.sweep_folder(str(asked.folder), Path("elsewhere")) == asked.folder
    assert request.read_sweep("known", "sweeps").name == "known"


def test_a_sweep_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(RequestError) as error:
        request.sweep_folder("knwn", Path("sweeps"))
    assert str(error.value) == (
        "there is no sweep 'knwn': sweeps holds none; start one with `pretune sweep`, or give its folder"
    )
    stored("known", ended=False)
    stored("other", ended=False)
    with pytest.raises(RequestError) as error:
        request.sweep_folder("knwn", Path("sweeps"))
    assert str(error.value) == "there is no sweep 'knwn' in sweeps; known: known, other; did you mean 'known'?"


def test_a_recipe_may_be_the_best_of_a_sweep() -> None:
    asked = stored("known")
    found = request.recipe_or_best("known", "sweeps")
    best = results.read(asked.folder).best_trial
    assert best is not None
    assert found.config.model_dump(mode="json") == best.config
    assert found.label == "known"
    assert request.recipe_or_best("sfrik_tiny", "sweeps").name == "sfrik_tiny", "a shipped name comes first"
    stored("begun", ended=False)
    with pytest.raises(RequestError, match=r"sweep 'begun' has no best config yet \(best\.json is missing\); let"):
        request.recipe_or_best("begun", "sweeps")
    with pytest.raises(RequestError, match=r"did you mean 'sfrik_tiny'\?; nor is it a sweep: there is no sweep"):
        request.recipe_or_best("sfrik_tny", "sweeps")


def test_what_the_space_varies_itself_is_told_apart_from_what_it_leaves() -> None:
    base = lookup.recipe("sfrik_tiny").config
    varied = request.varied_by_the_space(toys.space, base, ["optimizer.learning_rate=1", "epochs=3"])
    assert varied == ["optimizer.learning_rate"]
    assert request.varied_by_the_space(toys.space, base, []) == []


def test_a_space_that_refuses_some_draws_is_looked_at_in_the_others() -> None:
    base, path = lookup.recipe("sfrik_tiny").config, "optimizer.learning_rate"
    assert request.varied_by_the_space(toys.branching, base, [f"{path}=1"]) == [path]


@pytest.mark.parametrize("left", [b"", b'{"crc32":"0123'])
def test_a_name_is_free_again_where_the_driver_was_killed_before_its_first_record(tmp_path: Path, left: bytes) -> None:
    base = TrialConfig.model_validate({"objective": {"alignment": {}}})
    asked = Experiment(name="n", space="mine", base=base, trials=1, storage=str(tmp_path))
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / journal.FILE).write_bytes(left)
    request.check_folder_is_new(asked)
    with journal.Journal(tmp_path / "n", new=True) as begun:
        begun.append(Opened(experiment=asked))
    with pytest.raises(RequestError, match="a sweep named 'n' exists"):
        request.check_folder_is_new(asked)
