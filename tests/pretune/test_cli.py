"""The command line as its users meet it: refusals with code 2 and a remedy, listings, and what it does not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pretune.cli.app import app
from pretune.core.experiment import Experiment
from pretune.core.journal import Asked, Closed, Ended, Epoch, Journal, Opened, Record, Started
from search_spaces import RECIPES, SPACES
from trainers import storage
from trainers.data import datasets

DIGITS_TRAIN = 997


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `data` with the built-in digits, built once."""
    root = tmp_path_factory.mktemp("front") / "data"
    datasets.ensure_builtin("digits", root)
    return root


@pytest.fixture
def here(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the built-in data set at hand."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(digits)
    return tmp_path


def pretune(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="pretune")


def synthetic_sweep(folder: Path, *, closed: str | None = "finished") -> Path:
    """A sweep of three trials as its journal tells it: one whole, one stopped early, one infeasible."""
    base = RECIPES["sfrik_tiny"]()
    experiment = Experiment(
        name=folder.name,
        space="kernels",
        recipe="sfrik_tiny",
        base=base,
        data="digits",
        trials=3,
        storage=str(folder.parent),
    )
    config = base.model_dump(mode="json")

    def trial(number: int, values: list[float], state: str, reason: str = "") -> list[Record]:
        params = {"objective.mmd.kernel": "rbf", "objective.mmd.kernel.gamma": 1.5 + number}
        epochs = [
            Epoch(number=number, epoch=epoch, metrics={"probe/linear": value, "probe/linear_stderr": 0.0123})
            for epoch, value in enumerate(values, start=1)
        ]
        value = values[-1] if state == "COMPLETE" else None
        end = Ended.model_validate({"number": number, "state": state, "value": value, "reason": reason})
        asked = Asked(number=number, params=params, distributions={}, config=config)
        return [asked, Started(number=number, attempt=0, epoch=0), *epochs, end]

    with Journal(folder, new=True) as journal:
        records: list[Record] = [
            Opened(experiment=experiment),
            *trial(0, [0.5, 0.7, 0.81], "COMPLETE"),
            *trial(1, [0.4], "PRUNED", "probe/linear 0.4 at 1 epochs is not among the best 1 of 2"),
            *trial(2, [], "INFEASIBLE", "loss/mmd was not finite at step 3"),
        ]
        if closed is not None:
            records.append(Closed.model_validate({"reason": closed}))
        for record in records:
            journal.append(record)
    return folder


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sweep kernel", "did you mean 'kernels'?"),
        ("sweep kernels --recipe sfrik_tinny", "did you mean 'sfrik_tiny'?"),
        ("sweep nowhere.py:space", "there is no file"),
        ("sweep front_nowhere:space", "there is no module 'front_nowhere'"),
        ("sweep kernels --set optimizer.learning_rat=1", "did you mean 'optimizer.learning_rate'?"),
        ("sweep kernels --set epochs", "must have the form a.b=value"),
        ("sweep kernels --epochs 3 --set epochs=4", "say the same thing twice"),
        ("sweep kernels --data nowhere", "must be a folder that `pretune data` wrote"),
        ("sweep kernels --data cifar10", "run: pretune data cifar10 --source …"),
        ("sweep kernels --data .", "a data set is a folder with a manifest.json"),
        ("sweep kernels --subset 100000", f"data.subset must be 1 to {DIGITS_TRAIN}"),
        ("sweep kernels --set batch_size=2000", f"at most the {DIGITS_TRAIN} images"),
        ("sweep kernels --set probe.labels_per_class=500", "probe.labels_per_class must be at most"),
        ("sweep kernels --workers-per-trial 7", "batch_size must be a multiple of the 7 workers"),
        ("sweep kernels --slots 5000", "5000 slot(s) of 1 worker(s) need 5000 CPUs"),
        ("sweep kernels --sampler grid", "--sampler tpe"),
        ("sweep kernels --sampler cmaes", "is categorical"),
        ("sweep kernels --grace 1000", "stopping.grace must be at most"),
        ("sweep kernels --name a/b", "--name must be a folder name"),
        ("sweep kernels --name known", "choose another --name"),
        ("sweep kernels --storage ftp://host/x", "begins with s3://, gs://, file://"),
        ("sweep kernels --storage s3:///x", "must name a bucket"),
        ("show --storage s3://somewhere/x", "show lists the sweeps of a folder"),
        ("sweep mine.py:returns_nothing", "TrialConfig"),
        ("sweep mine.py:raises --recipe sfrik_tiny", "no luck today"),
        ("sweep mine.py:nameless", "names no recipe of its own"),
        ("resume knwn", "did you mean 'known'?"),
        ("resume known", "has all its 3 trials; add some with --trials 11, train them longer with --epochs"),
        ("resume known --epochs 2", "--epochs must be above"),
        ("resume known --epochs 500", "must have a checkpoint of epoch"),
        ("resume known --trials 2", "--trials must be at least 3"),
        ("replay known 7", "TRIAL must be 0 to 2, but is 7"),
        ("replay known 2", "finished no epoch"),
        ("show nowhere", "there is no sweep 'nowhere'"),
        ("show known --svg nowhere/x.svg", "cannot be written"),
        ("show --svg x.svg", "--svg draws one sweep"),
        ("finalize nowhere", "there is no sweep 'nowhere'"),
        ("finalize known", "the checkpoint of trial 0 was never written"),
        ("finalize empty", "has no complete trial"),
        ("ablate sfrik_tiny", "an ablation needs a factor"),
        ("ablate sfrik_tiny --factor objective.mmd.wait=1", "did you mean 'objective.mmd.weight'?"),
        ("ablate sfrik_tiny --factor batch_size=2000 --name a", f"at most the {DIGITS_TRAIN} images"),
        ("ablate sfrik_tiny --factor batch_size=63 --workers-per-trial 2", "must be a multiple of the 2 workers"),
        ("ablate sfrik_tinny --factor epochs=1", "did you mean 'sfrik_tiny'?"),
        ("ablate known --factor epochs=1", "has no best config yet"),
        ("data zip", "KIND 'zip' is not known"),
        ("data cifar10 --source nowhere", "nowhere"),
        ("data digits", "never overwritten"),
        ("data digits --verify --out nowhere", "a data set is a folder with a manifest.json"),
        ("train sfrik_tiny --data nowhere", "must be a folder that `pretune data` wrote"),
        ("train sfrik_tiny --workers 7", "batch_size must be a multiple of the 7 workers"),
        ("train cw_rgp_tiny --workers 8", "sub_batch_size"),
        ("sweep groups --workers-per-trial 8", "sub_batch_size"),
        ("train sfrik_tiny --out sweeps", "sweeps must be a new or empty folder"),
        ("train sfrik_tiny --out nowhere --resume", "there is no run in"),
        ("train none.json", "there is no such file"),
        ("train sfrik_tiny --set views.*.flip=0", "views.*.flip is called views.*.flip_probability since 0.2"),
        ("sweep kernels --set optimizer.kind=adam --set optimizer.momentum=0.8", "is called optimizer.beta1 for adam"),
        ("ablate sfrik_tiny --factor views.1.blur=0,1", "views.1.blur is called views.1.blur_probability since 0.2"),
        ("train mine.py:old", "flip is called flip_probability since 0.2; use that name"),
    ],
)
def test_a_wrong_request_is_refused_with_code_2_and_a_remedy(here: Path, arguments: str, message: str) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    base = RECIPES["sfrik_tiny"]()
    with Journal(here / "sweeps" / "empty", new=True) as journal:
        journal.append(Opened(experiment=Experiment(name="empty", space="kernels", base=base)))
    (here / "mine.py").write_text(
        "def returns_nothing(trial, base):\n    pass\n"
        "returns_nothing.default_recipe = 'sfrik_tiny'\n"
        "def raises(trial, base):\n    raise ValueError('no luck today')\n"
        "def nameless(trial, base):\n    return base\n"
        "def old():\n    from trainers.config import ViewConfig\n    return ViewConfig(flip=0.0)\n"
    )
    before = {path for path in here.rglob("*") if "__pycache__" not in path.parts}
    result = pretune(*arguments.split())
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    after = {path for path in here.rglob("*") if "__pycache__" not in path.parts}
    assert after == before, "a refused request leaves nothing behind"


