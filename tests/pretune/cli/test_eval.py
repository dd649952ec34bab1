"""`pretune eval`: what is refused before anything is computed, and an encoder judged twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.imports import imported
from tests.pretune.cli.command import pretune
from trainers.data import report_reads

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_request_that_cannot_be_done_is_refused_without_torch() -> None:
    program = (
        "from typer.testing import CliRunner; from pretune.cli.app import app\n"
        "done = CliRunner().invoke(app, ['eval', 'nothing', '--protocol', 'knn'])\n"
        "assert done.exit_code == 2, done.output\n"
    )
    assert imported(program, "torch ray ffcv") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--protocol", "linaer"], "there is no protocol 'linaer'; known: "),
        (["--protocol", "knn", "--set", "linear.epochs=1"], "must begin with the name of a protocol that is asked for"),
        (["--set", "knn.neighbours=[1]"], "neighbors"),
        (["--set", "knn.neighbors=[0]"], "must be at least 1"),
        (["--set", "knn.neighbors=5"], "'neighbors' is 5, but must be a list"),
        (["--set", "knn.version=2"], "cannot be changed"),
        (["--source", "teacher"], "source must be one of features, embedding"),
        (["--data", "nowhere"], "must be a folder that `pretune data` wrote"),
        (["--protocol", "transfer"], "name them with --data"),
        (["--protocol", "multilabel"], "needs images with several labels"),
        (["--protocol", "multilabel", "--protocol", "knn"], "two commands"),
        (["--seeds", "1000"], "--seeds must be 1 to 100"),
        (
            ["--protocol", "finetune", "--workers", "3"],
            "finetune.batch_size must be divisible by the number of workers, but is 256 with --workers 3; "
            "use --set finetune.batch_size=255",
        ),
        (["--protocol", "low-labels-finetune", "--workers", "16"], "trains on 10 images or fewer with --workers 16"),
    ],
)
def test_a_request_that_is_wrong_is_refused_with_the_reason(made: Path, arguments: list[str], said: str) -> None:
    done = pretune("eval", str(made / "epoch-0003.pt"), *arguments)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert not (made / "epoch-0003.evaluations").exists()


def test_more_workers_than_gpus_are_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    done = pretune("eval", str(made / "epoch-0003.pt"), "--workers", "2")
    assert (done.exit_code, "--workers must be at most 1, the GPUs of this machine" in done.stderr) == (2, True)
    assert not (made / "epoch-0003.evaluations").exists()


def test_a_checkpoint_that_is_damaged_or_runs_code_is_refused(made: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "epoch-0003.pt"
    shutil.copy(made / "epoch-0003.pt.json", tmp_path)
    damaged.write_bytes((made / "epoch-0003.pt").read_bytes()[:-1])
    done = pretune("eval", str(damaged), "--data", str(made / "digits"))
    assert (done.exit_code, "damaged or was replaced" in done.stderr) == (2, True)

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "ran",)

    for name, state in (("trap.pt", {"format": 1, "model": Trap()}), ("tensor.pt", torch.zeros(2)), ("other.pt", {})):
        torch.save(state, tmp_path / name)
        done = pretune("eval", str(tmp_path / name), "--data", str(made / "digits"))
        assert done.exit_code == 2, done.output
        assert "must" in done.stderr
    (tmp_path / "text.pt").write_text("no checkpoint")
    assert pretune("eval", str(tmp_path / "text.pt"), "--data", str(made / "digits")).exit_code == 2
    assert not (tmp_path / "ran").exists()


@pytest.mark.ffcv
def test_an_encoder_is_judged_once_and_a_read_of_report_is_counted(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, quick = str(made / "epoch-0003.pt"), ["--protocol", "knn", "--set", "knn.neighbors=[5]"]
    first = pretune("eval", checkpoint, *quick, "--untrained", "--json")
    assert first.exit_code == 0, first.output
    own, untrained = json.loads(first.stdout)
    assert own["protocol"]["neighbors"] == [5]
    assert own["scores"][0]["count"] == 500
    assert untrained["subject"] == "epoch-0003, untrained"
    assert report_reads.known(str(made / "digits")) == []

    from trainers.evaluation.protocols.knn import Knn

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it is computed again")

    with monkeypatch.context() as patch:
        patch.setattr(Knn, "run", never)
        assert json.loads(pretune("eval", checkpoint, *quick, "--untrained", "--json").stdout) == [own, untrained]
    on_report = pretune("eval", checkpoint, *quick, "--split", "report")
    assert on_report.exit_code == 0, on_report.output
    assert "was read 1 time(s)" in on_report.stdout
    (read,) = report_reads.known(str(made / "digits"))
    assert (read.sweep, read.trial) == (checkpoint, None)
    folder = made / "epoch-0003.evaluations"
    assert {path.name for path in folder.iterdir()} >= {"table.md", "table.tex"}
    assert len(list(folder.glob("knn-*.json"))) == 3
    pictures = list(folder.glob("epoch-0003-knn-digits-select-*-confusion.png"))
    assert [path.read_bytes()[:4] for path in pictures] == [b"\x89PNG"]
    assert r"\toprule" in (folder / "table.tex").read_text()
    assert "| knn5/top1 |" in (folder / "table.md").read_text()

    next(iter(folder.glob("knn-*.json"))).write_text("{")
    broken = [pretune("eval", checkpoint, *quick, "--split", split, "--untrained") for split in ("select", "report")]
    assert sorted(done.exit_code for done in broken)[1] == 2
    assert any("move it away" in done.stderr for done in broken)
