"""Journals of other versions: older ones read as today's, later ones are read as far as they are understood."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, distribution_to_json
from pydantic import ValidationError

from pretune.core import journal, journal_remote, lease, results, upgrade
from pretune.core.errors import RequestError
from pretune.core.experiment import Experiment
from pretune.core.history import History
from pretune.core.journal import Journal
from pretune.core.records import (
    Asked,
    Closed,
    Ended,
    Epoch,
    Extended,
    Known,
    Opened,
    Record,
    Resumed,
    Started,
    Unknown,
    later,
)
from trainers import storage
from trainers.changes import with_changes
from trainers.config import TrialConfig
from trainers.report import Checkpoint
from trainers.terms import Alignment, KernelMMD
from trainers.terms.kernels import RBF

BASE = TrialConfig(objective={"alignment": Alignment(), "mmd": KernelMMD(kernel=RBF(gamma=2.0))}, epochs=4)
ADAM = with_changes(BASE, {"optimizer.kind": "adamw", "optimizer.beta1": 0.8, "views.*.blur_probability": 0.3})
CHECKPOINT = Checkpoint(path="/0003.pt", sha256="x", epoch=3)
NEWER = upgrade.FORMAT + 1


def write(folder: Path, records: list[dict[str, Any]]) -> Path:
    """A journal of these lines, whoever would write them."""
    folder.mkdir(parents=True)
    checksum, lines = 0, b""
    for record in records:
        body = json.dumps(record).encode()
        checksum = zlib.crc32(body, checksum)
        lines += b'{"crc32":"%08x","record":%s}\n' % (checksum, body)
    (folder / journal.FILE).write_bytes(lines)
    return folder


def plain(record: Known) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(record.model_dump_json())
    return values


def old(values: Any) -> Any:
    """Today's values by the names that format 1 had."""
    if isinstance(values, list):
        return [old(value) for value in values]
    if not isinstance(values, dict):
        return values
    views = {f"{name}_probability": name for name in ("flip", "jitter", "grayscale", "blur", "solarize")}
    renamed = {str(views.get(key, key)): old(value) for key, value in values.items() if key != "format"}
    if "beta1" in renamed:
        beta1 = renamed.pop("beta1")
        renamed["momentum"] = beta1 if "adam" in renamed["kind"] else renamed["momentum"]
    if "gamma" in renamed:
        renamed["sharpness"] = renamed.pop("gamma")
    return {key.replace(".kernel.gamma", ".kernel.sharpness"): value for key, value in renamed.items()}


def experiment(base: TrialConfig = ADAM, **changes: Any) -> Experiment:
    return Experiment(**({"name": "s", "space": "kernels", "base": base, "trials": 2} | changes))


def story(made: Experiment) -> list[Known]:
    """One trial that completed and is to train longer, one that its space refused, and a second session."""
    config = made.base.model_dump(mode="json")
    distribution = distribution_to_json(CategoricalDistribution((1.0, 2.0)))
    params = {"objective.mmd.kernel": "rbf", "objective.mmd.kernel.gamma": 2.0}
    distributions = {"objective.mmd.kernel": "{}", "objective.mmd.kernel.gamma": distribution}
    return [
        Opened(experiment=made, versions={"pretune": "0.1.0"}),
        Asked(number=0, params=params, distributions=distributions, config=config),
        Started(number=0, attempt=0, epoch=0),
        Epoch(number=0, epoch=3, metrics={"probe/linear": 0.5, "loss/total": float("nan")}, checkpoint=CHECKPOINT),
        Ended(number=0, state="COMPLETE", value=0.5),
        Asked(number=1, params=params, distributions=distributions, config=None, duplicate_of=0),
        Ended(number=1, state="INFEASIBLE", reason="refused"),
        Closed(reason="interrupted"),
        Resumed(trials=3, versions={"pretune": "0.1.0"}),
        Extended(number=0, config={**config, "epochs": 8}, checkpoint=CHECKPOINT),
    ]


def as_format_1(records: list[Known]) -> list[dict[str, Any]]:
    lines = [old(plain(record)) for record in records]
    lines[0]["format"] = 1
    return lines


