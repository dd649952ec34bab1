"""An encoder as a folder that others open without us: what is asked, checked without torch as far as that goes; then
written whole, with its model card.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pretune.analysis import evaluate, model_card
from pretune.analysis.evaluate import Target
from pretune.analysis.model_card import Origin
from pretune.core.errors import RequestError
from pretune.core.results import SweepResult
from pretune.request import request
from trainers import files, storage
from trainers.config import Backbone, OwnBackbone, ResNetConfig, TimmConfig, TrialConfig, ViTConfig
from trainers.evaluation.protocol import ProtocolResult
from trainers.weights.folder import Layout

if TYPE_CHECKING:
    from trainers.weights.exporting import Exported
    from trainers.weights.matching import Branch
    from trainers.weights.opening import Weights

ROOT = Path("exports")
"""Where exports go, from here."""
RECIPE = "recipe.json"
UNKNOWN_LICENSE = "unknown"
_PACKAGES: Mapping[Layout, tuple[str, ...]] = {
    "torchvision": ("safetensors",),
    "timm": ("safetensors",),
    "onnx": ("safetensors", "onnx", "onnxscript", "onnxruntime"),
}


@dataclass(frozen=True)
class Request:
    """What will be written, checked."""

    target: Target
    layout: Layout
    out: Path
    branch: Branch
    projector: bool
    license_name: str
    result: SweepResult | None
    """The sweep that it is of, if it is of one."""


@dataclass(frozen=True)
class Written:
    """A folder, and what was found on the way."""

    folder: Path
    exported: Exported
    weights: Weights | None = None
    """Of other people's weights, how they were found."""


def check(
    target: Target,
    *,
    layout: Layout,
    out: Path | None = None,
    branch: Branch = "student",
    projector: bool = False,
    license_name: str = UNKNOWN_LICENSE,
) -> Request:
    """RequestError where there is something at `out`, a package is missing, or the format has no such network."""
    folder = (out if out is not None else ROOT / f"{target.name.replace('/', '-')}-{layout}").absolute()
    check_folder(folder)
    check_installed(layout)
    if target.config is not None:
        _check_format(target.config, layout, branch)
    if target.is_weights and (projector or branch == "teacher"):
        raise RequestError(
            f"{target.file} holds a backbone alone, without projector or teacher; leave --projector and --branch out, "
            "or name a checkpoint"
        )
    result = None
    if target.sweep is not None:
        result = request.read_sweep(target.sweep, str(Path(target.sweep).parent))
    return Request(target, layout, folder, branch, projector, license_name, result)


def check_folder(folder: Path) -> None:
    """Whether a new folder can be put there: nothing is ever overwritten."""
    if not files.is_free(folder):
        raise RequestError(
            f"{folder} must be a new or an empty folder, but there is something; nothing is overwritten: name another "
            "with --out, or move it away"
        )
    if folder.resolve() == Path.cwd() or folder.is_mount():
        what = "a file system of its own" if folder.is_mount() else "the folder that this command is called in"
        raise RequestError(
            f"{folder} is {what}, and would have to be replaced by the one that is written; name a folder in it with "
            "--out"
        )
    if why := files.why_not_writable(folder.parent):
        raise RequestError(f"{folder} cannot be made: {why}; name another folder with --out")


def check_installed(layout: Layout) -> None:
    """RequestError where a package is missing that this format takes."""
    missing = [name for name in _PACKAGES[layout] if importlib.util.find_spec(name) is None]
    if missing:
        raise RequestError(f"--format {layout} needs {', '.join(missing)}; run: pip install 'pretune[export]'")


def check_backbone(backbone: Backbone, layout: Layout) -> None:
    """RequestError where the format's library has no such network."""
    if layout == "torchvision" and not isinstance(backbone, ResNetConfig | ViTConfig):
        other = "onnx" if isinstance(backbone, OwnBackbone) else "timm or onnx"
        raise RequestError(f"torchvision has no {backbone.kind}; take --format {other}")
    if layout == "timm" and not isinstance(backbone, ResNetConfig | ViTConfig | TimmConfig):
        raise RequestError(f"timm has no {backbone.kind}, which is code of one's own; take --format onnx")


