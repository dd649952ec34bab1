"""Other people's weights, turned into an export's folder: what is asked, checked without torch as far as that goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from pretune.analysis import export
from pretune.analysis.export import Written
from pretune.core.errors import RequestError
from pretune.core.messages import validated
from pretune.request import overrides, usercode
from trainers.config import Backbone
from trainers.init_file import ENCODER, file_of
from trainers.settings import Resampling
from trainers.weights.folder import Layout

if TYPE_CHECKING:
    from trainers.weights.matching import Branch

ROOT = Path("imports")
"""Where imports go, from here."""

Colors = tuple[float, float, float]


class _Asked(BaseModel):
    """For pydantic's sake: the path of a backbone's setting as it is typed, `backbone.stem`."""

    model_config = ConfigDict(extra="forbid")

    backbone: Backbone


@dataclass(frozen=True)
class Request:
    """What will be read and written, checked. None: as the file says."""

    file: Path
    out: Path
    layout: Layout
    backbone: Backbone | None
    settings: dict[str, Any]
    """Of the backbone that the file tells, where none is named."""
    size: int | None
    mean: Colors | None
    std: Colors | None
    resampling: Resampling | None
    branch: Branch
    license_name: str
    trust_code: bool = False
    """Whether code that an export names as its network may be run."""


def check(
    file: str,
    *,
    out: Path | None = None,
    backbone: str | None = None,
    assignments: Sequence[str] = (),
    size: int | None = None,
    mean: Colors | None = None,
    std: Colors | None = None,
    resampling: Resampling | None = None,
    branch: Branch = "student",
    layout: Layout = "timm",
    license_name: str = export.UNKNOWN_LICENSE,
    trust_code: bool = False,
) -> Request:
    """RequestError, or a ValueError of the file's, where there is no such file or backbone, or something at `out`."""
    found = file_of(file, Path.cwd())
    name = found.parent.name if found.name == ENCODER else found.name.partition(".")[0]
    folder = (out if out is not None else ROOT / name).absolute()
    export.check_folder(folder)
    export.check_installed(layout)
    settings = overrides.parse(assignments)
    given = None
    if backbone is not None:
        given = _backbone({"kind": usercode.absolute(backbone, Path.cwd()), **settings})
        export.check_backbone(given, layout)
        settings = {}
    return Request(
        found, folder, layout, given, settings, size, mean, std, resampling, branch, license_name, trust_code
    )


def run(asked: Request) -> Written:
    """Reads and writes. RequestError where the file is damaged, needs running, or is no such backbone; RuntimeError
    where what was written gives other features.
    """
    from trainers.weights import reading
    from trainers.weights.architecture import guess
    from trainers.weights.opening import opened

    try:
        backbone = asked.backbone
        if backbone is None and asked.settings:
            told = guess(reading.read(asked.file), branch=asked.branch).config
            backbone = _backbone({**told.model_dump(mode="json"), **asked.settings})
        weights = opened(
            asked.file,
            backbone=backbone,
            size=asked.size,
            mean=asked.mean,
            std=asked.std,
            resampling=asked.resampling,
            branch=asked.branch,
            trust_code=asked.trust_code,
        )
        return export.write(asked.out, weights, layout=asked.layout, license_name=asked.license_name)
    except ValueError as error:
        raise RequestError(str(error)) from error


def _backbone(values: dict[str, Any]) -> Backbone:
    return validated(_Asked, {"backbone": values}).backbone
