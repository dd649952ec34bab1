"""What goes with an exported encoder: a model card in Hugging Face's format (README.md with a YAML head), which says
where the weights come from, how good they are and how that is known.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from pretune.analysis import finalize
from pretune.analysis.finalize import ReportReads
from pretune.core import journal
from pretune.core.errors import RequestError
from pretune.core.records import Opened
from pretune.core.results import SweepResult, TrialResult
from trainers import storage
from trainers.config import TrialConfig
from trainers.data import report_reads
from trainers.data.data_cache import open_anywhere
from trainers.data.manifest import Manifest
from trainers.evaluation.protocol import CONFIDENCE, ProtocolResult
from trainers.init_file import ENCODER
from trainers.weights.folder import Description

CARD = "README.md"
_PROBES = {
    "linear": "linear probe",
    "knn": "kNN",
    "full_linear": "linear probe, fitted on all labels",
    "full_knn": "kNN, with all labels",
}
_PACKAGES = ("pretune", "torch", "torchvision", "timm", "onnx", "safetensors")


class Figure(NamedTuple):
    """One number of the card. `interval` is its 95 % one, `images` are what it is of; None where it is not known."""

    what: str
    split: str
    value: float
    interval: tuple[float, float] | None = None
    images: int | None = None


@dataclass(frozen=True)
class Origin:
    """What is known of a run that left the weights; all of it may be missing, as of a file of other people's."""

    config: TrialConfig | None = None
    result: SweepResult | None = None
    trial: TrialResult | None = None
    reads: ReportReads | None = None
    """Of the report split, through the sweep."""
    reads_of_the_data: int = 0
    """Through whatever sweep, as far as it is written down beside the data."""
    manifest: Manifest | None = None
    """Of its data set, if that is still there."""
    versions: Mapping[str, str] | None = None
    """Of the packages when the sweep began."""
    evaluations: tuple[ProtocolResult, ...] = ()
    """What `pretune eval` has found of these very weights."""


def origin(
    config: TrialConfig | None,
    result: SweepResult | None,
    trial: TrialResult | None,
    evaluations: Sequence[ProtocolResult],
) -> Origin:
    """All that can be found out about a run; what is gone is left out."""
    manifest, reads, count, versions = None, None, 0, None
    if config is not None:
        with suppress(ValueError, OSError):  # its data may have moved, or lie behind a network that is down
            manifest = open_anywhere(config.data.path, expected_hash=config.data.manifest, files=()).manifest
        with suppress(ValueError, OSError):
            count = len(report_reads.known(config.data.path))
    if result is not None:
        with suppress(RequestError):
            reads = finalize.stored(result)
        with journal.reading(result.folder, remote=result.remote) as records:
            opened = next((record for record in records if isinstance(record, Opened)), None)
        versions = None if opened is None else opened.versions
    return Origin(config, result, trial, reads, count, manifest, versions, tuple(evaluations))


def figures(known: Origin) -> list[Figure]:
    """On `select` as the run saw them last, on `report` as it was first read, then what `pretune eval` found."""
    found = [] if known.trial is None else _probes(known, known.trial.last_metrics, "select", "probe/", "health/")
    first = None if known.reads is None or not known.reads.reads else known.reads.reads[0]
    if first is not None and known.trial is not None and first.trial == known.trial.id:
        found += _probes(known, first.metrics, "report", "report/", "report/health/")
    for result in known.evaluations:
        source = result.protocol.get("source", "features")
        looked = result.name if source == "features" else f"{result.name} of {source}"
        for score in result.scores:
            found.append(
                Figure(
                    f"{looked}, {score.measure} ({result.data})",
                    result.split,
                    score.value,
                    score.interval,
                    score.count,
                )
            )
    return found


def text(name: str, found: Description, known: Origin, *, license_name: str) -> str:
    """The card, as Markdown."""
    import yaml

    rows = figures(known)
    head = yaml.safe_dump(
        _head(name, found, known, rows, license_name), sort_keys=False, allow_unicode=True, width=1000
    )
    sections = [
        f"---\n{head}---",
        f"# {name}",
        f"{_what(found)} Its features are vectors of {found.width:,} numbers. Exported by pretune "
        f"{importlib.metadata.version('pretune')} from {found.source}.",
        "## Use",
        usage(found),
        f"Images: red, green and blue on a scale of 0 to 1; the shorter side resized to {found.size} pixels "
        f"({found.resampling}, antialiased), the center cropped, minus mean {_numbers(found.mean)}, divided by "
        f"{_numbers(found.std)}. `config.json` has the same as timm's `pretrained_cfg`.",
        "## Data",
        _data(known),
        "## Recipe",
        _recipe(found, known),
        "## Figures",
        _figures(rows),
        *_how_chosen(known),
        "## Limits and license",
        f"License: {license_name}."
        + (" Nobody has said one yet; what is allowed depends on the data, too." if license_name == "unknown" else "")
        + " The features are those of images like the data's; nothing is known of others.",
        "## Versions and hashes",
        _versions(found, known),
    ]
    return "\n\n".join(sections) + "\n"


