"""A journal that is gone through with its epochs left on the disk says the same as one that is read as a whole."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretune.core import results
from pretune.core.conductor import Conductor
from pretune.core.history import History
from pretune.core.journal import FILE, Journal, read, reading
from pretune.core.lines import HEAD
from pretune.core.place import Place
from pretune.core.reader import Reader, StoredEpoch
from pretune.core.records import Asked, Closed, Ended, Epoch, Extended, Opened, Record
from pretune.core.results import TrialResult, _result
from pretune.core.search import Search
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

    def counting(read: Callable[[StoredEpoch], Any]) -> Callable[[StoredEpoch], Any]:
        def counted(epoch: StoredEpoch) -> Any:
            nonlocal parsed
            parsed += 1
            return read(epoch)

        return counted

    for name in ("read_metrics", "read_both"):
        monkeypatch.setattr(StoredEpoch, name, counting(getattr(StoredEpoch, name)))
    shown = results.read(tmp_path)
    read_for_show = parsed
    epochs = [record for record in read(tmp_path) if isinstance(record, Epoch)]
    assert read_for_show == sum(trial.epochs > 0 for trial in shown.trials) < len(epochs)
    with reading(tmp_path) as records:
        kept = [record for record in records if isinstance(record, StoredEpoch)]
        assert [(one.number, one.epoch, dict(one), one.read_checkpoint()) for one in kept] == [
            (one.number, one.epoch, one.metrics, one.checkpoint) for one in epochs
        ]
        assert kept[0]["probe/linear"] == epochs[0].metrics["probe/linear"]
        before = parsed
        assert dict(kept[0].items()) == epochs[0].metrics
        assert parsed == before + 1, "all numbers of an epoch take one look"


def test_an_epoch_that_looks_otherwise_is_looked_at_closely(tmp_path: Path) -> None:
    book = swept(tmp_path, trials=1)
    line = (tmp_path / FILE).read_bytes().splitlines()[-2]
    body = line[HEAD:-1]
    assert b'"kind":"epoch"' in body
    with book.path.open("rb") as file:
        reader = Reader(Place(tmp_path), file)
        reader.read((tmp_path / FILE).read_bytes().splitlines()[0][HEAD:-1])
        assert reader.format == FORMAT
        assert reader.stored(0, body) is not None
        for changed in (
            body.replace(b'"metrics":', b'"later":1,"metrics":'),
            body.replace(b'"checkpoint":', b'"later":{},"checkpoint":'),
            body.replace(b'"path":"', b'"path":"with \\" in it'),
            body.replace(b'"metrics":{', b'"metrics":{"a":{"b":1},'),
            body[:-1] + b',"later":1}',
        ):
            assert changed != body
            assert reader.stored(0, changed) is None
        reader.close()


def test_the_searched_metric_of_an_epoch_is_at_hand_whatever_its_name(tmp_path: Path) -> None:
    for position, metric in enumerate(('a"b', "x/é", "a:1,b", "NaN", "back\\slash", "tab\t")):
        folder = tmp_path / str(position)
        with Journal(folder, new=True) as book:
            book.append(Opened(experiment=experiment(folder, metric=metric)))
            book.append(Asked(number=0, params={}, distributions={}, config=None))
            for epoch, metrics in enumerate(({"b": 1.5}, {f"not {metric}": 1.0, metric: 2.5}, {metric: math.inf}), 1):
                book.append(Epoch(number=0, epoch=epoch, metrics=metrics))
        with reading(folder) as records:
            first, second, third = (record for record in records if isinstance(record, StoredEpoch))
            assert (metric in first, metric in second, second[metric], third[metric]) == (False, True, 2.5, math.inf)
            assert dict(first) == {"b": 1.5}
            assert first["b"] == 1.5
            with pytest.raises(KeyError):
                first["nothing"]


def test_a_driver_that_takes_a_sweep_up_leaves_its_epochs_on_the_disk_and_decides_as_before(tmp_path: Path) -> None:
    made = experiment(tmp_path, trials=12)
    conductor = begin(tmp_path, made, branching)
    Executor(conductor, slots=2, seed=0).run()
    conductor._journal.close()
    with Journal(tmp_path, new=False) as book:
        assert not any(isinstance(record, Epoch) for record in book.records)
        again = Conductor(book, Search(made, branching))
    # The journal is closed, and its file was removed: what a result needs can be read all the same.
    (tmp_path / FILE).unlink()
    assert [trial.checkpoints for trial in again.history.trials] == [
        trial.checkpoints for trial in conductor.history.trials
    ]
    assert [_result(trial, made) for trial in again.history.trials] == [
        _result(trial, made) for trial in conductor.history.trials
    ]
    assert again._landing._paces == conductor._landing._paces
    assert again._stopping is not None
    assert vars(again._stopping) == vars(conductor._stopping)


def test_a_trial_that_was_asked_is_read_by_its_text_as_by_a_closer_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept(tmp_path)
    found = read(tmp_path)
    by_text = 0
    quick = Reader._asked

    def counted(reader: Reader, body: bytes) -> Asked | None:
        nonlocal by_text
        asked = quick(reader, body)
        by_text += asked is not None
        return asked

    monkeypatch.setattr(Reader, "_asked", counted)
    assert read(tmp_path) == found
    asked = [record for record in found if isinstance(record, Asked)]
    assert by_text >= len(asked) - 3, "the first ones say which parts vary"
    monkeypatch.setattr(Reader, "_asked", lambda reader, body: None)
    assert read(tmp_path) == found


def test_a_line_that_only_begins_like_a_config_is_looked_at_closely(tmp_path: Path) -> None:
    swept(tmp_path)
    lines = (tmp_path / FILE).read_bytes().splitlines()
    body = next(line for line in reversed(lines) if b'"kind":"asked"' in line)[HEAD:-1]
    reader = Reader(Place(tmp_path))
    for line in lines:
        reader.read(line[HEAD:-1])
    assert reader._asked(body) == reader.read(body)
    for old, new, kept in (
        (b'"seed":0', b'"seed":01', False),
        (b'"epochs":', b'"later":{"a":1},"epochs":', True),
        (b'"optimizer":{', b'"optimizer":{"later":{"schedule":{"a":1}},', True),
        (b'"optimizer":{', b'"optimizer":{"later":"x},\\"schedule\\":",', True),
        (b'"enqueued":null', b'"enqueued":null,"later":1', True),
        (b'"params":{', b'"params":{"x":[{"config":1}],"y":{"a":1,"distributions":{"b":2},"config":3},', False),
    ):
        changed = body.replace(old, new, 1)
        assert changed != body
        slow = Reader(Place(tmp_path))
        slow.read(lines[0][HEAD:-1])
        slow._asked = lambda body: None  # type: ignore[method-assign]
        try:
            expected = slow.read(changed)
        except ValueError:
            with pytest.raises(ValueError, match="line 1"):
                reader.read(changed)
            continue
        again = reader.read(changed)
        assert again == expected
        assert again.unknown == expected.unknown
        assert bool(again.unknown) == kept, new


def test_what_is_appended_while_a_journal_is_read_is_left_for_the_next_reader(tmp_path: Path) -> None:
    book = swept(tmp_path, trials=2)
    before = len(book.records)
    with reading(tmp_path) as records:
        first = next(records)
        book.append(Closed(reason="finished"))
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
    reader = Reader(Place(tmp_path))
    reader.read(read(tmp_path)[0].model_dump_json().encode())
    assert reader._share(dict(first)) == {}
    optimizer = {**first["optimizer"], "later": 1}
    for _ in range(2):
        assert reader._share({**first, "optimizer": dict(optimizer)}) == {"config.optimizer.later": 1}
    assert reader._share({**first, "later": {"a": 1}}) == {"config.later": {"a": 1}}
    assert TrialConfig.model_validate(first)


def test_appending_looks_at_no_earlier_record(tmp_path: Path) -> None:
    book = swept(tmp_path, trials=1)

    class Untouched(list[Record | StoredEpoch]):
        def __iter__(self) -> object:  # type: ignore[override]
            raise AssertionError("a record was looked at")

        __reversed__ = __iter__  # type: ignore[assignment]

    book.records = Untouched(book.records)
    book.append(Closed(reason="finished"))
    assert isinstance(book.records[0], Opened)
    assert isinstance(book.records[-2], Ended)
