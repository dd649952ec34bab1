"""What a plan measures and a sweep's best is compared with, made up for tests of what is done with it."""

from __future__ import annotations

from pretune.analysis.baselines import Comparison
from pretune.execution.measuring import Measurement

MEASURED = Measurement(
    start_s=20.0,
    cold_s=5.0,
    warm_s=0.1,
    step_s=0.5,
    epoch_s=0.2,
    probe_s=1.0,
    full_probe_s=2.0,
    save_s=0.1,
    host_bytes=1.5e9,
    mapped_bytes=0.0,
    checkpoint_bytes=3e6,
    report_bytes=1300.0,
)
COMPARED = Comparison(
    trial=0,
    metric="probe/linear",
    images=500,
    best=0.9,
    best_stderr=0.03,
    untrained=0.6,
    untrained_stderr=0.04,
    pixels=0.95,
    pixels_stderr=0.0,
)
