"""The folder of one `pretune train`: config, a line of metrics per epoch, curves and checkpoints; and how it goes on.

config.json        the TrialConfig that runs; `pretune train <it>` runs it again
metrics.jsonl      one object per finished epoch: epoch, metrics, checkpoint
checkpoints/       the newest ones
events.…           TensorBoard's curves
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Self

from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pretune import figures
from pretune.messages import RequestError
from trainers.config import TrialConfig
from trainers.report import Checkpoint, EpochReport

CONFIG, METRICS = "config.json", "metrics.jsonl"


def check_new(folder: Path) -> None:
    """RequestError where something lies in `folder` already."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise RequestError(
            f"--out {folder} must be a new or empty folder, but is not; go on with --resume, or choose another"
        )


def last_checkpoint(folder: Path) -> Checkpoint | None:
    """Where a run in `folder` can go on: its newest checkpoint, None where it had written none.

    RequestError where there is no run, or the file of every recorded checkpoint is gone.
    """
    if not (folder / CONFIG).is_file():
        raise RequestError(
            f"--resume: there is no run in {folder} ({CONFIG} is missing); leave --resume out, or check --out"
        )
    written = [report.checkpoint for report in read(folder) if report.checkpoint is not None]
    kept = [checkpoint for checkpoint in written if Path(checkpoint.path).is_file()]
    if written and not kept:
        raise RequestError(
            f"--resume: the checkpoint {written[-1].path} is gone; put it back, or start again in a new --out"
        )
    return kept[-1] if kept else None


def read(folder: Path) -> list[EpochReport]:
    """The finished epochs, in order. A torn last line, of a run that was killed, is left out."""
    path = folder / METRICS
    if not path.is_file():
        return []
    reports: list[EpochReport] = []
    lines = path.read_text().splitlines()
    for position, line in enumerate(lines):
        try:
            reports.append(EpochReport.model_validate_json(line))
        except ValidationError as error:
            if position < len(lines) - 1:
                raise RequestError(
                    f"{path}: line {position + 1} is not what `pretune train` wrote; restore the file, or start again"
                ) from error
    return reports


class Record:
    """Writes a run's folder as its epochs end. `resume` is the checkpoint it goes on from: later epochs are dropped."""

    def __init__(self, folder: Path, config: TrialConfig, *, resume: Checkpoint | None) -> None:
        self.folder = folder
        # TensorBoard's writer takes a while to import: not while a request is checked.
        from pretune.curves import Curves

        self._before = {name: path.read_text() for name in (CONFIG, METRICS) if (path := folder / name).is_file()}
        folder.mkdir(parents=True, exist_ok=True)
        done = [report for report in read(folder) if resume is not None and report.epoch <= resume.epoch]
        _write_whole(folder / CONFIG, json.dumps(config.model_dump(mode="json"), indent=2) + "\n")
        _write_whole(folder / METRICS, "".join(report.model_dump_json() + "\n" for report in done))
        self._file = (folder / METRICS).open("a")
        self._curves = Curves(folder.parent)
        self.last: EpochReport | None = done[-1] if done else None

    def add(self, report: EpochReport) -> None:
        """One epoch ended. What is told again, after a damaged checkpoint, is the same and is not written twice."""
        if self.last is not None and report.epoch <= self.last.epoch:
            return
        self._file.write(report.model_dump_json() + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._curves.epoch(self.folder.name, report.epoch, report.metrics)
        self.last = report

    def undo(self) -> None:
        """Put the folder back as it was found: the request turned out to be wrong before anything ran."""
        self.close()
        if not self._before:
            shutil.rmtree(self.folder)
        for name, text in self._before.items():
            _write_whole(self.folder / name, text)

    def close(self) -> None:
        """Close the files; safe to call again."""
        self._file.close()
        self._curves.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def line(report: EpochReport, epochs: int) -> str:
    """`epoch 3 of 8: probe/linear 0.712 ± 0.020, probe/knn 0.690 ± 0.021, loss 1.23, 1,240 img/s`."""
    metrics = report.metrics
    parts = [
        f"{name} {figures.score(metrics[name], metrics.get(f'{name}_stderr'))}"
        for name in ("probe/linear", "probe/knn")
        if name in metrics
    ]
    if "loss/total" in metrics:
        parts.append(f"loss {metrics['loss/total']:.4g}")
    if "time/images_per_s" in metrics:
        parts.append(figures.rate(metrics["time/images_per_s"]))
    return f"epoch {report.epoch} of {epochs}: {', '.join(parts)}"


def closing(report: EpochReport) -> RenderableType:
    """The last epoch in full: every probe, the parts of the loss, the health of the representation, the cost."""
    metrics = report.metrics
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, label in (
        ("probe/linear", "linear probe, as in a search"),
        ("probe/knn", "kNN, as in a search"),
        ("probe/full_linear", "linear probe, all labels"),
        ("probe/full_knn", "kNN, all labels"),
    ):
        if name in metrics:
            table.add_row(label, figures.score(metrics[name], metrics.get(f"{name}_stderr")))
    losses = [(name.removeprefix("loss/"), value) for name, value in metrics.items() if name.startswith("loss/")]
    table.add_row("loss", ", ".join(f"{name} {value:.4g}" for name, value in losses))
    for kind in ("features", "embedding"):
        rank = metrics.get(f"health/{kind}/effective_rank")
        if rank is not None:
            table.add_row(f"effective rank, {kind}", f"{rank:.3g}")
    if "budget/seconds" in metrics:
        table.add_row("training time", figures.duration(metrics["budget/seconds"]))
    return Group(Text("accuracies are on `select`, ± standard error", style="dim"), table)


def _write_whole(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(text)
    aside.replace(path)
