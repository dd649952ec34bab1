"""The folder of one `pretune train`: config, a line of metrics per epoch, curves and checkpoints; and how it goes on.

config.json        the TrialConfig that runs; `pretune train <it>` runs it again
metrics.jsonl      one object per finished epoch: epoch, metrics, checkpoint, its path from this folder on
checkpoints/       the newest ones
events.…           TensorBoard's curves
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from pretune.core.errors import RequestError
from trainers.config import TrialConfig
from trainers.files import named, why_not_writable, write_whole
from trainers.report import Checkpoint, EpochReport

CONFIG, METRICS, CHECKPOINTS = "config.json", "metrics.jsonl", "checkpoints"


def check_new(folder: Path) -> None:
    """RequestError where something lies in `folder` already, or nothing can be written there."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise RequestError(
            f"--out {folder} must be a new or empty folder, but is not; go on with --resume, or choose another"
        )
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """RequestError where nothing can be written into `folder`."""
    if why := why_not_writable(folder):
        raise RequestError(f"--out {folder} must be a folder that can be written to, but {why}; choose another")


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
    check_writable(folder)
    return kept[-1] if kept else None


def read(folder: Path) -> list[EpochReport]:
    """The finished epochs, in order, with checkpoints where `folder` is now. A torn last line, of a run that was
    killed, is left out.
    """
    path = folder / METRICS
    if not path.is_file():
        return []
    reports: list[EpochReport] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for position, line in enumerate(lines):
        try:
            reports.append(_with_path(EpochReport.model_validate_json(line), folder / CHECKPOINTS))
        except ValidationError as error:
            if position < len(lines) - 1:
                raise RequestError(
                    f"{path}: line {position + 1} is not what `pretune train` wrote; restore the file, or start again"
                ) from error
    return reports


def _with_path(report: EpochReport, checkpoints: Path) -> EpochReport:
    """`report` with its checkpoint in that folder, where all of a run's are."""
    if report.checkpoint is None:
        return report
    path = str(checkpoints / Path(report.checkpoint.path).name)
    return report.model_copy(update={"checkpoint": report.checkpoint.model_copy(update={"path": path})})


def _line(report: EpochReport) -> str:
    return _with_path(report, Path(CHECKPOINTS)).model_dump_json() + "\n"


class RunLog:
    """Writes a run's folder as its epochs end. `resume` is the checkpoint it goes on from: later epochs are dropped.

    OSError where that cannot be written; a folder that was new is gone then.
    """

    def __init__(self, folder: Path, config: TrialConfig, *, resume: Checkpoint | None) -> None:
        self.folder = folder
        self._before = {
            name: path.read_text(encoding="utf-8") for name in (CONFIG, METRICS) if (path := folder / name).is_file()
        }
        done = [report for report in read(folder) if resume is not None and report.epoch <= resume.epoch]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / CONFIG, json.dumps(config.model_dump(mode="json"), indent=2) + "\n")
            write_whole(folder / METRICS, "".join(map(_line, done)))
            # Unbuffered: what could not be written is not tried again when the file is closed.
            self._file = (folder / METRICS).open("ab", buffering=0)
        except OSError:
            if not self._before:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        self.last: EpochReport | None = done[-1] if done else None

    def add(self, report: EpochReport) -> bool:
        """One epoch ended. What is told again, after a damaged checkpoint, is not written twice (False)."""
        if self.last is not None and report.epoch <= self.last.epoch:
            return False
        with named(self.folder / METRICS):
            line = _line(report).encode()
            written = self._file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        self.last = report
        return True

    def undo(self) -> None:
        """Put the folder back as it was found: the request turned out to be wrong before anything ran."""
        self.close()
        if not self._before:
            shutil.rmtree(self.folder)
        for name, text in self._before.items():
            write_whole(self.folder / name, text)

    def close(self) -> None:
        """Close the files; safe to call again."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
