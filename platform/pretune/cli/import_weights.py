"""`pretune import`: other people's weights, for recipes to start from and tables to compare with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from pretune.cli.exits import checking
from pretune.cli.export import keep
from pretune.cli.options import Json, License, TrustCode
from pretune.core.errors import RequestError
from pretune.display import screen


def import_command(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="a .safetensors, a state dict (.pth), an export's folder, or a checkpoint of ours"
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="a new folder; default: below imports/")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone", metavar="KIND", help="what it is, where names and shapes do not tell: timm:resnet101"
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="of the backbone, such as stem=small; may be given again"),
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=4, max=1024, help="of its images in pixels; default: 224, or as it says")
    ] = None,
    mean: Annotated[
        str | None, typer.Option("--mean", metavar="R,G,B", help="of its images, 0 to 1; default: ImageNet's")
    ] = None,
    std: Annotated[str | None, typer.Option("--std", metavar="R,G,B", help="their standard deviations")] = None,
    resampling: Annotated[
        Literal["bilinear", "bicubic"] | None, typer.Option("--resampling", help="of its images; default: bicubic")
    ] = None,
    branch: Annotated[
        Literal["student", "teacher"],
        typer.Option("--branch", help="of a network and its moving average in one file, which"),
    ] = "student",
    layout: Annotated[
        Literal["torchvision", "timm", "onnx"], typer.Option("--format", help="as for `pretune export`")
    ] = "timm",
    license_name: License = "unknown",
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Other people's weights as such a folder as `pretune export` writes: to start from, to evaluate, to export."""
    from pretune.analysis import importing

    console = screen.console()
    with checking():
        asked = importing.check(
            file,
            out=out,
            backbone=backbone,
            assignments=settings or (),
            size=size,
            mean=_colors(mean, "--mean"),
            std=_colors(std, "--std"),
            resampling=resampling,
            branch=branch,
            layout=layout,
            license_name=license_name,
            trust_code=trust_code,
        )
    keep(
        console,
        lambda: importing.run(asked),
        "reading",
        lambda place: {
            f"pretune train RECIPE --set model.backbone.init={place}": "start from it",
            f"pretune eval {place} --data DATA": "judge it",
        },
        as_json=as_json,
    )


def _colors(typed: str | None, option: str) -> tuple[float, float, float] | None:
    if typed is None:
        return None
    try:
        numbers = [float(part) for part in typed.split(",")]
    except ValueError:
        numbers = []
    least = 0.0 if option == "--mean" else 1e-6
    if len(numbers) != 3 or not all(math.isfinite(number) and least <= number <= 1.0 for number in numbers):
        raise RequestError(
            f"{option} must be three numbers of red, green and blue, up to 1, such as 0.485,0.456,0.406, but is "
            f"{typed!r}; change it"
        )
    return numbers[0], numbers[1], numbers[2]
