"""What a sweep lets one choose from by name. It imports nothing, so that the command line can name it at once."""

from __future__ import annotations

from typing import Literal

Budget = Literal["epochs", "views", "seconds"]
Direction = Literal["maximize", "minimize"]
SamplerName = Literal["tpe", "random", "grid", "cmaes"]
StoppingKind = Literal["asha", "hyperband", "median"]
StoppingName = Literal["asha", "hyperband", "median", "none"]
"""As it is typed: a kind, or that no trial ends early."""
Compile = Literal["off", "on", "cuda_graphs", "auto"]
"""As it is typed: `TrialConfig.compile`, or that it is to be measured."""
LOCAL_ROOT = "./sweeps"
"""Where sweeps lie if nothing else is said, and the working copies of those in a bucket."""
MAX_FAILED = 1 / 3
"""The share of its trials that may fail before a sweep ends early."""
