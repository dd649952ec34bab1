"""What the best trial has to beat by the same probe: its encoder untrained, and raw pixels. Computed once per sweep."""

from __future__ import annotations

import json
import math

from pretune.core.errors import RequestError
from pretune.core.records import Stored
from pretune.core.results import SweepResult
from trainers.config import TrialConfig
from trainers.files import write_whole
from trainers.usercode import ChangedError

FILE = "baselines.json"


class Comparison(Stored):
    """Accuracies on `select`, each with its standard error over the images scored."""

    trial: int
    metric: str
    images: int
    best: float
    best_stderr: float
    untrained: float
    untrained_stderr: float
    pixels: float
    pixels_stderr: float

    def difference(self, value: float, stderr: float) -> float:
        """How far the best lies above `value`, in standard errors of the difference.

        Both are scored on the same images; taking them as independent makes the error larger than it is, so the claim
        is on the safe side.
        """
        apart, error = self.best - value, math.hypot(self.best_stderr, stderr)
        if error > 0.0:
            return apart / error
        return math.copysign(math.inf, apart) if apart else 0.0

    def difference_text(self, value: float, stderr: float) -> str:
        """`best is 5.2 standard errors above`; without a number where both errors are 0."""
        errors = self.difference(value, stderr)
        if self.best == value:
            return "best is equal"
        if math.isinf(errors):
            return f"best is {'above' if errors > 0.0 else 'below'}"
        return f"best is {abs(errors):.1f} standard errors {'above' if errors >= 0.0 else 'below'}"


METRICS = ("probe/linear", "probe/knn")
"""What is measured here as it was in the search."""


def compare(result: SweepResult) -> Comparison | None:
    """The comparison for the best trial, computed in this process or read back where it was before.

    None where no trial is complete, the sweep's metric is not one of the probes that each epoch has, or the code of its
    own backbone, or the weights that it starts from, are not what they were.
    """
    best = result.best_trial
    if best is None or best.config is None or best.value is None or result.metric not in METRICS:
        return None
    known = read(result)
    if known is not None:
        return known
    config = TrialConfig.model_validate(best.config)
    if not config.init_is_there:
        return None
    try:
        metrics, images = _measure(config)
    except ChangedError:
        return None
    name = result.metric.removeprefix("probe/")
    found = Comparison(
        trial=best.id,
        metric=result.metric,
        images=images,
        best=best.value,
        best_stderr=best.last_metrics[f"{result.metric}_stderr"],
        untrained=metrics[f"untrained/{name}"],
        untrained_stderr=metrics[f"untrained/{name}_stderr"],
        pixels=metrics[f"pixels/{name}"],
        pixels_stderr=metrics[f"pixels/{name}_stderr"],
    )
    write_whole(result.folder / FILE, found.model_dump_json(indent=2) + "\n")
    return found


def read(result: SweepResult) -> Comparison | None:
    """The comparison that was computed before for this best trial, None where there is none. Imports no torch."""
    path = result.folder / FILE
    if result.best_trial is None or not path.is_file():
        return None
    try:
        found = Comparison.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise RequestError(f"{path} must be what `pretune sweep` wrote, but is not ({error}); remove it") from error
    same = (found.trial, found.metric, found.best) == (result.best_trial.id, result.metric, result.best_trial.value)
    return found if same else None


def _measure(config: TrialConfig) -> tuple[dict[str, float], int]:
    """`untrained/…` and `pixels/…` for this config, and the number of images scored."""
    import torch

    from trainers.data.data_cache import open_anywhere
    from trainers.data.loader import Loaders
    from trainers.evaluation import probe

    torch.set_num_threads(config.threads)
    dataset = open_anywhere(config.data.path, expected_hash=config.data.manifest)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    metrics = probe.baselines(config, dataset=dataset, loaders=Loaders(), device=device)
    return metrics, len(probe.select_subset(dataset, config).ids)