def usage(found: Description) -> str:
    """How it is opened without us, as a block of Markdown."""
    if found.layout == "onnx":
        lines = [
            "import numpy as np, onnxruntime",
            'session = onnxruntime.InferenceSession("model.onnx")',
            f"images = np.zeros((1, 3, {found.size}, {found.size}), np.float32)  # normalized",
            'features = session.run(["features"], {"images": images})[0]',
        ]
    elif found.layout == "torchvision" or _needs_a_program(found):
        lines = [
            "import torch",
            f"from model import load  # model.py, which needs {found.layout} alone",
            f"features = load()(torch.zeros(1, 3, {found.size}, {found.size}))  # normalized images",
        ]
    else:
        lines = [
            "import timm, torch",
            'network = timm.create_model("local-dir:FOLDER", pretrained=True).eval()',
            f"features = network(torch.zeros(1, 3, {found.size}, {found.size}))  # normalized images",
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))",
        ]
    return "\n".join(["```python", *lines, "```"])


# --- parts ------------------------------------------------------------------------------------------------------------


def _needs_a_program(found: Description) -> bool:
    stem = getattr(found.backbone, "stem", "imagenet")
    return bool(stem != "imagenet")


def _head(name: str, found: Description, known: Origin, rows: Sequence[Figure], license_name: str) -> dict[str, Any]:
    head: dict[str, Any] = {
        "license": license_name,
        "library_name": found.layout,
        "pipeline_tag": "image-feature-extraction",
        "tags": ["self-supervised", "pretune", found.backbone.kind.rpartition(":")[2]],
    }
    data = _data_name(known)
    results = [
        {
            "task": {"type": "image-classification", "name": row.what},
            "dataset": {"name": data, "type": data, "split": row.split},
            "metrics": [{"type": "accuracy", "value": round(row.value, 6)}],
        }
        for row in rows
        if row.what in _PROBES.values()
    ]
    return head | ({"model-index": [{"name": name, "results": results}]} if results else {})


def _what(found: Description) -> str:
    branch = "the moving average of its run (teacher)" if found.branch == "teacher" else "the network that was trained"
    return f"An image encoder, `{found.backbone.kind}` for images of {found.size} x {found.size} pixels; {branch}."


def _data_name(known: Origin) -> str:
    if known.config is None:
        return "unknown"
    path = known.config.data.path
    return storage.name_of(path) if storage.is_uri(path) else path.rstrip("/").rpartition("/")[2]


def _data(known: Origin) -> str:
    if known.config is None:
        return "What it was trained on is not known here: the weights come from a file that does not say it."
    config, manifest = known.config, known.manifest
    lines = [f"* name: {_data_name(known)}", f"* sha256 of its manifest: {config.data.manifest}"]
    if manifest is not None:
        counts = ", ".join(f"{count:,} {split}" for split, count in manifest.counts.model_dump().items() if count)
        classes = f"{len(manifest.class_names)} classes" if manifest.class_names else "no labels"
        lines += [f"* images: {counts}; {classes}"]
    used = "all of train, and unlabeled images where there are some"
    if config.data.images == "unlabeled":
        used = "the unlabeled images alone"
    elif config.data.subset is not None:
        used = f"{config.data.subset} of train"
    return "\n".join([*lines, f"* pretrained on: {used}; no label was used"])


def _recipe(found: Description, known: Origin) -> str:
    config = known.config
    if config is None:
        return "Not known here."
    terms = ", ".join(f"{name} (weight {term.weight:g})" for name, term in config.objective.items() if term.weight)
    experiment = None if known.result is None else known.result.experiment
    lines = [
        *([] if experiment is None or not experiment.recipe else [f"* recipe: {experiment.recipe}"]),
        f"* objective: {terms}",
        f"* {config.epochs} epochs of batches of {config.batch_size} images, {len(config.views)} views of "
        f"{', '.join(dict.fromkeys(str(view.size) for view in config.views))} pixels",
        f"* optimizer: {config.optimizer.kind}, peak learning rate {config.optimizer.learning_rate:g}, schedule "
        f"{config.schedule.kind}",
        f"* seed {config.seed}, trained in {config.precision}",
        *([] if config.init is None else [f"* started from weights with sha256 {config.init.sha256}"]),
        "* `recipe.json` has every setting: `pretune train recipe.json --data …` runs it again",
    ]
    if found.precision == "bf16":
        lines.append("* its features were judged under bf16 autocast; these weights are float32")
    return "\n".join(lines)