def meant(record: Record) -> str:
    """What a record says, NaN equal to itself; with the defaults of what its config leaves out, without its format."""
    config = getattr(record, "config", None)
    whole = None if config is None else TrialConfig.model_validate(config).model_dump(mode="json")
    return repr(record.model_copy(update={"format": 0, "config": whole}))


# ---- older journals --------------------------------------------------------------------------------------------------


def test_there_is_a_step_from_each_format_to_the_next() -> None:
    assert sorted(upgrade.STEPS) == list(range(1, upgrade.FORMAT))


@pytest.mark.parametrize("base", [BASE, ADAM])
def test_a_journal_of_format_1_with_every_old_name_reads_as_todays(base: TrialConfig, tmp_path: Path) -> None:
    told = story(experiment(base, storage=str(tmp_path)))
    lines = as_format_1(told)
    assert not any(word in json.dumps(lines) for word in ("blur_probability", "beta1", "gamma"))
    found = journal.read(write(tmp_path / "s", lines))
    assert [meant(record) for record in found] == [meant(record) for record in told]
    assert [record.format for record in found if isinstance(record, Opened | Resumed)] == [1, 1]
    assert later(found) is None
    assert History(found).trials[0].config == found[-1].config  # type: ignore[union-attr]


def test_the_parameters_of_a_users_own_space_keep_the_names_that_it_gives_them(tmp_path: Path) -> None:
    lines = as_format_1(story(experiment(space="mine.py:space")))
    asked = journal.read(write(tmp_path / "s", lines))[1]
    assert isinstance(asked, Asked)
    assert list(asked.params) == list(asked.distributions) == list(lines[1]["params"])
    assert TrialConfig.model_validate(asked.config) == ADAM


def test_an_ablations_points_and_choices_are_todays_down_to_whole_objects(tmp_path: Path) -> None:
    kernel = {"kind": "rbf", "sharpness": 3.0}
    choices = json.dumps({"name": "CategoricalDistribution", "attributes": {"choices": [kernel, 1]}})
    points = [{"seed": 0, "optimizer.momentum": 0.7}, {"seed": 0, "objective.mmd.kernel": kernel, "views.*.flip": 0.0}]
    opened = as_format_1([Opened(experiment=experiment(space="ablation"))])[0]
    opened["experiment"]["points"] = points
    asked = [
        {"kind": "asked", "number": number, "params": point, "distributions": {"objective.mmd.kernel": choices},
         "config": opened["experiment"]["base"]}
        for number, point in enumerate(points)
    ]  # fmt: skip
    first, *others = journal.read(write(tmp_path / "s", [opened, *asked]))
    assert isinstance(first, Opened)
    new = {"kind": "rbf", "gamma": 3.0}
    wanted = (
        {"seed": 0, "optimizer.beta1": 0.7},
        {"seed": 0, "objective.mmd.kernel": new, "views.*.flip_probability": 0.0},
    )
    assert first.experiment.points == wanted
    assert [record.params for record in others if isinstance(record, Asked)] == list(wanted)
    assert isinstance(others[1], Asked)
    assert json.loads(others[1].distributions["objective.mmd.kernel"])["attributes"]["choices"] == [new, 1]
    for point in wanted:
        with_changes(ADAM, point)


def test_a_sweep_of_an_older_format_goes_on_in_todays_and_keeps_its_bytes(tmp_path: Path) -> None:
    told = story(experiment())
    folder = write(tmp_path / "s", as_format_1(told[:-2]))
    before = (folder / journal.FILE).read_bytes()
    with Journal(folder, new=False) as opened:
        with pytest.raises(AssertionError, match="after one of format 1"):
            opened.append(Started(number=0, attempt=1, epoch=0))
        opened.append(told[-2])
        opened.append(told[-1])
    assert (folder / journal.FILE).read_bytes().startswith(before)
    found = journal.read(folder)
    assert [record.format for record in found if isinstance(record, Opened | Resumed)] == [1, upgrade.FORMAT]
    assert [record.kind for record in found] == [record.kind for record in told]
    with Journal(folder, new=False) as opened:
        opened.append(Started(number=0, attempt=1, epoch=3))
    assert journal.read(folder)[-1].kind == "started"


