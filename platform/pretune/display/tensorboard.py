"""TensorBoard files of a sweep or a run: one folder per trial with its curves, and what the hyper-parameter view needs.

Written with TensorBoard's own writer: it imports neither torch (as tensorboardX does, 4 s and 600 MB) nor TensorFlow.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.text import summary as text
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from pretune.core.records import Asked, End, Ended, Epoch, Extended, Record, Started
from pretune.display import format

SHOWN_METRICS = ("probe/linear", "probe/knn", "loss/total", "health/embedding/effective_rank", "time/images_per_s")
"""Columns of the hyper-parameter view; all metrics are curves."""

STATE = "state"
"""A column of the hyper-parameter view, whose columns can only be numbers: how a trial ended, by these."""
_STATES: Mapping[End, int] = {"COMPLETE": 1, "PRUNED": 0, "INFEASIBLE": -1, "FAIL": -2}
_STATE_LEGEND = "state (1 complete, 0 stopped early, -1 infeasible, -2 failed)"

Parameters = Mapping[str, Any]


class Curves:
    """Writes below `folder`: `<run>/` for each trial or run. Safe to open again on the same folder, after a resume."""

    def __init__(self, folder: Path, *, metric: str = "probe/linear") -> None:
        self.folder = folder
        self._metrics = tuple(dict.fromkeys((metric, *SHOWN_METRICS)))
        self._writers: dict[str, EventFileWriter] = {}
        self._columns: dict[str, int] = {}
        self._columns_written: dict[str, int] = {}

    def expect(self, parameters: Parameters) -> None:
        """Name sampled numbers that the hyper-parameter view must have a column for."""
        for name, value in parameters.items():
            if value is not None:
                kind = _kind(value)
                known = self._columns.get(name, kind)
                self._columns[name] = kind if known == kind else api_pb2.DATA_TYPE_STRING

    def start(self, run: str, parameters: Parameters, config: Mapping[str, Any] | None = None) -> None:
        """Announce a run with its sampled numbers: a row of the hyper-parameter view. None means absent. Its config is
        shown under Text.
        """
        self.expect(parameters)
        if self._columns != self._columns_written:
            self._write_columns()
        session = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        for name, value in parameters.items():
            if isinstance(value, bool):
                session.hparams[name].bool_value = value
            elif isinstance(value, int | float):
                session.hparams[name].number_value = value
            elif value is not None:
                session.hparams[name].string_value = _text(value)
        content = plugin_data_pb2.HParamsPluginData(session_start_info=session)
        writer = self._writer(run)
        self._add(writer, _hyperparameters(metadata.SESSION_START_INFO_TAG, content), step=0)
        if config:
            self._add(writer, text.text_pb("config", _verbatim(config)), step=0)

    def epoch(self, run: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """Add a point to each curve, at our epoch. Numbers that are not finite are left out."""
        values = [
            Summary.Value(tag=name, simple_value=float(value))
            for name, value in metrics.items()
            if isinstance(value, int | float) and math.isfinite(value)
        ]
        writer = self._writer(run)
        self._add(writer, Summary(value=values), step=epoch)
        writer.flush()

    def end(self, run: str, state: End, *, epoch: int, reason: str = "") -> None:
        """Close a run's file after so many epochs, and say how it ended: a number in the hyper-parameter view, and with
        its reason under Text. In TensorBoard's own words stopped early is a success; what has no result is a failure.
        """
        status = api_pb2.STATUS_SUCCESS if state in ("COMPLETE", "PRUNED") else api_pb2.STATUS_FAILURE
        session = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
        writer = self._writer(run)
        self._add(writer, Summary(value=[Summary.Value(tag=STATE, simple_value=float(_STATES[state]))]), step=epoch)
        told = f"{state}: {reason}" if reason else state
        self._add(writer, text.text_pb("ended", told), step=epoch)
        content = plugin_data_pb2.HParamsPluginData(session_end_info=session)
        self._add(writer, _hyperparameters(metadata.SESSION_END_INFO_TAG, content), step=0)
        writer.close()
        del self._writers[run]

    def close(self) -> None:
        """Flush and close the files of all runs, finished or not."""
        while self._writers:
            _, writer = self._writers.popitem()
            writer.close()

    def _writer(self, run: str) -> EventFileWriter:
        if run not in self._writers:
            self._writers[run] = EventFileWriter(str(self.folder / run))
        return self._writers[run]

    @staticmethod
    def _add(writer: EventFileWriter, summary: Summary, *, step: int) -> None:
        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def _write_columns(self) -> None:
        """Say which columns the view has; without it TensorBoard makes a column of every curve, some twenty.

        A conditional parameter may appear late: then the list is written anew, and the old file goes.
        """
        old = sorted(self.folder.glob("events.out.tfevents.*"))
        experiment = api_pb2.Experiment(
            time_created_secs=time.time(),
            hparam_infos=[api_pb2.HParamInfo(name=name, type=kind) for name, kind in self._columns.items()],
            metric_infos=[
                *(api_pb2.MetricInfo(name=api_pb2.MetricName(tag=name)) for name in self._metrics),
                api_pb2.MetricInfo(name=api_pb2.MetricName(tag=STATE), display_name=_STATE_LEGEND),
            ],
        )
        writer = EventFileWriter(str(self.folder))
        content = plugin_data_pb2.HParamsPluginData(experiment=experiment)
        self._add(writer, _hyperparameters(metadata.EXPERIMENT_TAG, content), step=0)
        writer.close()
        for path in old:
            path.unlink()
        self._columns_written = dict(self._columns)


class SweepCurves:
    """A listener of `sweep.run` that keeps the curves of all trials in `folder`, a run `0003-trial` for each.

    A resumed sweep shows its whole journal first: what came before `since` (Unix seconds) is on the curves already.
    """

    def __init__(self, folder: Path, *, metric: str, since: float = 0.0) -> None:
        self._params: dict[int, Parameters] = {}
        self._configs: dict[int, Mapping[str, Any]] = {}
        """Of trials that have not started yet."""
        self._since = since
        self._curves = Curves(folder, metric=metric)
        self._open: set[int] = set()
        self._epochs: dict[int, int] = {}

    def on_event(self, record: Record) -> None:
        """Takes in one record of the journal."""
        if isinstance(record, Asked):
            self._params[record.number] = record.params
            self._curves.expect(record.params)
        if isinstance(record, Asked | Extended) and record.config is not None:
            self._configs[record.number] = record.config
        if isinstance(record, Epoch):
            self._epochs[record.number] = record.epoch
        if record.time < self._since:
            return
        match record:
            case Started() if record.number not in self._open:
                self._open.add(record.number)
                config = self._configs.pop(record.number, None)
                self._curves.start(self._run(record.number), self._params[record.number], config)
            case Epoch():
                self._curves.epoch(self._run(record.number), record.epoch, record.metrics)
            case Ended() if record.number in self._open:
                self._open.remove(record.number)
                epoch = self._epochs.pop(record.number, 0)
                self._curves.end(self._run(record.number), record.state, epoch=epoch, reason=record.reason)

    def close(self) -> None:
        """Flush and close the files of all trials, finished or not."""
        self._curves.close()

    def _run(self, number: int) -> str:
        """An older version's name where it has begun the trial's curves."""
        older = f"trial-{number:04d}"
        return older if (self._curves.folder / older).is_dir() else format.run_name(number)


def _kind(value: Any) -> int:
    if isinstance(value, bool):
        return int(api_pb2.DATA_TYPE_BOOL)
    return int(api_pb2.DATA_TYPE_FLOAT64 if isinstance(value, int | float) else api_pb2.DATA_TYPE_STRING)


def _hyperparameters(tag: str, content: plugin_data_pb2.HParamsPluginData) -> Summary:
    value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(content), tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])


def _verbatim(config: Mapping[str, Any]) -> str:
    """As a block of code in Markdown, which has a line break nowhere else."""
    lines = json.dumps(config, indent=2, ensure_ascii=False).splitlines()
    return "\n".join(f"    {line}" for line in lines)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
