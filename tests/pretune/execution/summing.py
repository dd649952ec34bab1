"""What the local processes of `test_worker.py` do; each of them imports this file, and so little beside."""

from __future__ import annotations

import os
import signal
import time
from typing import Unpack

import psutil
import torch
import torch.distributed

from pretune.execution.worker import Given
from trainers.config import TrialConfig
from trainers.report import EpochReport, Outcome


class Summing:
    """Adds the ranks up in each epoch; does to rank 1 what `misfortune` says, in the second epoch."""

    def __init__(self) -> None:
        self.misfortune = os.environ.get("PRETUNE_TEST_MISFORTUNE", "")

    def __call__(self, config: TrialConfig, **given: Unpack[Given]) -> Outcome:
        rank = torch.distributed.get_rank()
        for epoch in range(config.epochs):
            if epoch == 1 and rank == 1:
                if self.misfortune == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if self.misfortune == "frozen":
                    time.sleep(600)
                if self.misfortune == "bug":
                    raise KeyError("no such layer")
            total = torch.tensor([float(rank + 1)])
            torch.distributed.all_reduce(total)
            given["progress"](epoch, epoch)
            sockets = [one for one in psutil.Process().net_connections("inet") if one.status == psutil.CONN_LISTEN]
            elsewhere = [one for one in sockets if one.laddr.ip.removeprefix("::ffff:") != "127.0.0.1"]
            metrics = {"sum": float(total), "sockets": len(sockets), "elsewhere": len(elsewhere)}
            if not given["report"](EpochReport(epoch=epoch + 1, metrics=metrics)):
                return Outcome(state="stopped", epochs=epoch + 1)
        return Outcome(state="complete", epochs=config.epochs)