# ---- what is written -------------------------------------------------------------------------------------------------


def test_what_is_written_is_todays_to_the_last_key(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="surprise"):
        Started.model_validate({"number": 0, "attempt": 0, "epoch": 0, "surprise": 1})
    lines = [plain(record) for record in story(experiment())]
    lines[2]["surprise"] = 1
    started = journal.read(write(tmp_path / "s", lines))[2]
    assert started.unknown == {"surprise": 1}
    with Journal(tmp_path / "s", new=False) as opened:
        for record in (started, Unknown(kind="later", content={})):
            with pytest.raises(AssertionError, match="not understood"):
                opened.append(record)
        with pytest.raises(AssertionError, match=f"of format {NEWER}"):
            opened.append(Resumed(trials=2, format=NEWER))


# ---- later journals --------------------------------------------------------------------------------------------------


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """A finished sweep of today's, with the version of its writer."""
    made = experiment(storage=str(folder))
    lines = [plain(record) for record in story(made)[:5]]
    return [*lines, plain(Closed(reason="finished"))]


def test_a_key_that_only_informs_is_kept_and_named_and_the_sweep_goes_on(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)
    lines[3] |= {"learning_rate": 0.1, "checkpoint": {**lines[3]["checkpoint"], "bytes": 7}}
    lines[5]["signal"] = None
    folder = write(tmp_path / "s", lines)
    records = journal.read(folder)
    assert records[3].unknown == {"learning_rate": 0.1, "checkpoint.bytes": 7}
    result = results.read(folder)
    assert result.later is not None
    assert result.later.keys == ("epoch.checkpoint.bytes", "epoch.learning_rate", "closed.signal")
    (notice,) = result.later.notices()
    assert notice.startswith("this journal has keys that this version of pretune (")
    assert notice.endswith(") does not know: epoch.checkpoint.bytes, epoch.learning_rate, closed.signal")
    assert result.to_json()["notices"] == [notice]
    assert (result.trials[0].value, result.closed) == (0.5, "finished")
    results.check_understood(result)
    with Journal(folder, new=False) as opened:
        opened.append(Resumed(trials=3))
    assert journal.read(folder)[-1].kind == "resumed"


@pytest.mark.parametrize("place", ["experiment", "base", "trial"])
def test_a_setting_that_is_not_known_is_named_and_the_sweep_does_not_go_on(place: str, tmp_path: Path) -> None:
    lines = lines_of(tmp_path)
    experiment_values = lines[0]["experiment"]
    holder = {"experiment": experiment_values, "base": experiment_values["base"], "trial": lines[1]["config"]}[place]
    holder["mixup"] = 0.2
    lines[0]["versions"]["pretune"] = "0.9"
    folder = write(tmp_path / "s", lines)
    result = results.read(folder)
    assert result.later is not None
    path = {"experiment": "opened.experiment", "base": "opened.experiment.base", "trial": "asked.config"}[place]
    assert result.later.keys == (f"{path}.mixup",)
    for refused in (lambda: results.check_understood(result), lambda: Journal(folder, new=False)):
        with pytest.raises(RequestError, match=rf"does not know: {path}.mixup. To go on with it, use pretune 0\.9"):
            refused()
    assert result.trials[0].config is not None
    assert ("mixup" in result.trials[0].config) == (place == "trial"), "nothing of it is lost"
    assert not journal.is_locked(folder)


def test_a_kind_of_record_that_is_not_known_is_kept_named_and_left_out(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)
    lines.insert(2, {"kind": "note", "time": 3.0, "text": "hello"})
    folder = write(tmp_path / "s", lines)
    assert journal.read(folder)[2] == Unknown(kind="note", time=3.0, content=lines[2])
    result = results.read(folder)
    assert result.trials[0].value == 0.5
    assert result.later is not None
    assert result.later.notices()[0].endswith("does not know: note")
    with pytest.raises(RequestError, match=r"note\. To go on with it, use pretune 0\.1\.0 or a later one"):
        Journal(folder, new=False)


