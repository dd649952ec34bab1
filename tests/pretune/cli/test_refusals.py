"""A wrong request of any command: code 2, what to do instead, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretune.core.experiment import Experiment
from pretune.core.journal import Journal
from pretune.core.records import Opened
from search_spaces import RECIPES
from tests.pretune.cli.command import pretune, synthetic_sweep

DIGITS_TRAIN = 997


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
        ("sweep kernels --stopping none --grace 2", "--grace 2 is of no use with --stopping none"),
        ("sweep kernels --no-stopping --audit 5%", "--audit 0.05 is of no use with --stopping none"),
        ("sweep kernels --no-stopping --stopping median", "--no-stopping and --stopping median contradict"),
        ("sweep kernels --brackets 2", "of no use with --stopping asha; leave it out, or choose --stopping hyperband"),
        ("sweep kernels --stopping median --reduction-factor 2", "choose --stopping asha, hyperband"),
        ("sweep kernels --stopping hyperband --brackets 9", "stopping.brackets must be at most"),
        ("sweep kernels --reduction-factor 1", "'stopping.reduction_factor' is 1"),
        ("sweep kernels --max-hours 0", "'max_hours' is 0.0, but must be greater than 0"),
        ("sweep kernels --max-hours inf", "'max_hours' is inf"),
        ("sweep kernels --metric probe/linear --metric probe/linear", "each objective must be another metric"),
        ("sweep kernels --metric probe/linear --metric images_per_s", "did you mean 'time/images_per_s'?"),
        ("sweep kernels --direction maximize --direction minimize", "there are 2 for 1 (probe/linear)"),
        ("sweep kernels --warm-start nothing", "there is no sweep 'nothing'"),
        ("sweep kernels --metric probe/linaer", "did you mean 'probe/linear'?"),
        ("sweep kernels --metric linear", "did you mean 'probe/linear'?"),
        ("sweep kernels --metric eval/knn21", "known: knn5, knn20, knn200, linear_lbfgs; did you mean 'knn20'?"),
        ("ablate sfrik_tiny --factor epochs=1 --metric eval/finetune", "cheap enough for each epoch's probe"),
        ("sweep kernels --metric loss/mdm", "did you mean 'loss/mmd'?"),
        ("sweep kernels --metric loss/brownian", "one whose objective has alignment, mmd never reports it"),
        ("sweep kernels --metric report/linear", "is not told of each trial"),
        ("sweep kernels --metric time/first_step_s", "is not told of each trial"),
        ("sweep regularizers --metric loss/mmd", "never reports it"),
        ("ablate sfrik_tiny --factor epochs=1 --metric probe/kmm", "did you mean 'probe/knn'?"),
        ("ablate sfrik_tiny --factor objective.mmd.weight=0,1 --metric loss/mmd", "never reports it"),
        ("sweep kernels --epochs 99999999999", "'epochs' is 99999999999, but must be at most 1000000"),
        ("sweep kernels --trials 99999999999", "'trials' is 99999999999, but must be at most 1000000"),
        ("sweep kernels --seed 99999999999", "'seed' is 99999999999, but must be less than 2147483648"),
        ("train sfrik_tiny --epochs 99999999999", "'epochs' is 99999999999, but must be at most 1000000"),
        ("train sfrik_tiny --set epochs=1e99", "'epochs' is 1e+99, but"),
        ("train sfrik_tiny --set threads=99999999999", "must be at most 4096"),
        (f"train sfrik_tiny --set epochs={'9' * 5000}", "--set epochs: "),
        ("resume known --epochs 99999999999", "--epochs must be at most 1000000"),
        ("resume known --trials 99999999999", "--trials must be at most 1000000"),
        ("train twice.json", "an object must have each key once, but one has 'epochs' with 2 and 3"),
        ("train deep.json", "may lie at most 50 deep"),
        ('train sfrik_tiny --set model={"depth":1,"depth":2}', "one has 'depth' with 1 and 2"),
        (f"train sfrik_tiny --set views={'[' * 100000}", "may lie at most 50 deep"),
        (f"train sfrik_tiny --set views={'[' * 60}{']' * 60}", "may lie at most 50 deep"),
        (f"train sfrik_tiny --set {'a.' * 5000}b=1", "must have at most 50 steps, but has 5001"),
        (f"ablate sfrik_tiny --factor {'a.' * 5000}b=1", "must have at most 50 steps, but has 5001"),
        (f"ablate sfrik_tiny --factor views={'[' * 100000}", "may lie at most 50 deep"),
        ("sweep exits.py:space --recipe sfrik_tiny", "exits.py (`sys.exit(0)`)"),
        ("train exits.py:recipe", "ends the whole program when it is loaded, in line 2 of"),
        ("train exits_later.py:recipe", "ends the whole program, in line 3 of"),
        ("train sfrik_tiny --set objective.x.kind=exits.py:Term", "line 2 of"),
        ("sweep exits_later.py:space --recipe sfrik_tiny", "ends the whole program for {}, in line 5 of"),
        ("sweep mine.py:sets --recipe sfrik_tiny", "must leave configs as they are, but changes one in line 12 of"),
        ("sweep mine.py:twice --recipe sfrik_tiny", "'rate' is asked for twice"),
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
        ("finalize empty", "has no complete trial; go on with `pretune resume"),
        ("eval empty --protocol knn", "has no complete trial; go on with `pretune resume"),
        ("export empty --format timm", "has no complete trial; go on with `pretune resume"),
        ("eval empty/0 --protocol knn", "trial must be one of 'empty', but that has none yet"),
        ("eval known/3 --protocol knn", "trial must be 0 to 2 in 'known', but is 3"),
        ("export known/1 --format timm", "the checkpoint of trial 1 of 'known' was never written; name another one"),
        ("ablate sfrik_tiny", "an ablation needs a factor"),
        ("ablate sfrik_tiny --factor objective.mmd.wait=1", "did you mean 'objective.mmd.weight'?"),
        ("ablate sfrik_tiny --factor batch_size=2000 --name a", f"at most the {DIGITS_TRAIN} images"),
        ("ablate sfrik_tiny --factor batch_size=63 --workers-per-trial 2", "must be a multiple of the 2 workers"),
        ("ablate sfrik_tiny --factor epochs=1 --until decided", "--until decided needs --max-seeds"),
        ("ablate sfrik_tiny --factor epochs=1 --max-seeds 9", "--max-seeds 9 is for --until decided"),
        ("ablate sfrik_tiny --factor epochs=1 --until decided --max-seeds 3", "--max-seeds must be above --seeds"),
        ("ablate sfrik_tiny --factor epochs=1 --budget seconds", "--budget seconds and --seconds N"),
        ("ablate sfrik_tiny --factor epochs=1 --seconds 9", "--budget seconds and --seconds N"),
        (
            "ablate sfrik_tiny --factor epochs=1 --budget seconds --seconds 9 --metric probe/full_knn",
            "last epoch alone",
        ),
        ("ablate sfrik_tiny --factor epochs=1 --smallest-effect 0", "must be greater than 0"),
        ("ablate sfrik_tiny --leave-out objective.mdm", "did you mean 'objective.mmd'?"),
        ("ablate sfrik_tiny --level a:epochs=1 --level a:epochs=2", "--level a is given twice"),
        ("ablate sfrik_tiny --level base:epochs=1", "base is what the recipe itself is called"),
        ("ablate sfrik_tiny --factor epochs=8", "epochs has this value in the recipe"),
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
        "def sets(trial, base):\n    base.epochs = 3\n    return base\n"
        "def twice(trial, base):\n    trial.suggest_categorical('rate', [1])\n"
        "    return base if trial.suggest_categorical('rate', [2]) else base\n"
    )
    (here / "exits.py").write_text("import sys\nsys.exit(0)\n")
    (here / "exits_later.py").write_text(
        "import sys\ndef recipe():\n    exit()\ndef space(trial, base):\n    sys.exit(3)\n"
    )
    (here / "twice.json").write_text('{"epochs": 2, "objective": {"alignment": {}}, "epochs": 3}')
    (here / "deep.json").write_text('{"views": ' + "[" * 5000 + "]" * 5000 + "}")
    before = {path for path in here.rglob("*") if "__pycache__" not in path.parts}
    result = pretune(*arguments.split())
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    after = {path for path in here.rglob("*") if "__pycache__" not in path.parts}
    assert after == before, "a refused request leaves nothing behind"


@pytest.mark.parametrize(
    "arguments", ["", "swep kernels", "sweep", "sweep kernels --trials 0", "sweep kernels --budget moons", "show --jsn"]
)
def test_wrong_usage_is_code_2_too(here: Path, arguments: str) -> None:
    assert pretune(*arguments.split()).exit_code == 2
