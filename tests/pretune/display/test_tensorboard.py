"""Curves are read back with TensorBoard's own reader and its hyper-parameter plugin."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from pretune.core.records import Asked, End, Ended, Epoch, Extended, Record, Started
from pretune.display.tensorboard import Curves, SweepCurves
from trainers.report import Checkpoint


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The points of each curve: value (6 digits) by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: {event.step: round(event.value, 6) for event in events.Scalars(tag)} for tag in tags}


def hyperparameter_view(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The experiment and, by run, the start of each session, as TensorBoard's plugin would show them."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import backend_context, metadata

    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    context = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder))))
    found = context.hparams_metadata(RequestContext(), "")
    experiment = context.experiment_from_metadata(RequestContext(), "", True, found, [])
    sessions = {
        run: metadata.parse_session_start_info_plugin_data(tags[metadata.SESSION_START_INFO_TAG])
        for run, tags in found.items()
        if metadata.SESSION_START_INFO_TAG in tags
    }
    return experiment, sessions


def test_each_trial_has_its_own_curves_at_our_epochs(tmp_path: Path) -> None:
    listener = SweepCurves(tmp_path, metric="probe/linear")
    for number in range(2):
        listener.on_event(Asked(number=number, params={"weight": 0.5 + number}, distributions={}, config={}))
        listener.on_event(Started(number=number, attempt=0, epoch=0))
        for epoch in (1, 2, 3):
            metrics = {
                "probe/linear": 0.5 + 0.1 * epoch + number,
                "loss/total": math.nan if epoch == 2 else 1.0 / epoch,
            }
            listener.on_event(Epoch(number=number, epoch=epoch, metrics=metrics))
        listener.on_event(Ended(number=number, state="COMPLETE", value=0.8))
    listener.close()
    curves = scalars(tmp_path / "0001-trial")
    assert curves["probe/linear"] == {1: 1.6, 2: 1.7, 3: 1.8}
    assert curves["loss/total"] == {1: 1.0, 3: 0.333333}, "a value that is not finite has no point"
    assert scalars(tmp_path / "0000-trial")["probe/linear"] == {1: 0.6, 2: 0.7, 3: 0.8}


def test_the_hyper_parameter_view_lists_every_conditional_parameter_once(tmp_path: Path) -> None:
    listener = SweepCurves(tmp_path, metric="probe/knn")
    params: list[dict[str, Any]] = [
        {"kernel": "rbf", "bandwidth": 0.3, "weight": 2},
        {"kernel": "linear", "weight": 0, "centered": True},
    ]
    for number, sampled in enumerate(params):
        listener.on_event(Asked(number=number, params=sampled, distributions={}, config={}))
        listener.on_event(Started(number=number, attempt=0, epoch=0))
        listener.on_event(Epoch(number=number, epoch=1, metrics={"probe/knn": 0.5}))
        listener.on_event(Ended(number=number, state="PRUNED", value=None))
    listener.close()
    experiment, sessions = hyperparameter_view(tmp_path)
    assert sorted(info.name for info in experiment.hparam_infos) == ["bandwidth", "centered", "kernel", "weight"]
    assert experiment.metric_infos[0].name.tag == "probe/knn"
    assert sessions["0000-trial"].hparams["kernel"].string_value == "rbf"
    assert sessions["0000-trial"].hparams["bandwidth"].number_value == pytest.approx(0.3)
    assert sessions["0001-trial"].hparams["centered"].bool_value is True
    assert "bandwidth" not in sessions["0001-trial"].hparams
    assert len(list(tmp_path.glob("events.*"))) == 1, "one list of columns, the newest"


def test_a_resumed_sweep_goes_on_with_the_same_curves_and_columns(tmp_path: Path) -> None:
    asked = Asked(number=0, params={"bandwidth": 0.3}, distributions={}, config={}, time=10.0)
    old: list[Record] = [
        asked,
        Started(number=0, attempt=0, epoch=0, time=11.0),
        Epoch(number=0, epoch=1, metrics={"probe/linear": 0.5}, time=12.0),
    ]
    first = SweepCurves(tmp_path, metric="probe/linear")
    new: list[Record] = [
        Started(number=0, attempt=1, epoch=1, time=101.0),
        Epoch(number=0, epoch=2, metrics={"probe/linear": 0.6}, time=102.0),
        Ended(number=0, state="COMPLETE", value=0.6, time=103.0),
        Asked(number=1, params={"weight": 1.0}, distributions={}, config={}, time=104.0),
        Started(number=1, attempt=0, epoch=0, time=105.0),
    ]
    for record in old:
        first.on_event(record)
    first.close()
    second = SweepCurves(tmp_path, metric="probe/linear", since=100.0)
    for record in (*old, *new):
        second.on_event(record)
    second.close()
    assert scalars(tmp_path / "0000-trial")["probe/linear"] == {1: 0.5, 2: 0.6}
    experiment, _ = hyperparameter_view(tmp_path)
    assert sorted(info.name for info in experiment.hparam_infos) == ["bandwidth", "weight"]


def test_a_trials_config_stands_under_text_and_a_longer_one_has_its_own(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    listener = SweepCurves(tmp_path, metric="probe/linear")
    for record in (
        Asked(number=7, params={}, distributions={}, config={"seed": 3, "epochs": 4}),
        Started(number=7, attempt=0, epoch=0),
        Ended(number=7, state="COMPLETE", value=0.5),
        Extended(number=7, config={"epochs": 9}, checkpoint=Checkpoint(path="/a", sha256="x", epoch=3)),
        Started(number=7, attempt=1, epoch=3),
    ):
        listener.on_event(record)
    listener.close()
    events = EventAccumulator(str(tmp_path / "0007-trial"))
    events.Reload()
    first, second = (one.tensor_proto.string_val[0].decode() for one in events.Tensors("config"))
    assert first == '    {\n      "seed": 3,\n      "epochs": 4\n    }'
    assert '"epochs": 9' in second


def test_curves_that_an_older_version_has_begun_go_on_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "trial-0000").mkdir()
    listener = SweepCurves(tmp_path, metric="probe/linear", since=5.0)
    listener.on_event(Asked(number=0, params={}, distributions={}, config={}, time=1.0))
    listener.on_event(Started(number=0, attempt=1, epoch=0, time=6.0))
    listener.close()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["trial-0000"]


@pytest.mark.parametrize(
    ("state", "reason", "number", "success"),
    [
        ("COMPLETE", "", 1.0, True),
        ("PRUNED", "not among the best 1 of 2", 0.0, True),
        ("INFEASIBLE", "diverged: loss/total is nan", -1.0, False),
        ("FAIL", "rank 0 raised ValueError", -2.0, False),
    ],
)
def test_how_a_trial_ended_is_a_column_a_text_and_a_status(
    tmp_path: Path, state: End, reason: str, number: float, success: bool
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import api_pb2, metadata

    listener = SweepCurves(tmp_path, metric="probe/linear", since=15.0)
    # Its first epoch was in an earlier session, and it ended before its next one.
    listener.on_event(Asked(number=0, params={"rate": 0.1}, distributions={}, config={}, time=10.0))
    listener.on_event(Epoch(number=0, epoch=3, metrics={}, time=11.0))
    listener.on_event(Started(number=0, attempt=1, epoch=3, time=20.0))
    listener.on_event(Ended(number=0, state=state, reason=reason, time=21.0))
    listener.close()
    events = EventAccumulator(str(tmp_path / "0000-trial"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("state")] == [(3, number)]
    [told] = events.Tensors("ended")
    assert told.tensor_proto.string_val == [(f"{state}: {reason}" if reason else state).encode()]
    content = events.PluginTagToContent("hparams")[metadata.SESSION_END_INFO_TAG]
    status = metadata.parse_session_end_info_plugin_data(content).status
    assert status == (api_pb2.STATUS_SUCCESS if success else api_pb2.STATUS_FAILURE)
    experiment, _ = hyperparameter_view(tmp_path)
    assert [info.display_name for info in experiment.metric_infos if info.name.tag == "state"] == [
        "state (1 complete, 0 stopped early, -1 infeasible, -2 failed)"
    ]


def test_a_parameter_that_is_a_number_here_and_a_word_there_is_a_word(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    curves.start("a", {"order": 2})
    curves.start("b", {"order": "full"})
    curves.close()
    experiment, _ = hyperparameter_view(tmp_path)
    assert [(info.name, info.type) for info in experiment.hparam_infos] == [("order", 1)], "1 is DATA_TYPE_STRING"