def test_of_a_later_format_what_is_understood_is_shown_and_nothing_is_written(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)
    lines[0] |= {"format": NEWER, "versions": {"pretune": "0.9"}}
    lines[3]["metrics"] = [["probe/linear", 0.5]]  # means something else by then
    lines[4]["state"] = "BEST"
    lines.insert(2, {"kind": "ended", "number": 7, "state": "FAIL", "time": 0.0})  # of a trial that is not there
    folder = write(tmp_path / "s", lines)
    before = (folder / journal.FILE).read_bytes()
    result = results.read(folder)
    assert (result.trials[0].state, result.trials[0].epochs, result.closed) == ("RUNNING", 0, "finished")
    assert result.later is not None
    assert (result.later.format, result.later.version, result.later.kinds) == (NEWER, "0.9", ("epoch", "ended"))
    assert f"has format {NEWER}, written by pretune 0.9" in result.later.notices()[0]
    for refused in (lambda: results.check_understood(result), lambda: Journal(folder, new=False)):
        with pytest.raises(RequestError, match=r"To go on with it, use pretune 0\.9 or a later one"):
            refused()
    assert (folder / journal.FILE).read_bytes() == before


def test_a_sweep_that_a_later_version_took_up_is_a_later_journal_from_there_on(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)
    folder = write(tmp_path / "s", [*lines, {"kind": "resumed", "format": NEWER, "versions": {"pretune": "0.9"}}])
    result = results.read(folder)
    assert result.trials[0].value == 0.5
    assert result.later is not None
    assert (result.later.format, result.later.version) == (NEWER, "0.9")
    with pytest.raises(RequestError, match=r"use pretune 0\.9 or a later one"):
        Journal(folder, new=False)


def test_a_later_journal_in_a_bucket_is_fetched_whole_and_nothing_is_added_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "WATCH_S", 0.1)  # for a sign of life of who holds it
    folder = write(tmp_path / "s", [*lines_of(tmp_path), {"kind": "note"}])
    content = (folder / journal.FILE).read_bytes()
    remote = f"file://{tmp_path}/remote/s"
    uri = storage.join(remote, journal_remote.FOLDER, "00000001-00000000.jsonl")
    storage.write(uri, content)
    their = lease.Lease(owner="x", host="there", fence=1, heartbeat=0.0).model_dump(mode="json")
    storage.write(storage.join(remote, lease.FILE), json.dumps({**their, "region": "moon"}).encode())

    assert journal_remote.fetch(remote, tmp_path / "copy") == "remote"
    assert (tmp_path / "copy" / journal.FILE).read_bytes() == content
    assert results.read(tmp_path / "copy").trials[0].value == 0.5
    with (
        pytest.raises(RequestError, match=r"note\. To go on with it, use pretune 0\.1\.0"),
        journal_remote.opened(tmp_path / "copy", remote, new=False),
    ):
        pass
    assert storage.names(storage.join(remote, journal_remote.FOLDER)) == ["00000001-00000000.jsonl"]
    assert not lease.is_live(storage.join(remote, lease.FILE))


def test_what_cannot_be_done_without_is_refused_with_the_version_that_wrote_it(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)
    lines[0] |= {"format": NEWER, "versions": {"pretune": "0.9"}}
    del lines[0]["experiment"]["base"]
    with pytest.raises(RequestError, match=rf"line 1, of format {NEWER}, was written by pretune 0\.9 and is not"):
        journal.read(write(tmp_path / "later", lines))
    lines = lines_of(tmp_path)
    del lines[3]["metrics"]
    with pytest.raises(
        RequestError, match=rf"line 4, of format {upgrade.FORMAT}, was written by pretune 0\.1\.0 and is not"
    ):
        journal.read(write(tmp_path / "ours", lines))
    for name, first in (("none", {"kind": "opened"}), ("word", {"kind": "opened", "format": "2"}), ("other", lines[1])):
        with pytest.raises(RequestError, match=rf"`opened` of format 1 to {upgrade.FORMAT}, but begins with"):
            journal.read(write(tmp_path / name, [first]))