def test_a_bucket_that_is_not_there_is_refused_before_anything_starts(here: Path, bucket: str) -> None:
    missing = bucket.replace("s3://bucket", "s3://nobody-has-this")
    result = pretune("sweep", "kernels", "--storage", missing)
    assert result.exit_code == 2, result.output
    assert "NO_SUCH_BUCKET" in result.stderr
    assert not (here / "sweeps").exists()


def test_a_sweep_in_a_bucket_is_shown_where_its_folder_never_was(here: Path, bucket: str) -> None:
    synthetic_sweep(here / "elsewhere" / "known")
    lines = (here / "elsewhere" / "known" / "journal.jsonl").read_bytes()
    remote = storage.join(bucket, "known")
    storage.write(storage.join(remote, "journal", "00000001-00000000.jsonl"), lines)
    result = pretune("show", remote, "--json")
    assert result.exit_code == 0, result.output
    assert [trial["id"] for trial in json.loads(result.stdout)["trials"]] == [0, 1, 2]
    assert (here / "sweeps" / "known" / "journal.jsonl").read_bytes() == lines
    by_name = pretune("show", "known", "--storage", bucket, "--json")
    assert by_name.stdout == result.stdout
    missing = pretune("show", "nothing", "--storage", bucket)
    assert missing.exit_code == 2
    assert "it has no journal" in missing.stderr