def _figures(rows: Sequence[Figure]) -> str:
    if not rows:
        return "None are known: `pretune eval` finds some."
    lines = ["| what | split | value | 95 % interval | images |", "|---|---|---:|---:|---:|"]
    for row in rows:
        interval = "–" if row.interval is None else f"{row.interval[0]:.4f} to {row.interval[1]:.4f}"
        images = "–" if row.images is None else f"{row.images:,}"
        lines.append(f"| {row.what} | {row.split} | {row.value:.4f} | {interval} | {images} |")
    return "\n".join(lines)


def _how_chosen(known: Origin) -> list[str]:
    """What a reader has to know of the figures: that one was chosen by, and how often `report` was read."""
    said = []
    result, trial = known.result, known.trial
    if result is not None and trial is not None:
        complete = sum(one.state == "COMPLETE" for one in result.trials)
        if result.best == trial.id and not result.experiment.points and complete > 1:
            said.append(
                f"It is the best of {complete:,} complete trials by `{result.metric}` on `select`, so its figure there "
                "is a little too good: it was chosen by it."
            )
        elif trial.state != "COMPLETE":
            said.append(f"The trial did not complete ({trial.reason or trial.state}).")
    reads = known.reads
    if reads is None or not reads.reads:
        said.append("Through this sweep the report split was never read." if result is not None else "")
    else:
        said.append(
            f"Through this sweep the report split was read {reads.report_reads} time(s)"
            + ("; the figures are of the first." if reads.report_reads > 1 else ".")
        )
        if trial is not None and reads.reads[0].trial != trial.id:
            said.append(f"It was first read for trial {reads.reads[0].trial}, not for this one.")
        gap = reads.reads[0].optimism
        if gap is not None:
            said.append(
                f"There the search's score was {gap.gap:+.4f} too high (95 % {gap.gap_low:+.4f} to "
                f"{gap.gap_high:+.4f})."
            )
    if known.reads_of_the_data:
        said.append(
            f"Of this data set the report split was read {known.reads_of_the_data} time(s) in all, as far as that is "
            "written down."
        )
    return [" ".join(filter(None, said))] if any(said) else []


def _versions(found: Description, known: Origin) -> str:
    versions = {}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    lines = ["* exported with " + ", ".join(f"{name} {version}" for name, version in versions.items())]
    if known.versions:
        lines.append("* trained with " + ", ".join(f"{name} {version}" for name, version in known.versions.items()))
    lines.append(f"* sha256 of {ENCODER}: {found.encoder_sha256}")
    lines.append(f"* sha256 of what it was made from: {found.source_sha256}")
    return "\n".join(lines)


def _probes(known: Origin, metrics: Mapping[str, float], split: str, prefix: str, health: str) -> list[Figure]:
    """Of data without labels their measures of health."""
    found = []
    for name, label in _PROBES.items():
        value = metrics.get(f"{prefix}{name}")
        if value is not None and math.isfinite(value):
            stderr = metrics.get(f"{prefix}{name}_stderr", 0.0)
            found.append(_share(label, split, value, stderr, _images(known, name, split)))
    if found:
        return found
    return [
        Figure(name.removeprefix(health).replace("/", ", ").replace("_", " "), split, value)
        for name, value in metrics.items()
        if name.startswith(health) and math.isfinite(value)
    ]


def _share(what: str, split: str, value: float, stderr: float, images: int | None) -> Figure:
    """With the exact interval of a share of images. Where nobody says how many, its standard error tells."""
    if images is None and stderr > 0.0:
        images = round(value * (1.0 - value) / stderr**2)
    if images is None:
        return Figure(what, split, value)
    from scipy.stats import binomtest

    found = binomtest(round(value * images), images).proportion_ci(CONFIDENCE, method="exact")
    return Figure(what, split, value, (float(found.low), float(found.high)), images)


def _images(known: Origin, name: str, split: str) -> int | None:
    """How many a probe was scored on."""
    if known.manifest is None or known.config is None:
        return None
    if split == "report":
        return known.manifest.counts.report
    every = known.manifest.counts.select
    return every if name.startswith("full_") else min(every, known.config.probe.select_images)


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"