def run(asked: Request) -> Written:
    """Writes the folder. RequestError where the format has no such network or there is something by now; ValueError
    where the checkpoint is damaged; RuntimeError where what was written gives other features.
    """
    from trainers import checkpoint, encoder
    from trainers.weights import exporting
    from trainers.weights.opening import opened

    target = asked.target
    if target.is_weights:
        return write(
            asked.out,
            opened(target.file, trust_code=target.trust_code),
            layout=asked.layout,
            license_name=asked.license_name,
            evaluations=evaluate.stored(target.place),
        )
    found = target.checkpoint or checkpoint.find(target.file)
    trained = encoder.load_trained(found, trust_code=target.trust_code)
    _check_format(trained.config, asked.layout, asked.branch)
    given = exporting.of_run(
        trained,
        layout=asked.layout,
        branch=asked.branch,
        projector=asked.projector,
        source=_source(target, found.epoch),
        source_sha256=found.sha256,
    )
    trial = None if asked.result is None or target.trial is None else asked.result.trials[target.trial]
    origin = model_card.origin(trained.config, asked.result, trial, _of_branch(target.place, asked.branch))
    with _new_folder(asked.out) as aside:
        exported = exporting.write(aside, given)
        (aside / RECIPE).write_text(_recipe(trained.config))
        card = model_card.text(asked.out.name, exported.description, origin, license_name=asked.license_name)
        (aside / model_card.CARD).write_text(card)
    return Written(asked.out, _with_all_files(exported, asked.out))


def write(
    out: Path,
    weights: Weights,
    *,
    layout: Layout,
    license_name: str,
    evaluations: Sequence[ProtocolResult] = (),
) -> Written:
    """Other people's weights as such a folder. Errors as of `run`."""
    from trainers.weights import exporting

    check_backbone(weights.description.backbone, layout)
    origin = Origin(evaluations=tuple(evaluations))
    with _new_folder(out) as aside:
        exported = exporting.write(aside, exporting.of_weights(weights, layout=layout))
        card = model_card.text(out.name, exported.description, origin, license_name=license_name)
        (aside / model_card.CARD).write_text(card)
    return Written(out, _with_all_files(exported, out), weights)


# --- parts ------------------------------------------------------------------------------------------------------------


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Written aside; RequestError where there is something at `path` by the end."""
    try:
        with files.named(path), files.folder_whole(path) as aside:
            yield aside
    except FileExistsError as error:
        raise RequestError(f"{path} was made by somebody else meanwhile; name another folder with --out") from error


def _check_format(config: TrialConfig, layout: Layout, branch: Branch) -> None:
    if branch == "teacher" and config.model.teacher is None:
        raise RequestError(
            "--branch teacher needs a run with a teacher, but model.teacher is null in its config; take --branch "
            "student"
        )
    backbone = config.model.backbone
    check_backbone(backbone, layout)
    largest = max(view.size for view in config.views)
    if layout == "torchvision" and isinstance(backbone, ViTConfig) and config.views[0].size != largest:
        raise RequestError(
            f"torchvision's transformer takes images of one size, {largest} pixels as its positions, but this one was "
            f"judged at {config.views[0].size}; take --format timm or onnx"
        )


def _of_branch(place: str, branch: Branch) -> list[ProtocolResult]:
    """What protocols have said of this network, and not of the other one or of how it was before any training."""
    return [
        one
        for one in evaluate.stored(place)
        if not one.subject.endswith(evaluate.UNTRAINED)
        and (one.protocol.get("source") == "teacher") == (branch == "teacher")
    ]


def _source(target: Target, epoch: int) -> str:
    if target.trial is None:
        return f"a checkpoint after {epoch} epochs"
    return f"trial {target.trial} of the sweep {target.name.rpartition('/')[0]} after {epoch} epochs"


def _recipe(config: TrialConfig) -> str:
    """Every setting; of data and weights to start from the name alone, as they lie elsewhere on other machines."""
    values = config.model_dump(mode="json")
    path = config.data.path
    values["data"]["path"] = storage.name_of(path) if storage.is_uri(path) else Path(path).name
    if config.init is not None:
        values["model"]["backbone"]["init"]["path"] = Path(config.init.path).name
    return json.dumps(values, indent=2) + "\n"


def _with_all_files(exported: Exported, folder: Path) -> Exported:
    return exported._replace(files=tuple(sorted(path.name for path in folder.iterdir())))