@pytest.mark.parametrize(
    "arguments", ["", "swep kernels", "sweep", "sweep kernels --trials 0", "sweep kernels --budget moons", "show --jsn"]
)
def test_wrong_usage_is_code_2_too(here: Path, arguments: str) -> None:
    assert pretune(*arguments.split()).exit_code == 2


SPACE = """
from search_spaces.kernels import space as kernels

def space(trial, base):
    return kernels(trial, base)

space.default_recipe = "sfrik_tiny"
"""


def test_a_sweep_does_not_go_on_with_another_version_or_space_unless_that_is_accepted(here: Path) -> None:
    from pretune import sweep
    from pretune.request import lookup

    (here / "mine.py").write_text(SPACE)
    base = RECIPES["sfrik_tiny"]()
    asked = Experiment(name="mine", space=f"{here}/mine.py:space", base=base, storage=str(here / "sweeps"))
    now = sweep.versions(lookup.space("mine.py:space").function, base)
    known = {**now, "torch": "0.1", "gone": "1.0"}
    with Journal(asked.folder, new=True) as journal:
        journal.append(Opened(experiment=asked, versions=known))
    result = pretune("resume", "mine")
    assert result.exit_code == 2
    assert f"these changed: torch 0.1 -> {now['torch']}; trials" in result.stderr
    assert "--accept-changes" in result.stderr
    (here / "mine.py").write_text(SPACE + "# and more")
    result = pretune("resume", "mine")
    assert f"space {known['space']} -> " in result.stderr


def test_a_broken_import_in_a_users_space_shows_its_own_line(here: Path) -> None:
    (here / "mine.py").write_text("import json\nfrom front_nowhere import thing\n")
    result = pretune("sweep", "mine.py:space")
    assert result.exit_code == 2
    assert "mine.py" in result.stderr
    assert "line 2" in result.stderr
    assert "from front_nowhere import thing" in result.stderr


# --- listings ---------------------------------------------------------------------------------------------------------


def test_list_names_recipes_spaces_terms_and_data(here: Path) -> None:
    found = json.loads(pretune("list", "--json").stdout)
    assert {entry["name"] for entry in found["recipes"]} == set(RECIPES)
    assert {entry["name"] for entry in found["spaces"]} == set(SPACES)
    assert {"alignment", "mmd"} <= {entry["name"] for entry in found["terms"]}
    assert {entry["name"] for entry in found["data"]} >= set(datasets.kinds())
    assert all(entry["description"] for entries in found.values() for entry in entries)
    text = pretune("list").stdout
    assert all(name in text for name in (*RECIPES, *SPACES, "mmd", "cifar10"))


