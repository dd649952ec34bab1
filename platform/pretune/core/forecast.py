"""What a sweep will take, told before it starts: kept in its first record, so that it can be held against the fact."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Forecast(BaseModel):
    """One sweep's costs. What is not known is None: nothing like it was measured on this machine.

    Hours are of wall clock from the journal's first record on (Ray runs then) to the last trial's end. Memory is of one
    worker, the largest over the shapes of the space. Disk is of everything in the sweep's folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int = Field(description="at most")
    epochs: int = Field(description="over all trials, if none ends early")
    expected_epochs: float | None = Field(None, description="about so many, as weak trials are stopped")
    curves: str = Field("", description="what the stopping rule was simulated on")
    slots: int | None = None
    seconds: float | None = None
    host_bytes: float | None = None
    gpu_bytes: float | None = None
    disk_bytes: float | None = Field(None, description="about, at the end")
    most_disk_bytes: float | None = Field(None, description="at any moment, if no trial is stopped")
    measured: tuple[str, ...] = Field((), description="what was measured, in words")
