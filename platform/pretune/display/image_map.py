"""Images on a map, as one HTML file that opens from disk without a network: point at one to see it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pretune.core.errors import RequestError

if TYPE_CHECKING:
    from pretune.analysis.projection import Plane

MARK = "made by pretune embed"
LEGEND = 12
"""Classes in a legend; more are in a list."""
_QUALITY = 75  # of thumbnails, as JPEG


@dataclass(frozen=True)
class Map:
    """What is on it. `count`: of how many images those shown were drawn; `labels` [n], from -1, with `class_names`."""

    title: str
    plane: Plane
    thumbnails: Sequence[NDArray[np.uint8]]
    names: Sequence[str]
    labels: NDArray[np.int64]
    class_names: Sequence[str]
    count: int
    method: str
    made: Sequence[str]


def check_target(path: Path, *, overwrite: bool) -> None:
    """RequestError where no map can be written to `path`, or what makes the page is not installed."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise RequestError(f"--map must end in .html, but is {path}; change its name")
    if path.exists() and (path.is_dir() or not overwrite):
        raise RequestError(f"{path} is there already; add --overwrite to replace it, or choose another --map")
    missing = [name for name in ("plotly", "jinja2") if find_spec(name) is None]
    if missing:
        raise RequestError(f"a map needs {' and '.join(missing)}, not installed here; pip install 'pretune[report]'")


def page(found: Map) -> str:
    """The file's text, with plotly and all thumbnails in it."""
    import jinja2
    import markupsafe
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    folder = resources.files("pretune.display") / "page"

    def part(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    shown = len(found.names)
    drawn = (
        f"All {shown:,} images." if shown == found.count else f"{shown:,} of {found.count:,} images, drawn at random."
    )
    images: dict[str, Any] = {
        "points": np.round(found.plane.points, 6).tolist(),
        "labels": found.labels.tolist(),
        "names": list(found.names),
        "thumbnails": [_jpeg(pixels) for pixels in found.thumbnails],
        "classes": list(found.class_names),
        "legend": LEGEND,
        "axes": [*found.plane.axes, found.method == "umap"],
    }
    ways = {
        "pca": "PCA: the two directions in which the features of these images differ most. Distances along them are "
        "true, what differs in other directions is not seen.",
        "umap": "UMAP keeps neighbors together. Distances between groups and their sizes mean little.",
    }
    return environment.from_string(part("map.html.jinja")).render(
        mark=MARK,
        title=found.title,
        lead=[f"{drawn} Each point is an image; point at it, or tap it, to see which."],
        alt=f"A map of {shown:,} images by {found.method.upper()}",
        how=f"{ways[found.method]} {_choosing(len(found.class_names))}",
        class_names=found.class_names,
        made=found.made,
        images=images,
        style=markupsafe.Markup(part("report.css")),
        map_style=markupsafe.Markup(part("map.css")),
        script=markupsafe.Markup(part("map.js")),
        plotly=markupsafe.Markup(get_plotlyjs()),
    )


def _choosing(count: int) -> str:
    """How some of the classes are looked at; with more than the page's script puts into a legend, by a list."""
    if count > LEGEND:
        return "One class alone is chosen from the list above the map."
    return "A class in the legend is hidden by a click, and alone after two." if count else ""


def _jpeg(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=_QUALITY)
    return base64.b64encode(content.getvalue()).decode()