def test_show_json_has_the_shape_that_is_promised(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    found = json.loads(pretune("show", "known", "--json").stdout)
    assert set(found) >= {"name", "space", "metric", "best", "trials"}
    assert (found["name"], found["space"], found["metric"], found["best"]) == ("known", "kernels", "probe/linear", 0)
    first, second, third = found["trials"]
    assert first == {
        "id": 0,
        "state": "COMPLETE",
        "epochs": 3,
        "value": 0.81,
        "params": {"objective.mmd.kernel": "rbf", "objective.mmd.kernel.gamma": 1.5},
        "reason": "",
    }
    assert (second["state"], second["epochs"]) == ("PRUNED", 1)
    assert "not among the best" in second["reason"]
    assert third["state"] == "INFEASIBLE"


def test_show_lists_sweeps(here: Path) -> None:
    assert json.loads(pretune("show", "--json").stdout) == []
    synthetic_sweep(here / "sweeps" / "known")
    synthetic_sweep(here / "sweeps" / "stopped", closed=None)
    found: list[dict[str, Any]] = json.loads(pretune("show", "--json").stdout)
    by_name = {entry["name"]: entry for entry in found}
    assert by_name["known"]["state"] == "finished"
    assert by_name["known"]["value"] == 0.81
    assert by_name["stopped"]["state"] == "killed"
    assert "known" in pretune("show").stdout


def test_show_prints_the_trials_best_first_and_what_to_type_next(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    text = pretune("show", "known").stdout
    lines = text.splitlines()
    rows = [line.split()[0] for line in lines if any(state in line for state in ("COMPLETE", "PRUNED", "INFEASIBLE"))]
    assert rows == ["0", "1", "2"]
    assert "0.810 ± 0.012" in text
    assert "kernel=rbf gamma=1.5" in text
    assert "not among best 1 of 2 at 1 epoch" in " ".join(text.split())
    assert "loss/mmd was not finite at step 3" in " ".join(text.split())
    assert "pretune finalize known" in text
    assert "tensorboard --logdir sweeps/known/tensorboard" in text
    assert max(len(line) for line in lines) <= 80


def test_an_interrupted_sweep_says_how_to_go_on(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known", closed="interrupted")
    assert "pretune resume known" in pretune("show", "known").stdout


def test_a_sweep_is_found_by_its_folder_too(here: Path) -> None:
    folder = synthetic_sweep(here / "elsewhere" / "known")
    assert pretune("show", str(folder)).exit_code == 0
    assert pretune("show", "known", "--storage", "elsewhere").exit_code == 0
    assert "pretune finalize elsewhere/known" in pretune("show", str(folder)).stdout


def test_show_draws_a_picture(here: Path) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    assert pretune("show", "known", "--svg", "known.svg").exit_code == 0
    picture = (here / "known.svg").read_text()
    assert picture.startswith("<svg")
    assert "COMPLETE" in picture


def test_data_writes_a_data_set_and_says_what_is_in_it(here: Path) -> None:
    result = pretune("data", "digits", "--out", "mine", "--split-seed", "3")
    assert result.exit_code == 0, result.output
    dataset = datasets.open_dataset(here / "mine")
    assert dataset.manifest.split_seed == 3
    assert f"{dataset.train_count:,} images" in result.stdout
    assert "pretune sweep kernels --data mine" in result.stdout
    assert pretune("data", "digits", "--out", "mine", "--verify").exit_code == 0
    whole = (here / "mine" / "search.beton").read_bytes()
    (here / "mine" / "search.beton").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    damaged = pretune("data", "digits", "--out", "mine", "--verify")
    assert damaged.exit_code == 2
    assert "search.beton" in damaged.stderr


# --- what is not imported ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["sweep", "--help"], 0),
        (["list"], 0),
        (["show"], 0),
        (["show", "known"], 0),
        (["sweep", "kernels", "--data", "nowhere"], 2),
        (["sweep", "kernels", "--subset", "100000"], 2),
        (["train", "sfrik_tiny", "--set", "epoch=1"], 2),
        (["finalize", "known"], 2),
        (["resume", "known"], 2),
    ],
)
def test_neither_ray_nor_torch_nor_ffcv_is_imported_to_answer(here: Path, arguments: list[str], code: int) -> None:
    synthetic_sweep(here / "sweeps" / "known")
    program = (
        "import sys\n"
        "from pretune.__main__ import main\n"
        f"sys.argv = ['pretune', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code or 0\n"
        "heavy = {'ray', 'torch', 'torchvision', 'ffcv', 'numba', 'tensorboard', 'sklearn'} & set(sys.modules)\n"
        "print('code', code, 'heavy', sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == f"code {code} heavy []", done.stdout + done.stderr
