"""A journal that is gone through with its epochs left on the disk says the same as one that is read as a whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pretune.core import journal, results
from pretune.core.history import History
from pretune.core.journal import FILE, Ended, Epoch, Extended, Journal, Opened, StoredEpoch, read, reading
from pretune.core.place import Place
from pretune.core.results import TrialResult, _result
from pretune.core.upgrade import FORMAT
from tests.toys import Executor, begin, branching, experiment
from trainers.config import TrialConfig
from trainers.report import Checkpoint

STORED = Path(__file__).parents[2] / "stored" / "sweeps"


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def as_a_whole(folder: Path) -> tuple[TrialResult, ...]:
    history = History(read(folder))
    assert history.opened is not None
    return tuple(_result(trial, history.opened.experiment) for trial in history.trials)


def swept(folder: Path, trials: int = 12) -> Journal:
    conductor = begin(folder, experiment(folder, trials=trials), branching)
    Executor(conductor, slots=2, seed=0).run()
    return conductor._journal


def test_results_are_those_of_the_whole_journal(tmp_path: Path) -> None:
    book = swept(tmp_path)
    shown = results.read(tmp_path)
    assert shown.trials == as_a_whole(tmp_path)
    assert any(trial.checkpoint is not None for trial in shown.trials)
    # Made longer: it is back at an epoch before its last one.
    longer = next(trial for trial in shown.trials if trial.state == "COMPLETE")
    assert longer.config is not None
    kept = Checkpoint(path="/kept", sha256="x", epoch=3)
    book.append(Extended(number=longer.id, config=longer.config | {"epochs": 9}, checkpoint=kept))
    again = results.read(tmp_path).trials[longer.id]
    assert (again.epochs, again.checkpoint) == (3, kept)
    assert results.read(tmp_path).trials == as_a_whole(tmp_path)
    book.append(Epoch(number=longer.id, epoch=4, metrics={"loss/total": float("nan"), "loss/x": 1.0}))
    found = results.read(tmp_path).trials[longer.id].last_metrics
    assert str(found["loss/total"]) == "nan"
    assert found["probe/linear"] == again.last_metrics["probe/linear"], "of the last epoch that measured it"


@pytest.mark.parametrize("name", ["complete", "interrupted", "ablation"])
def test_results_of_what_older_versions_wrote_are_those_of_the_whole_journal(name: str) -> None:
    folder = STORED / name
    assert results.read(folder).trials == as_a_whole(folder)


def test_an_epoch_stays_on_the_disk_until_its_numbers_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept(tmp_path)
    parsed = 0
    stored = StoredEpoch.read_metrics

    def counted(epoch: StoredEpoch) -> dict[str, float]:
        nonlocal parsed
        parsed += 1
        return stored(epoch)

    monkeypatch.setattr(StoredEpoch, "read_metrics", counted)
    shown = results.read(tmp_path)
    epochs = [record for record in read(tmp_path) if isinstance(record, Epoch)]
    assert parsed == sum(trial.epochs > 0 for trial in shown.trials) < len(epochs)
    with reading(tmp_path) as records:
        kept = [record for record in records if isinstance(record, StoredEpoch)]
        assert [(one.number, one.epoch, dict(one), one.read_checkpoint()) for one in kept] == [
            (one.number, one.epoch, one.metrics, one.checkpoint) for one in epochs
        ]
        assert kept[0]["probe/linear"] == epochs[0].metrics["probe/linear"]


def test_an_epoch_that_looks_otherwise_is_looked_at_closely(tmp_path: Path) -> None:
    book = swept(tmp_path, trials=1)
    line = (tmp_path / FILE).read_bytes().splitlines()[-2]
    body = line[journal._HEAD : -1]
    assert b'"kind":"epoch"' in body
    reader = journal._Reader(Place(tmp_path))
    reader.format = FORMAT
    with book.path.open("rb") as file:
        assert reader.stored(file, 0, body) is not None
        for changed in (
            body.replace(b'"metrics":', b'"later":1,"metrics":'),
            body.replace(b'"checkpoint":', b'"later":{},"checkpoint":'),
            body.replace(b'"path":"', b'"path":"with \\" in it'),
            body.replace(b'"metrics":{', b'"metrics":{"a":{"b":1},'),
            body[:-1] + b',"later":1}',
        ):
            assert changed != body
            assert reader.stored(file, 0, changed) is None


def test_what_is_appended_while_a_journal_is_read_is_left_for_the_next_reader(tmp_path: Path) -> None:
    book = swept(tmp_path, trials=2)
    before = len(book.records)
    with reading(tmp_path) as records:
        first = next(records)
        book.append(journal.Closed(reason="finished"))
        assert isinstance(first, Opened)
        assert sum(1 for _ in records) == before - 1
    assert read(tmp_path)[-1].kind == "closed"


def test_equal_parts_of_configs_are_one_object_and_unknown_keys_are_found_in_the_others(tmp_path: Path) -> None:
    swept(tmp_path)
    first, second = (trial.config for trial in results.read(tmp_path).trials[:2])
    assert first is not None
    assert second is not None
    assert first["model"] is second["model"]
    assert first["optimizer"] != second["optimizer"]
    reader = journal._Reader(Place(tmp_path))
    reader.read(read(tmp_path)[0].model_dump_json().encode())
    assert reader._share(dict(first)) == {}
    optimizer = {**first["optimizer"], "later": 1}
    for _ in range(2):
        assert reader._share({**first, "optimizer": dict(optimizer)}) == {"config.optimizer.later": 1}
    assert reader._share({**first, "later": {"a": 1}}) == {"config.later": {"a": 1}}
    assert TrialConfig.model_validate(first)


def test_appending_looks_at_no_earlier_record(tmp_path: Path) -> None:
    book = swept(tmp_path, trials=1)

    class Untouched(list[journal.Record]):
        def __iter__(self) -> object:  # type: ignore[override]
            raise AssertionError("a record was looked at")

        __reversed__ = __iter__  # type: ignore[assignment]

    book.records = Untouched(book.records)
    book.append(journal.Closed(reason="finished"))
    assert isinstance(book.records[0], Opened)
    assert isinstance(book.records[-2], Ended)
